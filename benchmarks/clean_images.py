"""How fast photos are cleaned, and in how much memory, beside the straightforward way, pyvips and OpenCV.

Reads   --photos: a folder of JPEGs (about 400 pixels wide); without it, drawn ones of demo.sample
Run     python benchmarks/clean_images.py --photos path/to/photos      (--quick: under a minute)
"""

import argparse
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

os.environ.setdefault("VIPS_CONCURRENCY", "1")  # read when libvips is loaded
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
try:
    import cv2
    import pyvips
except ImportError:
    sys.exit("error: pyvips and OpenCV are measured beside it: pip install pyvips pyvips-binary opencv-python-headless")
import baseline
import results

from demo import sample
from marketplace.cleaning import photos, pool
from marketplace.cleaning.sources import Photo

SIZE = photos.DEFAULTS.size
PHOTOS_A_CHUNK = 8
SMALL = (533, 400)  # pixels, of drawn photos
LARGE = (4000, 3000)  # pixels, 12 megapixels
HUGE = (8000, 6000)  # just under photos.DEFAULTS.max_pixels


# Other libraries: the same letterboxed square and JPEG; no metadata, no check, no hashes


def clean_with_vips(data: bytes) -> bytes:
    picture = pyvips.Image.thumbnail_buffer(data, SIZE, height=SIZE, export_profile="srgb")
    square = picture.gravity("centre", SIZE, SIZE, extend="white")
    return square.jpegsave_buffer(Q=photos.DEFAULTS.quality, keep="none")


def clean_with_opencv(data: bytes) -> bytes:
    width, height = Image.open(io.BytesIO(data)).size  # OpenCV does not tell the size before it decodes
    shrink = max((n for n in (1, 2, 4, 8) if max(width, height) / n >= SIZE), default=1)
    flag = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag[shrink])
    scale = SIZE / max(picture.shape[:2])
    wanted = [max(1, round(scale * side)) for side in picture.shape[1::-1]]
    picture = cv2.resize(picture, wanted, interpolation=cv2.INTER_AREA)
    top, left = (SIZE - wanted[1]) // 2, (SIZE - wanted[0]) // 2
    borders = (top, SIZE - wanted[1] - top, left, SIZE - wanted[0] - left)
    square = cv2.copyMakeBorder(picture, *borders, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, photos.DEFAULTS.quality])[1].tobytes()


WITH_DISPLAY = "photos.clean, and a copy to look at"
WAYS: dict[str, Callable[[bytes], bytes]] = {
    "baseline": baseline.clean,
    "photos.clean": lambda data: photos.clean(data).jpeg,
    WITH_DISPLAY: lambda data: photos.clean(data, with_display=True).jpeg,
    "pyvips": clean_with_vips,
    "OpenCV": clean_with_opencv,
}


def small_photos(folder: Path | None, count: int, temporary: Path) -> list[bytes]:
    """The bytes of `count` JPEGs of the folder, evenly spaced in the order of their names; drawn ones without a folder."""
    given = folder is not None
    if not given:
        sample.write(temporary, listings=39 + count)
        folder = temporary / "images"
    found = [data for path in sorted(folder.glob("*.jp*g")) if is_plain_jpeg(data := path.read_bytes())]
    if len(found) < count:
        sys.exit(f"error: {folder} holds {len(found)} JPEGs, fewer than the {count} wanted: give another folder with --photos")
    chosen = [found[position] for position in np.linspace(0, len(found) - 1, count).astype(int)]
    return chosen if given else [encoded(data, SMALL, "JPEG", quality=90) for data in chosen]


def is_plain_jpeg(data: bytes) -> bool:
    try:
        photos.clean(data)
    except photos.PhotoRejected:
        return False
    return data.startswith(b"\xff\xd8") and Image.open(io.BytesIO(data)).mode == "RGB"


def encoded(data: bytes, size: tuple[int, int], kind: str, **options) -> bytes:
    """The photo enlarged to `size`, turned where it stands upright."""
    image = Image.open(io.BytesIO(data))
    size = size if image.width >= image.height else size[::-1]
    buffer = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, kind, **options)
    return buffer.getvalue()


