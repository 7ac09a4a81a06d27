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
    repeats: int  # of every photo where photos come from files, so that an epoch is long enough to be timed
    compared: int  # photos that a CPU embeds too
    ready_batches: int  # of 64 photos, to time the model alone
    queries: int  # photos sent to the API, by one client and by many
    many_queries: int


FULL = Size("resnet50", 224, 400, 32, 16, 6, 12, 256, 120, 150, 3_000)
QUICK = Size("resnet18", 64, 45, 8, 2, 2, 1, 16, 1, 4, 40)
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
    def trained_path(self) -> Path:
        """The weights that training left for the embedding."""
        return self.folder / "trained.safetensors"

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
    return network


def trained_network(bench: Bench, n_classes: int):
    """Of what training left, or of random weights where it left nothing: vectors of those are nearly the same for all photos."""
    from safetensors.torch import load_file

    network = fresh_network(bench, n_classes, 0)
    if bench.trained_path.exists():
        network.load_state_dict(load_file(bench.trained_path))
    return network


def training_leg(bench: Bench) -> Iterator[dict]:
    """Photos a second of both kinds of training, on ready photos and from files, by precision; and the loss each ends with."""
    import torch

    import train
    from dataset import ListingPhotos
    from marketplace.models import backbone

    mean, std = (list(values) for values in backbone.normalisation(bench.size.backbone))
    plain = ListingPhotos(bench.data_dir, "train", train.evaluation_transform(bench.size.side, mean, std))
    wanted = min(len(plain), bench.size.batch * bench.size.steps)
    loader = torch.utils.data.DataLoader(plain, wanted, num_workers=min(cli.cores(), 16))
    ready = next(iter(loader))
    if bench.device != "cpu":
        ready = [values.pin_memory() for values in ready]  # as the loaders of both kinds of training do
    batch = bench.size.batch
    yield {"ready_photos": wanted, "batch": batch}
    found = {way: tune(bench, plain, ready, way, batch) for way in ("bf16", "fp32")}
    yield {"all": found}
    yield {"fp32_losses_of_other_seeds": [tune(bench, plain, ready, "fp32", batch, seed)["loss"] for seed in (1, 2)]}
    yield {"larger_batch": LARGER_BATCH * batch, "all_larger_batch": tune(bench, plain, ready, "bf16", LARGER_BATCH * batch)}
    heads = {way: frozen(bench, plain, ready, way) for way in ("fp32", "bf16")}
    yield {"head": heads}
    workers = sorted({max(1, cli.cores() // 2), cli.cores()})
    yield {"from_files": {str(count): from_files(bench, mean, std, count) for count in workers}}
    yield {"all": found | {"compiled": tune(bench, plain, ready, "compiled", batch)}}
    yield {"head": heads | {"compiled": frozen(bench, plain, ready, "compiled")}}


def batches_of(ready, batch: int, order: np.ndarray) -> list:
    """The ready photos (pixels, labels, rows) in batches, in another order; the photos of a listing stand together."""
    pixels, labels, rows = (values.split(batch) for values in ready)
    return [(pixels[n], labels[n], rows[n]) for n in order if n < len(pixels)]


def tune(bench: Bench, photos, ready, way: str, batch: int, seed: int = 0) -> dict:
    """Train the whole network on ready photos, as fine_tune() does; "compiled": in bf16 and compiled."""
    import torch
    from safetensors.torch import save_file

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
    if way == "bf16":
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, bench.trained_path)
    seen = sum(len(pixels) for pixels, _, _ in batches)
    return {"photos_per_s": round(seen / min(seconds[1:])), "loss": round(losses[-1], 4), "first_epoch_s": round(seconds[0], 2)}


def frozen(bench: Bench, photos, ready, way: str) -> dict:
    """Train a head alone: the frozen backbone's features of the ready photos, and the loss of a head trained on them."""
    import torch

    import train
    from marketplace.models import backbone, training

    network = trained_network(bench, len(photos.classes)).to(bench.device, memory_format=torch.channels_last)
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


def from_files(bench: Bench, mean: list[float], std: list[float], workers: int) -> dict:
    """Photos a second of both kinds of training from JPEGs, as train.py runs them; workers: processes that decode."""
    import torch

    import train
    from marketplace.models import training

    config = dataclasses.replace(training_config(bench, "bf16", bench.size.batch, workers), epochs=2)
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


def write_model(bench: Bench, folder: Path):
    """A model folder of what training left, or of random weights, with all that torch needs to run it."""
    from safetensors.torch import save_file

    from marketplace.cleaning import listings, photos
    from marketplace.models import backbone, photo_model

    classes = listings.read_classes(bench.data_dir / "tabular")
    network = trained_network(bench, len(classes))
    mean, std = (list(values) for values in backbone.normalisation(bench.size.backbone))
    size = network.embedder.linear.out_features
    cleaned = dataclasses.asdict(photos.DEFAULTS)
    folder.mkdir()
    save_file(network.state_dict(), folder / photo_model.WEIGHTS)
    photo_model.Description(
        *(bench.size.backbone, "none", classes, bench.size.side, mean, std, size, "projection", "power", cleaned)
    ).save(folder)


def per_second(bench: Bench, count: int, work: Callable[[], object], repeats: int = 2) -> int:
    """The best of some runs."""
    return round(count / min(bench.seconds(work) for _ in range(repeats)))


def embedding_leg(bench: Bench) -> Iterator[dict]:
    """Photos to vectors: from files, on ready photos, decoding alone; compiled and not; and how near to a CPU's in fp32."""
    import extract_embeddings
    from marketplace.cleaning import photos
    from marketplace.files import reading
    from marketplace.models import backbone, int8, photo_model

    folder, images_dir = bench.folder / "model", bench.data_dir / "images"
    write_model(bench, folder)
    ids = reading.read_csv(bench.data_dir / "dataset" / "training_data.csv")["image_id"].tolist()
    many, cores, batch = ids * bench.size.repeats, cli.cores(), extract_embeddings.CUDA_BATCH
    served = photo_model.PhotoModel(folder, "torch", bench.gpu_way)
    blank = np.zeros((batch, bench.size.side, bench.size.side, 3), np.uint8)
    yield {"trained": bench.trained_path.exists(), "precision": served.precision, "cores": cores, "batch": batch}
    yield {"first_run_s": {"64": round(bench.seconds(lambda: served.run(blank)), 2)}}

    decode = lambda image_id: photos.load(images_dir, image_id, served.input)  # noqa: E731
    with ThreadPoolExecutor(cores) as pool:
        inputs = list(pool.map(decode, (ids * batch)[: 4 * batch]))
        yield {"decoding_alone_photos_per_s": per_second(bench, len(many), lambda: [None for _ in pool.map(decode, many)])}
    stacks = [np.stack(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    ready = [stacks[n % len(stacks)] for n in range(bench.size.ready_batches)]
    alone = alone_per_second(bench, served, ready)
    yield {"model_alone_photos_per_s": alone}
    rates = {}
    for workers in sorted({max(1, cores // 2), cores, 2 * cores}):
        work = lambda workers=workers: list(extract_embeddings.run_photos(served, images_dir, many, workers, batch))  # noqa: E731
        rates[str(workers)] = per_second(bench, len(many), work)
    yield {"from_files_photos_per_s": rates, "over_model_alone": round(rates[str(cores)] / alone, 3)}
    yield near_fp32(bench, served, photo_model.PhotoModel(folder, "torch", "cpu"), images_dir, ids, int8.neighbours_kept)
    with mock.patch("torch.compile", lambda network, **_: network):
        plain = photo_model.PhotoModel(folder, "torch", bench.gpu_way)
        plain.warm_up()
    yield {
        "not_compiled": {
            "model_alone_photos_per_s": alone_per_second(bench, plain, ready),
            "one_photo_ms": one_photo_ms(bench, plain, inputs[0]),
        }
    }
    sizes = backbone.COMPILED_BATCHES
    yield {"first_run_s": {str(size): round(bench.seconds(lambda size=size: served.run(blank[:size])), 2) for size in sizes}}
    yield {"one_photo_ms": one_photo_ms(bench, served, inputs[0])}


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


def stages_leg(bench: Bench) -> Iterator[dict]:
    """train.py, extract_embeddings.py and build_index.py as anyone runs them, with the seconds of each and what they told."""
    flags = {
        "train.py": [
            *("--backbone", bench.size.backbone, "--image-size", str(bench.size.side), "--weights", "none", "--epochs", "2"),
            *("--batch-size", str(bench.size.batch), "--text-encoder", "none", "--device", bench.device),
        ],
        "extract_embeddings.py": ["--device", bench.device],
        "build_index.py": [],
    }
    for script, more in flags.items():
        try:
            yield {script: run_script(bench, script, *more)}
        except subprocess.CalledProcessError as error:
            if script != "train.py" or bench.device == "cpu":
                raise
            yield {"failed on the card": str(error)[-300:]}  # a model from the CPU will do for what follows
            yield {script: run_script(bench, script, *more, "--device", "cpu", "--epochs", "1")}


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
    with Server(bench.data_dir, port, "--device", bench.device, start_s=200) as server:
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
    "marketplace": Leg(marketplace_leg, 90),
    "training": Leg(training_leg, 150),
    "embedding": Leg(embedding_leg, 110),
    "stages": Leg(stages_leg, 170),
    "api": Leg(api_leg, 90),
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


def run_legs(names: list[str], bench: Bench, quick: bool, logs_dir: Path) -> Iterator[dict]:
    """All figures so far, after each leg; those of legs that are not run are those of the last time."""
    earlier = results.FOLDER / "gpu.json"
    figures = json.loads(earlier.read_text(encoding="utf-8"))["figures"] if earlier.exists() and names != list(LEGS) else {}
    figures |= machine(bench.device)
    start = time.monotonic()
    for name in names:
        leg = LEGS[name]
        begun_s = time.monotonic()
        limit_s = min(leg.limit_s, start + ALLOWED_S - begun_s) if bench.device != "cpu" else 3600
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
        "--only", nargs="+", choices=LEGS, help="legs to run again; api needs stages, and all need marketplace (default: all)"
    )
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
        for figures in run_legs(names, Bench(Path(name), args.device, size), args.quick, args.results or Path(name)):
            if args.results or not args.quick:
                results.save("gpu", figures, "python benchmarks/gpu.py")
    print(json.dumps(figures))
    return int(any("error" in figures[leg] for leg in names))


if __name__ == "__main__":
    sys.exit(main())
