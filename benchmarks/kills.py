"""A thousand random SIGKILLs over all stages and publishing: no half state after any, and the same bytes at the end.

A small marketplace is drawn and goes through all stages undisturbed. Then stages are killed at random moments of a run, some
times in a row, looked at after every kill, and run to their end. The word index, whose files have random names, is compared by
its answers.

Run     python benchmarks/kills.py --quick                    forty kills, in the quick stages
        python benchmarks/kills.py --kills 1000 --minutes 60  whichever is over first
"""

import argparse
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when libraries are loaded: a process is forked for every run
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import results

from demo import sample
from marketplace.files import generations, reading, stages
from marketplace.files.stages import StageError
from marketplace.retrieval.builds import Published
from marketplace.retrieval.recommender import Recommender

LISTINGS = 45
TRAIN_FLAGS = ["--backbone", "efficientnet_lite0", "--image-size", "64", "--epochs", "3", "--workers", "0", "--device", "cpu"]
TRAIN_FLAGS += ["--text-encoder", "none"]  # its package need not be installed to try kills
FLAGS = {"images": ["--workers", "1"], "model": TRAIN_FLAGS, "embeddings": ["--device", "cpu"]}  # beside --data
STAGES = {  # folder -> main, and flags
    name: (importlib.import_module(contract.script.removesuffix(".py")).main, FLAGS.get(name, []))
    for name, contract in stages.STAGES.items()
    if name != "features"  # train.py writes them on its way to the model
}
PUBLISH = "publishing"
SHARES = {
    "tabular": 15,
    "images": 25,
    "dataset": 15,
    "embeddings": 12,
    "index": 20,
    PUBLISH: 10,
    "model": 1,
    "evaluation": 2,
}  # kills
QUICK = ("tabular", "images", "dataset", "index", PUBLISH)
IN_A_ROW = 4  # kills at most before a stage may end
PUBLISH_S = 0.3  # in which several generations are published
WRITTEN_TWICE = {"image_model.json"}  # before and after the model in 8 bits is measured
TELL_TIMES = {"manifest.json", "report.json", ".records.sqlite", ".records.sqlite-wal"}  # files that differ between runs


def forked(work: Callable[[], int | None], kill_after_s: float | None = None) -> int | None:
    """Run work() in a process of its own; its exit code, None where it was killed after so many seconds.

    Its output goes to a file named in the error when it fails.
    """
    log = tempfile.NamedTemporaryFile(mode="w+", prefix="kills-", suffix=".log")  # noqa: SIM115
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            code = work() or 0
        except BaseException:  # a fork of this script must not go on with it; the owner prints what is logged here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return None
    if code := os.WEXITSTATUS(status):
        log.seek(0)
        print(log.read()[-3000:], file=sys.stderr)
    return code


def tree(folder: Path) -> dict[str, str]:
    """Path -> sha256 of every file of a finished stage, but for those that tell times and the word index."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in TELL_TIMES and path.parent.name != "words")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def answers(index_dir: Path) -> list:
    """What the published generation answers to the name of each of its listings."""
    recommender = Recommender(generations.current_generation(index_dir))
    names = [recommender.catalogue.product(row)["name"] for row in range(recommender.catalogue.n_products)]
    return [recommender.recommend(recommender.query(text=name), 10) for name in names]


@dataclass
class Undisturbed:
    """What a run that nobody disturbs writes: the tree() of each stage; seconds: in which a kill finds it at work."""

    data_dir: Path
    seconds: dict[str, float]
    trees: dict[str, dict[str, str]]

    @classmethod
    def run(cls, data_dir: Path) -> "Undisturbed":
        sample.write(data_dir / "raw", listings=LISTINGS)
        seconds, trees = {PUBLISH: PUBLISH_S}, {}
        for name, (main, flags) in STAGES.items():
            started_s = time.monotonic()
            if forked(lambda main=main, flags=flags: main(["--data", str(data_dir), *flags])) != 0:
                sys.exit(f"error: {name} does not run")
            seconds[name] = time.monotonic() - started_s
            trees[name] = tree(data_dir / name)
            print(f"{name}: {seconds[name]:.1f} s undisturbed", file=sys.stderr)
        return cls(data_dir, seconds, trees)


def half_states(data_dir: Path, name: str, expected: dict[str, str]) -> list[str]:
    """What a kill left in a stage's folder that is neither nothing nor whole."""
    folder, found = data_dir / name, []
    if not folder.is_dir():
        return found
    try:
        outputs = stages.read_manifest(folder)["outputs"]
    except StageError as error:
        outputs = {}
        if (folder / stages.MANIFEST).exists():
            found.append(str(error))
    try:
        if stages.digests(folder, *outputs) != outputs:
            found.append("a manifest with files that it does not speak of")
    except StageError as error:
        found.append(f"a manifest, and {error}")
    for path, digest in tree(folder).items():
        if any(part.startswith(".") for part in Path(path).parts):
            continue  # temporary files and records, which no reader looks at
        if path not in expected and name == "embeddings":
            reading.read_array(folder / path)  # parts of what is not finished; StageError when one is half
        elif path in WRITTEN_TWICE:
            reading.read_json(folder / path)  # likewise
        elif expected.get(path) != digest:
            found.append(f"{path} is not what an undisturbed run writes")
    return found + (half_generations(folder) if name == "index" else [])