def core_seconds(pictures: list[bytes]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each way: processor seconds a photo, and the mean distance in grey levels to a full decode and LANCZOS."""
    seconds, distances = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)
    for way in WAYS.values():
        way(pictures[0])
    for data in pictures:  # all ways photo by photo, so that what else the machine does meets them alike
        exact = photos.pixels(reference(data)).astype(int)
        for name, way in WAYS.items():
            start = time.process_time()
            jpeg = way(data)
            seconds[name] += (time.process_time() - start) / len(pictures)
            distances[name] += float(np.abs(photos.pixels(jpeg) - exact).mean()) / len(pictures)
    return seconds, distances


def reference(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SIZE / max(image.size)
    square = Image.new("RGB", (SIZE, SIZE), photos.WHITE)
    picture = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS)
    square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=photos.DEFAULTS.quality)
    return buffer.getvalue()


def photos_per_second(paths: list[Path], workers: int) -> float:
    """Of clean_images.py's own loop, without the first photos, which are under way while the processes still start.

    What it takes the processes to start and to end is the same however many photos there are: together about half a second.
    """
    todo = [pool.Task(Photo(path.name, str(path), "", path.stat().st_size), "") for path in paths]
    results = pool.clean_all(todo, None, photos.DEFAULTS, True, workers)
    for _ in range(workers * pool.AHEAD):
        next(results)
    start = time.perf_counter()
    times = [time.perf_counter() for _ in results]
    return len(times) / (times[-1] - start)


def memory_kb(field: str) -> int:
    """VmRSS, or its peak VmHWM, of this process. (The peak that getrusage tells starts from the parent's.)"""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field))


def send_growth(pipe: multiprocessing.connection.Connection, warm_up: bytes, data: bytes) -> None:
    photos.clean(warm_up)
    before = memory_kb("VmRSS")
    photos.clean(data)
    pipe.send((memory_kb("VmHWM") - before) / 1024)


def worker_growth_mb(photo: bytes) -> Iterator[tuple[str, float]]:
    """Megabytes that cleaning one photo of each kind adds to the peak of a fresh process, the photo's own bytes not counted."""
    deep = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(65536, size=HUGE[::-1], dtype=np.uint16)).save(
        deep, "PNG", compress_level=0
    )
    kinds = {
        "JPEG of 12 megapixels": encoded(photo, LARGE, "JPEG"),
        "JPEG of 48 megapixels": encoded(photo, HUGE, "JPEG"),
        "progressive JPEG of 48 megapixels": encoded(photo, HUGE, "JPEG", progressive=True),
        "PNG of 48 megapixels": encoded(photo, HUGE, "PNG", compress_level=1),
        "16-bit PNG of 48 megapixels": deep.getvalue(),
    }
    context = multiprocessing.get_context("spawn")
    for kind, data in kinds.items():
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=send_growth, args=(sender, photo, data))
        process.start()
        yield kind, receiver.recv()
        process.join()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of JPEGs about 400 pixels wide (default: drawn ones)")
    parser.add_argument("--quick", action="store_true", help="fewer photos: under a minute, and rougher")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    cv2.setNumThreads(1)
    # Enough chunks follow those left out of the rate that the last, uneven ones weigh little.
    n_small, n_large, chunks_small, chunks_large = (60, 8, 80, 12) if args.quick else (400, 40, 400, 80)
    figures: dict[str, float] = {}

    def table(title: str, *lines: str) -> None:
        print(f"\n{title}", *lines, sep="\n", file=sys.stderr)

    with tempfile.TemporaryDirectory() as temporary:
        small = small_photos(args.photos, n_small, Path(temporary) / "sample")
        large = [encoded(data, LARGE, "JPEG", quality=90) for data in small[:: len(small) // n_large][:n_large]]
        for name, pictures, chunks in (("small", small, chunks_small), ("large", large, chunks_large)):
            seconds, distances = core_seconds(pictures)
            width, height = np.median([sorted(Image.open(io.BytesIO(data)).size) for data in pictures], axis=0).astype(int)
            figures[f"{name}_vs_baseline"] = seconds["baseline"] / seconds["photos.clean"]
            figures[f"{name}_with_display_vs_without"] = seconds[WITH_DISPLAY] / seconds["photos.clean"]
            table(
                f"{len(pictures)} JPEGs of about {width} x {height}: photos a core-second, x baseline, grey levels from LANCZOS",
                *(
                    f"{1 / seconds[way]:10.1f} {seconds['baseline'] / seconds[way]:6.2f}x {distances[way]:6.2f}  {way}"
                    for way in WAYS
                ),
            )
            paths = [Path(temporary) / f"{name}{number}.jpg" for number in range(PHOTOS_A_CHUNK * chunks)]
            for path, data in zip(paths, pictures, strict=False):
                path.write_bytes(data)
            for number, path in enumerate(paths[len(pictures) :]):
                path.hardlink_to(paths[number % len(pictures)])
            # By turns, and the best of each: the machine may have other work.
            rounds = [[photos_per_second(paths, workers) for workers in (1, 2)] for _ in range(1 if args.quick else 3)]
            rates = dict(enumerate(map(max, zip(*rounds, strict=True)), start=1))
            figures[f"{name}_two_workers_vs_one"] = rates[2] / rates[1]
            table(
                f"{len(paths)} of them through clean_images.py: photos a second, x one worker",
                *(f"{rate:10.1f} {rate / rates[1]:6.2f}x  {workers} worker(s)" for workers, rate in rates.items()),
            )
            for path in paths:
                path.unlink()
        growth = dict(worker_growth_mb(small[0]))
    table("Peak memory that one photo adds to a worker, MB", *(f"{mb:10.0f}  {kind}" for kind, mb in growth.items()))
    figures["two_workers_vs_one"] = min(figures["small_two_workers_vs_one"], figures["large_two_workers_vs_one"])
    figures["worker_peak_mb"] = max(growth.values())
    figures = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(figures))
    if not args.quick:
        results.save("clean_images", figures, results.command(args.photos))
    return 0


if __name__ == "__main__":
    sys.exit(main())
