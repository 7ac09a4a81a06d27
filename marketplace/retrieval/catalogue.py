"""Listings and photos for serving: SQLite, memory-mapped filter columns, word search."""

import contextlib
import json
import queue
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from marketplace.cleaning.listings import MAX_PRICE, category_levels
from marketplace.files import atomic, generations, reading
from marketplace.files.changes import Rows
from marketplace.files.stages import StageError
from marketplace.retrieval import words

DATABASE, FILTERS = "catalogue.sqlite", "filters.json"
OF_LISTINGS = ("price", "category", "town", "county")
COLUMNS = (*OF_LISTINGS, "product_of_photo", "duplicates")  # each a .npy of the same name
WORD_WEIGHTS = {"name": 5.0, "description": 1.0, "category": 2.0}  # in BM25: a title says what a thing is
TOMBSTONE = -1  # in the columns of rows that are no more
CONNECTIONS = 8  # to the database, shared by all threads: each query holds one for a millisecond or two
PRODUCT_FIELDS = (
    "product_id", "name", "description", "category", "price", "price_plausible", "town", "county", "posted_on",
)  # fmt: skip

SCHEMA = """
CREATE TABLE IF NOT EXISTS products (row INTEGER PRIMARY KEY, product_id TEXT NOT NULL, name TEXT NOT NULL,
    description TEXT NOT NULL, category TEXT NOT NULL, price REAL, price_plausible INTEGER, town TEXT, county TEXT,
    posted_on TEXT);
CREATE TABLE IF NOT EXISTS photos (row INTEGER PRIMARY KEY, image_id TEXT NOT NULL);
"""
# After the rows: a million ids at once are sorted, one by one they are looked up. An id may stand for tombstones too.
INDEXES = """
CREATE INDEX IF NOT EXISTS products_by_id ON products (product_id);
CREATE INDEX IF NOT EXISTS photos_by_id ON photos (image_id);
"""
# What connections read from: the listings of the last full build, and those added since.
VIEWS = """
CREATE TEMP VIEW products AS SELECT * FROM main.products UNION ALL SELECT * FROM added.products;
CREATE TEMP VIEW photos AS SELECT * FROM main.photos UNION ALL SELECT * FROM added.photos;
"""


@dataclass(frozen=True)
class Filters:
    """What a result must be. category: a name at any level of the path, or a path from its start; location: a town, a county,
    or "Town, County"; prices in pounds, both ends included. None: anything."""

    category: str | None = None
    min_price: float | None = None
    max_price: float | None = None
    location: str | None = None


def write(
    folder: Path,
    added: Iterable[pd.DataFrame],
    added_image_ids: Sequence[str],
    product_of_photo: np.ndarray,
    duplicates: np.ndarray | None = None,
    rows: tuple[Rows, Rows] | None = None,
    previous: Path | None = None,
) -> None:
    """Write the catalogue's files into a generation's folder.

    added: listings whose rows are new, PRODUCT_FIELDS, in the order of their rows, some at a time; added_image_ids: of the photos
    whose rows are new; product_of_photo: (N,) the entry of each photo's product; duplicates: (P,) the same number for listings of
    the same photo or text (default: none are); rows: of products and photos (default: row i is entry i, all of them new);
    previous: the folder of the generation that `rows` follow, whose database is linked: what is added stands in one beside it.
    """
    added = iter(added)
    if rows is None:
        tables = list(added)
        added = iter(tables)
        entries = sum(map(len, tables)), len(product_of_photo)
        rows = tuple(Rows.plan(np.arange(1, count + 1, dtype=np.uint64)) for count in entries)
    of_products, of_photos = rows
    duplicates = np.arange(len(of_products.of)) if duplicates is None else np.asarray(duplicates)
    path = folder / DATABASE
    if previous is not None:
        generations.link(previous / DATABASE, path)
        path = folder / generations.added(DATABASE)
        if (previous / path.name).exists():
            shutil.copyfile(previous / path.name, path)
    known: dict[str, dict[str, int]] = {"category": {}, "town": {}, "county": {}}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in OF_LISTINGS}
    if previous is not None:
        names = reading.read_json(previous / FILTERS)
        known = {name: {value: code for code, value in enumerate(names[name])} for name in known}
        columns = {name: [reading.read_array(previous / f"{name}.npy")] for name in OF_LISTINGS}

    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.executescript(SCHEMA)

    def blocks() -> Iterator[list[list[str]]]:
        """The texts of the listings, which go into the database and the columns on their way."""
        row = of_products.before
        for products in added:
            fields = products[list(PRODUCT_FIELDS)].astype(object).itertuples(index=False)
            values = ((row + place, *of_row) for place, of_row in enumerate(fields))
            connection.executemany(f"INSERT INTO products VALUES ({', '.join('?' * (len(PRODUCT_FIELDS) + 1))})", values)
            row += len(products)
            columns["price"].append(products["price"].to_numpy(np.float32))
            columns["category"].append(_category_codes(products["category"], known["category"]))
            for name in ("town", "county"):
                codes = [known[name].setdefault(value, len(known[name])) for value in products[name]]
                columns[name].append(np.array(codes, np.int32))
            yield [products[field].tolist() for field in WORD_WEIGHTS]

    words.write(folder, blocks(), list(WORD_WEIGHTS.values()), previous)
    named = zip(range(of_photos.before, of_photos.total), added_image_ids, strict=True)
    connection.executemany("INSERT INTO photos VALUES (?, ?)", named)
    connection.executescript(INDEXES)
    connection.commit()
    connection.close()

    arrays = {}
    for name, parts in columns.items():
        if name == "category":
            depth = max((part.shape[1] for part in parts), default=1)
            parts = [np.pad(part, ((0, 0), (0, depth - part.shape[1])), constant_values=-1) for part in parts]
        arrays[name] = np.concatenate(parts) if parts else np.empty((0, 1) if name == "category" else 0, np.int32)
        arrays[name][of_products.removed] = np.nan if name == "price" else TOMBSTONE
        if name != "price":
            arrays[name], known[name] = _used(arrays[name], list(known[name]))
    arrays["duplicates"] = of_products.spread(duplicates.astype(np.int32), TOMBSTONE)
    owners = of_products.of[np.asarray(product_of_photo, np.int64)].astype(np.int32)
    arrays["product_of_photo"] = of_photos.spread(owners, TOMBSTONE)
    for name, array in arrays.items():
        atomic.write_array(folder / f"{name}.npy", array)
    atomic.write_json(folder / FILTERS, known)


