"""Listings and photos for serving: SQLite, memory-mapped filter columns, word search."""

import contextlib
import copy
import functools
import json
import math
import queue
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rapidfuzz import fuzz, process, utils

from marketplace.cleaning import photos
from marketplace.cleaning.listings import CATEGORY_SEPARATOR, canonical_id, category_levels
from marketplace.cleaning.prices import POUNDS
from marketplace.files import atomic, reading
from marketplace.files.stages import StageError
from marketplace.retrieval import words
from marketplace.retrieval.filters import (
    Conditions,
    Filters,
    Passing,
    Places,
    category_path,
    comparable_price,
    deepest,
    place_name,
    telling_names,
)
from marketplace.retrieval.keys import RowsByKey

DATABASE, FILTERS, CONTENT = "catalogue.sqlite", "filters.json", "content.npy"
LISTING_KEYS = "listing_keys.npy"
PLACES = ("town", "county")
CODED = ("category", *PLACES)  # columns of codes, whose names are in FILTERS
LISTING_COLUMNS = ("price", *CODED, "seller")  # sellers by numbers alone, which nothing gives names to; -1 for none
COLUMNS = (*LISTING_COLUMNS, "product_of_photo", "duplicates")  # each a .npy of the same name
ROWS_AT_A_TIME = 16_384  # of listings in memory
LEAST_ALIKE, SUGGESTIONS = 75, 3  # per cent of the letters that a name suggested for an unknown one shares with it
TOLD_HIDDEN = 500  # hidden listings that an engine elsewhere is told of at most; of more it finds some, which are left out here
MANY_HIDDEN = 0.1  # of the listings: from here on searches are told which are not, by which they take longer
MOST_PRICE_STEPS = 7  # where ranges begin that prices are counted in,
USUAL_PRICES = 0.02, 0.98  # between these of their quantiles
MOST_OF_SELLER = 1000  # listings among which the newest are looked for, the last of the table
CONNECTIONS = 8  # to the database, shared by all threads: each query holds one for a millisecond or two
PRODUCT_FIELDS = (
    "product_id", "name", "description", "category", "price", "price_plausible", "town", "county", "posted_on",
)  # fmt: skip

SCHEMA = """
CREATE TABLE products (row INTEGER PRIMARY KEY, product_id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
    category TEXT NOT NULL, price REAL, price_plausible INTEGER, town TEXT, county TEXT, posted_on TEXT);
CREATE TABLE price_ranges (row INTEGER PRIMARY KEY, low REAL NOT NULL, median REAL NOT NULL, high REAL NOT NULL);
CREATE TABLE photos (row INTEGER PRIMARY KEY, image_id TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL);
"""
# After the rows: a million ids at once are sorted, one by one they are looked up.
INDEXES = """
CREATE INDEX products_by_id ON products (product_id);
CREATE INDEX photos_by_id ON photos (image_id);
"""


def write(
    folder: Path,
    listings: Iterable[pd.DataFrame],
    image_ids: Sequence[str],
    listing_of_photo: np.ndarray,
    duplicates: np.ndarray | None = None,
    currency: str = POUNDS.currency,
    sizes: np.ndarray | None = None,
    ranges: Iterable[tuple[str, float, float, float]] = (),
) -> None:
    """Write the catalogue's files into a generation's folder: row i is the i-th listing, or photo.

    listings: PRODUCT_FIELDS and, where it is told, "seller", some at a time; image_ids: N; listing_of_photo: (N,) the listing of
    each photo; duplicates: (P,) the same number for listings of the same photo or text (default: none are); currency: of the
    prices; sizes: (N, 2) width and height of each photo as it is shown (default: those of the cleaned squares); ranges: ids of
    listings, each with a low, median and high price.
    """
    columns, contents = _Columns(), [np.empty(0, np.uint64)]
    insert = f"INSERT INTO products VALUES ({', '.join('?' * (len(PRODUCT_FIELDS) + 1))})"
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(SCHEMA)
        for block in listings:
            fields, rows = block[list(PRODUCT_FIELDS)], range(len(columns), len(columns) + len(block))
            connection.executemany(insert, zip(rows, *(fields[name].tolist() for name in fields), strict=True))
            columns.add(block)
            contents.append(pd.util.hash_pandas_object(fields, index=False, categorize=False).to_numpy())
        shown = np.full((len(image_ids), 2), photos.DEFAULTS.size) if sizes is None else sizes
        photo_rows = zip(range(len(image_ids)), image_ids, *(map(int, sides) for sides in shown.T), strict=True)
        connection.executemany("INSERT INTO photos VALUES (?, ?, ?, ?)", photo_rows)
        connection.executescript(INDEXES)
        of_listing = "INSERT INTO price_ranges SELECT row, ?2, ?3, ?4 FROM products WHERE product_id = ?1"
        connection.executemany(of_listing, ranges)
        connection.commit()
    columns.write(folder, currency)
    atomic.write_array(folder / CONTENT, np.concatenate(contents))
    groups = np.arange(len(columns)) if duplicates is None else duplicates
    atomic.write_array(folder / "duplicates.npy", np.asarray(groups).astype(np.int32))
    atomic.write_array(folder / "product_of_photo.npy", np.asarray(listing_of_photo).astype(np.int32))


