"""Listings and photos for serving: SQLite, memory-mapped filter columns, word search."""

import contextlib
import json
import queue
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from marketplace.cleaning.listings import MAX_PRICE, category_levels
from marketplace.files import atomic, generations, reading
from marketplace.files.changes import Rows
from marketplace.files.stages import StageError
from marketplace.retrieval import postings as words
from marketplace.retrieval.filters import Filters, Places

DATABASE, FILTERS = "catalogue.sqlite", "filters.json"
PLACES = ("town", "county")
CODED = ("category", *PLACES)  # columns of codes, whose names are in FILTERS
LISTING_COLUMNS = ("price", *CODED)
COLUMNS = (*LISTING_COLUMNS, "product_of_photo", "duplicates")  # each a .npy of the same name
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
# After the rows: a million ids at once are sorted, one by one they are looked up. Tombstones keep their ids.
INDEXES = """
CREATE INDEX IF NOT EXISTS products_by_id ON products (product_id);
CREATE INDEX IF NOT EXISTS photos_by_id ON photos (image_id);
"""
# What connections read from: the listings of the last full build, and those added since.
VIEWS = """
CREATE TEMP VIEW products AS SELECT * FROM main.products UNION ALL SELECT * FROM added.products;
CREATE TEMP VIEW photos AS SELECT * FROM main.photos UNION ALL SELECT * FROM added.photos;
"""


def write(
    folder: Path,
    listings: Iterable[pd.DataFrame],
    image_ids: Sequence[str],
    listing_of_photo: np.ndarray,
    duplicates: np.ndarray | None = None,
) -> None:
    """Write the catalogue's files into a generation's folder: row i is the i-th listing, or photo.

    listings: PRODUCT_FIELDS, some at a time; image_ids: N; listing_of_photo: (N,) the listing of each photo; duplicates: (P,) the
    same number for listings of the same photo or text (default: none are).
    """
    columns, photo_rows = _Columns(), Rows.all_new(len(listing_of_photo))
    with _filled(folder / DATABASE) as connection:
        words.write(folder, _insert_listings(connection, columns, listings, 0), list(WORD_WEIGHTS.values()))
        _insert_photos(connection, image_ids, photo_rows)
    listing_rows = Rows.all_new(len(columns))
    columns.write(folder, listing_rows.removed)
    duplicates = listing_rows.entry_rows if duplicates is None else duplicates
    _write_groups(folder, duplicates, listing_of_photo, listing_rows, photo_rows)


def write_added(
    previous: Path,
    folder: Path,
    added: Iterable[pd.DataFrame],
    added_image_ids: Sequence[str],
    listing_of_photo: np.ndarray,
    duplicates: np.ndarray,
    listing_rows: Rows,
    photo_rows: Rows,
) -> None:
    """Write the catalogue's files of an update. The database of the last full build is linked, what was added since is in one
    beside it.

    previous: the folder of the generation that the rows follow; added, added_image_ids: the listings and photos whose rows are
    new, in the order of these; listing_of_photo, duplicates: of all entries, as in write().
    """
    generations.link(previous / DATABASE, folder / DATABASE)
    path = folder / generations.added(DATABASE)
    if (previous / path.name).exists():
        shutil.copyfile(previous / path.name, path)
    columns = _Columns.read(previous)
    with _filled(path) as connection:
        blocks = _insert_listings(connection, columns, added, listing_rows.before)
        words.write(folder, blocks, list(WORD_WEIGHTS.values()), previous)
        _insert_photos(connection, added_image_ids, photo_rows)
    columns.write(folder, listing_rows.removed)
    _write_groups(folder, duplicates, listing_of_photo, listing_rows, photo_rows)


