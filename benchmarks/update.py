"""100 new listings among 100,000 beside a serving API: seconds until a search finds them, beside a full build.

Reads   a finished data folder (make demo), whose listings' words and models are used; each listing has a made-up photo
Run     python benchmarks/update.py           100,000 listings: half an hour, most of it the full build, and 4 GB of disk
        python benchmarks/update.py --quick   2,000

The new listings are added three times: for update.py, for the scripts of the stages one after the other, and once more for
update.py. One client searches all the while.
"""

import argparse
import functools
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import results
from PIL import Image
from scale import run
from serving import ROOT, Client, Server, percentile_ms, show

sys.path.insert(0, str(ROOT))
from marketplace.cleaning import schema, tables
from marketplace.files import atomic, reading, stages

PORT = 8096
NEW = 100
EXPORT = ("product_name", "category", "product_description", "price", "location")
WORDS, DESCRIPTION = 6, 120  # of a made-up listing: words that fall as in any language (Zipf), and characters of a real one
SIDE = (200, 150)  # pixels of a photo
UPDATED_BY = ("tabular", "images", "dataset", "embeddings", "index")
ASKED_EVERY_S, LONGEST_S = 0.5, 600


# Stage 5 of the full build with drawn vectors in place of the models', which would take an hour for nothing that is measured.
EMBED = """
import sys, extract_embeddings as stage
from marketplace.models import text_encoder, text_model
from serving import clustered
import numpy as np

def photos(model, images_dir, image_ids, workers, batch_size):
    classes = len(model.description.classes)
    for part in stage.parts_of(image_ids, stage.SHARD):
        yield clustered(len(part), model.description.dimension, seed=1), np.full((len(part), classes), 1 / classes, np.float32)

stage.run_photos = photos
text_model.TableModels.encode = lambda self, texts: clustered(len(texts), self.svd.shape[1], seed=2)
text_encoder.TextEncoder.encode = lambda self, texts, most=0: clustered(len(texts), self.dimension, seed=3)
sys.exit(stage.main(sys.argv[1:]))
"""


def word_of(number: int) -> str:
    """A word that only the listing of this number has."""
    return "zq" + "".join(chr(ord("a") + int(digit)) for digit in str(number))


def listing_id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"listing {number}"))


def write_raw(raw_dir: Path, source: pd.DataFrame, listings: int) -> int:
    """Write the export of the first `listings` made-up listings, and the photos that are not there; returns the photos' bytes."""
    numbers = np.arange(listings)
    rare = np.minimum(np.random.default_rng(0).zipf(1.2, size=(listings, WORDS)), 200_000)
    products = source.iloc[numbers % len(source)].reset_index(drop=True)
    products["id"] = [listing_id(number) for number in range(listings)]
    texts = products["product_description"].str[:DESCRIPTION]
    products["product_description"] = [
        f"{word_of(number)} {text} {' '.join(f'w{word}' for word in words)}"
        for number, (text, words) in enumerate(zip(texts, rare.tolist(), strict=True))
    ]
    image_ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"photo {number}")) for number in numbers]
    (raw_dir / "images").mkdir(parents=True, exist_ok=True)
    for number, image_id in enumerate(image_ids):
        path = raw_dir / "images" / f"{image_id}.jpg"
        if not path.exists():
            path.write_bytes(draw(number))
    for name, table in (
        ("Products.csv", products),
        ("Images.csv", pd.DataFrame({"id": image_ids, "product_id": products["id"]})),
    ):
        table.to_csv(raw_dir / f".{name}")
        os.replace(raw_dir / f".{name}", raw_dir / name)
    return sum(entry.stat().st_size for entry in os.scandir(raw_dir / "images"))


def draw(number: int) -> bytes:
    """A JPEG of soft colours that no other number has."""
    pixels = np.random.default_rng(number).integers(256, size=(8, 8, 3), dtype=np.uint8)
    photo = io.BytesIO()
    Image.fromarray(pixels).resize(SIDE, Image.Resampling.BICUBIC).save(photo, "JPEG", quality=80)
    return photo.getvalue()


