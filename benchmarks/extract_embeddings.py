"""Photos to vectors on a CPU: speed beside the plain way and the model alone, 8 bits beside fp32, and memory at 100,000 photos.

Run     python benchmarks/extract_embeddings.py --photos FOLDER     real photos; the synthetic marketplace's without
        python benchmarks/extract_embeddings.py --quick             fewer photos, memory at 2,000 and 500
Prints tables on stderr and, last, one JSON line: vs_baseline, vs_model_alone, int8_mean_cosine, int8_neighbours_kept,
rss_100k_vs_10k (with --quick rss_2k_vs_500).
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import baseline
import numpy as np
import pandas as pd
import results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import clean_images
import clean_tabular_data
import dataset
import extract_embeddings
import train
from demo import sample
from marketplace.cleaning import photos
from marketplace.files import atomic, reading, stages
from marketplace.models import backbone as network
from marketplace.models import int8, photo_model

CLASSES = 13
SMALL_PX = 64  # of the network whose memory is measured: what a photo costs in time, it does not cost in memory
TRAIN_FLAGS = [
    "--backbone",
    "efficientnet_lite0",
    "--image-size",
    str(SMALL_PX),
    "--epochs",
    "2",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--text-encoder",
    "none",
]


def cleaned(source: Path, count: int, folder: Path) -> list[str]:
    """Clean about `count` photos into `folder`, spread evenly over the source's names; the ids of those that are photos."""
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    folder.mkdir()
    for path in paths[:: max(1, len(paths) // count)]:
        with contextlib.suppress(photos.PhotoRejected):
            (folder / path.name).with_suffix(".jpg").write_bytes(photos.clean(path.read_bytes()).jpeg)
    return sorted(path.stem for path in folder.iterdir())


def write_model(folder: Path, backbone: str, weights: str, images_dir: Path, calibration: list[str], held_out: list[str]) -> dict:
    """A model folder of the network at 224 px, without anything of the table; what the check of its 8 bits found."""
    folder.mkdir()
    made = network.build(backbone, weights, CLASSES, 224).eval()
    mean, std = (list(values) for values in network.normalisation(backbone))
    description = photo_model.Description(
        *(backbone, weights, [str(label) for label in range(CLASSES)], 224, mean, std, made.head.in_features),
        *("frozen backbone", "none", dataclasses.asdict(photos.DEFAULTS)),
    )
    network.export_onnx(made, 224, folder / photo_model.ONNX)
    description.save(folder)
    # The head is random and its accuracy tells nothing, so one label will do for all.
    tables = [pd.DataFrame({"image_id": ids, "label": 0}) for ids in (calibration, held_out)]
    report = int8.export(folder, images_dir, *tables, seed=0)
    dataclasses.replace(description, int8=report | {"used": True}).save(folder)
    return report


def per_second(count: int, work: Callable[[], object], repeats: int) -> float:
    """The best of some runs: the machine may have other work."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


def measure_speed(folder: Path, images_dir: Path, image_ids: list[str], quick: bool) -> dict:
    """ResNet-50 at 224 px, random weights, photos a second: all settings of the table, the model alone, the baseline."""
    write_model(folder, "resnet50", "none", images_dir, image_ids[:16], image_ids[16:32])
    few = image_ids[: 24 if quick else 96]
    cores = os.cpu_count() or 1
    print("ResNet-50, 224 px, 8 bits, from 256-pixel JPEGs\nworkers  runtime threads  batch  photos/s", file=sys.stderr)
    for workers, threads, batch in [
        *itertools.product(sorted({1, cores, 2 * cores}), sorted({1, cores}), [extract_embeddings.CPU_BATCH]),
        *((cores, 1, batch) for batch in (1, 16)),
    ]:
        loaded = photo_model.PhotoModel(folder, device="cpu", threads=threads)
        work = lambda: list(extract_embeddings.run_photos(loaded, images_dir, few, workers, batch))  # noqa: B023, E731
        print(f"{workers:7d}  {threads:15d}  {batch:5d}  {per_second(len(few), work, 1 if quick else 3):8.1f}", file=sys.stderr)

    ours = photo_model.PhotoModel(folder, device="cpu", threads=1)
    ready = [np.stack([ours.input((images_dir / f"{name}.jpg").read_bytes()) for name in few[:4]])] * (len(few) // 4)
    all_cores = photo_model.PhotoModel(folder, device="cpu", threads=cores)

    def side_by_side() -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(ours.run, ready))

    rounds, plain = 1 if quick else 3, baseline.embedder()
    jpegs = [(images_dir / f"{name}.jpg").read_bytes() for name in few[: 8 if quick else 30]]
    rates = {
        "with decoding": per_second(
            len(few), lambda: list(extract_embeddings.run_photos(ours, images_dir, few, cores, 4)), rounds
        ),
        "alone, a thread a run": per_second(len(few), side_by_side, rounds),
        "alone, all threads a run": per_second(len(few), lambda: [all_cores.run(batch) for batch in ready], rounds),
        "baseline": per_second(len(jpegs), lambda: [plain(jpeg) for jpeg in jpegs], rounds),
    }
    for name, rate in rates.items():
        print(f"{name:26s} {rate:8.1f} photos/s", file=sys.stderr)
    alone = max(rates["alone, a thread a run"], rates["alone, all threads a run"])
    return {
        "precision": ours.precision,
        "photos_per_s": round(rates["with decoding"], 1),
        "vs_baseline": round(rates["with decoding"] / rates["baseline"], 2),
        "vs_model_alone": round(rates["with decoding"] / alone, 3),
    }


def widen(data_dir: Path, count: int, folder: Path) -> None:
    """A copy of a data folder with `count` photos: hard links to its own, each said to be another."""
    for name in ("tabular", "model"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(data_dir / name)
    for name in ("images", "dataset"):
        (folder / name).mkdir()
    table = reading.read_csv(data_dir / "images" / "photos.csv").query("status == 'ok'")
    rows = np.arange(count) % len(table)
    ids = [f"photo-{number:07d}" for number in range(count)]
    for image_id, source in zip(ids, table["image_id"].iloc[rows], strict=True):
        os.link(data_dir / "images" / f"{source}.jpg", folder / "images" / f"{image_id}.jpg")
    wide = table.iloc[rows].assign(image_id=ids, sha256=[hashlib.sha256(image_id.encode()).hexdigest() for image_id in ids])
    atomic.write_csv(folder / "images" / "photos.csv", wide)
    owners = reading.read_csv(data_dir / "dataset" / "training_data.csv")
    atomic.write_csv(folder / "dataset" / "training_data.csv", owners.iloc[np.arange(count) % len(owners)].assign(image_id=ids))
    (folder / "dataset" / "settings.json").symlink_to(data_dir / "dataset" / "settings.json")
    for name in ("images", "dataset"):
        manifest = stages.read_manifest(data_dir / name)
        inputs = (
            stages.digests(folder, *(name for name in manifest["inputs"] if not name.startswith("--")))
            if name == "dataset"
            else {}
        )
        outputs = ["photos.csv"] if name == "images" else ["settings.json", "training_data.csv"]
        stages.Stage(folder, name, manifest["arguments"], inputs).finish(manifest["counts"], outputs)


def peak_mb(data_dir: Path) -> float:
    """The peak memory of a whole run of the stage, in a process of its own."""
    code = (
        "import re, sys, extract_embeddings\n"
        "failed = extract_embeddings.main(['--data', sys.argv[1], '--device', 'cpu'])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1], file=sys.stderr)\n"
        "sys.exit(failed)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(data_dir)], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(ran.stderr.split()[-1]) / 1024


def measure_memory(data_dir: Path, folder: Path, counts: tuple[int, int]) -> float:
    print(f"efficientnet_lite0, {SMALL_PX} px: a whole run of the stage\n  photos  peak MB  seconds", file=sys.stderr)
    peaks = []
    for count in counts:
        widen(data_dir, count, folder / str(count))
        start = time.perf_counter()
        peaks.append(peak_mb(folder / str(count)))
        print(f"{count:8,d}  {peaks[-1]:7.1f}  {time.perf_counter() - start:7.1f}", file=sys.stderr)
    return peaks[1] / peaks[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of JPEGs (default: those of the synthetic marketplace)")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        data_dir = folder / "data"
        sample.write(data_dir / "raw", listings=60 if args.quick else 400)
        images_dir = folder / "cleaned"
        image_ids = cleaned(args.photos or data_dir / "raw" / "images", 60 if args.quick else 600, images_dir)
        figures = measure_speed(folder / "resnet50", images_dir, image_ids, args.quick)
        third = len(image_ids) // 6
        quality = write_model(folder / "lite0", network.LITE0, "imagenet", images_dir, image_ids[:third], image_ids[third:])
        print(f"efficientnet_lite0, ImageNet weights, 224 px, 8 bits against fp32: {quality}", file=sys.stderr)
        figures |= {"int8_mean_cosine": quality["mean_cosine"], "int8_neighbours_kept": quality["neighbours_kept"]}
        for main_of_stage in (clean_tabular_data.main, clean_images.main, dataset.main):
            if main_of_stage(["--data", str(data_dir)]):
                return 1
        if train.main(["--data", str(data_dir), *TRAIN_FLAGS]):
            return 1
        counts = (500, 2_000) if args.quick else (10_000, 100_000)
        ratio = measure_memory(data_dir, folder, counts)
        figures["rss_2k_vs_500" if args.quick else "rss_100k_vs_10k"] = round(ratio, 3)
    print(json.dumps(figures))
    if not args.quick:
        results.save("extract_embeddings", figures, results.command(args.photos))
    return 0


if __name__ == "__main__":
    sys.exit(main())