@contextlib.contextmanager
def _filled(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to fill the database through; its indexes are made, or go on, when that is done."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(SCHEMA)
        yield connection
        connection.executescript(INDEXES)
        connection.commit()


def _insert_listings(
    connection: sqlite3.Connection, columns: "_Columns", listings: Iterable[pd.DataFrame], row: int
) -> Iterator[list[list[str]]]:
    """Put listings into the database and the columns, the first of them at `row`; yields the texts of each block's fields."""
    insert = f"INSERT INTO products VALUES ({', '.join('?' * (len(PRODUCT_FIELDS) + 1))})"
    for block in listings:
        records = block[list(PRODUCT_FIELDS)].astype(object).itertuples(index=False)
        connection.executemany(insert, ((at, *record) for at, record in enumerate(records, row)))
        row += len(block)
        columns.add(block)
        yield [block[field].tolist() for field in WORD_WEIGHTS]


def _insert_photos(connection: sqlite3.Connection, image_ids: Sequence[str], rows: Rows) -> None:
    """Put the photos whose rows are new into the database. image_ids: of these, in the order of their rows."""
    new_rows = range(rows.before, rows.total)
    connection.executemany("INSERT INTO photos VALUES (?, ?)", zip(new_rows, image_ids, strict=True))


def _write_groups(
    folder: Path, duplicates: np.ndarray, listing_of_photo: np.ndarray, listing_rows: Rows, photo_rows: Rows
) -> None:
    """Write which listings are duplicates, and which listing each photo is of; by row, TOMBSTONE for rows that are no more."""
    groups = listing_rows.spread(np.asarray(duplicates).astype(np.int32), TOMBSTONE)
    owners = listing_rows.entry_rows[np.asarray(listing_of_photo, np.int64)].astype(np.int32)
    atomic.write_array(folder / "duplicates.npy", groups)
    atomic.write_array(folder / "product_of_photo.npy", photo_rows.spread(owners, TOMBSTONE))


class _Columns:
    """The filter columns while they are written: codes of categories and places, the names of these, and prices."""

    def __init__(self):
        self._codes: dict[str, dict[str, int]] = {name: {} for name in CODED}  # column -> name -> code
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in LISTING_COLUMNS}

    @classmethod
    def read(cls, folder: Path) -> "_Columns":
        """Those of a generation, to go on with."""
        columns, names = cls(), reading.read_json(folder / FILTERS)
        columns._codes = {name: {value: code for code, value in enumerate(names[name])} for name in CODED}
        columns._parts = {name: [reading.read_array(folder / f"{name}.npy")] for name in LISTING_COLUMNS}
        return columns

    def __len__(self) -> int:
        return sum(map(len, self._parts["price"]))

    def add(self, listings: pd.DataFrame) -> None:
        self._parts["price"].append(listings["price"].to_numpy(np.float32))
        self._parts["category"].append(_category_codes(listings["category"], self._codes["category"]))
        for name in PLACES:
            codes = self._codes[name]
            column = [codes.setdefault(value, len(codes)) for value in listings[name]]
            self._parts[name].append(np.array(column, np.int32))

    def write(self, folder: Path, removed: np.ndarray) -> None:
        """Write them, and the names that are still in use. removed: rows that are tombstones from now on."""
        prices = np.concatenate([np.empty(0, np.float32), *self._parts["price"]])
        prices[removed] = np.nan
        atomic.write_array(folder / "price.npy", prices)
        names = {}
        for name in CODED:
            codes = self._joined_codes(name)
            codes[removed] = TOMBSTONE
            codes, names[name] = _used(codes, list(self._codes[name]))
            atomic.write_array(folder / f"{name}.npy", codes)
        atomic.write_json(folder / FILTERS, names)

    def _joined_codes(self, name: str) -> np.ndarray:
        """(rows,) int32, of categories (rows, depth)."""
        parts = self._parts[name]
        if name == "category":
            depth = max((part.shape[1] for part in parts), default=1)
            parts = [np.pad(part, ((0, 0), (0, depth - part.shape[1])), constant_values=-1) for part in parts]
            return np.concatenate([np.empty((0, depth), np.int32), *parts])
        return np.concatenate([np.empty(0, np.int32), *parts])


def _category_codes(categories: Iterable[str], code_of_path: dict[str, int]) -> np.ndarray:
    """(P, depth) int32 codes of the levels of each path, -1 where it has no such level; new paths get codes in code_of_path."""
    paths = [category_levels(path) for path in categories]
    codes = np.full((len(paths), max(map(len, paths), default=1) or 1), -1, np.int32)
    for entry, path in enumerate(paths):
        for level in range(len(path)):
            codes[entry, level] = code_of_path.setdefault(" / ".join(path[: level + 1]), len(code_of_path))
    return codes


