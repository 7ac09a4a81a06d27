"""What a result must be, and the names by which categories and places are asked for; the same for every engine."""

import copy
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from marketplace.cleaning.listings import CATEGORY_SEPARATOR, category_levels
from marketplace.cleaning.prices import MAX_PRICE

MAX_NAME = 500  # characters of a category's or place's name; longer ones are cut, in listings and filters alike


@dataclass(frozen=True)
class Filters:
    """What a result must be; None: anything.

    category: a name at any level of the path, or a path from its start; location: a place's whole text, its town or its county,
    or the beginning of one where no place is called so; prices in the table's currency, both ends included.
    """

    category: str | None = None
    min_price: float | None = None
    max_price: float | None = None
    location: str | None = None


@dataclass(frozen=True)
class Conditions:
    """Filters as conditions on a listing's numbers (Catalogue.numbers()), for an engine that keeps those too; None: anything.

    categories: codes of whole paths; places: numbers of Places; prices: both ends included, and a listing without a price is
    within none; hidden: keys of listings that do not pass, where they are few.
    """

    categories: np.ndarray | None = None
    places: np.ndarray | None = None
    min_price: float | None = None
    max_price: float | None = None
    hidden: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True)
class Passing:
    """What may be found. rows: (N,) bool, which rows of an index; conditions: gives what all of those rows meet, and others may:
    an engine that narrows its search by them leaves out the others afterwards."""

    rows: np.ndarray
    conditions: Callable[[], Conditions] = Conditions

    def of(self, listing_of_row: np.ndarray) -> "Passing":
        """The same of an index whose rows belong to listings, such as photos, from the same of the listings."""
        return Passing(self.rows[listing_of_row], self.conditions)


def deepest(levels: np.ndarray) -> np.ndarray:
    """(P,) the code of each listing's whole path; -1 where it has none. levels: (P, depth) codes, -1 where there is no level."""
    return levels[np.arange(len(levels)), np.maximum((levels >= 0).sum(axis=1) - 1, 0)]


def category_path(category: str) -> str:
    """A path as categories are compared: without case and stray spaces."""
    return _folded(CATEGORY_SEPARATOR.join(category_levels(category)))


def said_by_category(category: str) -> str:
    """The names that say what a listing of a category is: those below the main one, which is of too many kinds of things."""
    levels = category_levels(category)
    return CATEGORY_SEPARATOR.join(levels[1:] or levels)


def telling_names(paths: Sequence[str]) -> dict[str, str]:
    """Of each path its last level whose name is of one of the paths only, unlike "Other"; the whole path where none is."""
    levels = {path: category_levels(path) for path in paths}
    times = Counter(own[-1] for own in levels.values())
    return {path: next((name for name in reversed(own) if times[name] == 1), path) for path, own in levels.items()}


@functools.lru_cache(maxsize=10_000)
def category_names(category: str) -> frozenset[str]:
    """Every name that a filter may give for a listing of this path, as category_path() writes them: "A", "A / B" and "B" of
    "A / B"."""
    levels = category_levels(category)
    paths = (CATEGORY_SEPARATOR.join(levels[: depth + 1]) for depth in range(len(levels)))
    return frozenset(category_path(name) for name in (*levels, *paths))


def place_name(location: str) -> str:
    """A place as places are compared: without case, stray spaces and empty parts."""
    parts = (" ".join(part.split()) for part in location.split(","))
    return _folded(", ".join(part for part in parts if part))


@functools.lru_cache(maxsize=10_000)
def place_names(town: str, county: str) -> frozenset[str]:
    """Every name of a listing's place, as place_name() writes them.

    Of "Hanley, Stoke-on-Trent" in "Staffordshire": the whole text, the town and its parts, alone and with the county, and the
    county.
    """
    towns = {place_name(name) for name in (town, *town.split(","))}
    names = {*towns, *(place_name(f"{name}, {county}") for name in towns), place_name(county)}
    return frozenset(names - {""})


def comparable_price(amount: float) -> float:
    """A price as the columns hold prices, so that a bound is met by the price that was typed."""
    return float(np.float32(min(amount, MAX_PRICE)))


def _folded(name: str) -> str:
    """Without case, and without surrogates, which nothing can be written in."""
    return name.casefold().encode("utf-8", "ignore").decode()[:MAX_NAME]


class Places:
    """Where the listings of some rows are, by every name of their places."""

    def __init__(self, towns: np.ndarray, counties: np.ndarray, town_names: Sequence[str], county_names: Sequence[str]):
        """towns, counties: (N,) codes of the names, negative for a row that is no more."""
        pairs, place_of_row = np.unique(towns.astype(np.int64) << 32 | counties, return_inverse=True)
        self.of_row = place_of_row.astype(np.int32)  # (N,) the number of each row's place
        self._places_named: dict[str, list[int]] = {}
        for place, pair in enumerate(pairs.tolist()):
            if pair >= 0:
                for name in place_names(town_names[pair >> 32], county_names[pair & 0xFFFFFFFF]):
                    self._places_named.setdefault(name, []).append(place)

    def among(self, rows: np.ndarray) -> "Places":
        """The same, in which the places of some rows alone have names."""
        view, named = copy.copy(self), set(np.unique(self.of_row[rows]).tolist())
        places_named = self._places_named.items()
        view._places_named = {name: kept for name, places in places_named if (kept := [one for one in places if one in named])}
        return view

    def within(self, location: str) -> np.ndarray:
        """(N,) bool of the rows in a place: those whose place is called so; where none is, those whose place begins so."""
        return np.isin(self.of_row, self.found(location))

    def __contains__(self, location: str) -> bool:
        """Whether any row is in a place."""
        return bool(self.found(location))

    def found(self, location: str) -> list[int]:
        """The numbers of the places that within() means."""
        name = place_name(location)
        found = self._places_named.get(name, [])
        if name and not found:
            found = [place for other, places in self._places_named.items() if other.startswith(name) for place in places]
        return found