def half_generations(index_dir: Path) -> list[str]:
    """Generations that have their name and are not whole, and a pointer that names none."""
    folders = [path for path in index_dir.iterdir() if path.is_dir() and not path.name.startswith(".")]
    found = [f"{folder.name} is not whole" for folder in folders if not Published.read(folder).is_whole()]
    if (index_dir / "current.json").exists():
        try:
            generations.current_generation(index_dir)
        except StageError as error:
            found.append(str(error))
    return found


def fresh(undisturbed: Undisturbed, data_dir: Path, name: str) -> None:
    """A data folder in which a stage has not run; what it reads are the very files of the undisturbed run."""
    shutil.rmtree(data_dir, ignore_errors=True)
    data_dir.mkdir()
    reads = ["raw", *itertools.takewhile(lambda other: other != name, STAGES)]
    if name in ("evaluation", PUBLISH):
        reads = ["raw", "features", *(other for other in STAGES if other != name)]
    for other in reads:
        (data_dir / other).symlink_to(undisturbed.data_dir / other)


def kill_stage(
    undisturbed: Undisturbed, data_dir: Path, name: str, kills: int, generator: random.Random
) -> tuple[int, list[str]]:
    """Kill a stage some times in a row, then let it end; how many runs were killed, and what was wrong."""
    fresh(undisturbed, data_dir, name)
    main, flags = STAGES[name]
    run = lambda: main(["--data", str(data_dir), *flags])  # noqa: E731
    killed, wrong = 0, []
    for _ in range(kills):
        after_s = generator.uniform(0, undisturbed.seconds[name])
        if forked(run, after_s) is None:
            killed += 1
        else:  # it was quicker than the run that told the seconds
            undisturbed.seconds[name] *= 0.8
        wrong += half_states(data_dir, name, undisturbed.trees[name])
    if forked(run) != 0:
        wrong.append("the last run failed")
    elif visible(tree(data_dir / name)) != visible(undisturbed.trees[name]):
        wrong.append("the last run's files differ")
    elif name == "index" and forked(lambda: answers(data_dir / "index") != answers(undisturbed.data_dir / "index")) != 0:
        wrong.append("the last run's index answers otherwise")
    return killed, wrong


def visible(files: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in files.items() if Path(path).name != ".lock"}


def kill_publishing(undisturbed: Undisturbed, data_dir: Path, kills: int, generator: random.Random) -> tuple[int, list[str]]:
    """Kill a process that publishes one generation after the other; each is the catalogue and the vectors of the index."""
    shutil.rmtree(data_dir, ignore_errors=True)
    index_dir = data_dir / "index"
    source = generations.current_generation(undisturbed.data_dir / "index")
    names = ("catalogue.sqlite", "vectors.npy", "photo_keys.npy", "ranker.json")
    digests = stages.digests(source, *names)
    report = {"schema": stages.STAGES["index"].schema, "files": digests}

    def publish() -> None:
        for number in itertools.count():
            with generations.new_generation(index_dir, generations.free_name(index_dir, f"{os.getpid()}-{number}")) as folder:
                for name in names:
                    shutil.copyfile(source / name, folder / name)
                (folder / "report.json").write_text(json.dumps(report))

    killed, wrong = 0, []
    for _ in range(kills):
        killed += forked(publish, generator.uniform(0, PUBLISH_S)) is None
        wrong += half_generations(index_dir) if index_dir.is_dir() else []
    return killed, wrong


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", default=1000, type=int, help="how many runs to kill (default: %(default)s)")
    parser.add_argument("--minutes", default=60, type=float, help="stop after so many (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=int, help="of stages and moments (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="forty kills, and no training or embedding")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    generator = random.Random(args.seed)
    shares = {name: share for name, share in SHARES.items() if not args.quick or name in QUICK}
    kills, wrong, rounds = Counter(), Counter(), 0
    with tempfile.TemporaryDirectory(prefix="marketplace-kills-") as temporary:
        undisturbed = Undisturbed.run(Path(temporary) / "undisturbed")
        data_dir, deadline_s = Path(temporary) / "killed", time.monotonic() + 60 * args.minutes
        wanted = 40 if args.quick else args.kills
        while (left := wanted - kills.total()) > 0 and time.monotonic() < deadline_s:
            name = min(shares, key=lambda name: kills[name] / shares[name])
            times = min(left, generator.randint(1, IN_A_ROW))
            if name == PUBLISH:
                killed, faults = kill_publishing(undisturbed, data_dir, times, generator)
            else:
                killed, faults = kill_stage(undisturbed, data_dir, name, times, generator)
            rounds += 1
            kills[name] += killed
            wrong[name] += len(faults)
            for fault in faults:
                print(f"{name}: {fault}", file=sys.stderr)
            print(f"{kills.total():,} kills, {wrong.total()} half states or different ends", file=sys.stderr)
    figures = {"kills": kills.total(), "ends": rounds, "wrong": wrong.total(), "kills_by_stage": dict(sorted(kills.items()))}
    print(json.dumps(figures))
    if not args.quick:
        results.save("kills", figures, results.command())
    return 1 if wrong.total() else 0


if __name__ == "__main__":
    sys.exit(main())
