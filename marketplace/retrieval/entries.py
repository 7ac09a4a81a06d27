"""What an index is built of: listings and photos as the stages before handed them on, checked to fit together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from marketplace.cleaning import listings
from marketplace.cleaning.photos import DISPLAY_TABLE
from marketplace.files import reading, stages
from marketplace.files.stages import StageError
from marketplace.models import text_encoder
from marketplace.retrieval import catalogue, keys


@dataclass(frozen=True)
class Entries:
    """What is to be served, listings and photos; the listings' texts stay in products.csv.

    P listings are in the table, and U photos that no listing claims each become a listing of their own after those.
    table: path of products.csv; listing_ids: P + U; text_vectors: (P + U, T), rows of zeros for those photos; name_vectors,
    meaning_vectors: (P + U, E) likewise, by the text encoder of names and of whole texts, None without one; duplicates:
    (P + U,) the same number for listings of the same photo or text; splits: (P + U,) the name of each one's split, "" where it
    has none; image_ids: N; sizes: (N, 2) width and height of each photo as it is shown; vectors: (N, D); owners: (N,) the listing
    of each photo; unclaimed: U; without_vector: number of the
    dataset's photos that have none.
    """

    table: Path
    listing_ids: list[str]
    text_vectors: np.ndarray
    name_vectors: np.ndarray | None
    meaning_vectors: np.ndarray | None
    duplicates: np.ndarray
    splits: np.ndarray
    image_ids: list[str]
    sizes: np.ndarray
    vectors: np.ndarray
    owners: np.ndarray
    unclaimed: int
    without_vector: int

    @classmethod
    def read(cls, data_dir: Path, own_embeddings: Path | None = None) -> "Entries":
        """own_embeddings: a file for read_dictionary(), whose photos are served instead of the dataset's.

        Raises StageError when what the stages wrote does not fit together, or holds no photo.
        """
        folder, table = data_dir / "embeddings", data_dir / "tabular" / "products.csv"
        listing_ids = reading.read_csv(table, usecols=["product_id"])["product_id"]
        photos = reading.read_csv(data_dir / "dataset" / "training_data.csv", usecols=["image_id", "product_id"])
        vectors = _read_vectors(folder / "vectors.npy", "photos", len(photos))
        encoded = text_encoder.Description.load(data_dir / "model").dimension > 0
        of_listings = {
            name: _read_vectors(folder / f"{name}.npy", "listings", len(listing_ids))
            for name in ("text_vectors", *(("name_vectors", "meaning_vectors") if encoded else ()))
        }
        image_ids = reading.read_json(folder / "image_ids.json")
        if own_embeddings:
            image_ids, vectors = read_dictionary(own_embeddings)
        if not image_ids:
            raise StageError(f"{folder} holds no photo: check that the photos' names are the ids in Images.csv")
        in_dataset = _positions(image_ids, photos["image_id"])
        owners = np.where(in_dataset < 0, -1, _positions(photos["product_id"], listing_ids)[in_dataset])
        unclaimed = np.flatnonzero(owners < 0)
        owners[unclaimed] = len(listing_ids) + np.arange(len(unclaimed))
        every_id = [*listing_ids, *(image_ids[position] for position in unclaimed)]
        duplicates, splits = _groups_and_splits(every_id, data_dir / "dataset" / "listings.csv")
        if len(unclaimed):
            of_listings = {name: np.pad(rows, ((0, len(unclaimed)), (0, 0))) for name, rows in of_listings.items()}
        return cls(
            table=table,
            listing_ids=every_id,
            text_vectors=of_listings["text_vectors"],
            name_vectors=of_listings.get("name_vectors"),
            meaning_vectors=of_listings.get("meaning_vectors"),
            duplicates=duplicates,
            splits=splits,
            image_ids=image_ids,
            sizes=_shown_sizes(image_ids, data_dir / "images"),
            vectors=vectors,
            owners=owners,
            unclaimed=len(unclaimed),
            without_vector=len(photos) - int((in_dataset >= 0).sum()),
        )

    def indexed(self) -> dict[str, np.ndarray]:
        """The vectors of each index that there is to be, by its name in vectors.FILES."""
        found = {"photos": self.vectors, "listings": self.text_vectors}
        if self.name_vectors is not None:
            found |= {"names": self.name_vectors, "meanings": self.meaning_vectors}
        return found

    def keys(self) -> dict[str, np.ndarray]:
        """Of "photos" (N,) and "listings" (P + U,); StageError where two ids have the same one."""
        found = {}
        for kind, ids in (("photos", self.image_ids), ("listings", self.listing_ids)):
            found[kind] = keys.keys(ids)
            keys.check_distinct(ids, found[kind])
        return found

    def listings(self) -> Iterator[pd.DataFrame]:
        """All listings as listings.read_products() reads them, catalogue.ROWS_AT_A_TIME at a time."""
        for block in reading.read_csv(self.table, chunksize=catalogue.ROWS_AT_A_TIME):
            yield listings.typed(block)
        if self.unclaimed:
            empty = dict.fromkeys(catalogue.PRODUCT_FIELDS, "")
            alone = {"product_id": self.listing_ids[-self.unclaimed :], "price": np.nan, "price_plausible": False}
            yield pd.DataFrame(empty | alone)


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


def _read_vectors(path: Path, things: str, wanted: int) -> np.ndarray:
    """(wanted, D). Their ids are those of the table that they were made from, in the same order."""
    found = reading.read_array(path)
    if len(found) != wanted:
        counts = f"vectors of {len(found)} {things} where the tables have {wanted}"
        raise StageError(f"{path.parent} holds {counts}: run python extract_embeddings.py again")
    return found


def _shown_sizes(image_ids: list[str], images_dir: Path) -> np.ndarray:
    """(N, 2) pixels of the copies to look at, and of the cleaned squares where there are none."""
    manifest = stages.read_manifest(images_dir)
    sizes = np.full((len(image_ids), 2), manifest["arguments"]["size"])
    if DISPLAY_TABLE in manifest["outputs"]:
        table = reading.read_csv(images_dir / DISPLAY_TABLE, usecols=["image_id", "width", "height"])
        at = _positions(image_ids, table["image_id"])
        sizes[at >= 0] = table[["width", "height"]].to_numpy(int)[at[at >= 0]]
    return sizes


def _groups_and_splits(ids: list[str], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(P + U,) numbers of the groups of duplicates, and names of the splits, "" for none.

    ids: P + U; path: the dataset's listings. A listing that the dataset has not, and a photo that no listing claims, are their
    own only duplicates.
    """
    listed = reading.read_csv(path, usecols=["product_id", "duplicates", "split"])
    at = _positions(ids, listed["product_id"])
    groups = pd.factorize(listed["duplicates"])[0][at]
    alone = np.flatnonzero(at < 0)
    groups[alone] = len(listed) + np.arange(len(alone))
    return groups, np.where(at < 0, "", listed["split"].to_numpy(str)[at])


def _positions(wanted: Sequence[str], among: Sequence[str]) -> np.ndarray:
    """(n,) int: the position of each of `wanted` in `among`, whose values are distinct; -1 for one that is not there."""
    return pd.Index(among).get_indexer(pd.Index(wanted))
