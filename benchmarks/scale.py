"""The tables' stages and the index at two sizes: time a row, memory, and an update of 1% against a full build.

Reads   a finished data folder (make demo), whose listings' words and models are used; photos are rows without files, and vectors
        are drawn around centres, as in benchmarks/search.py
Run     python benchmarks/scale.py                  100,000 and 1,000,000 listings: half an hour, 12 GB of disk
        python benchmarks/scale.py --rows 3000000   100,000 and 3,000,000, without an update: an hour, 30 GB
        python benchmarks/scale.py --quick          2,000 and 20,000
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from marketplace.files import atomic, generations, reading, stages
from marketplace.models import photo_model, text_encoder

DIMENSION = 256
ROWS = 1_000_000  # of the larger size
LISTINGS_A_CENTRE, NOISE = 50, 0.6
SAMPLED_S = 0.1  # between two looks at a process's memory
CHANGED = 0.01  # of the listings: a third each come, go and are edited
# Stage 3 without its picture, for which there are no photos.
DATASET = "import dataset, sys; dataset.draw_preview = lambda *_: b''; sys.exit(dataset.main(sys.argv[1:]))"


def raw_tables(source: pd.DataFrame, numbers: np.ndarray, edited: set[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Raw listings and their photos, one each: words of the source, and twelve more that fall as in any language (Zipf)."""
    generator = np.random.default_rng(0)
    rare = np.minimum(generator.zipf(1.2, size=(int(numbers.max()) + 1, 12)), 200_000)[numbers]
    products = source.iloc[numbers % len(source)].reset_index(drop=True)
    products["id"] = [str(uuid.UUID(int=number + 1)) for number in numbers.tolist()]
    more = [" ".join(f"w{word}" for word in words) for words in rare.tolist()]
    ends = [f" edited {number}" if number in edited else f" {number}" for number in numbers.tolist()]
    products["product_description"] = [
        f"{text[:300]} {words}{end}" for text, words, end in zip(products["product_description"], more, ends, strict=True)
    ]
    photos = pd.DataFrame(
        {"id": [str(uuid.UUID(int=2**64 + number)) for number in numbers.tolist()], "product_id": products["id"]}
    )
    return products, photos


def vectors_of(numbers: np.ndarray, seed: int, dimension: int = DIMENSION) -> np.ndarray:
    """(N, dimension) unit rows; a number's row is always the same."""
    centres = np.random.default_rng(seed).standard_normal((int(numbers.max()) // LISTINGS_A_CENTRE + 1, dimension), np.float32)
    vectors = np.empty((len(numbers), dimension), np.float32)
    for block in np.unique(numbers // 10_000):
        rows = np.flatnonzero(numbers // 10_000 == block)
        noise = np.random.default_rng((seed, int(block))).standard_normal((10_000, dimension), np.float32)
        vectors[rows] = centres[numbers[rows] // LISTINGS_A_CENTRE] + NOISE * noise[numbers[rows] % 10_000]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def run(*command: str | Path) -> tuple[float, float, float]:
    """Seconds, peak GB and peak GB of its own of a stage in a process of its own: not its own are pages of files, which the
    system takes back when others need the memory."""
    started_s, own_gb = time.perf_counter(), 0.0
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, *map(str, command)],
        os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])},
        file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)],
    )
    while (ended := os.wait4(pid, os.WNOHANG))[0] == 0:
        found = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
        own_gb = max(own_gb, int(found[1]) * 1024 / 1e9) if found else own_gb  # a process that has ended has none
        time.sleep(SAMPLED_S)
    _, status, usage = ended
    if status:
        sys.exit(f"error: {command[0]} failed")
    return time.perf_counter() - started_s, usage.ru_maxrss * 1024 / 1e9, own_gb