def find_ids(folder: Path, product_ids: Collection[str]) -> set[str]:
    """Those of some ids that a generation's listings have."""
    with contextlib.closing(sqlite3.connect(_immutable(folder / DATABASE), uri=True)) as connection:
        return set(_find(connection, product_ids))


def read_image_ids(folder: Path) -> list[str]:
    """The ids of a generation's photos, by row."""
    with contextlib.closing(sqlite3.connect(_immutable(folder / DATABASE), uri=True)) as connection:
        return [image_id for (image_id,) in connection.execute("SELECT image_id FROM photos ORDER BY row")]


def _find(connection: sqlite3.Connection, product_ids: Collection[str]) -> dict[str, int]:
    """The rows of the listings that have some ids."""
    query = "SELECT product_id, row FROM products WHERE product_id IN (SELECT value FROM json_each(?))"
    return dict(connection.execute(query, (json.dumps(list(product_ids)),)))


def read_listings(folder: Path, rows: np.ndarray | None = None) -> Iterator[pd.DataFrame]:
    """PRODUCT_FIELDS of the listings of some rows, ascending, or of all, ROWS_AT_A_TIME of them at a time."""
    query = f"SELECT {', '.join(PRODUCT_FIELDS)} FROM products"
    if rows is not None:
        query += " WHERE row IN (SELECT value FROM json_each(?))"
    with contextlib.closing(sqlite3.connect(_immutable(folder / DATABASE), uri=True)) as connection:
        found = connection.execute(f"{query} ORDER BY row", () if rows is None else (json.dumps(rows.tolist()),))
        while records := found.fetchmany(ROWS_AT_A_TIME):
            listings = pd.DataFrame(records, columns=list(PRODUCT_FIELDS))
            yield listings.astype({"price": "float64", "price_plausible": bool})


class _Columns:
    """The filter columns while they are written: codes of categories and places, the names of these, and prices."""

    def __init__(self):
        self._codes: dict[str, dict[str, int]] = {name: {} for name in CODED}  # column -> name -> code
        self._sellers = {"": -1}
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in LISTING_COLUMNS}

    def __len__(self) -> int:
        return sum(map(len, self._parts["price"]))

    def add(self, listings: pd.DataFrame) -> None:
        self._parts["price"].append(listings["price"].to_numpy(np.float32))
        self._parts["category"].append(_category_codes(listings["category"], self._codes["category"]))
        for name in PLACES:
            codes, (at, values) = self._codes[name], pd.factorize(listings[name])
            self._parts[name].append(np.array([codes.setdefault(value, len(codes)) for value in values], np.int32)[at])
        sellers = listings["seller"] if "seller" in listings else [""] * len(listings)
        self._parts["seller"].append(
            np.array([self._sellers.setdefault(one, len(self._sellers) - 1) for one in sellers], np.int32)
        )

    def write(self, folder: Path, currency: str) -> None:
        """Write them, the names of the codes, and the currency."""
        atomic.write_array(folder / "price.npy", np.concatenate([np.empty(0, np.float32), *self._parts["price"]]))
        for name in (*CODED, "seller"):
            atomic.write_array(folder / f"{name}.npy", self._joined_codes(name))
        atomic.write_json(folder / FILTERS, {name: list(codes) for name, codes in self._codes.items()} | {"currency": currency})

    def _joined_codes(self, name: str) -> np.ndarray:
        """(rows,) int32, of categories (rows, depth)."""
        parts = self._parts[name]
        if name == "category":
            depth = max((part.shape[1] for part in parts), default=1)
            parts = [np.pad(part, ((0, 0), (0, depth - part.shape[1])), constant_values=-1) for part in parts]
            return np.concatenate([np.empty((0, depth), np.int32), *parts])
        return np.concatenate([np.empty(0, np.int32), *parts])


