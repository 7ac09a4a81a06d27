"""How much memory clean_images.py takes for a photo: a first run, one that has nothing to do, and one after 1% has changed.

The listing of the source, the files of the cleaned photos and what is found of each photo are simulated; everything else is
clean_images.py's own run, in a process of its own.

Run     python benchmarks/memory.py           200,000 and 1,000,000 photos: ten minutes, 5 GB of disk
        python benchmarks/memory.py --quick   5,000 and 20,000
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import pandas as pd
import results

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clean_images
from marketplace.cleaning import photos, pool, sources
from marketplace.files import photo_store, stages

FIRST, NOTHING, UPDATE = RUNS = ("first", "nothing_to_do", "update")
CHANGED = 100  # one photo in so many, in an update
STRIDE = 7919  # a prime: folders list their files in no order


def image_id(number: int) -> str:
    return str(uuid.UUID(int=2**64 + number))


def listing(n_photos: int, is_update: bool) -> Iterator[sources.Photo]:
    """What a folder of so many photos is listed as."""
    for number in ((place * STRIDE) % n_photos for place in range(n_photos)):
        name, size = f"{image_id(number)}.jpg", 22_000 + (is_update and number % CHANGED == 0)
        yield sources.Photo(name, f"/data/raw/images/{name}", f"{size}-{number}-{10**18 + number}-{10**18 + number}", size)


def clean_all(todo: Iterator[pool.Task], *_) -> Iterator[tuple[sources.Photo, pool.Result]]:
    """What is found of each photo, without a look at it."""
    for task in todo:
        digest = hashlib.sha256(task.photo.identity.encode()).hexdigest()
        facts = {"width": "1024", "height": "768", "sha256": digest, "phash": digest[:16], "colours": digest + digest[:32]}
        row = {"status": "ok", "reason": ""} | facts
        yield task.photo, pool.Result(digest, row, b"square", photos.DisplayCopy(b"display", 800, 600), b"card")


class SimulatedFiles(photo_store.Files):
    """The JPEGs of so many photos, as if all were there: n_photos is set before a run."""

    n_photos = 0

    def find(self, name: str) -> photo_store.Stored:
        number = int(name[-16:-4], 16)
        return photo_store.Stored(f"{self.folder}/{name}", None, 22_000, f"22000-{number}-{10**18}-{10**18}")

    def names(self, folder: str = "") -> Iterator[str]:
        return (str(Path(folder, f"{image_id(number)}.jpg")) for number in range(self.n_photos))

    def write(self, jpegs: Mapping[str, bytes]) -> None:
        return


def memory_bytes(field: str) -> int:
    """VmRSS, or its peak VmHWM, of this process."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def run(pipe: multiprocessing.connection.Connection, data_dir: Path, n_photos: int, kind: str) -> None:
    """Send the bytes that the peak of memory grows by, and the seconds of the processor."""

    simulated = (
        mock.patch.object(sources, "_folder_photos", lambda _: listing(n_photos, kind == UPDATE)),
        mock.patch.object(clean_images, "clean_all", clean_all),
        mock.patch.object(photo_store, "Files", SimulatedFiles),
        mock.patch.object(SimulatedFiles, "n_photos", n_photos if kind != FIRST else 0),
        mock.patch.object(os, "sync", lambda: None),  # it waits for what other programs write
    )
    args = clean_images.parse_args(["--data", str(data_dir), "--photos", str(data_dir / "raw")])
    before, started_s = memory_bytes("VmRSS"), time.process_time()
    with contextlib.ExitStack() as stack:
        for patch in simulated:
            stack.enter_context(patch)
        summary = clean_images.run(args)
    cleaned = {FIRST: n_photos, NOTHING: 0, UPDATE: n_photos // CHANGED}[kind]
    assert (summary["kept"], summary.get("cleaned", 0)) == (n_photos, cleaned), summary
    pipe.send((memory_bytes("VmHWM") - before, time.process_time() - started_s))


def measure(n_photos: int) -> dict[str, float]:
    """Of each run: bytes and microseconds of the processor, a photo."""
    figures, context = {}, multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="marketplace-benchmark-") as folder:
        data_dir = Path(folder)
        for name in ("raw", "tabular"):
            (data_dir / name).mkdir()
        with open(data_dir / "tabular" / "images.csv", "w", encoding="utf-8") as file:
            file.write("image_id,product_id,label\n")
            file.writelines(f"{image_id(number)},{uuid.UUID(int=number + 1)},0\n" for number in range(n_photos))
        stages.Stage(data_dir, "tabular", {}, {}).finish({}, ["images.csv"])
        for kind in RUNS:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=run, args=(sender, data_dir, n_photos, kind))
            process.start()
            sender.close()
            grown_bytes, seconds = receiver.recv()
            process.join()
            figures |= {f"{kind}_mb": grown_bytes / 1e6, f"{kind}_us_per_photo": 1e6 * seconds / n_photos}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer photos: under a minute")
    args = parser.parse_args()
    sizes = (5_000, 20_000) if args.quick else (200_000, 1_000_000)
    measured = {n_photos: measure(n_photos) for n_photos in sizes}
    print(re.sub(r"(?m)^", "  ", pd.DataFrame(measured).round(1).to_string()), file=sys.stderr)
    small, large = measured.values()
    found = {"photos": sizes[1]}
    for kind in RUNS:
        grown_bytes = 1e6 * (large[f"{kind}_mb"] - small[f"{kind}_mb"])
        found[f"{kind}_mb"] = round(large[f"{kind}_mb"], 1)
        found[f"{kind}_bytes_per_photo"] = round(1e6 * large[f"{kind}_mb"] / sizes[1], 1)
        found[f"{kind}_bytes_per_further_photo"] = round(grown_bytes / (sizes[1] - sizes[0]), 1)
        found[f"{kind}_us_per_photo"] = round(large[f"{kind}_us_per_photo"], 1)
    print(json.dumps(found))
    if not args.quick:
        results.save("memory", found, results.command())
    return 0


if __name__ == "__main__":
    sys.exit(main())
