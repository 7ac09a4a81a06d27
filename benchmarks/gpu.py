"""Training, embedding and serving on a GPU: photos a second, whether the numbers are a CPU's, and what each stage takes there.

Makes its own photos (the demo's drawings, cleaned) and runs each leg in a process of its own, so that one that fails or hangs
takes no other along; what is measured is written after each.
Reads   nothing
Writes  benchmarks/results/gpu.json (with --quick nothing, unless --results is given)
Run     python benchmarks/gpu.py                            on one GPU, 8 minutes at most
        python benchmarks/gpu.py --device cpu --quick       the same in small, without a GPU
Needs   of requirements.txt, beside torch and what a GPU's image usually holds: faiss-cpu, fastapi, fastapi-offline, gunicorn,
        lightgbm, orjson, pillow, pillow-heif, python-multipart, pytorch-metric-learning, rapidfuzz, tantivy, uvicorn and
        uvicorn-worker, with pydantic, starlette, opentelemetry-api and typing_extensions: 47 MB of wheels. No text encoder,
        no pretrained weights
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from marketplace.files import atomic, cli

ALLOWED_S = 480  # for all legs together
CLIENTS = 32
TUNED_WORKERS = 8  # processes that decode for training: train.py's most
DIMENSION = 256  # of the embedding


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    backbone: str
    side: int  # pixels of the model's input
    listings: int
    batch: int
    steps: int  # batches of an epoch on ready photos
    epochs: int
    trained_epochs: int  # of the model that is served and embeds: enough that its vectors differ
    repeats: int  # of every photo where training has them from files, so that an epoch is long enough to be timed
    embedded_repeats: int  # likewise, of embedding
    compared: int  # photos that a CPU embeds too
    ready_batches: int  # to time the model alone
    queries: int  # photos sent to the API, by one client and by many
    many_queries: int


FULL = Size("resnet50", 224, 400, 32, 16, 6, 12, 8, 45, 256, 60, 150, 2_000)
QUICK = Size("resnet18", 64, 45, 8, 2, 2, 2, 1, 1, 16, 1, 4, 40)
LARGER_BATCH = 4  # times the usual one


@dataclass(frozen=True)
class Bench:
    """What a leg is run with. folder: of all legs; its data/ is a data folder as the stages make it."""

    folder: Path
    device: str
    size: Size

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def gpu_way(self) -> str:
        """The device by a name that takes the GPU's way through the code, on a CPU too."""
        return "cpu:0" if self.device == "cpu" else self.device

    def wait(self) -> None:
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start


# The photos


def marketplace_leg(bench: Bench) -> Iterator[dict]:
    """Draw, clean and split the photos with the first three stages."""
    import clean_images
    import clean_tabular_data
    import dataset
    from demo import sample

    sample.write(bench.data_dir / "raw", listings=bench.size.listings)
    for main_of_stage in (clean_tabular_data.main, clean_images.main, dataset.main):
        with contextlib.redirect_stdout(io.StringIO()):
            assert main_of_stage(["--data", str(bench.data_dir)]) == 0
    sizes = [path.stat().st_size for path in (bench.data_dir / "images").glob("*.jpg")]
    yield {"listings": bench.size.listings, "photos": len(sizes), "jpeg_kb": round(sum(sizes) / len(sizes) / 1000, 1)}


# Training


def training_config(bench: Bench, way: str, batch: int, workers: int, finetune: str = "all"):
    import train
    from marketplace.models import training

    return training.TrainingConfig(
        finetune=finetune,
        pretrained=False,
        image_size=bench.size.side,
        embedding_size=DIMENSION,
        epochs=bench.size.epochs,
        batch_size=batch,
        learning_rate=train.SCRATCH_LEARNING_RATE,
        seed=0,
        workers=workers,
        device=bench.device,
        bf16=way != "fp32",
    )


def fresh_network(bench: Bench, n_classes: int, seed: int):
    import torch

    from marketplace.models import backbone

    torch.manual_seed(seed)
    network = backbone.build(bench.size.backbone, "none", n_classes, bench.size.side)
    backbone.prepare_for_scratch(network)
    network.embedder = backbone.Projection(network.head.in_features, DIMENSION, power=True)
    network.normaliser = backbone.Normaliser(bench.size.side, *backbone.normalisation(bench.size.backbone), bench.device)
    return network