def _category_codes(categories: pd.Series, code_of_path: dict[str, int]) -> np.ndarray:
    """(P, depth) int32 codes of the levels of each path, -1 where it has no such level; new paths get codes in code_of_path."""
    at, values = pd.factorize(categories)
    paths = [category_levels(path) for path in values]
    codes = np.full((len(paths), max(map(len, paths), default=1) or 1), -1, np.int32)
    for entry, path in enumerate(paths):
        for level in range(len(path)):
            codes[entry, level] = code_of_path.setdefault(CATEGORY_SEPARATOR.join(path[: level + 1]), len(code_of_path))
    return codes[at]


class Photo(NamedTuple):
    """width, height: pixels of what is shown of it."""

    image_id: str
    width: int
    height: int

    @property
    def square_url(self) -> str:
        return f"/images/{self.image_id}.jpg"

    @property
    def display_url(self) -> str:
        return f"/images/{self.image_id}/display"


class UnknownName(ValueError):
    """A filter's category or place that no listing has; its message tells the nearest that some have."""

    def __init__(self, kind: str, name: str, choices: dict[str, str]):
        """choices: what may be given -> what `name` is compared with."""
        near = process.extract(
            name,
            choices,
            processor=utils.default_process,
            scorer=fuzz.token_set_ratio,
            score_cutoff=LEAST_ALIKE,
            limit=SUGGESTIONS,
        )
        nearest = " or ".join(f'"{choice}"' for *_, choice in near)
        super().__init__(
            f'no listing has the {kind} "{name[:100]}": ' + (f"try {nearest}" if near else "GET /filters lists them")
        )


