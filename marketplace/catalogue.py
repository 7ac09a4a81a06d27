"""Listings and photos for serving: SQLite, memory-mapped filter columns, word search."""

import contextlib
import json
import queue
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from marketplace import storage, words
from marketplace.errors import StageError
from marketplace.listings import category_levels

DATABASE, FILTERS = "catalogue.sqlite", "filters.json"
COLUMNS = ("price", "category", "town", "county", "product_of_photo", "duplicates")  # each a .npy of the same name
WORD_WEIGHTS = {"name": 5.0, "description": 1.0, "category": 2.0}  # in BM25: a title says what a thing is
TOMBSTONE = -1  # in the columns of rows that are no more
CONNECTIONS = 8  # to the database, shared by all threads: each query holds one for a millisecond or two
PRODUCT_FIELDS = (
    "product_id", "name", "description", "category", "price", "price_plausible", "town", "county", "posted_on",
)  # fmt: skip

SCHEMA = """
CREATE TABLE products (row INTEGER PRIMARY KEY, product_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, description TEXT NOT NULL,
    category TEXT NOT NULL, price REAL, price_plausible INTEGER, town TEXT, county TEXT, posted_on TEXT);
CREATE TABLE photos (row INTEGER PRIMARY KEY, image_id TEXT NOT NULL UNIQUE);
"""


@dataclass(frozen=True)
class Filters:
    """What a result must be. category: a name at any level of the path, or a path from its start; location: a town, a county,
    or "Town, County"; prices in pounds, both ends included. None: anything."""

    category: str | None = None
    min_price: float | None = None
    max_price: float | None = None
    location: str | None = None


@dataclass(frozen=True)
class Rows:
    """Where the entries of a table stand in a generation. Rows are only ever appended: those of an entry that went, or changed,
    stay as tombstones until the next full build.

    of: (n,) the row of each entry; added: (n,) bool, the entries whose row is new; removed: rows that are tombstones from now
    on; total: the number of rows.
    """

    of: np.ndarray
    added: np.ndarray
    removed: np.ndarray
    total: int

    @classmethod
    def plan(cls, keys: np.ndarray, before: np.ndarray | None = None) -> "Rows":
        """keys: (n,) uint64, different for different entries; before: (rows,) keys of the generation before, 0 for tombstones."""
        before = np.empty(0, np.uint64) if before is None else before
        order = np.argsort(before, kind="stable")
        at = np.minimum(np.searchsorted(before, keys, sorter=order), max(len(before) - 1, 0))
        added = before[order[at]] != keys if len(before) else np.ones(len(keys), bool)
        of = np.empty(len(keys), np.int64)
        of[~added] = order[at[~added]]
        of[added] = np.arange(len(before), len(before) + added.sum())
        removed = np.setdiff1d(np.flatnonzero(before), of)
        return cls(of, added, removed, len(before) + int(added.sum()))

    def spread(self, values: np.ndarray, fill) -> np.ndarray:
        """Values of the entries (n, ...) -> of the rows (total, ...), `fill` for tombstones."""
        spread = np.full((self.total, *values.shape[1:]), fill, values.dtype)
        spread[self.of] = values
        return spread


def write(
    folder: Path,
    products: pd.DataFrame,
    image_ids: list[str],
    product_of_photo: np.ndarray,
    duplicates: np.ndarray | None = None,
    rows: tuple[Rows, Rows] | None = None,
    previous: Path | None = None,
) -> None:
    """Write the catalogue's files into a generation's folder.

    products: PRODUCT_FIELDS, P entries; image_ids: N photos; product_of_photo: (N,) the entry of each photo's product;
    duplicates: (P,) the same number for listings of the same photo or text (default: none are); rows: of products and photos
    (default: row i is entry i); previous: the folder of the generation that `rows` follow.
    """
    of_products, of_photos = rows or (Rows.plan(np.arange(1, len(entries) + 1)) for entries in (products, image_ids))
    if previous is not None:
        shutil.copyfile(previous / DATABASE, folder / DATABASE)
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    if previous is None:
        connection.executescript(SCHEMA)
    for table, changed in (("products", of_products), ("photos", of_photos)):
        connection.executemany(f"DELETE FROM {table} WHERE row = ?", [(row,) for row in changed.removed.tolist()])
    added = products[of_products.added]
    fields = added[list(PRODUCT_FIELDS)].astype(object).itertuples(index=False)
    values = ((row, *of_row) for row, of_row in zip(of_products.of[of_products.added].tolist(), fields, strict=True))
    connection.executemany(f"INSERT INTO products VALUES ({', '.join('?' * (len(PRODUCT_FIELDS) + 1))})", values)
    named = [(int(of_photos.of[entry]), image_ids[entry]) for entry in np.flatnonzero(of_photos.added)]
    connection.executemany("INSERT INTO photos VALUES (?, ?)", named)
    connection.commit()
    connection.close()

    codes: dict[str, dict[str, int]] = {"category": {}, "town": {}, "county": {}}
    paths = [category_levels(path) for path in products["category"]]
    depth = max((len(path) for path in paths), default=1) or 1
    category = np.full((len(products), depth), -1, np.int32)
    for entry, path in enumerate(paths):
        for level in range(len(path)):
            category[entry, level] = codes["category"].setdefault(" / ".join(path[: level + 1]), len(codes["category"]))
    arrays = {
        "price": of_products.spread(products["price"].to_numpy(np.float32), np.nan),
        "category": of_products.spread(category, TOMBSTONE),
    }
    for name in ("town", "county"):
        known = codes[name]
        column = np.array([known.setdefault(value, len(known)) for value in products[name]], np.int32)
        arrays[name] = of_products.spread(column, TOMBSTONE)
    owners = of_products.of[np.asarray(product_of_photo, np.int64)].astype(np.int32)
    arrays["product_of_photo"] = of_photos.spread(owners, TOMBSTONE)
    duplicates = np.arange(len(products)) if duplicates is None else np.asarray(duplicates)
    arrays["duplicates"] = of_products.spread(duplicates.astype(np.int32), TOMBSTONE)
    words.write(folder, [added[field].tolist() for field in WORD_WEIGHTS], list(WORD_WEIGHTS.values()), previous)
    for name, array in arrays.items():
        storage.write_array(folder / f"{name}.npy", array)
    storage.write_json(folder / FILTERS, {name: list(known) for name, known in codes.items()})


