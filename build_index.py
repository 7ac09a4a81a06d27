"""Build everything that the API serves, and publish it as a new generation.

Reads   data/embeddings/, data/model/, data/tabular/ (products.csv, products_records.npy), data/dataset/ (training_data.npy,
        listings.npy)
Writes  data/index/ (current.json; <generation>/ with index.faiss, vectors.npy, text.faiss, catalogue.sqlite, ranker.json, models,
        report.json; what an update adds stands in files named added_*)
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
import orjson
import pandas as pd
from tqdm import tqdm

from marketplace.cleaning import listings
from marketplace.files import atomic, changes, cli, generations, reading, stages
from marketplace.files.changes import Rows
from marketplace.files.stages import StageError
from marketplace.retrieval import catalogue
from marketplace.retrieval import vectors as vector_search

if TYPE_CHECKING:
    from marketplace.retrieval import ranking
    from marketplace.retrieval.recommender import Recommender

JUDGED_LISTINGS = 600  # of the validation split, asked about to fit the ranker
LISTINGS_AT_A_TIME = 16_384  # read, counted and written to the catalogue
UPDATE_QUERIES = 20  # that measure the recall of an update: exact search among all vectors is most of the cost
# What tells changed rows: in data/tabular/, and beside tables in data/dataset/.
RECORDS, HASHED = "products_records.npy", ("listings", "training_data")
SPLITS = ("train", "validation")
LEAST_JUDGED = 20  # listings; with fewer the weights set by hand stay
# Of a generation, by what their rows are of.
INDEXES = {"photos": "index.faiss", "listings": "text.faiss"}
VECTORS = {"photos": "vectors.npy", "listings": "text_vectors.npy"}
KEYS = {"photos": "photo_keys.npy", "listings": "product_keys.npy"}
SUMMARY = (
    "generation", "photos", "listings", "photos_without_listing", "photos_without_vector", "dimension", "updated", "changed_rows",
)  # fmt: skip


def read_dictionary(path: Path) -> tuple[list[str], np.ndarray]:
    """A saved {image id: [floats]} -> ids, a UUID in lower case as the tables' are, (N, D) float32 unit rows.

    Raises StageError for anything else.
    """
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
    image_ids = [listings.canonical_id(image_id) for image_id in dictionary]
    if len(set(image_ids)) < len(image_ids):
        raise StageError(f"--embeddings {path} holds an id twice, in capitals and not: leave one of them out")
    return image_ids, vectors / lengths


@dataclass
class Entries:
    """What is to be served, listings and photos, as the stages before handed it on; their texts stay in products.csv.

    records: (P,) of products.csv, by changes.write_records(); strangers: ids of photos that no listing claims, each of which
    stands as a listing of its own after those; text_vectors: (P, T) of the records; duplicates: (P + strangers,) the same number
    for listings of the same photo or text; split: (P + strangers,) hash of the name of each one's split; image_ids: N, with
    their hashes; vectors: (N, D); owners: (N,) the listing of each photo; without_vector: number of the dataset's photos that
    have none.
    """

    table: Path
    records: np.ndarray
    strangers: list[str]
    text_vectors: np.ndarray
    duplicates: np.ndarray
    split: np.ndarray
    image_ids: list[str]
    image_hashes: np.ndarray
    vectors: np.ndarray
    owners: np.ndarray
    without_vector: int

    @classmethod
    def read(cls, data_dir: Path, own_embeddings: Path | None) -> "Entries":
        """StageError when what the stages wrote does not fit together, or holds no photo."""
        folder, table = data_dir / "embeddings", data_dir / "tabular" / "products.csv"
        stages.check_outputs(data_dir, "tabular", table.name, RECORDS)
        stages.check_inputs(data_dir, "dataset")
        stages.check_inputs(data_dir, "embeddings")
        stages.check_outputs(data_dir, "dataset", *(f"{name}.{kind}" for name in HASHED for kind in ("csv", "npy")))
        names = ("image_ids.json", "product_ids.json", "vectors.npy", "text_vectors.npy", "probabilities.npy")
        stages.check_outputs(data_dir, "embeddings", *names)
        records = reading.read_array(data_dir / "tabular" / RECORDS)
        known, photos = (reading.read_array(data_dir / "dataset" / f"{name}.npy") for name in HASHED)
        vectors, text_vectors = (reading.read_array(folder / f"{name}.npy") for name in ("vectors", "text_vectors"))
        # Their ids are those of the tables that they were made from, in the same order.
        for name, found, wanted in (("photos", vectors, photos), ("listings", text_vectors, records)):
            if len(found) != len(wanted):
                counts = f"vectors of {len(found)} {name} where the tables have {len(wanted)}"
                raise StageError(f"{folder} holds {counts}: run python extract_embeddings.py again")
        if own_embeddings:
            image_ids, vectors = read_dictionary(own_embeddings)
            image_hashes = changes.hashes(image_ids)
        else:
            image_ids, image_hashes = reading.read_json(folder / "image_ids.json"), photos["image_id"]
        if not image_ids:
            raise StageError(f"{folder} holds no photo: check that the photos' names are the ids in Images.csv")
        in_dataset = changes.positions(image_hashes, photos["image_id"])
        owners = np.where(in_dataset < 0, -1, changes.positions(photos["product_id"], records["id"])[in_dataset])
        strangers = np.flatnonzero(owners < 0)
        owners[strangers] = len(records) + np.arange(len(strangers))
        of_listing = np.append(changes.positions(records["id"], known["product_id"]), np.full(len(strangers), -1))
        # A listing that the dataset has not, and a photo that no listing claims, are their own only duplicates.
        hashes = np.append(records["id"], image_hashes[strangers])
        groups = np.where(of_listing < 0, hashes, known["duplicates"][of_listing])
        return cls(
            table,
            records,
            [image_ids[position] for position in strangers],
            text_vectors,
            np.unique(groups, return_inverse=True)[1],
            np.where(of_listing < 0, np.uint64(0), known["split"][of_listing]),
            image_ids,
            image_hashes,
            vectors,
            owners,
            len(photos) - int((in_dataset >= 0).sum()),
        )

    def splits(self) -> np.ndarray:
        """(P + strangers,) names of SPLITS, "" for others."""
        named = np.full(len(self.split), "", "<U10")
        for name, of_name in zip(SPLITS, changes.hashes(SPLITS), strict=True):
            named[self.split == of_name] = name
        return named

    def keys(self) -> dict[str, np.ndarray]:
        """(N,) and (P + strangers,) uint64, never 0 and different for different photos and listings: what an update knows an
        unchanged row by."""
        of_photos = self.image_hashes ^ changes.vector_hashes(self.vectors)
        of_listings = self.records["content"] ^ changes.vector_hashes(self.text_vectors)
        for array in (self.vectors, self.text_vectors):
            reading.release(array)
        of_strangers = self.image_hashes[self.owners >= len(self.records)]
        keys = {"photos": of_photos, "listings": np.append(of_listings, of_strangers)}
        return {name: np.maximum(of_kind, np.uint64(1)) for name, of_kind in keys.items()}

    def products(self, positions: np.ndarray) -> Iterator[pd.DataFrame]:
        """The listings at ascending positions, as listings.read_products() reads them, some at a time."""
        listed = positions[positions < len(self.records)]
        for start in range(0, len(listed), LISTINGS_AT_A_TIME):
            yield listings.typed(changes.read_records(self.table, self.records, listed[start : start + LISTINGS_AT_A_TIME]))
        if alone := [self.strangers[position - len(self.records)] for position in positions[len(listed) :]]:
            empty = dict.fromkeys(catalogue.PRODUCT_FIELDS, "")
            yield pd.DataFrame(empty | {"product_id": alone, "price": np.nan, "price_plausible": False})

    def text_vectors_at(self, positions: np.ndarray) -> np.ndarray:
        """(n, T) of the listings at ascending positions; rows of zeros for photos that no listing claims."""
        listed = positions[positions < len(self.records)]
        found = np.zeros((len(positions), self.text_vectors.shape[1]), np.float32)
        found[: len(listed)] = self.text_vectors[listed]
        return found


def judge(recommender: "Recommender", splits: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> list["ranking.Judged"]:
    """Questions about validation listings, their answers among the training listings, and how relevant those are.

    Each listing is asked for by photo, by title, by title and description, by photo and title, and by all that is known of it;
    never by its own category. An answer of the same full category path is of grade 2, of the same main category 1.
    splits: (rows,) of the catalogue's listings, by name; probabilities: (N, C) of its photos.
    """
    pass
    from marketplace.retrieval import ranking
    from marketplace.retrieval.recommender import CANDIDATES, WINDOW

    allowed = splits == "train"
    asked = np.flatnonzero(splits == "validation")
    asked = np.random.default_rng(seed).permutation(asked)[:JUDGED_LISTINGS]
    codes, prices = recommender.catalogue.columns["category"], recommender.catalogue.columns["price"]
    judged = []
    for row in tqdm(asked.tolist(), desc="ranker", file=sys.stderr, disable=None):
        product = recommender.catalogue.product(row)
        text = listings.text(product["name"], product["description"])
        title = text.partition("\n")[0]
        questions: list[tuple] = [(None, title), (None, text)]
        photo_rows = recommender.catalogue.photos_of(row)
        if len(photo_rows):
            photo = photo_rows[0]
            questions += [(photo, None), (photo, title), (photo, text)]
        by_words: dict[str, np.ndarray | None] = {}
        for photo, words in questions:
            vector, by_photo = (None, None) if photo is None else (recommender.photo_index.vectors[photo], probabilities[photo])
            query = recommender.query(vector, words, by_photo, fuses_category=True)
            if photo is None:
                by_words[words] = query.category
            if words == text:  # as one listing is compared with another
                query.price = float(prices[row]) if prices[row] > 0 else None
                query.place = recommender.place_of(row)
            # As many as an answer is ranked from: among fewer, what photos alone have found looks worse than it is.
            rows = recommender.candidates(query, CANDIDATES * WINDOW, allowed)
            if len(rows):
                same_main, same = codes[rows, 0] == codes[row, 0], (codes[rows] == codes[row]).all(axis=1)
                relevance = np.where(same, 2, np.where(same_main, 1, 0))
                category = None if photo is None else by_words.get(words)
                agreement = None if category is None else recommender.tree.agreement(category, rows)
                judged.append(ranking.Judged(recommender.evidence(query, rows)[0], relevance, row, agreement))
    return judged


def fit_ranker(folder: Path, entries: Entries, probabilities: np.ndarray | None) -> dict:
    """Write ranker.json, fitted on validation listings where there are enough of them; returns what it was chosen by.

    folder: of a generation whose rows are the entries; probabilities: (N, C) of its photos, None where there are too few listings
    or the photos' vectors are others'.
    """
    from marketplace.retrieval import ranking  # these two import more than an update needs
    from marketplace.retrieval.recommender import Recommender

    background = {}
    for kind, vectors in (("photo", entries.vectors), ("text", entries.text_vectors)):
        background[kind] = ranking.background_cosine(vectors)
        reading.release(vectors)
    ranking.Ranker.by_hand(background).save(folder / "ranker.json")
    if probabilities is None:
        return {"chosen": "by_hand"}
    ranker, chosen = ranking.fit(judge(Recommender.unpublished(folder), entries.splits(), probabilities), background)
    ranker.save(folder / "ranker.json")
    return chosen


@dataclass(frozen=True)
class Published:
    """The generation that is published now, and its report; an update follows it row by row."""

    folder: Path
    report: dict

    @classmethod
    def of(cls, index_dir: Path) -> "Published | None":
        """None when there is none, or it is of another version of this program."""
        try:
            folder = generations.current_generation(index_dir)
            report = reading.read_json(folder / "report.json")
        except StageError:
            return None
        return cls(folder, report) if report.get("schema") == stages.SCHEMA_VERSION else None

    def follows(
        self, settings: dict, keys: dict[str, np.ndarray], kind: str, max_memory_bytes: int | None
    ) -> dict[str, Rows] | None:
        """The Rows of photos and listings in an update of this generation; None when a full build is due.

        A full build is due when models or flags have changed, when search.rebuild_is_due() says so of either index, or when any
        of its files is damaged: what an update copies, links or extends is published anew.
        """
        if self.report["settings"] != settings or not self.is_whole():
            return None
        rows = {name: Rows.plan(keys[name], reading.read_array(self.folder / KEYS[name])) for name in KEYS}
        for name, file_name in INDEXES.items():
            index = vector_search.read(self.folder / file_name, mapped=True)
            own_kind = kind if name == "photos" else "auto"
            if vector_search.rebuild_is_due(index, rows[name].total, len(keys[name]), self.report["built_rows"][name], own_kind):
                return None
        built = (self.folder / INDEXES["photos"]).stat().st_size
        grown = built * rows["photos"].total / self.report["built_rows"]["photos"]
        return None if max_memory_bytes is not None and grown > max_memory_bytes else rows

    def ranks_alike(self, settings: dict) -> bool:
        """Whether its ranker was fitted with the same models: new listings alone keep it."""
        same = all(self.report["settings"][name] == settings[name] for name in ("models", "own_embeddings"))
        return same and not settings["own_embeddings"] and self.is_whole("ranker.json")

    def ranks_by_fit(self) -> bool:
        """Whether there were listings enough to fit its ranker by."""
        return "queries" in self.report["ranker"]

    def is_whole(self, *names: str) -> bool:
        """Whether files, or all of them, are those it was published with."""
        recorded = self.report["files"]
        wanted = {name: recorded[name] for name in names or recorded}
        try:
            return stages.digests(self.folder, *wanted) == wanted
        except StageError:
            return False


def write_index(previous: Path, folder: Path, kind: str, vectors: np.ndarray, rows: Rows) -> None:
    """Link the index and vectors of the last full build, and write those of what was added since, (n, D) `vectors` just now."""
    index_name, vectors_name = INDEXES[kind], VECTORS[kind]
    indexes = [
        vector_search.read(path, mapped=position == 0) for position, path in enumerate(generations.parts(previous / index_name))
    ]
    for name in (index_name, vectors_name):
        generations.link(previous / name, folder / name)
    before = [reading.read_array(path) for path in generations.parts(previous / vectors_name)[1:]]
    added = vector_search.extend(indexes[0], indexes[1] if indexes[1:] else None, vectors, rows.before)
    faiss.write_index(added, str(folder / generations.added(index_name)))
    atomic.write_array(folder / generations.added(vectors_name), np.concatenate([*before, vectors]))


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--embeddings", type=Path, help="JSON of photo vectors to use (default: those of extract_embeddings.py)")
    parser.add_argument(
        "--kind", default="auto", choices=vector_search.KINDS, help="auto: flat up to 20,000 photos (default: %(default)s)"
    )
    parser.add_argument(
        "--max-memory",
        type=cli.positive,
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
    entries = Entries.read(args.data, args.embeddings)
    names = ("vectors.npy", "probabilities.npy", "image_ids.json", "text_vectors.npy", "product_ids.json")
    inputs = stages.digests(
        args.data,
        *("tabular/products.csv", "dataset/training_data.csv", "dataset/listings.csv"),
        *(f"embeddings/{name}" for name in names),
    )
    model_files = stages.read_manifest(args.data / "model")["digests"]  # all that serving needs of it
    models = stages.digests(args.data, *(f"model/{name}" for name in model_files))
    inputs |= models
    if args.embeddings:
        inputs["--embeddings"] = stages.digest(args.embeddings)
    arguments = {"kind": args.kind, "recall": args.recall, "max_memory": args.max_memory}
    stage = stages.Stage(args.data / "index", arguments | {"full": args.full}, inputs)
    published = Published.of(stage.folder)
    is_current = (done := stage.finished()) and published and done["generation"] == published.folder.name
    if is_current and (not args.full or published.is_whole()):  # --full may be asked for because files are damaged
        return done
    stage.begin()
    started_s = time.perf_counter()
    dimension = int(entries.vectors.shape[1])
    settings = {"arguments": arguments, "models": models, "own_embeddings": bool(args.embeddings), "dimension": dimension}
    keys = entries.keys()
    key = hashlib.sha256(json.dumps([arguments, inputs, stages.SCHEMA_VERSION]).encode()).hexdigest()
    rows = published.follows(settings, keys, args.kind, args.max_memory) if published and not args.full else None
    if rows and published.report["key"] == key:  # published by a run that was killed before it could say so
        return finish(stage, published.folder.name, published.report)
    updated = published if rows else None
    name = hashlib.sha256(f"{key} {updated.folder.name}".encode()).hexdigest()[:12] if updated else key[:12]
    rows = rows or {kind: Rows.plan(of_kind) for kind, of_kind in keys.items()}
    of_photos, of_listings = rows["photos"], rows["listings"]
    with generations.new_generation(stage.folder, name) as folder:
        if updated:
            write_index(updated.folder, folder, "photos", entries.vectors[of_photos.added], of_photos)
            write_index(updated.folder, folder, "listings", entries.text_vectors_at(of_listings.added), of_listings)
        else:
            build_indexes(folder, entries, args)
        for kind, file_name in KEYS.items():
            atomic.write_array(folder / file_name, rows[kind].spread(keys[kind], 0))
        catalogue.write(
            folder,
            entries.products(of_listings.added),
            [entries.image_ids[position] for position in of_photos.added],
            entries.owners,
            entries.duplicates,
            (of_listings, of_photos),
            updated and updated.folder,
        )
        for file_name in model_files:  # a generation's models must outlive a retraining
            generations.link(args.data / "model" / file_name, folder / file_name)
        ranker_started_s = time.perf_counter()
        enough = np.count_nonzero(entries.splits() == "validation") >= LEAST_JUDGED
        if published and published.ranks_alike(settings) and (updated or published.ranks_by_fit() or not enough):
            shutil.copy2(published.folder / "ranker.json", folder / "ranker.json")
            fitted = published.report["ranker"]
        else:
            by_fit = enough and not args.embeddings
            probabilities = reading.read_array(args.data / "embeddings" / "probabilities.npy") if by_fit else None
            fitted = fit_ranker(folder, entries, probabilities)
        ranker_seconds = round(time.perf_counter() - ranker_started_s, 2)
        report = {
            "generation": name,
            "photos": len(entries.owners),
            "listings": len(entries.duplicates),
            "photos_without_listing": len(entries.strangers),
            "photos_without_vector": entries.without_vector,
            "dimension": dimension,
            "updated": updated and updated.folder.name,
            "changed_rows": {kind: len(of.added) + len(of.removed) for kind, of in rows.items()} if updated else None,
            "own_embeddings": bool(args.embeddings),
            "ranker": fitted,
            "settings": settings,
            "schema": stages.SCHEMA_VERSION,
            "key": key,
            "built_rows": updated.report["built_rows"] if updated else {kind: of.total for kind, of in rows.items()},
        }
        live = np.zeros(of_photos.total, bool)
        live[of_photos.of] = True
        index = vector_search.VectorIndex.open(folder / INDEXES["photos"], folder / VECTORS["photos"], live)
        index_bytes = sum(path.stat().st_size for path in generations.parts(folder / INDEXES["photos"]))
        report["index"] = vector_search.measure(index, UPDATE_QUERIES if updated else vector_search.RECALL_QUERIES)
        report["index"]["bytes_per_vector"] = round(index_bytes / of_photos.total, 1)
        report["files"] = digests_of(folder, updated)
        seconds = {"ranker_seconds": ranker_seconds, "build_seconds": round(time.perf_counter() - started_s, 2)}
        atomic.write_json(folder / "report.json", report | seconds)
    return finish(stage, name, report)


def build_indexes(folder: Path, entries: Entries, args: argparse.Namespace) -> None:
    """Write the indexes and the vectors of a full build: row i is entry i."""
    texts = entries.text_vectors_at(np.arange(len(entries.duplicates))) if entries.strangers else entries.text_vectors
    settings = {"photos": (entries.vectors, args.kind, args.recall, args.max_memory), "listings": (texts, "auto", args.recall)}
    for kind, (vectors, *of_kind) in settings.items():
        atomic.write_array(folder / VECTORS[kind], vectors)
        faiss.write_index(vector_search.build(vectors, *of_kind), str(folder / INDEXES[kind]))
        reading.release(vectors)


def digests_of(folder: Path, updated: Published | None) -> dict[str, str]:
    """The digest of each file of a generation; of one that is linked from the generation before, as it was published with."""
    known = updated.report["files"] if updated else {}
    return {
        path.name: known[path.name]
        if path.name in known and os.path.samefile(path, updated.folder / path.name)
        else stages.digest(path)
        for path in sorted(folder.iterdir())
    }


def finish(stage: stages.Stage, name: str, report: dict) -> dict:
    """The stage's summary of a generation that is published, by its report."""
    files = sorted(path.name for path in (stage.folder / name).iterdir())
    summary = {field: report[field] for field in SUMMARY} | {"recall_at_10": report["index"]["recall_at_10"]}
    return stage.finish(summary, ["current.json", *(f"{name}/{file_name}" for file_name in files)])


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