def prepare(data_dir: Path, source_dir: Path, numbers: np.ndarray, edited: set[int]) -> dict[str, float]:
    """Everything before build_index.py; seconds and GB of the two stages of tables."""
    source = pd.read_csv(source_dir / "raw" / "Products.csv", dtype=str, index_col=0, keep_default_na=False)
    kept = reading.read_csv(source_dir / "tabular" / "products.csv")["product_id"]
    whole = source["id"].isin(kept) & (source != "").all(axis=1)
    products, photos = raw_tables(source[whole].drop_duplicates("id"), numbers, edited)
    (data_dir / "raw").mkdir(parents=True, exist_ok=True)
    products.to_csv(data_dir / "raw" / "Products.csv")
    photos.to_csv(data_dir / "raw" / "Images.csv")
    image_ids = photos["id"].tolist()
    figures = {}
    figures["clean"], figures["clean_gb"], _ = run(ROOT / "clean_tabular_data.py", "--data", data_dir)
    shutil.rmtree(data_dir / "images", ignore_errors=True)
    stage = stages.Stage(data_dir, "images", stages.read_manifest(source_dir / "images")["arguments"], {})
    stage.begin()
    pixels = np.random.default_rng(1).integers(2**63, size=int(numbers.max()) + 1)[numbers]
    kept = pd.DataFrame({"image_id": image_ids, "status": "ok", "reason": "", "width": "256", "height": "256"})
    kept["sha256"] = [f"{bits:064x}" for bits in pixels.tolist()]
    kept["phash"] = [f"{bits:016x}" for bits in pixels.tolist()]
    kept["colours"] = 6 * kept["phash"]
    atomic.write_csv(stage.folder / "photos.csv", kept.assign(source=kept["image_id"] + ".jpg").sort_values("image_id"))
    stage.finish({}, ["photos.csv"])
    figures["dataset"], figures["dataset_gb"], _ = run("-c", DATASET, "--data", data_dir)

    shutil.copytree(source_dir / "model", data_dir / "model", dirs_exist_ok=True)
    folder = data_dir / "embeddings"
    image_ids = reading.read_csv(data_dir / "dataset" / "training_data.csv")["image_id"].tolist()
    listed = reading.read_csv(data_dir / "tabular" / "products.csv")["product_id"]
    photo_numbers = np.array([uuid.UUID(name).int - 2**64 for name in image_ids])
    listing_numbers = np.array([uuid.UUID(name).int - 1 for name in listed])
    encoder = text_encoder.Description.load(data_dir / "model")
    names = (
        "tabular/products.csv",
        "images/photos.csv",
        "dataset/training_data.csv",
        *(f"model/{name}" for name in photo_model.FILES),
        *(f"model/{name}" for name in (stages.TEXT_ENCODER if encoder.dimension else ())),
    )
    stage = stages.Stage(data_dir, "embeddings", {}, stages.digests(data_dir, *names))
    stage.begin()
    atomic.write_array(folder / "vectors.npy", vectors_of(photo_numbers, 2))
    atomic.write_array(folder / "text_vectors.npy", vectors_of(listing_numbers, 3))
    written = list(stages.EMBEDDED)
    if encoder.dimension:
        for seed, name in enumerate(stages.ENCODED, start=4):
            atomic.write_array(folder / name, vectors_of(listing_numbers, seed, encoder.dimension))
            written.append(name)
    atomic.write_array(folder / "probabilities.npy", np.full((len(image_ids), 13), 1 / 13, np.float32))
    atomic.write_json(folder / "image_ids.json", image_ids, indent=None)
    stage.finish({}, written)
    return figures


def measure(source_dir: Path, data_dir: Path, rows: int, with_update: bool) -> dict[str, float]:
    """Seconds of each stage, of the fit of the ranker within the build, and of an update; GB of the build."""
    figures = prepare(data_dir, source_dir, np.arange(rows), set())
    figures["build"], figures["build_gb"], figures["build_own_gb"] = run(ROOT / "build_index.py", "--data", data_dir)
    figures["ranker"] = reading.read_json(generations.current_generation(data_dir / "index") / "report.json")["ranker_seconds"]
    figures["index_gb"] = sum(path.stat().st_size for path in (data_dir / "index").rglob("*") if path.is_file()) / 1e9
    if not with_update:
        return figures
    third = max(1, round(CHANGED * rows / 3))
    prepare(data_dir, source_dir, np.arange(third, rows + third), set(range(2 * third, 3 * third)))
    figures["update"], figures["update_gb"], _ = run(ROOT / "build_index.py", "--data", data_dir)
    report = reading.read_json(generations.current_generation(data_dir / "index") / "report.json")
    assert report["updated"], "the index was built anew, not updated"
    figures["changed_rows"], figures["recall"] = report["changed_rows"]["listings"], report["index"]["recall_at_10"]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", type=Path, help="a finished data folder (default: %(default)s)")
    parser.add_argument("--rows", default=ROWS, type=int, help="listings of the larger size (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="2,000 and 20,000 listings, under a minute")
    args = parser.parse_args()
    sizes, with_update = (2_000, 20_000) if args.quick else (100_000, args.rows), args.rows == ROWS
    measured = {}
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="marketplace-benchmark-") as folder:
            measured[rows] = measure(args.data, Path(folder), rows, with_update)
    table = pd.DataFrame(measured).round(2)
    print(re.sub(r"(?m)^", "  ", table.to_string()), file=sys.stderr)
    small, large = (measured[rows] for rows in sizes)
    growth = sizes[1] / sizes[0]
    found = {f"{name}_time_per_row": round(large[name] / small[name] / growth, 3) for name in ("clean", "dataset")}
    # The ranker is fitted once for a model, on as many questions whatever the size.
    builds = [figures["build"] - figures["ranker"] for figures in (small, large)]
    found["build_time_per_row"] = round(builds[1] / builds[0] / growth, 3)
    if with_update:
        found["update_over_build"] = round(large["update"] / builds[1], 4)
    found["build_peak_over_vectors"] = round(large["build_gb"] * 1e9 / (4 * DIMENSION * sizes[1]), 2)
    found["build_own_bytes_per_listing"] = round(large["build_own_gb"] * 1e9 / sizes[1])
    if not with_update:
        found |= {f"large_{name}": round(figure, 2) for name, figure in large.items()}
    print(json.dumps(found))
    if not args.quick:
        results.save("scale" if with_update else f"scale_{args.rows}", found, results.command(args.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
