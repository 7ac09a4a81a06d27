"""What an index is built of: listings and photos as the stages before handed them on, checked to fit together."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from marketplace.cleaning import listings
from marketplace.files import changes, reading
from marketplace.files.stages import StageError
from marketplace.retrieval import catalogue

LISTINGS_AT_A_TIME = 16_384  # read, counted and written to the catalogue
RECORDS = "products_records.npy"  # in data/tabular/: where each record of products.csv begins and ends, and a hash of it
HASHED = ("listings", "training_data")  # tables in data/dataset/, each with a .npy of its columns' hashes beside it
SPLITS = ("train", "validation")


@dataclass
class Entries:
    """What is to be served, listings and photos; the listings' texts stay in products.csv.

    P listings are in the table, and U photos that no listing claims each become a listing of their own after those.
    table: path of products.csv; records: (P,) of it, by changes.write_records(); unclaimed: ids of those U photos;
    text_vectors: (P, T) of the table's listings; duplicates: (P + U,) the same number for listings of the same photo or text;
    split: (P + U,) hash of the name of each one's split; image_ids: N, with their hashes; vectors: (N, D); owners: (N,) the
    listing of each photo; without_vector: number of the dataset's photos that have none.
    """

    table: Path
    records: np.ndarray
    unclaimed: list[str]
    text_vectors: np.ndarray
    duplicates: np.ndarray
    split: np.ndarray
    image_ids: list[str]
    image_hashes: np.ndarray
    vectors: np.ndarray
    owners: np.ndarray
    without_vector: int

    @classmethod
    def read(cls, data_dir: Path, own_embeddings: Path | None = None) -> "Entries":
        """own_embeddings: a file for read_dictionary(), whose photos are served instead of the dataset's.

        Raises StageError when what the stages wrote does not fit together, or holds no photo.
        """
        folder, table = data_dir / "embeddings", data_dir / "tabular" / "products.csv"
        records = reading.read_array(data_dir / "tabular" / RECORDS)
        listed, photos = (reading.read_array(data_dir / "dataset" / f"{name}.npy") for name in HASHED)
        vectors, text_vectors = _read_vectors(folder, len(photos), len(records))
        if own_embeddings:
            image_ids, vectors = read_dictionary(own_embeddings)
            image_hashes = changes.hashes(image_ids)
        else:
            image_ids, image_hashes = reading.read_json(folder / "image_ids.json"), photos["image_id"]
        if not image_ids:
            raise StageError(f"{folder} holds no photo: check that the photos' names are the ids in Images.csv")
        in_dataset = changes.positions(image_hashes, photos["image_id"])
        owners = np.where(in_dataset < 0, -1, changes.positions(photos["product_id"], records["id"])[in_dataset])
        unclaimed = np.flatnonzero(owners < 0)
        owners[unclaimed] = len(records) + np.arange(len(unclaimed))
        duplicates, split = _groups_and_splits(np.append(records["id"], image_hashes[unclaimed]), len(records), listed)
        return cls(
            table=table,
            records=records,
            unclaimed=[image_ids[position] for position in unclaimed],
            text_vectors=text_vectors,
            duplicates=duplicates,
            split=split,
            image_ids=image_ids,
            image_hashes=image_hashes,
            vectors=vectors,
            owners=owners,
            without_vector=len(photos) - int((in_dataset >= 0).sum()),
        )

    def splits(self) -> np.ndarray:
        """(P + U,) names of SPLITS, "" for others."""
        named = np.full(len(self.split), "", "<U10")
        for name, name_hash in zip(SPLITS, changes.hashes(SPLITS), strict=True):
            named[self.split == name_hash] = name
        return named

    def keys(self) -> dict[str, np.ndarray]:
        """Of "photos" (N,) and "listings" (P + U,): uint64, never 0 and different for different ones. An update recognises an
        unchanged row by its key."""
        photo_keys = self.image_hashes ^ changes.vector_hashes(self.vectors)
        listing_keys = self.records["content"] ^ changes.vector_hashes(self.text_vectors)
        for array in (self.vectors, self.text_vectors):
            reading.release(array)
        unclaimed_keys = self.image_hashes[self.owners >= len(self.records)]
        keys = {"photos": photo_keys, "listings": np.append(listing_keys, unclaimed_keys)}
        return {kind: np.maximum(values, np.uint64(1)) for kind, values in keys.items()}

    def listings_at(self, positions: np.ndarray) -> Iterator[pd.DataFrame]:
        """The listings at ascending positions, as listings.read_products() reads them, some at a time."""
        in_table = positions[positions < len(self.records)]
        for start in range(0, len(in_table), LISTINGS_AT_A_TIME):
            rows = in_table[start : start + LISTINGS_AT_A_TIME]
            yield listings.typed(changes.read_records(self.table, self.records, rows))
        if alone := [self.unclaimed[position - len(self.records)] for position in positions[len(in_table) :]]:
            empty = dict.fromkeys(catalogue.PRODUCT_FIELDS, "")
            yield pd.DataFrame(empty | {"product_id": alone, "price": np.nan, "price_plausible": False})

    def image_ids_at(self, positions: np.ndarray) -> list[str]:
        return [self.image_ids[position] for position in positions]

    def text_vectors_at(self, positions: np.ndarray) -> np.ndarray:
        """(n, T) of the listings at ascending positions; rows of zeros for photos that no listing claims."""
        in_table = positions[positions < len(self.records)]
        found = np.zeros((len(positions), self.text_vectors.shape[1]), np.float32)
        found[: len(in_table)] = self.text_vectors[in_table]
        return found

    def all_text_vectors(self) -> np.ndarray:
        """(P + U, T); a copy only where there are photos that no listing claims."""
        return self.text_vectors_at(np.arange(len(self.duplicates))) if self.unclaimed else self.text_vectors


def read_dictionary(path: Path) -> tuple[list[str], np.ndarray]:
    """A saved {image id: [floats]} -> ids, a UUID in lower case as the tables' are, (N, D) float32 unit rows.

    Raises StageError for anything else.
    """
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


def _read_vectors(folder: Path, photos: int, listed: int) -> tuple[np.ndarray, np.ndarray]:
    """(photos, D) and (listed, T). Their ids are those of the tables that they were made from, in the same order."""
    vectors, text_vectors = (reading.read_array(folder / f"{name}.npy") for name in ("vectors", "text_vectors"))
    for name, found, wanted in (("photos", vectors, photos), ("listings", text_vectors, listed)):
        if len(found) != wanted:
            counts = f"vectors of {len(found)} {name} where the tables have {wanted}"
            raise StageError(f"{folder} holds {counts}: run python extract_embeddings.py again")
    return vectors, text_vectors


def _groups_and_splits(hashes: np.ndarray, in_table: int, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P + U,) numbers of the groups of duplicates, and hashes of the splits' names, 0 for none.

    hashes: (P + U,) of the ids; in_table: P; listed: the dataset's listings. A listing that the dataset has not, and a photo that
    no listing claims, are their own only duplicates.
    """
    at = np.full(len(hashes), -1)
    at[:in_table] = changes.positions(hashes[:in_table], listed["product_id"])
    groups = np.where(at < 0, hashes, listed["duplicates"][at])
    return np.unique(groups, return_inverse=True)[1], np.where(at < 0, np.uint64(0), listed["split"][at])
