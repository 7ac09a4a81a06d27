"""Bring what is served up to date with the raw files: the stages that changed listings need, with the flags that each had.

Reads   data/raw/, or where the flags of the stages say that listings and photos are
Writes  the folders from data/tabular/ to data/index/; data/model/ only where a training is due
Run     python update.py
        python update.py --nice 10 --train never

Exit code 0: done, or nothing to do; 1: a stage failed, and what was served stays served; 2: a wrong flag; 3: another update is at
work, and nothing was done.
"""

import argparse
import contextlib
import gc
import importlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from marketplace.cleaning.listings import read_classes
from marketplace.files import cli, locks, reading, stages
from marketplace.files.stages import StageError

TABLES, SERVING = ("tabular", "images", "dataset"), ("embeddings", "index")
TRAINING = ("when-needed", "never", "always")
BUSY = 3  # exit code: another update is at work
LEAST_OF_LABEL = 10  # listings of a category that the model does not know: fewer teach it nothing
MAX_MOVED = 0.05  # of the listings that the model was trained with: those whose label or split is another one by now
MAX_NICE = 19


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument(
        "--train",
        default=TRAINING[0],
        choices=TRAINING,
        help=f"when-needed: for a new category of at least {LEAST_OF_LABEL} listings, or when the category or the split of more "
        f"than {100 * MAX_MOVED:g}%% of the listings has changed since the last training (default: %(default)s)",
    )
    parser.add_argument(
        "--nice",
        default=0,
        type=cli.not_negative,
        help=f"priority to give up for what else the machine does, up to {MAX_NICE} (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.nice > MAX_NICE:
        parser.error(f"argument --nice: {args.nice} is above {MAX_NICE}")
    return args


@dataclass
class Update:
    """The stages that one update runs in this process, where what several of them import is imported once."""

    data_dir: Path
    flags: dict[str, list[str]]
    summaries: dict[str, dict] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, *names: str) -> None:
        for name in names:
            started_s = time.perf_counter()
            script = importlib.import_module(stages.STAGES[name].script.removesuffix(".py"))
            args = script.parse_args([*self.flags[name], f"--data={self.data_dir}"])
            self.summaries[name] = script.run(args)
            self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - started_s, 2)


def run(args: argparse.Namespace) -> dict:
    os.nice(args.nice)
    flags = {name: stages.last_flags(args.data, name) for name in (*TABLES, "model", *SERVING)}
    update = Update(args.data, flags)
    with uncollected():
        update.run(*TABLES)
    unusable = why_unusable(args.data)
    due = [unusable] if unusable else why_train(args.data)
    if not unusable:
        update.run(*SERVING)  # first: a training takes its time, and may fail
    trains = args.train == "always" or bool(due) and args.train == "when-needed"
    if trains:
        update.run("model")
    if trains or unusable:
        update.run(*SERVING)
    return summarise(update, due, trains)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without looks for rubbish in circles: a dictionary a listing is looked through time and again, and there is none."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def why_unusable(data_dir: Path) -> str:
    """Why no listing can be embedded and served with the model that is there; empty where they can."""
    try:
        stages.check(data_dir, "model", made_from=("dataset/settings.json",))
        importlib.import_module("build_index").checked_currency(data_dir)
    except StageError as error:
        return str(error)
    return ""


def why_train(data_dir: Path) -> list[str]:
    """What a training would mend: categories that the model does not know, listings that have moved since it was trained."""
    listings = reading.read_csv(data_dir / "dataset" / "listings.csv", usecols=["product_id", "label", "split"])
    classes = read_classes(data_dir / "tabular")
    listings["label"] = np.array(classes)[listings["label"].astype(int)]
    learned = reading.read_json(data_dir / "model" / "image_model.json")["classes"]
    sizes = listings["label"].value_counts()
    new = [name for name in classes if name not in learned and sizes.get(name, 0) >= LEAST_OF_LABEL]
    reasons = [f"{sizes[name]} listings of the new category {name}" for name in new]
    moved = share_moved(listings, data_dir / "model" / stages.LEARNED)
    return reasons + ([f"{moved:.0%} of the listings have another category or split"] if moved > MAX_MOVED else [])


def share_moved(listings, path: Path) -> float:
    """The share, of the listings that are still there, whose label or split was another one at the training."""
    if not path.exists():  # a model of before that was written down: its categories tell enough
        return 0.0
    both = reading.read_csv(path).merge(listings, on="product_id", suffixes=("_then", ""))
    moved = (both["label_then"] != both["label"]) | (both["split_then"] != both["split"])
    return float(moved.mean()) if len(both) else 0.0


def summarise(update: Update, due: list[str], trained: bool) -> dict:
    index, embeddings = update.summaries["index"], update.summaries["embeddings"]
    changed = not index.get("unchanged")
    state = "done" if trained else "due" if due else "not needed"
    return {
        "updated": changed,
        "generation": index["generation"],
        **{name: index[name] for name in ("listings", "photos", "published") if name in index},
        **{name: 0 if embeddings.get("unchanged") else embeddings[name] for name in ("listings_embedded", "photos_embedded")},
        "training": f"{state}: {'; '.join(due)}" if due else state,
        "seconds": update.seconds,
    }


def main(argv=None) -> int:
    args = parse_args(argv)
    if not args.data.is_dir():
        print(f"error: {args.data} is no folder: give the stages' one with --data", file=sys.stderr)
        return 1
    try:
        with locks.hold(args.data, exclusive=True), stages.keep_digests():
            return cli.exit_code(run, args)
    except locks.Locked:
        print(f"error: another update is at work in {args.data}: wait for its end", file=sys.stderr)
        return BUSY


if __name__ == "__main__":
    sys.exit(main())
