"""Build everything that the API serves, and publish it as a new generation.

Reads   data/embeddings/, data/model/, data/tabular/products.csv, data/dataset/ (training_data.csv, listings.csv)
Writes  data/index/ (current.json; <generation>/ with index.faiss, vectors.npy, text.faiss, catalogue.sqlite, ranker.json, models,
        report.json)
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
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import orjson
import pandas as pd
from tqdm import tqdm

from marketplace import catalogue, errors, flags, listings, model, ranking, search, storage
from marketplace.errors import StageError
from marketplace.recommender import Recommender

JUDGED_LISTINGS = 400  # of the validation split, asked about to fit the ranker
JUDGED_DEPTH = 50  # candidates of each kind of evidence, for each of those questions
LEAST_JUDGED = 20  # listings; with fewer the weights set by hand stay
# Of a generation, by what their rows are of.
INDEXES = {"photos": "index.faiss", "listings": "text.faiss"}
VECTORS = {"photos": "vectors.npy", "listings": "text_vectors.npy"}
KEYS = {"photos": "photo_keys.npy", "listings": "product_keys.npy"}
SUMMARY = (
    "generation", "photos", "listings", "photos_without_listing", "photos_without_vector", "dimension", "updated", "changed_rows",
)  # fmt: skip


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


def judge(
    recommender: Recommender, products: pd.DataFrame, splits: pd.Series, photos: dict, seed: int = 0
) -> list[ranking.Judged]:
    """Questions about validation listings, their answers among the training listings, and how relevant those are.

    Each listing is asked for by photo, by title, by title and description, by photo and title, and by all that is known of it;
    never by its own category. An answer of the same full category path is of grade 2, of the same main category 1.
    products: rows of the catalogue; splits: by product_id; photos: "vectors" (N, D) and "probabilities" (N, C) by row.
    """
    split = products["product_id"].map(splits).to_numpy()
    allowed = split == "train"
    asked = np.flatnonzero(split == "validation")
    asked = np.random.default_rng(seed).permutation(asked)[:JUDGED_LISTINGS]
    paths = [listings.category_levels(path) for path in products["category"]]
    mains, leaves = (
        pd.factorize(pd.Series(names))[0] for names in ([path[0] for path in paths], [tuple(path) for path in paths])
    )
    texts = listings.texts(products.iloc[asked])
    judged = []
    for row, text in zip(tqdm(asked, desc="ranker", file=sys.stderr, disable=None), texts, strict=True):
        title = text.partition("\n")[0]
        questions: list[tuple] = [(None, title), (None, text)]
        photo_rows = recommender.catalogue.photos_of(row)
        if len(photo_rows):
            photo = photo_rows[0]
            questions += [(photo, None), (photo, title), (photo, text)]
        for photo, words in questions:
            seen = () if photo is None else (photos["vectors"][photo], words, photos["probabilities"][photo])
            query = recommender.query(*(seen or (None, words)))
            if words == text:  # as one listing is compared with another
                query.price = products["price"].iloc[row] if products["price"].iloc[row] > 0 else None
                query.place = recommender.place_of(row)
            rows = recommender.candidates(query, JUDGED_DEPTH, allowed)
            if len(rows):
                relevance = np.where(leaves[rows] == leaves[row], 2, np.where(mains[rows] == mains[row], 1, 0))
                judged.append(ranking.Judged(recommender.evidence(query, rows)[0], relevance, int(row)))
    return judged


def fit_ranker(folder: Path, products: pd.DataFrame, splits: pd.Series, photos: dict | None, background: dict) -> dict:
    """Write ranker.json, fitted on validation listings where there are enough of them; returns what it was chosen by."""
    ranking.Ranker(ranking.BY_HAND, dict.fromkeys(ranking.KINDS, 0.0), background).save(folder / "ranker.json")
    if photos is None or splits.eq("validation").sum() < LEAST_JUDGED:
        return {"chosen": "by_hand"}
    ranker, chosen = ranking.fit(judge(Recommender.unpublished(folder), products, splits, photos), background)
    ranker.save(folder / "ranker.json")
    return chosen


def row_hashes(vectors: np.ndarray) -> np.ndarray:
    """(N, D) float32 -> (N,) uint64, equal for equal rows: the numbers' bits times random odd numbers, added up.

    Source: multiply-shift hashing of vectors (Thorup, "High speed hashing for integers and strings", 2015, section 3.5).
    """
    factors = np.random.default_rng(0).integers(2**63, size=vectors.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), search.BLOCK_ROWS):
        block = np.ascontiguousarray(vectors[start : start + search.BLOCK_ROWS], np.float32)
        hashes[start : start + len(block)] = (block.view(np.uint32) * factors).sum(axis=1, dtype=np.uint64)
    return hashes


def keys_of(columns: pd.DataFrame, vectors: np.ndarray) -> np.ndarray:
    """(N,) uint64, never 0 and different for different entries: what an update knows an unchanged row by."""
    keys = pd.util.hash_pandas_object(columns, index=False, categorize=False).to_numpy(np.uint64) ^ row_hashes(vectors)
    return np.maximum(keys, np.uint64(1))


@dataclass(frozen=True)
class Published:
    """The generation that is published now, and its report; an update follows it row by row."""

    folder: Path
    report: dict

    @classmethod
    def of(cls, index_dir: Path) -> "Published | None":
        """None when there is none, or it is of another version of this program."""
        try:
            folder = storage.current_generation(index_dir)
            report = storage.read_json(folder / "report.json")
        except StageError:
            return None
        return cls(folder, report) if report.get("schema") == storage.SCHEMA_VERSION else None

    def follows(self, settings: dict, keys: dict[str, np.ndarray], kind: str, max_memory_bytes: int | None) -> dict | None:
        """The Rows of photos and listings in an update of this generation; None when a full build is due.

        A full build is due when models or flags have changed, or when search.rebuild_is_due() says so of either index.
        """
        if self.report["settings"] != settings:
            return None
        rows = {name: catalogue.Rows.plan(keys[name], storage.read_array(self.folder / KEYS[name])) for name in KEYS}
        for name, file_name in INDEXES.items():
            index = search.read(self.folder / file_name, mapped=True)
            own_kind = kind if name == "photos" else "auto"
            if search.rebuild_is_due(index, rows[name].total, len(keys[name]), self.report["built_rows"][name], own_kind):
                return None
        grown = (self.folder / INDEXES["photos"]).stat().st_size * len(keys["photos"]) / self.report["photos"]
        return None if max_memory_bytes is not None and grown > max_memory_bytes else rows

    def ranker(self, settings: dict) -> Path | None:
        """Its ranker, when it was fitted with the same models: new listings alone keep it."""
        same = all(self.report["settings"][name] == settings[name] for name in ("models", "own_embeddings"))
        return self.folder / "ranker.json" if same and not settings["own_embeddings"] else None


def update_index(previous: Path, folder: Path, names: tuple[str, str], vectors: np.ndarray, rows: catalogue.Rows):
    """Write an index and its vectors that follow those of `previous`; returns both, the vectors (rows, D) memory-mapped.

    names: of the two files; vectors: (n, D) by entry.
    """
    index, before = search.read(previous / names[0]), storage.read_array(previous / names[1])
    by_row = np.lib.format.open_memmap(folder / names[1], "w+", np.float32, (rows.total, vectors.shape[1]))
    by_row[: len(before)] = before
    by_row[len(before) :] = vectors[rows.added]
    by_row.flush()
    search.update(index, by_row, len(before), rows.removed)
    faiss.write_index(index, str(folder / names[0]))
    return index, by_row


def link(source: Path, target: Path) -> None:
    """Hard-link, or copy where the file system cannot: a generation's models must outlive a retraining."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--embeddings", type=Path, help="JSON of photo vectors to use (default: those of extract_embeddings.py)")
    parser.add_argument(
        "--kind", default="auto", choices=search.KINDS, help="auto: flat up to 20,000 photos (default: %(default)s)"
    )
    parser.add_argument(
        "--max-memory",
        type=flags.positive,
        help="bytes the photo index may take: 8 bits a dimension, else 4 (default: no limit)",
    )
    parser.add_argument("--recall", default=0.95, type=float, help="recall@10 that ivf is tuned to (default: %(default)s)")
    parser.add_argument(
        "--full", action="store_true", help="build anew (default: update the published generation when it is little changed)"
    )
    args = parser.parse_args(argv)
    if not 0 < args.recall <= 1:
        parser.error(f"argument --recall: must be above 0 and at most 1, not {args.recall}")
    return args


