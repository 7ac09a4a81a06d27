"""Turn every photo and every listing's text into a vector, with the trained models.

Reads   data/model/, data/images/, data/dataset/training_data.csv, data/tabular/products.csv
Writes  data/embeddings/ (image_embeddings.json; vectors.npy and probabilities.npy with image_ids.json;
                          text_vectors.npy; name_vectors.npy and meaning_vectors.npy, where there is a text encoder;
                          photos-<number>.npy, texts-<number>.npy, names-<number>.npy, meanings-<number>.npy: rows
                          kept for the next run, which embeds only what is new)
Run     python extract_embeddings.py
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson

from marketplace.cleaning import listings, photos, shared_pixels
from marketplace.files import atomic, cli, cluster, reading, stages
from marketplace.files.progress import progress
from marketplace.files.stages import StageError
from marketplace.models import photo_model as model
from marketplace.models import text_encoder, text_model
from marketplace.models.photo_nodes import CALL_PHOTOS, PhotoModelOnNodes

SHARD = 2_000  # photos or texts: what a killed run loses at most
# Photos a forward pass: on a CPU the fastest, by benchmarks/extract_embeddings.py; a GPU is kept busy for as long as it takes to
# prepare the next.
CPU_BATCH, CUDA_BATCH = 4, 256
ENCODED_TOGETHER = 64  # texts: what the progress moves by
KEY = "S32"  # half of a sha256 in hexadecimal: 128 bits, and half the memory
JSON = "image_embeddings.json"


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument(
        "--batch-size", type=cli.positive, help=f"photos a forward pass (default: {CPU_BATCH}, with CUDA {CUDA_BATCH})"
    )
    parser.add_argument(
        "--workers",
        default=cli.cores(),
        type=cli.positive,
        help="threads that decode photos and run the model, the cores shared among them; with CUDA processes that decode "
        "(default: one a core)",
    )
    parser.add_argument("--no-json", action="store_true", help=f"leave {JSON} out")
    cli.add_ray(parser)
    cli.add_runtime(parser, model.RUNTIMES)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    arguments = {name: getattr(args, name) for name in ("runtime", "device", "batch_size", "no_json")}
    with stages.open_stage(args.data, "embeddings", arguments, flags=cli.flags_of(args, "workers", "ray")) as stage:
        if stage.is_done():
            return stage.summary()
        tell_new_categories(args.data)
        table = reading.read_csv(args.data / "dataset" / "training_data.csv", usecols=["image_id"])
        texts = listings.texts(listings.read_products(args.data / "tabular"))
        counts = embed_photos(stage, args.data, table["image_id"].tolist(), args) | embed_texts(stage, args.data, texts)
        encoded = encode_texts(stage, args.data, texts, args.workers)
        written = [*stages.EMBEDDED, *(stages.ENCODED if encoded else []), *([] if args.no_json else [JSON])]
        return stage.finish(counts | encoded, written)


def tell_new_categories(data_dir: Path) -> None:
    """Say of which categories the model can find none of the listings likely; words and photos find them all the same."""
    learned = model.Description.load(data_dir / "model").classes
    if new := sorted(set(listings.read_classes(data_dir / "tabular")) - set(learned)):
        print(f"categories that the model does not know before another python train.py: {', '.join(new)}", file=sys.stderr)


@contextlib.contextmanager
def open_photo_model(data_dir: Path, args: argparse.Namespace) -> Iterator[model.PhotoModel | PhotoModelOnNodes]:
    """The trained model, the cores shared among the workers, or on the nodes of a cluster.

    Raises StageError when the photos were cleaned otherwise than its own, and what cluster.connect() does.
    """
    with contextlib.ExitStack() as stack:
        if cores := stack.enter_context(cluster.connect(args.ray)):
            gpus = stack.enter_context(cores.gpus()) if uses_gpus(cores, args) else None
            photo_model = PhotoModelOnNodes(data_dir / "model", args.runtime, cores, gpus)
        else:
            threads = max(1, cli.cores() // args.workers)
            photo_model = model.PhotoModel(data_dir / "model", args.runtime, args.device, threads=threads)
        cleaned_with = stages.read_manifest(data_dir / "images")["arguments"]
        if photos.CleanSettings.from_dict(cleaned_with) != photo_model.settings:
            raise StageError(
                f"the photos in {data_dir / 'images'} were cleaned with other settings than the model's: "
                "run python train.py again"
            )
        yield photo_model


def uses_gpus(cores: cluster.Cores, args: argparse.Namespace) -> bool:
    """Whether a cluster runs the model on its GPUs: as on one machine, where there are any."""
    if args.device not in (None, "cpu") and not cores.n_gpus:
        raise StageError(f"the cluster has no GPU for --device {args.device}: leave it out")
    return cores.n_gpus > 0 and args.runtime != "onnx" and args.device != "cpu"


def photo_shards(folder: Path, data_dir: Path, photo_model: model.PhotoModel | PhotoModelOnNodes) -> "Shards":
    """Rows of "vector" (D,) and "probabilities" (C,), kept while model, runtime and precision stay the same."""
    made_by = stages.digests(data_dir / "model", model.DESCRIPTION, model.WEIGHTS, model.ONNX, model.INT8)
    made_by |= {"runtime": photo_model.runtime, "precision": photo_model.precision, "schema": stages.STAGES["embeddings"].schema}
    fields = {"vector": photo_model.description.dimension, "probabilities": len(photo_model.description.classes)}
    dtype = np.dtype([("key", KEY), *((name, np.float32, (size,)) for name, size in fields.items())])
    return Shards(folder, "photos", made_by, dtype)


def embed_photos(stage: stages.Stage, data_dir: Path, image_ids: list[str], args: argparse.Namespace) -> dict:
    """Write vectors.npy (N, D) of unit rows, probabilities.npy (N, C), and the dictionary; returns what to tell of them."""
    # Before the model is there: what the table takes while it is read is then free for the model.
    keys = photos.pixel_digests(data_dir / "images", image_ids).astype(KEY)
    with open_photo_model(data_dir, args) as photo_model:
        batch_size = args.batch_size or (CUDA_BATCH if photo_model.precision == "bf16" else CPU_BATCH)
        stage.begin()
        shards = photo_shards(stage.folder, data_dir, photo_model)

        def compute(positions: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            chosen = [image_ids[position] for position in positions]
            for outputs in run_photos(photo_model, data_dir / "images", chosen, args.workers, batch_size):
                yield dict(zip(("vector", "probabilities"), outputs, strict=True))

        embedded = shards.fill(keys, compute, "photo")
    shards.write("vector", keys, stage.folder / "vectors.npy")
    shards.write("probabilities", keys, stage.folder / "probabilities.npy")
    atomic.write_json(stage.folder / "image_ids.json", image_ids, indent=None)
    (stage.folder / JSON).unlink(missing_ok=True)
    if not args.no_json:
        write_dictionary(stage.folder / JSON, image_ids, shards.read("vector", keys))
    return {
        "photos": len(image_ids),
        "photos_embedded": embedded,
        "photos_reused": len(image_ids) - embedded,
        "dimension": photo_model.description.dimension,
        "runtime": photo_model.runtime,
        "precision": photo_model.precision,
    }


def embed_texts(stage: stages.Stage, data_dir: Path, texts: list[str]) -> dict:
    """Write text_vectors.npy, (P, T) float32 unit rows; a listing without a known word has a row of zeros."""
    models = text_model.TableModels.load(data_dir / "model")
    keys = keys_of(texts)
    made_by = stages.digests(data_dir / "model", *text_model.FILES) | {"schema": stages.STAGES["embeddings"].schema}
    dtype = np.dtype([("key", KEY), ("vector", np.float32, models.encode([""]).shape[1:])])
    shards = Shards(stage.folder, "texts", made_by, dtype)

    def compute(positions: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        for shard in parts_of(positions, SHARD):
            yield {"vector": models.encode([texts[position] for position in shard])}

    embedded = shards.fill(keys, compute, "text")
    shards.write("vector", keys, stage.folder / "text_vectors.npy")
    return {"listings": len(texts), "listings_embedded": embedded}


def encode_texts(stage: stages.Stage, data_dir: Path, texts: list[str], workers: int) -> dict:
    """Write name_vectors.npy and meaning_vectors.npy, each (P, E) float32 unit rows, of the names and of the whole texts.

    Returns what to tell of them; without a text encoder nothing, and nothing stays of another one.
    """
    encoder = text_encoder.TextEncoder.load(data_dir / "model", workers)
    if encoder is None:
        for pattern in (*stages.ENCODED, "names-*.npy", "meanings-*.npy"):
            for path in stage.folder.glob(pattern):
                path.unlink()
        return {}
    made_by = stages.digests(data_dir / "model", *text_encoder.FILES) | {"schema": stages.STAGES["embeddings"].schema}
    dtype = np.dtype([("key", KEY), ("vector", np.float32, (encoder.dimension,))])
    names = [text.partition("\n")[0] for text in texts]
    kinds = {"name": (names, text_encoder.NAME_TOKENS), "meaning": (texts, text_encoder.TEXT_TOKENS)}
    counts = {}
    for kind, (read, max_tokens) in kinds.items():
        keys = keys_of(read)
        shards = Shards(stage.folder, f"{kind}s", made_by | {"max_tokens": max_tokens}, dtype)

        def compute(positions: np.ndarray, read=read, max_tokens=max_tokens) -> Iterator[dict[str, np.ndarray]]:
            for together in batches_of(positions, ENCODED_TOGETHER):
                yield {"vector": encoder.encode([read[position] for position in together], max_tokens)}

        counts[f"{kind}s_encoded"] = shards.fill(keys, compute, kind)
        shards.write("vector", keys, stage.folder / f"{kind}_vectors.npy")
    return counts


def keys_of(texts: list[str]) -> np.ndarray:
    """(N,) what each text is found by among the rows that are kept."""
    return np.array([hashlib.sha256(text.encode()).hexdigest() for text in texts], KEY)


def run_photos(
    photo_model: model.PhotoModel | PhotoModelOnNodes, images_dir: Path, image_ids: list[str], workers: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(n, D) float32 unit rows and (n, C) category probabilities of the photos in turn, n of them at a time, none of two shards.

    On a CPU each of the `workers` threads decodes batches of its own and runs them: no thread waits for another. For a GPU
    `workers` processes decode.
    """
    if isinstance(photo_model, PhotoModelOnNodes):
        parts = batches_of(image_ids, max(1, CALL_PHOTOS // batch_size) * batch_size)  # the same batches as without a cluster
        yield from photo_model.run_photos(images_dir, parts, batch_size)
        return
    if photo_model.precision == "bf16":
        batches, side = batches_of(image_ids, batch_size), photo_model.settings.size
        yield from shared_pixels.map_batches(photo_model.run, images_dir, batches, side, workers)
        return

    def run(batch: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return photo_model.run(np.stack([photos.load(images_dir, image_id, photo_model.input) for image_id in batch]))

    pool = ThreadPoolExecutor(workers)
    try:
        for shard in parts_of(image_ids, SHARD):  # or map() would queue all of them
            yield from pool.map(run, parts_of(shard, batch_size))
    finally:
        pool.shutdown(cancel_futures=True)


def parts_of(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def batches_of(items: Sequence, size: int) -> list[Sequence]:
    """Parts of at most `size` items, none of two shards."""
    return [batch for shard in parts_of(items, SHARD) for batch in parts_of(shard, size)]


def write_dictionary(path: Path, image_ids: list[str], chunks: Iterator[np.ndarray]) -> None:
    """{image_id: [floats]}, each float the shortest text that reads back as the same float32; vectors come in chunks."""
    written = 0
    with atomic.atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(b"{")
        for chunk in chunks:
            entries = [
                orjson.dumps(image_id) + b": " + orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
                for image_id, vector in zip(image_ids[written : written + len(chunk)], chunk, strict=True)
            ]
            file.write((b",\n" if written else b"\n") + b",\n".join(entries))
            written += len(chunk)
        if written != len(image_ids):
            raise AssertionError(f"{written} vectors of {len(image_ids)} photos")
        file.write(b"\n}\n")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _are_among(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(N,) whether each key is one of those wanted, which are sorted: np.isin() would sort them again for every file."""
    if not len(wanted):
        return np.zeros(len(keys), bool)
    return wanted[np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)] == keys


class Shards:
    """Rows kept from run to run in files of at most SHARD rows, named by their content; found by what they were made of.

    dtype: of a row, with a field "key", the digest of what it is made of. Files made by anything else are removed.
    """

    def __init__(self, folder: Path, name: str, made_by: dict, dtype: np.dtype):
        made_by_digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]
        self.folder, self.prefix, self.dtype = folder, f"{name}-{made_by_digest}-", dtype
        self._whole: dict[Path, np.ndarray] = {}  # the keys of the files that are, which need not be read twice
        for path in folder.glob(f"{name}-*.npy"):
            if not path.name.startswith(self.prefix):
                path.unlink()

    def fill(self, keys: np.ndarray, compute: Callable[[np.ndarray], Iterator[dict[str, np.ndarray]]], unit: str) -> int:
        """Make the rows of those (N,) keys that have none; returns how many were made.

        compute: positions in keys -> the other fields of their rows, in batches_of() them of any size.
        """
        self._open(keys)
        distinct, first = np.unique(keys, return_index=True)
        missing = np.sort(first[~_are_among(distinct, self.keys[self.order])])
        for _ in progress(self._make(keys, missing, compute), f"embed {unit}s", unit, len(missing)):
            pass
        if len(missing):
            self._open(keys)
        return len(missing)

    def _make(self, keys: np.ndarray, missing: np.ndarray, compute: Callable) -> Iterator[None]:
        """Compute and write the rows at positions `missing`, yielding once for each."""
        first_number = int(self.paths[-1].stem.split("-")[2]) + 1 if self.paths else 0
        with contextlib.closing(compute(missing)) as batches:
            for number, positions in enumerate(parts_of(missing, SHARD), start=first_number):
                rows, made = np.empty(len(positions), self.dtype), 0
                rows["key"] = keys[positions]
                while made < len(positions):
                    batch = next(batches)
                    size = len(next(iter(batch.values())))
                    for field, values in batch.items():
                        rows[field][made : made + size] = values
                    made += size
                    yield from [None] * size
                self._write(number, rows)

    def _write(self, number: int, rows: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        atomic.write_bytes(self.folder / f"{self.prefix}{number:06d}-{_digest(buffer.getvalue())}.npy", buffer.getvalue())

    def _open(self, keys: np.ndarray) -> None:
        """Find out which key is where. A file that is damaged, or most of whose rows nobody wants, is removed: its rows, or the
        others of them, are made again."""
        kept, wanted = {}, np.unique(keys)
        for path in sorted(self.folder.glob(f"{self.prefix}*.npy")):
            if path not in self._whole and path.stem.endswith(f"-{_digest(path.read_bytes())}"):
                self._whole[path] = np.array(reading.read_array(path)["key"])
            if path in self._whole and _are_among(self._whole[path], wanted).mean() >= 0.5:
                kept[path] = self._whole[path]
            else:
                path.unlink()
        self.paths = list(kept)
        self.starts = np.cumsum([0, *map(len, kept.values())])  # the first row of each file, counted through all of them
        self.keys = np.concatenate([np.empty(0, self.dtype["key"]), *kept.values()])
        self.order = np.argsort(self.keys)

    def read(self, field: str, keys: np.ndarray) -> Iterator[np.ndarray]:
        """A field of the rows of (N,) keys, in chunks of at most SHARD rows."""
        for start in range(0, len(keys), SHARD):
            rows = self.order[np.searchsorted(self.keys, keys[start : start + SHARD], sorter=self.order)]
            files = np.searchsorted(self.starts, rows, side="right") - 1
            chunk = np.empty(len(rows), self.dtype[field])
            for file in np.unique(files):
                here = files == file
                chunk[here] = reading.read_array(self.paths[file])[field][rows[here] - self.starts[file]]
            yield chunk

    def write(self, field: str, keys: np.ndarray, path: Path) -> None:
        atomic.write_rows(path, len(keys), self.dtype[field], self.read(field, keys))


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