def _used(codes: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Codes, negative ones for none, and the name of each, without the names that nothing has any more."""
    used = np.bincount(codes[codes >= 0], minlength=len(names)) > 0
    if used.all():
        return codes, names
    renumbered = np.append(np.cumsum(used, dtype=np.int32) - 1, np.int32(-1))
    return renumbered[codes], [name for name, is_used in zip(names, used, strict=True) if is_used]


class Catalogue:
    """One generation's listings and photos; safe to read from many threads."""

    def __init__(self, folder: Path):
        """Raises StageError when files are missing or do not belong together."""
        self._path = folder / DATABASE
        if not self._path.is_file():
            raise StageError(f"{self._path} is missing: run python build_index.py again")
        self._connections = _connections(generations.parts(self._path))
        # Plain views of the mapped files: slicing a numpy.memmap costs a microsecond more, thousands of times a query.
        self.columns = {name: np.asarray(reading.read_array(folder / f"{name}.npy")) for name in COLUMNS}
        self.names: dict[str, list[str]] = reading.read_json(folder / FILTERS)
        self._categories = _codes_by_name(self.names["category"])
        self._places = Places(*(self.columns[kind] for kind in PLACES), *(self.names[kind] for kind in PLACES))
        self.listing_of_photo = self.columns["product_of_photo"]
        self.n_rows = len(self.columns["price"])  # of listings, tombstones included
        self.live = self.columns["duplicates"] != TOMBSTONE
        self.live_photos = self.listing_of_photo != TOMBSTONE
        self.n_products, self.n_photos = int(self.live.sum()), int(self.live_photos.sum())
        self.first_product, self.first_photo = int(self.live.argmax()), int(self.live_photos.argmax())  # rows, for examples
        self._photos = _Grouped(self.listing_of_photo, self.n_rows)
        self._duplicates = _Grouped(self.columns["duplicates"], int(self.columns["duplicates"].max(initial=-1)) + 1)
        self._words = words.WordIndex(folder, self.live)
        if [self._count("products"), self._count("photos")] != [self.n_rows, len(self.listing_of_photo)]:
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

    def _count(self, table: str) -> int:
        """Rows of a table, those added since the last full build included."""
        with self._connection() as connection:
            databases = [name for _, name, path in connection.execute("PRAGMA database_list") if path]
            counts = (connection.execute(f"SELECT count(*) FROM {name}.{table}").fetchone() for name in databases)
            return sum(count for (count,) in counts)

    def _live_row(self, query: str, value: str, live: np.ndarray) -> int | None:
        """Of the rows that a query finds, the one that is no tombstone."""
        with self._connection() as connection:
            return next((row for (row,) in connection.execute(query, (value,)).fetchall() if live[row]), None)

    def allowed(self, filters: Filters) -> np.ndarray | None:
        """(P,) bool of the listings that pass, or None when everything does."""
        masks = []
        if filters.category is not None:
            wanted = " / ".join(category_levels(filters.category)).casefold()
            masks.append(np.isin(self.columns["category"], self._categories.get(wanted, [])).any(axis=1))
        if filters.min_price is not None:
            masks.append(self.columns["price"] >= _pounds(filters.min_price))
        if filters.max_price is not None:
            masks.append(self.columns["price"] <= _pounds(filters.max_price))
        if filters.location is not None:
            masks.append(self._places.within(filters.location))
        return np.logical_and.reduce(masks) if masks else None

    def photos_of(self, listing_row: int) -> np.ndarray:
        """Rows of a listing's photos."""
        return self._photos[listing_row]

    def photos_of_each(self, listing_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the photos of N listings, one listing after the other, and (N,) how many each has."""
        return self._photos.of_each(listing_rows)

    def duplicates_of(self, listing_row: int) -> np.ndarray:
        """Rows of the listings of the same photo or text, this one among them, ascending."""
        return self._duplicates[self.columns["duplicates"][listing_row]]

    def product_row(self, product_id: str) -> int | None:
        """The row of a listing; an id in capitals is the same id."""
        for spelling in (product_id, product_id.lower()):
            row = self._live_row("SELECT row FROM products WHERE product_id = ?", spelling, self.live)
            if row is not None:
                return row
        return None

    def has_photo(self, image_id: str) -> bool:
        return self._live_row("SELECT row FROM photos WHERE image_id = ?", image_id, self.live_photos) is not None

    def product(self, listing_row: int) -> dict:
        """PRODUCT_FIELDS of one listing."""
        return self.products([listing_row])[0]

    def products(self, listing_rows: Sequence[int], fields: Sequence[str] = PRODUCT_FIELDS) -> list[dict]:
        """Fields of each listing."""
        found = self._by_row("products", fields, listing_rows)
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
        """Rows of the k listings that match a query's words best by BM25; those with all the words come first.

        For a word that no listing holds, those that begin so count, else those spelt much alike, at half their score.
        """
        return self._words.match(query, k, self.live if allowed is None and self.n_products < self.n_rows else allowed)

    def score_words(self, query: str, rows: np.ndarray) -> np.ndarray:
        """(N,) BM25 scores of the listings of `rows` for any of a query's words; 0 for one that holds none of them."""
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


def _connections(paths: list[Path]) -> queue.SimpleQueue[sqlite3.Connection]:
    """CONNECTIONS to a database and, where there is one, to that of what was added since; all threads share them.

    All are opened now: a generation that is no longer current may lose its files while it is still served.
    """
    path, *added = paths
    connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
    for _ in range(CONNECTIONS):
        connection = sqlite3.connect(_immutable(path), uri=True, check_same_thread=False)
        for other in added:
            connection.execute("ATTACH ? AS added", (_immutable(other),))
            connection.executescript(VIEWS)
        connections.put(connection)
    return connections


def _codes_by_name(paths: list[str]) -> dict[str, list[int]]:
    """The codes of each category, by its path and by its last level's name, both without case."""
    codes: dict[str, list[int]] = {}
    for code, path in enumerate(paths):
        for name in {path.casefold(), category_levels(path)[-1].casefold()}:
            codes.setdefault(name, []).append(code)
    return codes


def _immutable(path: Path) -> str:
    """The URI by which SQLite reads a file that nobody changes."""
    return f"{path.absolute().as_uri()}?mode=ro&immutable=1"


def _pounds(price: float) -> np.float32:
    """As the column holds prices: a bound is then met by the price that was typed."""
    return np.float32(min(price, MAX_PRICE))


def search_words(text: str) -> list[str]:
    """The words of a text, as word search sees them."""
    return words.split(text)