class Catalogue:
    """One generation's listings and photos; safe to read from many threads."""

    def __init__(self, folder: Path):
        """Raises StageError when files are missing or do not belong together."""
        self._path = folder / DATABASE
        if not self._path.is_file():
            raise StageError(f"{self._path} is missing: run python build_index.py again")
        self._connections = open_connections(self._path)
        # Plain views of the mapped files: slicing a numpy.memmap costs a microsecond more, thousands of times a query.
        self.columns = {name: np.asarray(reading.read_array(folder / f"{name}.npy")) for name in COLUMNS}
        self.names: dict[str, list[str]] = reading.read_json(folder / FILTERS)
        self.currency: str = self.names.pop("currency", POUNDS.currency)
        self._categories = self._all_categories = _codes_by_name(self.names["category"])
        self.telling_names = telling_names(self.names["category"])
        self._places = self._all_places = Places(*(self.columns[kind] for kind in PLACES), *(self.names[kind] for kind in PLACES))
        self.listing_of_photo = self.columns["product_of_photo"]
        self.n_products, self.n_photos = len(self.columns["price"]), len(self.listing_of_photo)
        self.price_steps = price_steps(self.columns["price"])
        self._photos = _Grouped(self.listing_of_photo, self.n_products)
        self._duplicates = _Grouped(self.columns["duplicates"], int(self.columns["duplicates"].max(initial=-1)) + 1)
        self.keys = np.asarray(reading.read_array(folder / LISTING_KEYS))
        self.row_of_key, self.words = RowsByKey(self.keys), words.WordIndex(folder)
        self.hidden_rows, self._is_shown = np.empty(0, np.int64), np.ones(self.n_products, bool)
        counted = [self._count("products"), self._count("photos"), len(self.keys), len(self.words)]
        if counted != [self.n_products, self.n_photos, self.n_products, self.n_products]:
            raise StageError(f"{self._path} and the files beside it do not belong together: run python build_index.py again")

    def hiding(self, product_ids: Collection[str]) -> "Catalogue":
        """The same catalogue, in which no listing of these ids is found; ids that it does not have change nothing."""
        with self._connection() as connection:
            rows = sorted(_find(connection, product_ids).values())
        view = copy.copy(self)
        view.hidden_rows, view._is_shown = np.array(rows, np.int64), np.ones(self.n_products, bool)
        view._is_shown[view.hidden_rows] = False
        view.words = self.words.hiding(
            self.keys[view.hidden_rows], lambda: [listing["name"] for listing in self.products(rows, ["name"])]
        )
        # A category or place that only hidden listings have is one that no listing has.
        named, categories = set(view._shown_codes("category").tolist()), self._all_categories.items()
        view._categories = {name: kept for name, codes in categories if (kept := [code for code in codes if code in named])}
        view._places = self._all_places.among(view.shown_rows)
        return view

    def _shown_codes(self, kind: str) -> np.ndarray:
        """The codes of one of CODED, ascending, that listings have which are not hidden."""
        codes = self.columns[kind][self.shown_rows]
        return np.flatnonzero(np.bincount(codes[codes >= 0], minlength=len(self.names[kind])))

    def _shown_names(self, kind: str) -> list[str]:
        return [self.names[kind][code] for code in self._shown_codes(kind)]

    def shown(self, listing_rows: np.ndarray) -> np.ndarray:
        """Rows without those of hidden listings."""
        return listing_rows[self._is_shown[listing_rows]] if len(self.hidden_rows) else listing_rows

    def first_shown(self, find: Callable[[int], np.ndarray], depth: int) -> np.ndarray:
        """The first `depth` rows that are not hidden of what find(depth) gives, best first; fewer only where there are fewer."""
        deeper = depth
        while True:
            rows = find(deeper)
            shown = self.shown(rows)
            if len(shown) >= depth or len(rows) < deeper:
                return shown[:depth]
            deeper = 2 * deeper

    @property
    def shown_rows(self) -> np.ndarray:
        """Rows, ascending, of the listings that are not hidden."""
        return np.flatnonzero(self._is_shown)

    @property
    def shown_photos(self) -> np.ndarray:
        """Rows, ascending, of their photos."""
        return np.flatnonzero(self._is_shown[self.listing_of_photo])

    def find_ids(self, product_ids: Collection[str]) -> set[str]:
        """find_ids() of this generation, hidden listings among them."""
        with self._connection() as connection:
            return set(_find(connection, product_ids))

    def rows_of(self, product_ids: Sequence[str]) -> list[int]:
        """The row of each listing, hidden ones among them; KeyError where one is not in the catalogue."""
        with self._connection() as connection:
            found = _find(connection, product_ids)
        return [found[one] for one in product_ids]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile."""
        connection = self._connections.get()
        try:
            yield connection
        finally:
            self._connections.put(connection)

    def _count(self, table: str) -> int:
        with self._connection() as connection:
            return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def _row(self, query: str, value: str) -> int | None:
        with self._connection() as connection:
            found = connection.execute(query, (value,)).fetchone()
        return found and found[0]

    def allowed(self, filters: Filters) -> np.ndarray | None:
        """(P,) bool of the listings that pass and are not hidden, or None when everything passes and not MANY_HIDDEN are."""
        masks = []
        if filters.category is not None:
            wanted = self._categories.get(category_path(filters.category), [])
            masks.append(np.isin(self.columns["category"], wanted).any(axis=1))
        if filters.min_price is not None:
            masks.append(self.columns["price"] >= np.float32(comparable_price(filters.min_price)))
        if filters.max_price is not None:
            masks.append(self.columns["price"] <= np.float32(comparable_price(filters.max_price)))
        if filters.location is not None:
            masks.append(self._places.within(filters.location))
        if not masks and len(self.hidden_rows) <= MANY_HIDDEN * self.n_products:
            return None
        return np.logical_and.reduce([*masks, self._is_shown])

    def passing(self, allowed: np.ndarray | None, filters: Filters | None) -> Passing | None:
        """What may be found of the listings, for the vector indexes; None: all. allowed: (P,) bool; filters: what it comes from,
        where it does, and narrows."""
        if allowed is None:
            return None
        return Passing(allowed) if filters is None else Passing(allowed, lambda: self._conditions(filters))

    def _conditions(self, filters: Filters) -> Conditions:
        """What the numbers() of every listing meet that allowed() lets pass."""
        categories = places = None
        if filters.category is not None:
            wanted = self._categories.get(category_path(filters.category), [])
            categories = np.unique(deepest(self._paths)[np.isin(self._paths, wanted).any(axis=1)])
        if filters.location is not None:
            places = np.array(self._places.found(filters.location), np.int64)
        prices = [None if one is None else comparable_price(one) for one in (filters.min_price, filters.max_price)]
        hidden = self.hidden_rows if len(self.hidden_rows) <= TOLD_HIDDEN else self.hidden_rows[:0]
        return Conditions(categories, places, *prices, self.keys[hidden])

    @functools.cached_property
    def _paths(self) -> np.ndarray:
        """(paths, depth) codes of the levels of each path that a listing has."""
        return np.unique(self.columns["category"], axis=0)

    def numbers(self) -> dict[str, np.ndarray]:
        """(P,) each, for an engine that filters by itself: listing, the listing's key; price, -1 for none; category, the code of
        its whole path, -1 for none; place, the number of its place."""
        return {
            "listing": self.keys,
            "price": np.nan_to_num(self.columns["price"], nan=-1.0),
            "category": deepest(self.columns["category"]),
            "place": self._all_places.of_row,
        }

    def check(self, filters: Filters) -> None:
        """Raises UnknownName for a category or place that no listing has."""
        if filters.category is not None and category_path(filters.category) not in self._categories:
            levels = {path: path if CATEGORY_SEPARATOR in filters.category else category_levels(path)[-1]
                      for path in self._shown_names("category")}  # fmt: skip
            raise UnknownName("category", filters.category, levels)
        if filters.location is not None and filters.location not in self._places:
            places = dict.fromkeys(name for kind in PLACES for name in self._shown_names(kind))
            raise UnknownName("place", filters.location, {name: name for name in places})

    def photos_of(self, listing_row: int) -> np.ndarray:
        """Rows of a listing's photos."""
        return self._photos[listing_row]

    def photos_of_each(self, listing_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the photos of N listings, one listing after the other, and (N,) how many each has."""
        return self._photos.of_each(listing_rows)

    def has_sellers(self) -> bool:
        """Whether the seller of any listing is told."""
        return bool((self.columns["seller"] >= 0).any())

    def of_same_seller(self, listing_row: int) -> np.ndarray:
        """Rows, ascending, of the listings of a listing's seller, this one among them; it alone where none is named."""
        seller = self.columns["seller"][listing_row]
        return self._of_seller[seller] if seller >= 0 else np.array([listing_row])

    @functools.cached_property
    def _of_seller(self) -> "_Grouped":
        sellers = self.columns["seller"]
        return _Grouped(sellers, int(sellers.max(initial=-1)) + 1)

    def duplicates_of(self, listing_row: int) -> np.ndarray:
        """Rows of the listings of the same offer, this one among them, ascending."""
        return self._duplicates[self.columns["duplicates"][listing_row]]

    def price_range(self, listing_row: int) -> tuple[float, float, float] | None:
        """Low, median and high price of a listing that the price model learned from, told without it; None for any other."""
        with self._connection() as connection:
            query = "SELECT low, median, high FROM price_ranges WHERE row = ?"
            return connection.execute(query, (int(listing_row),)).fetchone()

    def same_seller(self, listing_row: int, k: int) -> tuple[list[int], int]:
        """Rows of at most k other listings of the same seller, the newest first, and how many there are: 0 where none is told."""
        rows = self.of_same_seller(listing_row)
        others = self.shown(rows[rows != listing_row])
        query = """SELECT row FROM products WHERE row IN (SELECT value FROM json_each(?)) ORDER BY posted_on DESC, row LIMIT ?"""
        with self._connection() as connection:
            newest = connection.execute(query, (json.dumps(others[-MOST_OF_SELLER:].tolist()), k)).fetchall()
        return [row for (row,) in newest], len(others)

    def product_row(self, product_id: str) -> int | None:
        """The row of a listing that is not hidden; a UUID in capitals is the same id."""
        row = self._row("SELECT row FROM products WHERE product_id = ?", canonical_id(product_id))
        return row if row is not None and self._is_shown[row] else None

    def photo_row(self, image_id: str) -> int | None:
        """The row of a photo that a listing has which is not hidden."""
        row = self._row("SELECT row FROM photos WHERE image_id = ?", image_id)
        return row if row is not None and self._is_shown[self.listing_of_photo[row]] else None

    def product(self, listing_row: int) -> dict:
        """PRODUCT_FIELDS of one listing."""
        return self.products([listing_row])[0]

    def products(self, listing_rows: Sequence[int], fields: Sequence[str] = PRODUCT_FIELDS) -> list[dict]:
        """Fields of each listing."""
        found = self._by_row("products", fields, listing_rows)
        products = [dict(zip(fields, values, strict=True)) for values in found]
        for product in products if "price_plausible" in fields else ():
            product["price_plausible"] = bool(product["price_plausible"])
        return products

    def photos(self, photo_rows: Sequence[int]) -> list[Photo]:
        return [Photo(*values) for values in self._by_row("photos", ["image_id", "width", "height"], photo_rows)]

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

    def match_words(
        self,
        typed: Sequence[str],
        meant: Sequence[Sequence[words.Alternative]],
        depth: int,
        filters: Filters | None = None,
        allowed: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows of the listings that WordIndex.candidates() finds and that are not hidden.

        filters: what a listing must pass; allowed: (P,) bool, which must hold as well and leave most of what passes.
        """
        deeper = depth
        while True:
            rows = self.row_of_key.rows(self.words.candidates(typed, meant, deeper, filters))
            kept = self.shown(rows) if allowed is None else rows[allowed[rows]]
            if len(kept) >= depth or len(rows) < deeper:
                return kept
            deeper *= 4

    def choices(self) -> dict:
        """What the filters can be set to, with the number of listings of each, for a page's menus."""
        counts, rows = {}, self.shown_rows
        for kind, names in self.names.items():
            codes, comparable = self.columns[kind][rows], place_name if kind in PLACES else category_path
            listings = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
            named = ((name, count) for name, count in zip(names, listings, strict=True) if count and comparable(name))
            counts[kind] = dict(sorted(named))
        prices = self.columns["price"][rows]
        bounds = {"min": float(np.nanmin(prices)), "max": float(np.nanmax(prices))} if len(prices) else None
        price = bounds and bounds | {"currency": self.currency}
        return {"categories": counts["category"], "towns": counts["town"], "counties": counts["county"], "price": price}


def price_steps(prices: np.ndarray) -> tuple[float, ...]:
    """Where the ranges of prices begin that are counted: 1, 2.5 and 5 times powers of ten between nearly all prices (N,), the
    highest MOST_PRICE_STEPS of them; of no prices PRICE_STEPS."""
    above_nothing = prices[prices > 0]  # NaN is not
    if not len(above_nothing):
        return words.PRICE_STEPS
    low, high = np.quantile(above_nothing.astype(np.float64), USUAL_PRICES).tolist()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [round(digits * 10.0**power, 2) for power in powers for digits in (1, 2.5, 5)]
    return tuple(step for step in steps if max(low, 0.1) < step <= high)[-MOST_PRICE_STEPS:] or (round(low, 2) or 0.01,)


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


def open_connections(path: Path) -> queue.SimpleQueue[sqlite3.Connection]:
    """CONNECTIONS to a database; all threads share them.

    All are opened now: a generation that is no longer current may lose its files while it is still served.
    """
    connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
    for _ in range(CONNECTIONS):
        connections.put(sqlite3.connect(_immutable(path), uri=True, check_same_thread=False))
    return connections


def _codes_by_name(paths: list[str]) -> dict[str, list[int]]:
    """The codes of each category, by its path and by its last level's name, both without case."""
    codes: dict[str, list[int]] = {}
    for code, path in enumerate(paths):
        for name in {category_path(path), category_path(category_levels(path)[-1])}:
            codes.setdefault(name, []).append(code)
    return codes


def _immutable(path: Path) -> str:
    """The URI by which SQLite reads a file that nobody changes."""
    return f"{path.absolute().as_uri()}?mode=ro&immutable=1"