def run(args: argparse.Namespace) -> dict:
    products = listings.read_products(args.data / "tabular")
    image_ids, vectors, text_vectors = read_embeddings(args.data, products["product_id"].tolist())
    names = ("vectors.npy", "probabilities.npy", "image_ids.json", "text_vectors.npy", "product_ids.json")
    inputs = storage.digests(
        args.data,
        *("tabular/products.csv", "dataset/training_data.csv", "dataset/listings.csv"),
        *(f"embeddings/{name}" for name in names),
    )
    models = storage.digests(args.data, *(f"model/{name}" for name in model.FILES))
    inputs |= models
    if args.embeddings:
        image_ids, vectors = read_dictionary(args.embeddings)
        inputs["--embeddings"] = storage.digest(args.embeddings)
    if not image_ids:
        raise StageError(f"{args.data / 'embeddings'} holds no photo: check that the photos' names are the ids in Images.csv")
    arguments = {"kind": args.kind, "recall": args.recall, "max_memory": args.max_memory}
    stage = storage.Stage(args.data / "index", arguments | {"full": args.full}, inputs)
    published = Published.of(stage.folder)
    if (done := stage.finished()) and published and done["generation"] == published.folder.name:
        return done
    stage.begin()
    owners = storage.read_csv(args.data / "dataset" / "training_data.csv").set_index("image_id")["product_id"]
    known = storage.read_csv(args.data / "dataset" / "listings.csv").set_index("product_id")
    products, text_vectors, product_of_photo, strangers = match_photos(products, text_vectors, image_ids, owners)
    started_s = time.perf_counter()
    settings = {"arguments": arguments, "models": models, "own_embeddings": bool(args.embeddings), "dimension": vectors.shape[1]}
    keys = {
        "photos": keys_of(pd.DataFrame({"image_id": image_ids}), vectors),
        "listings": keys_of(products[list(catalogue.PRODUCT_FIELDS)], text_vectors),
    }
    key = hashlib.sha256(json.dumps([arguments, inputs, storage.SCHEMA_VERSION]).encode()).hexdigest()
    rows = published.follows(settings, keys, args.kind, args.max_memory) if published and not args.full else None
    updated = published if rows else None
    name = hashlib.sha256(f"{key} {updated.report['key']}".encode()).hexdigest()[:12] if updated else key[:12]
    if updated and updated.report["key"] == key:  # published by a run that was killed before it could say so
        return finish(stage, updated.folder.name, updated.report)
    rows = rows or {name: catalogue.Rows.plan(of_kind) for name, of_kind in keys.items()}
    with storage.new_generation(stage.folder, name) as folder:
        names = {kind: (INDEXES[kind], VECTORS[kind]) for kind in INDEXES}
        if updated:
            index, by_row = update_index(updated.folder, folder, names["photos"], vectors, rows["photos"])
            update_index(updated.folder, folder, names["listings"], text_vectors, rows["listings"])
        else:
            index, by_row = search.build(vectors, args.kind, args.recall, args.max_memory), vectors
            faiss.write_index(index, str(folder / INDEXES["photos"]))
            faiss.write_index(search.build(text_vectors, recall=args.recall), str(folder / INDEXES["listings"]))
            storage.write_array(folder / VECTORS["photos"], vectors)
            storage.write_array(folder / VECTORS["listings"], text_vectors)
        for kind, file_name in KEYS.items():
            storage.write_array(folder / file_name, rows[kind].spread(keys[kind], 0))
        # A photo that no listing claims is its own only duplicate.
        duplicates = pd.factorize(products["product_id"].map(known["duplicates"]).fillna(products["product_id"]))[0]
        catalogue.write(
            folder,
            products,
            image_ids,
            product_of_photo,
            duplicates,
            (rows["listings"], rows["photos"]),
            updated and updated.folder,
        )
        for file_name in model.FILES:
            link(args.data / "model" / file_name, folder / file_name)
        ranker_started_s = time.perf_counter()
        if published and (ranker := published.ranker(settings)):
            shutil.copy2(ranker, folder / "ranker.json")
            fitted = "kept"
        else:
            background = {"photo": ranking.background_cosine(vectors), "text": ranking.background_cosine(text_vectors)}
            judged_photos = {
                "vectors": vectors,
                "probabilities": storage.read_array(args.data / "embeddings" / "probabilities.npy"),
            }
            fitted = fit_ranker(folder, products, known["split"], None if args.embeddings else judged_photos, background)
        ranker_seconds = round(time.perf_counter() - ranker_started_s, 2)
        report = {
            "generation": name,
            "photos": len(image_ids),
            "listings": len(products),
            "photos_without_listing": strangers,
            "photos_without_vector": int((~owners.index.isin(image_ids)).sum()),
            "dimension": int(vectors.shape[1]),
            "updated": updated and updated.folder.name,
            "changed_rows": {kind: int(of.added.sum()) + len(of.removed) for kind, of in rows.items()} if updated else None,
            "own_embeddings": bool(args.embeddings),
            "ranker": fitted,
            "settings": settings,
            "schema": storage.SCHEMA_VERSION,
            "key": key,
            "built_rows": updated.report["built_rows"] if updated else {kind: of.total for kind, of in rows.items()},
        }
        bytes_per_vector = round((folder / INDEXES["photos"]).stat().st_size / len(vectors), 1)
        report["index"] = search.measure(index, by_row) | {"bytes_per_vector": bytes_per_vector}
        report["files"] = storage.digests(folder, *sorted(path.name for path in folder.iterdir()))
        seconds = {"ranker_seconds": ranker_seconds, "build_seconds": round(time.perf_counter() - started_s, 2)}
        storage.write_json(folder / "report.json", report | seconds)
    return finish(stage, name, report)


def finish(stage: storage.Stage, name: str, report: dict) -> dict:
    """The stage's summary of a generation that is published, by its report."""
    files = sorted(path.name for path in (stage.folder / name).iterdir())
    summary = {field: report[field] for field in SUMMARY} | {"recall_at_10": report["index"]["recall_at_10"]}
    return stage.finish(summary, ["current.json", *(f"{name}/{file_name}" for file_name in files)])


def main(argv=None) -> int:
    return errors.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
