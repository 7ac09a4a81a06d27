"""Build everything that the API serves, and publish it as a new generation.

Reads   data/embeddings/, data/model/, data/tabular/products.csv, data/dataset/training_data.csv
Writes  data/index/ (current.json; <generation>/ with index.faiss, vectors.npy, text.faiss, catalogue.sqlite, models, report.json)
Run     python build_index.py
        python build_index.py --embeddings image_embeddings.json   vectors of your own, {"<image id>": [floats], ...}
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import orjson
import pandas as pd

from marketplace import catalogue, errors, listings, model, ranking, search, storage
from marketplace.errors import StageError

WEIGHTS = {"photo": 1.0, "text": 0.5, "words": 0.5}  # set by hand: a picture counts as much as all that is said in words
TIMED_QUERIES = 100


def read_dictionary(path: Path) -> tuple[list[str], np.ndarray]:
    """A saved {image id: [floats]} -> ids, (N, D) float32 unit rows. Raises StageError for anything else."""
    if not path.is_file():
        raise StageError(f"--embeddings {path} does not exist: give a JSON file of the form {{image id: [floats]}}")
    try:
        dictionary = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise StageError(
            f"--embeddings {path} is not valid JSON ({error}): give a file of the form {{image id: [floats]}}"
        ) from None
    if not isinstance(dictionary, dict) or not dictionary:
        raise StageError(f"--embeddings {path} holds no embeddings: give a file of the form {{image id: [floats]}}")
    try:
        vectors = np.array(list(dictionary.values()), np.float32)
    except (ValueError, TypeError):
        raise StageError(f"--embeddings {path} holds lists that are not numbers or differ in length: embed them again") from None
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True) if vectors.ndim == 2 else np.zeros(1)
    if vectors.ndim != 2 or not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise StageError(f"--embeddings {path} must hold lists of finite numbers, not all zero: embed them again")
    return list(dictionary), vectors / lengths


def read_embeddings(data_dir: Path, product_ids: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Photo ids and (N, D) vectors, and (P, T) text vectors in the table's order; StageError when they do not fit."""
    folder = data_dir / "embeddings"
    storage.check_inputs(data_dir, "dataset")
    storage.check_inputs(data_dir, "embeddings")
    image_ids = storage.read_json(folder / "image_ids.json")
    vectors, text_vectors = storage.read_array(folder / "vectors.npy"), storage.read_array(folder / "text_vectors.npy")
    if len(image_ids) != len(vectors):
        raise StageError(
            f"{folder} holds {len(vectors)} vectors and {len(image_ids)} ids: run python extract_embeddings.py again"
        )
    if storage.read_json(folder / "product_ids.json") != product_ids or len(text_vectors) != len(product_ids):
        raise StageError(f"{folder} holds other listings than the table: run python extract_embeddings.py again")
    return image_ids, vectors, text_vectors


def match_photos(
    products: pd.DataFrame, text_vectors: np.ndarray, image_ids: list[str], product_of_image: pd.Series
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, int]:
    """The row of each photo's product; a photo that no listing claims stands as a listing of its own, named by its id.

    Returns products, text vectors, (N,) rows, and the number of such photos.
    """
    owners = pd.Series(image_ids).map(product_of_image)
    strangers = owners.isna()
    if strangers.any():
        alone = pd.DataFrame("", index=range(int(strangers.sum())), columns=products.columns)
        alone["product_id"] = np.array(image_ids)[strangers]
        alone["price"], alone["price_plausible"] = np.nan, False
        products = pd.concat([products, alone], ignore_index=True)
        text_vectors = np.vstack([text_vectors, np.zeros((len(alone), text_vectors.shape[1]), np.float32)])
        owners[strangers] = alone["product_id"].to_numpy()
    row_of = pd.Series(np.arange(len(products)), index=products["product_id"])
    return products, text_vectors, row_of.loc[owners].to_numpy(), int(strangers.sum())