def ready_photos(bench: Bench):
    """The training photos, and some batches of them as training gets them on a card: (3, H, W) bytes, in pinned memory."""
    import torch

    from dataset import ListingPhotos

    photos = ListingPhotos(bench.data_dir, "train")
    wanted = min(len(photos), bench.size.batch * bench.size.steps)
    ready = next(iter(torch.utils.data.DataLoader(photos, wanted, num_workers=min(cli.cores(), 16))))
    return photos, [values.pin_memory() for values in ready] if bench.device != "cpu" else ready


def training_leg(bench: Bench) -> Iterator[dict]:
    """Photos a second of both kinds of training, on ready photos and from files, by precision; and the loss each ends with."""
    photos, ready = ready_photos(bench)
    batch, larger = bench.size.batch, LARGER_BATCH * bench.size.batch
    yield {"ready_photos": len(ready[0]), "batch": batch, "larger_batch": larger, "workers": min(cli.cores(), TUNED_WORKERS)}
    yield {"all": {way: tune(bench, photos, ready, way, batch) for way in ("bf16", "fp32")}}
    yield {"all_larger_batch": tune(bench, photos, ready, "bf16", larger)}
    found = {}
    for size in (batch, larger):
        found[str(size)] = from_files(bench, size)
        yield {"from_files": found}
    yield {"head": {way: frozen(bench, photos, ready, way) for way in ("fp32", "bf16")}}
    yield {"fp32_losses_of_other_seeds": [tune(bench, photos, ready, "fp32", batch, seed)["loss"] for seed in (1, 2)]}


def compiled_leg(bench: Bench) -> Iterator[dict]:
    """What compiling would bring, which nothing here does: its first epoch is far longer than a training."""
    photos, ready = ready_photos(bench)
    yield {"all": tune(bench, photos, ready, "compiled", bench.size.batch)}
    yield {"head": frozen(bench, photos, ready, "compiled")}


def batches_of(ready, batch: int, order: np.ndarray) -> list:
    """The ready photos (pixels, labels, rows) in batches, in another order; the photos of a listing stand together."""
    pixels, labels, rows = (values.split(batch) for values in ready)
    return [(pixels[n], labels[n], rows[n]) for n in order if n < len(pixels)]


def tune(bench: Bench, photos, ready, way: str, batch: int, seed: int = 0) -> dict:
    """Train the whole network on ready photos, as fine_tune() does; "compiled": in bf16 and compiled."""
    import torch

    import train
    from marketplace.models import training

    config = training_config(bench, way, batch, 0)
    network = fresh_network(bench, len(photos.classes), seed).to(bench.device, memory_format=torch.channels_last)
    count = len(ready[0]) // batch or 1
    moving = training.Moving.begin(network, config, config.epochs * count)
    batch_loss = training.BatchLoss(train.labelled(photos), len(photos.classes), training.Ranks(), bench.device)
    parallel = torch.compile(moving.trained, dynamic=False) if way == "compiled" else moving.trained
    generator, seconds, losses = np.random.default_rng(seed), [], []
    for _ in range(config.epochs):
        batches = batches_of(ready, batch, generator.permutation(count))
        epoch = functools.partial(training.train_epoch, moving, parallel, batches, batch_loss, config)
        seconds.append(bench.seconds(lambda epoch=epoch: losses.append(epoch())))  # noqa: B023
    seen = sum(len(pixels) for pixels, _, _ in batches)
    return {"photos_per_s": round(seen / min(seconds[1:])), "loss": round(losses[-1], 4), "first_epoch_s": round(seconds[0], 2)}