def _category_codes(categories: Iterable[str], known: dict[str, int]) -> np.ndarray:
    """(P, depth) int32 codes of the levels of each path, -1 where it has no such level; new ones are added to the known."""
    paths = [category_levels(path) for path in categories]
    codes = np.full((len(paths), max(map(len, paths), default=1) or 1), -1, np.int32)
    for entry, path in enumerate(paths):
        for level in range(len(path)):
            codes[entry, level] = known.setdefault(" / ".join(path[: level + 1]), len(known))
    return codes


def _used(codes: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Codes, negative ones for none, and the name of each, without the names that nothing has any more."""
    used = np.bincount(codes[codes >= 0], minlength=len(names)) > 0
    renumbered = np.append(np.cumsum(used, dtype=np.int32) - 1, np.int32(-1))
    return renumbered[codes] if not used.all() else codes, [name for name, is_used in zip(names, used, strict=True) if is_used]


class Catalogue:
    """One generation's listings and photos; safe to read from many threads."""

    def __init__(self, folder: Path):
        self._path = folder / DATABASE
        if not self._path.is_file():
            raise StageError(f"{self._path} is missing: run python build_index.py again")
        # Opened now, all of them: a generation that is no longer current may lose its files while it is still served.
        self._connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        added = folder / generations.added(DATABASE)
        for _ in range(CONNECTIONS):
            connection = sqlite3.connect(_immutable(self._path), uri=True, check_same_thread=False)
            if added.exists():
                connection.execute("ATTACH ? AS added", (_immutable(added),))
                connection.executescript(VIEWS)
            self._connections.put(connection)
        # Plain views of the mapped files: slicing a numpy.memmap costs a microsecond more, thousands of times a query.
        self.columns = {name: np.asarray(reading.read_array(folder / f"{name}.npy")) for name in COLUMNS}
        self.names: dict[str, list[str]] = reading.read_json(folder / FILTERS)
        self._categories: dict[str, list[int]] = {}
        for code, path in enumerate(self.names["category"]):
            for key in {path.casefold(), category_levels(path)[-1].casefold()}:
                self._categories.setdefault(key, []).append(code)
        self._places = {kind: _by_folded_name(self.names[kind]) for kind in ("town", "county")}
        self.product_of_photo = self.columns["product_of_photo"]
        self.n_rows = len(self.columns["price"])  # of products, tombstones included
        self.live = self.columns["duplicates"] != TOMBSTONE
        self.live_photos = self.product_of_photo != TOMBSTONE
        self.n_products, self.n_photos = int(self.live.sum()), int(self.live_photos.sum())
        self.first_product, self.first_photo = int(self.live.argmax()), int(self.live_photos.argmax())  # rows, for examples
        self._photos = _Grouped(self.product_of_photo, self.n_rows)
        self._duplicates = _Grouped(self.columns["duplicates"], int(self.columns["duplicates"].max(initial=-1)) + 1)
        self._words = words.WordIndex(folder, self.live)
        databases = ("main", "added") if added.exists() else ("main",)
        counts = [
            sum(self._one(f"SELECT count(*) FROM {database}.{table}")[0] for database in databases)
            for table in ("products", "photos")
        ]
        if counts != [self.n_rows, len(self.product_of_photo)]:
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

    def _one(self, query: str, *values) -> tuple:
        with self._connection() as connection:
            return connection.execute(query, values).fetchone()

    def _live_row(self, query: str, value: str, live: np.ndarray) -> int | None:
        """Of the rows that a query finds, the one that is no tombstone."""
        with self._connection() as connection:
            return next((row for (row,) in connection.execute(query, (value,)).fetchall() if live[row]), None)

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
            row = self._live_row("SELECT row FROM products WHERE product_id = ?", spelling, self.live)
            if row is not None:
                return row
        return None

    def has_photo(self, image_id: str) -> bool:
        return self._live_row("SELECT row FROM photos WHERE image_id = ?", image_id, self.live_photos) is not None

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
        return self._words.match(query, k, self.live if allowed is None and self.n_products < self.n_rows else allowed)

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


def _immutable(path: Path) -> str:
    """The URI by which SQLite reads a file that nobody changes."""
    return f"{path.absolute().as_uri()}?mode=ro&immutable=1"


def _pounds(price: float) -> np.float32:
    """As the column holds prices: a bound is then met by the price that was typed."""
    return np.float32(min(price, MAX_PRICE))


def search_words(text: str) -> list[str]:
    """The words of a text, as word search sees them."""
    return words.split(text)


def _by_folded_name(names: list[str]) -> dict[str, list[int]]:
    codes: dict[str, list[int]] = {}
    for code, name in enumerate(names):
        codes.setdefault(name.casefold(), []).append(code)
    return codes