class Catalogue:
    """One generation's listings and photos; safe to read from many threads."""

    def __init__(self, folder: Path):
        self._path = folder / DATABASE
        if not self._path.is_file():
            raise StageError(f"{self._path} is missing: run python build_index.py again")
        # Opened now, all of them: a generation that is no longer current may lose its files while it is still served.
        self._connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        uri = f"{self._path.absolute().as_uri()}?mode=ro&immutable=1"
        for _ in range(CONNECTIONS):
            self._connections.put(sqlite3.connect(uri, uri=True, check_same_thread=False))
        # Plain views of the mapped files: slicing a numpy.memmap costs a microsecond more, thousands of times a query.
        self.columns = {name: np.asarray(storage.read_array(folder / f"{name}.npy")) for name in COLUMNS}
        self.names: dict[str, list[str]] = storage.read_json(folder / FILTERS)
        self._categories: dict[str, list[int]] = {}
        for code, path in enumerate(self.names["category"]):
            for key in {path.casefold(), category_levels(path)[-1].casefold()}:
                self._categories.setdefault(key, []).append(code)
        self._places = {kind: _by_folded_name(self.names[kind]) for kind in ("town", "county")}
        self.product_of_photo = self.columns["product_of_photo"]
        self.n_rows = len(self.columns["price"])  # of products, tombstones included
        self.live = self.columns["duplicates"] != TOMBSTONE
        live_photos = self.product_of_photo != TOMBSTONE
        self.n_products, self.n_photos = int(self.live.sum()), int(live_photos.sum())
        self.tombstones = {"products": self.n_rows - self.n_products, "photos": len(live_photos) - self.n_photos}
        self.first_product, self.first_photo = int(self.live.argmax()), int(live_photos.argmax())  # rows, for examples
        self._photos = _Grouped(self.product_of_photo, self.n_rows)
        self._duplicates = _Grouped(self.columns["duplicates"], int(self.columns["duplicates"].max(initial=-1)) + 1)
        self._words = words.WordIndex(folder, self.n_rows)
        counts = [self._one(f"SELECT count(*) FROM {table}")[0] for table in ("products", "photos")]
        if counts != [self.n_products, self.n_photos]:
            raise StageError(
                f"{self._path} and the filter columns beside it do not belong together: run python build_index.py again"
            )

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile."""
        connection = self._connections.get()
        try:
            yield connection
        finally:
            self._connections.put(connection)

    def _one(self, query: str, *values) -> tuple | None:
        with self._connection() as connection:
            return connection.execute(query, values).fetchone()

    def allowed(self, filters: Filters) -> np.ndarray | None:
        """(P,) bool of the products that pass, or None when everything does."""
        masks = []
        if filters.category is not None:
            wanted = " / ".join(category_levels(filters.category)).casefold()
            masks.append(np.isin(self.columns["category"], self._categories.get(wanted, [])).any(axis=1))
        if filters.min_price is not None:
            masks.append(self.columns["price"] >= _pounds(filters.min_price))
        if filters.max_price is not None:
            masks.append(self.columns["price"] <= _pounds(filters.max_price))
        if filters.location is not None:
            masks.append(self._in_place(filters.location))
        return np.logical_and.reduce(masks) if masks else None

    def _in_place(self, location: str) -> np.ndarray:
        def within(kind: str, name: str) -> np.ndarray:
            return np.isin(self.columns[kind], self._places[kind].get(name.strip().casefold(), []))

        town, comma, county = location.partition(",")
        if comma:
            return within("town", town) & within("county", county)
        return within("town", location) | within("county", location)

    def photos_of(self, product_row: int) -> np.ndarray:
        """Rows of a product's photos."""
        return self._photos[product_row]

    def photos_of_each(self, product_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the photos of N products, one product after the other, and (N,) how many each has."""
        return self._photos.of_each(product_rows)

    def duplicates_of(self, product_row: int) -> np.ndarray:
        """Rows of the products of the same photo or text, this one among them, ascending."""
        return self._duplicates[self.columns["duplicates"][product_row]]

    def product_row(self, product_id: str) -> int | None:
        """The row of a product; an id in capitals is the same id."""
        for spelling in (product_id, product_id.lower()):
            if found := self._one("SELECT row FROM products WHERE product_id = ?", spelling):
                return found[0]
        return None

    def has_photo(self, image_id: str) -> bool:
        return self._one("SELECT 1 FROM photos WHERE image_id = ?", image_id) is not None

    def product(self, product_row: int) -> dict:
        """PRODUCT_FIELDS of one product."""
        return self.products([product_row])[0]

    def products(self, product_rows: Sequence[int], fields: Sequence[str] = PRODUCT_FIELDS) -> list[dict]:
        """Fields of each product."""
        found = self._by_row("products", fields, product_rows)
        products = [dict(zip(fields, values, strict=True)) for values in found]
        for product in products:
            product["price_plausible"] = bool(product["price_plausible"])
        return products

    def image_ids(self, photo_rows: Sequence[int]) -> list[str]:
        return [image_id for (image_id,) in self._by_row("photos", ["image_id"], photo_rows)]

    def _by_row(self, table: str, fields: Sequence[str], rows: Sequence[int]) -> list[tuple]:
        """Fields of the given rows, in their order."""
        wanted = [int(row) for row in rows]
        # The rows as one JSON array: SQLite's parameters are limited, and one by one each costs as much as ten together.
        query = f"SELECT row, {', '.join(fields)} FROM {table} WHERE row IN (SELECT value FROM json_each(?))"
        with self._connection() as connection:
            found = {row: values for row, *values in connection.execute(query, (json.dumps(wanted),))}
        return [found[row] for row in wanted]

    def match_words(self, query: str, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows of the k products that match a query's words best by BM25; those with all the words come first.

        A word that no listing holds stands for those that begin so, else for those spelt much alike, at half their score.
        """
        return self._words.match(query, k, self.live if allowed is None and self.tombstones["products"] else allowed)

    def score_words(self, query: str, rows: np.ndarray) -> np.ndarray:
        """(N,) BM25 scores of the products of `rows` for any of a query's words; 0 for one that holds none of them."""
        return self._words.score(query, rows)

    def choices(self) -> dict:
        """What the filters can be set to, with the number of listings of each, for a page's menus."""
        counts = {}
        for kind, names in self.names.items():
            codes = self.columns[kind]
            listings = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
            counts[kind] = dict(sorted(zip(names, listings, strict=True)))
        prices = self.columns["price"]
        price = {"min": float(np.nanmin(prices)), "max": float(np.nanmax(prices))} if len(prices) else None
        return {"categories": counts["category"], "towns": counts["town"], "counties": counts["county"], "price": price}


class _Grouped:
    """The rows of each group, ascending, from the group of each row (N,)."""

    def __init__(self, group_of_row: np.ndarray, groups: int):
        self._rows = np.argsort(group_of_row, kind="stable")
        self._starts = np.searchsorted(group_of_row[self._rows], np.arange(groups + 1))

    def __getitem__(self, group: int) -> np.ndarray:
        return self._rows[self._starts[group] : self._starts[group + 1]]

    def of_each(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of several groups, one group after the other, and how many each has."""
        counts = self._starts[groups + 1] - self._starts[groups]
        shifts = self._starts[groups] - (counts.cumsum() - counts)
        return self._rows[np.arange(counts.sum()) + np.repeat(shifts, counts)], counts


def _pounds(price: float) -> np.float32:
    """As the column holds prices: a bound is then met by the price that was typed."""
    return np.float32(min(price, np.finfo(np.float32).max))


def search_words(text: str) -> list[str]:
    """The words of a text, as word search sees them."""
    return words.split(text)


def _by_folded_name(names: list[str]) -> dict[str, list[int]]:
    codes: dict[str, list[int]] = {}
    for code, name in enumerate(names):
        codes.setdefault(name.casefold(), []).append(code)
    return codes