def frozen(bench: Bench, photos, ready, way: str) -> dict:
    """Train a head alone: the frozen backbone's features of the ready photos, and the loss of a head trained on them."""
    import torch

    import train
    from marketplace.models import backbone, training

    network = fresh_network(bench, len(photos.classes), 0).to(bench.device, memory_format=torch.channels_last)
    if way == "compiled":
        network.backbone = torch.compile(network.backbone, dynamic=False)
    run = backbone.frozen_backbone(network, bench.size.side, bench.gpu_way)
    batches = batches_of(ready, bench.size.batch, np.arange(len(ready[0]) // bench.size.batch))
    found = []

    def features() -> None:
        with torch.autocast(torch.device(bench.device).type, torch.bfloat16, enabled=way != "fp32"):
            found.append(training.forward(run, batches, "features").float())

    seconds = [bench.seconds(features) for _ in range(4)]
    count = sum(len(pixels) for pixels, _, _ in batches)
    features_of, labels = found[-1].numpy(), ready[1][:count].numpy()
    codes = np.arange(count)
    split = training.Photos(features_of, labels, codes, codes, codes, features_of)
    losses = []
    config = training_config(bench, way, bench.size.batch, 0, "head")
    config = dataclasses.replace(config, learning_rate=train.LEARNING_RATE, epochs=train.EPOCHS["head"])
    torch.manual_seed(0)
    torch.nn.init.zeros_(network.head.weight)
    training.train_head(network.head, split, split, config, lambda **values: losses.append(values["train_loss"]))
    return {"photos_per_s": round(count / min(seconds[1:])), "loss": round(losses[-1], 4), "first_pass_s": round(seconds[0], 2)}


def from_files(bench: Bench, batch: int) -> dict:
    """Photos a second of both kinds of training from JPEGs, as train.py runs them."""
    import torch

    import train
    from marketplace.models import training

    config = dataclasses.replace(training_config(bench, "bf16", batch, min(cli.cores(), TUNED_WORKERS)), epochs=2)
    data = train.Photos(bench.data_dir, bench.size.backbone, config)
    changed = data.changed_at_random()
    many = [torch.utils.data.ConcatDataset([photos] * bench.size.repeats) for photos in (changed.photos, data.every)]
    listings, labels = (np.tile(values, bench.size.repeats) for values in (changed.listings, changed.labels))
    network = fresh_network(bench, len(data.every.classes), 0).to(bench.device, memory_format=torch.channels_last)
    ends = []
    with mock.patch.object(training, "save_checkpoint"):  # 400 MB after each epoch, which are far longer in earnest
        training.fine_tune(
            network,
            training.LabelledPhotos(many[0], listings, labels),
            lambda _: (0.0, 1.0),
            config,
            training.Checkpoint(bench.folder / "checkpoint.pt", "gpu", False),
            training.Ranks(),
            lambda **_: ends.append(time.perf_counter()),
        )
    head_s = bench.seconds(lambda: training.backbone_features(network, [many[1]], config))
    return {
        "all_photos_per_s": round(len(many[0]) / (ends[1] - ends[0])),
        "head_photos_per_s": round(len(many[1]) / head_s),
    }


# Embedding


def per_second(bench: Bench, count: int, work: Callable[[], object], repeats: int = 2) -> int:
    """The best of some runs."""
    return round(count / min(bench.seconds(work) for _ in range(repeats)))


def embedding_leg(bench: Bench) -> Iterator[dict]:
    """Photos to vectors: decoding alone, the model alone on decoded photos, both together; and how near to a CPU's in fp32."""
    import extract_embeddings
    from marketplace.cleaning import shared_pixels
    from marketplace.files import reading
    from marketplace.models import int8, photo_model

    folder, images_dir = bench.data_dir / "model", bench.data_dir / "images"
    ids = reading.read_csv(bench.data_dir / "dataset" / "training_data.csv")["image_id"].tolist()
    many, cores = ids * bench.size.embedded_repeats, cli.cores()
    served, batch = photo_model.PhotoModel(folder, "torch", bench.gpu_way), extract_embeddings.CUDA_BATCH
    side, batches = served.settings.size, extract_embeddings.batches_of(many, batch)
    yield {"embedding": served.description.embedding, "precision": served.precision, "cores": cores, "batch": batch}

    some = list(itertools.islice(itertools.cycle(ids), 4 * batch))
    stacks = list(shared_pixels.map_batches(np.copy, images_dir, extract_embeddings.parts_of(some, batch), side, cores))
    yield {"first_run_s": round(bench.seconds(lambda: served.run(stacks[0])), 2)}
    alone = alone_per_second(bench, served, [stacks[n % len(stacks)] for n in range(bench.size.ready_batches)])
    yield {"photos": len(many), "model_alone_photos_per_s": alone, "one_photo_ms": one_photo_ms(bench, served, stacks[0][0])}
    rates = {}
    for workers in sorted({cores, max(1, cores // 2)}, reverse=True):
        work = lambda workers=workers: list(extract_embeddings.run_photos(served, images_dir, many, workers, batch))  # noqa: E731
        rates[str(workers)] = per_second(bench, len(many), work)
        yield {"from_files_photos_per_s": rates, "over_model_alone": round(rates[str(cores)] / alone, 3)}
    decode = lambda: list(shared_pixels.map_batches(len, images_dir, batches, side, cores))  # noqa: E731
    yield {"decoding_alone_photos_per_s": per_second(bench, len(many), decode)}
    yield near_fp32(bench, served, photo_model.PhotoModel(folder, "torch", "cpu"), images_dir, ids, int8.neighbours_kept)


def alone_per_second(bench: Bench, served, ready: list[np.ndarray]) -> int:
    """Of batches that are decoded already, in the host's memory; two threads, so that one batch is copied while another runs."""
    with ThreadPoolExecutor(2) as pool:
        return per_second(bench, sum(map(len, ready)), lambda: list(pool.map(served.run, ready)), 3)


def one_photo_ms(bench: Bench, served, pixels: np.ndarray) -> float:
    return round(1000 * float(np.median([bench.seconds(lambda: served.run_one(pixels)) for _ in range(30)])), 2)


def near_fp32(bench: Bench, served, exact, images_dir: Path, ids: list[str], neighbours_kept: Callable) -> dict:
    """Cosines to the CPU's fp32 vectors, and the share of the ten nearest photos that stay so."""
    import extract_embeddings

    chosen = ids[:: max(1, len(ids) // bench.size.compared)][: bench.size.compared]
    run = lambda model, batch: extract_embeddings.run_photos(model, images_dir, chosen, cli.cores(), batch)  # noqa: E731
    vectors, expected = (
        np.concatenate([vectors for vectors, _ in run(model, batch)]) for model, batch in ((served, 64), (exact, 16))
    )
    cosines = (vectors * expected).sum(1)
    between = expected @ expected.T
    return {
        "compared": len(chosen),
        "mean_cosine_to_fp32": round(float(cosines.mean()), 6),
        "least_cosine_to_fp32": round(float(cosines.min()), 6),
        "mean_cosine_between_photos": round(float(between[~np.eye(len(between), dtype=bool)].mean()), 4),
        "neighbours_kept": round(neighbours_kept(expected, vectors, len(chosen)), 4),
    }


# The stages and the service


def model_leg(bench: Bench) -> Iterator[dict]:
    """A model and an index of it; on a card without the networks that only CPUs run, whose export takes longer than the rest, and
    without checkpoints.
    """
    import train
    from marketplace.models import backbone, int8, photo_model, training

    def leave_out_int8(model_dir: Path, *_) -> dict:
        (model_dir / photo_model.INT8).touch()
        return {"used": False, "reason": "8 bits are left out"}

    told, flags = io.StringIO(), ["--data", str(bench.data_dir), *train_flags(bench, bench.size.trained_epochs)]
    with contextlib.ExitStack() as left_out:
        left_out.enter_context(contextlib.redirect_stdout(told))
        if bench.device != "cpu":
            left_out.enter_context(mock.patch.object(backbone, "export_onnx", lambda _, __, path: path.touch()))
            left_out.enter_context(mock.patch.object(int8, "export", leave_out_int8))
            left_out.enter_context(mock.patch.object(training, "save_checkpoint"))
        seconds = bench.seconds(lambda: train.main(flags))
    yield {"train.py": {"seconds": round(seconds, 1)} | json.loads(told.getvalue().splitlines()[-1])}
    yield {"extract_embeddings.py": run_script(bench, "extract_embeddings.py", "--device", bench.device)}
    yield {"build_index.py": run_script(bench, "build_index.py")}


def train_flags(bench: Bench, epochs: int) -> list[str]:
    flags = {"--backbone": bench.size.backbone, "--image-size": bench.size.side, "--weights": "none", "--epochs": epochs}
    flags |= {"--batch-size": bench.size.batch, "--text-encoder": "none", "--device": bench.device}
    return [str(word) for pair in flags.items() for word in pair]


def stages_leg(bench: Bench) -> Iterator[dict]:
    """train.py, extract_embeddings.py and build_index.py as anyone runs them, with the seconds of each and what they told."""
    flags = {
        "train.py": [*train_flags(bench, 2), "--seed", "1"],  # another: nothing is there already
        "extract_embeddings.py": ["--device", bench.device],
        "build_index.py": [],
    }
    for script, more in flags.items():
        yield {script: run_script(bench, script, *more)}


def run_script(bench: Bench, script: str, *flags: str) -> dict:
    """The seconds that a stage's script took, and its summary."""
    command = [sys.executable, str(ROOT / script), "--data", str(bench.data_dir), *flags]
    start = time.perf_counter()
    told = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return {"seconds": round(time.perf_counter() - start, 1)} | json.loads(told.splitlines()[-1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def card_used_mb() -> int:
    """Of all processes together."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return round((total - free) / 1e6)


def api_leg(bench: Bench) -> Iterator[dict]:
    """Photos sent to one worker, by one client and by many, and what it takes of the card's memory."""
    from serving import Client, Server, load, percentile_ms

    on_card = bench.device != "cpu"
    jpegs = [path.read_bytes() for path in sorted((bench.data_dir / "images").glob("*.jpg"))[:50]]
    ask = lambda photo: lambda client: client.upload("/predict/similar_images", photo)  # noqa: E731
    jobs = [ask(photo) for photo in itertools.islice(itertools.cycle(jpegs), bench.size.many_queries)]
    before_mb, start, port = card_used_mb() if on_card else 0, time.perf_counter(), free_port()
    with Server(bench.data_dir, port, "--device", bench.device, start_s=50) as server:
        yield {"start_s": round(time.perf_counter() - start, 1)}
        if on_card:
            yield {"card_mb": card_used_mb() - before_mb}
        load(port, 1, jobs[:2])
        seconds, failures, _ = load(port, 1, jobs[: bench.size.queries])
        yield {"p50_ms": percentile_ms(seconds, 50), "p99_ms": percentile_ms(seconds, 99)}
        load(port, CLIENTS, jobs[:CLIENTS])
        cpu_s = server.cpu_s()
        seconds, more_failures, all_s = load(port, CLIENTS, jobs)
        yield {
            "clients": CLIENTS,
            "photos_per_s": round(len(jobs) / all_s, 1),
            "clients_p50_ms": percentile_ms(seconds, 50),
            "clients_p99_ms": percentile_ms(seconds, 99),
            "cores_in_use": round((server.cpu_s() - cpu_s) / all_s, 1),
            "errors": len(failures) + len(more_failures),
            "steps": steps(Client(port).get("/metrics")[2].decode()),
        }
        if on_card:
            yield {"card_mb_under_load": card_used_mb() - before_mb}


def steps(metrics: str) -> dict[str, float]:
    """The service's own sums: seconds in which photos were decoded and embedded, and how many."""
    lines = [line.rpartition(" ") for line in metrics.splitlines() if not line.startswith("#") and "step" in line]
    return {name: round(float(value), 3) for name, _, value in lines if name.split("{")[0].endswith(("_sum", "_count"))}


# All of it


@dataclass(frozen=True)
class Leg:
    run: Callable[[Bench], Iterator[dict]]  # figures, as they become known
    limit_s: int


LEGS = {
    "marketplace": Leg(marketplace_leg, 60),
    "model": Leg(model_leg, 90),
    "api": Leg(api_leg, 60),
    "embedding": Leg(embedding_leg, 70),
    "training": Leg(training_leg, 90),
    "stages": Leg(stages_leg, 150),
    "compiled": Leg(compiled_leg, 120),
}


def machine(device: str) -> dict:
    """What it ran on, in words."""
    import torch

    words = {
        "device": device.partition(":")[0],
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": cli.cores(),
    }
    if device != "cpu":
        words |= {"card": torch.cuda.get_device_name(), "card_gb": round(torch.cuda.mem_get_info()[1] / 1e9)}
    return words


def run_leg(name: str, bench: Bench, quick: bool, limit_s: float, log_path: Path) -> dict:
    """A leg's figures from a process of its own, with "error" where it failed or took too long; what it says goes to the log."""
    answer = bench.folder / f"{name}.json"
    command = [sys.executable, __file__, "--device", bench.device, "--leg", name, "--folder", str(bench.folder)]
    command += ["--quick"] if quick else []
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(bench.folder / "inductor"), "TRITON_CACHE_DIR": str(bench.folder / "triton")}
    caches |= (
        {"TORCHDYNAMO_DISABLE": "1"} if bench.device == "cpu" else {}
    )  # compiling for a CPU takes minutes, and tells nothing
    with log_path.open("w") as log:
        process = subprocess.Popen(command, env=os.environ | caches, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(max(0, limit_s))
        except subprocess.TimeoutExpired:
            code = f"it took more than {limit_s:.0f} s"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()
    figures = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    if code == 0:
        return figures
    lines = [line for line in log_path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    print("\n".join(lines[-30:]), file=sys.stderr)
    return figures | {"error": f"{code}: {lines[-1][:300] if lines else ''}"}


def write_leg(name: str, bench: Bench) -> None:
    """Run a leg in this process, and write its figures whenever there are more."""
    figures: dict = {}
    for more in LEGS[name].run(bench):
        figures |= more
        atomic.write_json(bench.folder / f"{name}.json", figures)


def run_legs(names: list[str], bench: Bench, quick: bool, logs_dir: Path, allowed_s: float) -> Iterator[dict]:
    """All figures so far, after each leg; those of legs that are not run are those of the last time."""
    earlier = results.FOLDER / "gpu.json"
    figures = json.loads(earlier.read_text(encoding="utf-8"))["figures"] if earlier.exists() and names != list(LEGS) else {}
    figures |= machine(bench.device)
    start = time.monotonic()
    for name in names:
        leg = LEGS[name]
        begun_s = time.monotonic()
        limit_s = min(leg.limit_s, start + allowed_s - begun_s) if bench.device != "cpu" else 3600
        figures[name] = run_leg(name, bench, quick, limit_s, logs_dir / f"gpu-{name}.log")
        figures[name] |= {"leg_s": round(time.monotonic() - begun_s, 1), "commit": results.commit()}
        print(f"{name}: {json.dumps(figures[name], indent=1)}", file=sys.stderr)
        yield figures


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", type=cli.device, help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a small network on few photos, to see that all of it runs")
    parser.add_argument(
        "--results", type=Path, help="where gpu.json and the legs' logs go (default: benchmarks/results, no logs)"
    )
    parser.add_argument("--commit", help="the commit of a copy without history (default: git's)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=LEGS,
        help="legs to run again; api and embedding need model, and all need marketplace (default: all)",
    )
    parser.add_argument("--seconds", default=ALLOWED_S, type=cli.positive, help="what all legs may take (default: %(default)s)")
    parser.add_argument("--leg", choices=LEGS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    size = QUICK if args.quick else FULL
    if args.leg:
        write_leg(args.leg, Bench(args.folder, args.device, size))
        return 0
    with tempfile.TemporaryDirectory(prefix="marketplace-gpu-", ignore_cleanup_errors=True) as name:
        if args.results:
            args.results.mkdir(parents=True, exist_ok=True)
            results.FOLDER = args.results
        if args.commit:
            results.commit = lambda: args.commit
        names = [leg for leg in LEGS if leg in (args.only or LEGS)]
        bench, logs_dir = Bench(Path(name), args.device, size), args.results or Path(name)
        for figures in run_legs(names, bench, args.quick, logs_dir, args.seconds):
            if args.results or not args.quick:
                results.save("gpu", figures, "python benchmarks/gpu.py")
    print(json.dumps(figures))
    return int(any("error" in figures[leg] for leg in names))


if __name__ == "__main__":
    sys.exit(main())
