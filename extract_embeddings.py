"""Turn every photo and every listing's text into a vector, with the trained models.

Reads   data/model/, data/images/, data/dataset/training_data.csv, data/tabular/products.csv
Writes  data/embeddings/ (image_embeddings.json; vectors.npy and probabilities.npy with image_ids.json;
                          text_vectors.npy with product_ids.json)
Run     python extract_embeddings.py
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
from tqdm import tqdm

from marketplace import errors, flags, listings, model, photos, storage, table_models
from marketplace.errors import StageError

TEXT_BATCH = 2_000  # listings
OUTPUTS = (
    "image_embeddings.json", "vectors.npy", "probabilities.npy", "image_ids.json", "text_vectors.npy", "product_ids.json",
)  # fmt: skip


def photo_batches(
    photo_model: model.PhotoModel, images_dir: Path, image_ids: list[str], batch_size: int, workers: int
) -> Iterator[np.ndarray]:
    """(n, 3, S, S) float32 inputs of the photos in order; the next batch is decoded while one is in use."""

    def read(image_id: str) -> np.ndarray:
        return photos.load(images_dir, image_id, photo_model.input)

    batches = [image_ids[start : start + batch_size] for start in range(0, len(image_ids), batch_size)]
    with ThreadPoolExecutor(workers) as pool:
        following = [pool.submit(read, image_id) for image_id in batches[0]] if batches else []
        for position in range(len(batches)):
            current = following
            if position + 1 < len(batches):
                following = [pool.submit(read, image_id) for image_id in batches[position + 1]]
            yield np.stack([future.result() for future in current])


def embed_photos(
    photo_model: model.PhotoModel, images_dir: Path, image_ids: list[str], args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) float32 unit rows and (N, C) float32 category probabilities, in the order of image_ids."""
    vectors = np.empty((len(image_ids), photo_model.description.dimension), np.float32)
    probabilities = np.empty((len(image_ids), len(photo_model.description.classes)), np.float32)
    start = 0
    batches = photo_batches(photo_model, images_dir, image_ids, args.batch_size, args.workers)
    with tqdm(total=len(image_ids), desc="embed", unit="photo", file=sys.stderr, disable=None) as progress:
        for pixels in batches:
            rows = slice(start, start + len(pixels))
            vectors[rows], probabilities[rows] = photo_model.run(pixels)
            start = rows.stop
            progress.update(len(pixels))
    return vectors, probabilities


def embed_texts(models: table_models.TableModels, texts: list[str]) -> np.ndarray:
    """(P, T) float32 unit rows; a listing without a known word has a row of zeros."""
    parts = [models.encode(texts[start : start + TEXT_BATCH]) for start in range(0, len(texts), TEXT_BATCH)]
    return np.concatenate(parts)


def write_dictionary(path: Path, image_ids: list[str], vectors: np.ndarray) -> None:
    """{image_id: [floats]}, each float the shortest text that reads back as the same float32."""
    with storage.atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(b"{")
        for position, (image_id, vector) in enumerate(zip(image_ids, vectors, strict=True)):
            file.write(b",\n" if position else b"\n")
            file.write(orjson.dumps(image_id) + b": " + orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
        file.write(b"\n}\n")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--batch-size", default=32, type=flags.positive, help="photos a forward pass (default: %(default)s)")
    parser.add_argument(
        "--workers", default=os.cpu_count() or 1, type=flags.positive, help="decoding threads (default: %(default)s)"
    )
    flags.add_runtime(parser, model.RUNTIMES)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    folders = {name: args.data / name for name in ("tabular", "images", "dataset", "model")}
    storage.check_inputs(args.data, "dataset")
    # Listings may come and go without a new training; new labels, or a new split, ask for one.
    storage.check_inputs(args.data, "model", ["tabular/labels.json", "dataset/settings.json"])
    names = ("tabular/products.csv", "images/photos.csv", "dataset/training_data.csv", *(f"model/{name}" for name in model.FILES))
    inputs = storage.digests(args.data, *names)
    arguments = {"runtime": args.runtime, "device": args.device, "batch_size": args.batch_size}
    stage = storage.Stage(args.data / "embeddings", arguments, inputs)
    if done := stage.finished():
        return done
    photo_model = model.PhotoModel(folders["model"], args.runtime, args.device)
    cleaned_with = storage.read_manifest(folders["images"])["arguments"]
    if cleaned_with != photo_model.description.photo:
        raise StageError(
            f"the photos in {folders['images']} were cleaned with other settings than the model's: run python train.py again"
        )
    models = table_models.TableModels.load(folders["model"])
    stage.begin()
    image_ids = storage.read_csv(folders["dataset"] / "training_data.csv")["image_id"].tolist()
    products = listings.read_products(folders["tabular"])
    texts = listings.texts(products)
    vectors, probabilities = embed_photos(photo_model, folders["images"], image_ids, args)
    storage.write_array(stage.folder / "vectors.npy", vectors)
    storage.write_array(stage.folder / "probabilities.npy", probabilities)
    storage.write_json(stage.folder / "image_ids.json", image_ids, indent=None)
    write_dictionary(stage.folder / "image_embeddings.json", image_ids, vectors)
    storage.write_array(stage.folder / "text_vectors.npy", embed_texts(models, texts))
    storage.write_json(stage.folder / "product_ids.json", products["product_id"].tolist(), indent=None)
    counts = {
        "photos": len(image_ids),
        "dimension": photo_model.description.dimension,
        "listings": len(texts),
        "runtime": photo_model.runtime,
    }
    return stage.finish(counts, OUTPUTS)


def main(argv=None) -> int:
    return errors.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