def export_of(source_dir: Path) -> pd.DataFrame:
    """The raw listings of a finished data folder that are whole, each once."""
    table = tables.open_table(source_dir / "raw" / "Products.csv", schema.EXPORT)
    kept = set(reading.read_csv(source_dir / "tabular" / "products.csv", usecols=["product_id"])["product_id"])
    rows = [record.fields for record in table.records if record.fields and record.fields["id"] in kept]
    return pd.DataFrame(rows)[["id", *EXPORT]].drop_duplicates("id", ignore_index=True)


def build(data_dir: Path, source_dir: Path) -> dict[str, float]:
    """Seconds of each stage of a full build but the training, whose model is taken over."""
    seconds = {}
    for name in UPDATED_BY:
        if name == "embeddings":
            shutil.copytree(source_dir / "model", data_dir / "model", dirs_exist_ok=True)
            atomic.write_json(data_dir / "model" / stages.FLAGS, {})  # of a training that is never due
        script = ["-c", EMBED] if name == "embeddings" else [ROOT / stages.STAGES[name].script]
        seconds[name] = round(run(*script, "--data", data_dir)[0], 1)
    return seconds


class Shopper(threading.Thread):
    """Searches twice a second over one connection, as long as it is asked to, and remembers how long each took."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self._ended = threading.Event()

    def run(self) -> None:
        client = Client(PORT)
        while not self._ended.wait(ASKED_EVERY_S):
            started_s = time.perf_counter()
            assert client.get("/search?q=oak+table&k=20")[0] == 200
            self.seconds.append(time.perf_counter() - started_s)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def seconds_until_found(data_dir: Path, source: pd.DataFrame, listings: int, bring: Callable[[], dict]) -> dict:
    """Add NEW listings to the export, bring the index up to date, and wait until a search finds each of them.

    bring: runs what does it, and returns seconds by stage. Returns these, and the seconds from the start until all are found.
    """
    write_raw(data_dir / "raw", source, listings + NEW)
    client, started_s, cpu_before_s = Client(PORT), time.perf_counter(), cpu_s()
    figures = {"stages": bring(), "ran": round(time.perf_counter() - started_s, 1), "cpu": round(cpu_s() - cpu_before_s, 1)}
    for number in range(listings, listings + NEW):
        while listing_id(number) not in found_by(client, word_of(number)):
            time.sleep(0.1)
            assert time.perf_counter() - started_s < LONGEST_S, f"listing {number} is not found"
    return figures | {"found": round(time.perf_counter() - started_s, 1)}


def found_by(client: Client, word: str) -> list[str]:
    return [result["product_id"] for result in json.loads(client.get(f"/search?q={word}&k=5")[2])["results"]]


def by_update(data_dir: Path) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "update.py"), "--data", str(data_dir)]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert told["photos_embedded"] == NEW, told
    return told["seconds"]


def by_scripts(data_dir: Path) -> dict[str, float]:
    return {name: round(run(ROOT / stages.STAGES[name].script, "--data", data_dir)[0], 1) for name in UPDATED_BY}


def cpu_s() -> float:
    """CPU seconds of all processes that this one has run and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(data_dir: Path, source_dir: Path, listings: int) -> dict:
    source = export_of(source_dir)
    photo_bytes = write_raw(data_dir / "raw", source, listings)
    figures = {"listings": listings, "new": NEW, "photo_bytes": photo_bytes, "build": build(data_dir, source_dir)}
    figures["build_seconds"] = round(sum(figures["build"].values()), 1)
    with Server(data_dir, PORT):
        shopper = Shopper()
        shopper.start()
        for turn, bring in enumerate((by_update, by_scripts, by_update)):
            now = listings + turn * NEW
            measured = seconds_until_found(data_dir, source, now, functools.partial(bring, data_dir))
            figures[("first_update", "scripts", "update")[turn]] = measured
        shopper.stop()
    figures["nothing_new_seconds"] = round(run(ROOT / "update.py", "--data", data_dir)[0], 1)
    figures |= {f"search_p{percent}_ms": percentile_ms(shopper.seconds, percent) for percent in (50, 99)}
    return figures | {"disk_bytes": sum(path.stat().st_size for path in data_dir.rglob("*") if path.is_file())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", type=Path, help="a finished data folder (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="2,000 listings")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="marketplace-benchmark-") as folder:
        figures = measure(Path(folder), args.data, 2_000 if args.quick else 100_000)
    if not args.quick:
        results.save("update", figures, results.command(args.data))
    return show(figures)


if __name__ == "__main__":
    sys.exit(main())