def link(source: Path, target: Path) -> None:
    """Hard-link, or copy where the file system cannot: a generation's models must outlive a retraining."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def measure(index: faiss.Index, vectors: np.ndarray, index_path: Path) -> dict:
    """Recall against exact search, milliseconds of one query at a time, bytes a vector."""
    queries = np.ascontiguousarray(vectors[np.linspace(0, len(vectors) - 1, min(TIMED_QUERIES, len(vectors))).astype(int)])
    times_ms = []
    for query in queries:
        start = time.perf_counter()
        index.search(query[None], min(search.RECALL_K, len(vectors)))
        times_ms.append(1000 * (time.perf_counter() - start))
    return {
        "kind": type(index).__name__,
        "nprobe": getattr(index, "nprobe", None),
        "recall_at_10": round(search.measure_recall(index, vectors), 4),
        "p50_ms": round(float(np.percentile(times_ms, 50)), 3),
        "p99_ms": round(float(np.percentile(times_ms, 99)), 3),
        "bytes_per_vector": round(index_path.stat().st_size / len(vectors), 1),
    }


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--embeddings", type=Path, help="JSON of photo vectors to use (default: those of extract_embeddings.py)")
    parser.add_argument(
        "--kind", default="auto", choices=search.KINDS, help="auto: flat up to 20,000 photos (default: %(default)s)"
    )
    parser.add_argument("--recall", default=0.95, type=float, help="recall@10 that ivf is tuned to (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 < args.recall <= 1:
        parser.error(f"argument --recall: must be above 0 and at most 1, not {args.recall}")
    return args


def run(args: argparse.Namespace) -> dict:
    products = listings.read_products(args.data / "tabular")
    image_ids, vectors, text_vectors = read_embeddings(args.data, products["product_id"].tolist())
    names = ("vectors.npy", "image_ids.json", "text_vectors.npy", "product_ids.json")
    inputs = storage.digests(
        args.data,
        *("tabular/products.csv", "dataset/training_data.csv"),
        *(f"embeddings/{name}" for name in names),
        *(f"model/{name}" for name in model.FILES),
    )
    if args.embeddings:
        image_ids, vectors = read_dictionary(args.embeddings)
        inputs["--embeddings"] = storage.digest(args.embeddings)
    if not image_ids:
        raise StageError(f"{args.data / 'embeddings'} holds no photo: check that the photos' names are the ids in Images.csv")
    arguments = {"kind": args.kind, "recall": args.recall, "weights": WEIGHTS}
    name = hashlib.sha256(json.dumps([arguments, inputs, storage.SCHEMA_VERSION]).encode()).hexdigest()[:12]
    stage = storage.Stage(args.data / "index", arguments, inputs)
    if (done := stage.finished()) and done["generation"] == name:
        return done
    stage.begin()
    owners = storage.read_csv(args.data / "dataset" / "training_data.csv").set_index("image_id")["product_id"]
    products, text_vectors, product_of_photo, strangers = match_photos(products, text_vectors, image_ids, owners)
    started_s = time.perf_counter()
    with storage.new_generation(stage.folder, name) as folder:
        index = search.build(vectors, args.kind, args.recall)
        faiss.write_index(index, str(folder / "index.faiss"))
        faiss.write_index(search.build(text_vectors, "flat"), str(folder / "text.faiss"))
        storage.write_array(folder / "vectors.npy", vectors)
        storage.write_array(folder / "text_vectors.npy", text_vectors)
        catalogue.write(folder, products, image_ids, product_of_photo)
        background = {"photo": ranking.background_cosine(vectors), "text": ranking.background_cosine(text_vectors), "words": 0.0}
        ranking.Ranker(WEIGHTS, background).save(folder / "ranker.json")
        for file_name in model.FILES:
            link(args.data / "model" / file_name, folder / file_name)
        counts = {
            "generation": name,
            "photos": len(image_ids),
            "listings": len(products),
            "photos_without_listing": strangers,
            "photos_without_vector": int((~owners.index.isin(image_ids)).sum()),
            "dimension": int(vectors.shape[1]),
        }
        report = counts | {"own_embeddings": bool(args.embeddings), "index": measure(index, vectors, folder / "index.faiss")}
        report["files"] = storage.digests(folder, *sorted(path.name for path in folder.iterdir()))
        storage.write_json(folder / "report.json", report | {"build_seconds": round(time.perf_counter() - started_s, 2)})
    files = sorted(path.name for path in (stage.folder / name).iterdir())
    summary = counts | {"recall_at_10": report["index"]["recall_at_10"]}
    return stage.finish(summary, ["current.json", *(f"{name}/{file_name}" for file_name in files)])


def main(argv=None) -> int:
    return errors.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
