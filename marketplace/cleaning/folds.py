"""Listings that are one result: the same thing offered twice, by price, name, description and all photos with their colours."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pandas as pd

from marketplace.cleaning.duplicates import MIN_WORDS, WORD, Photos

LEAST_SHARED = 0.9  # of the words of two descriptions together

# Words that, beside numbers, tell one thing from another of the same name: colours, sizes, sides.
TELLING_WORDS = """
beige black blue bronze brown burgundy chrome copper cream cyan gold golden gray green grey ivory khaki lilac magenta maroon
mustard navy orange peach pink purple red rose silver tan teal turquoise violet white yellow
xs s m l xl xxl xxxl small medium large single double king queen left right boys girls mens womens ladies
"""
TELLING = frozenset(TELLING_WORDS.split())


class _Offers:
    """What listings are compared by. Listings of other keys are never the same offer."""

    def __init__(self, listings: pd.DataFrame, photos: Photos):
        self._names, self._descriptions = listings["name"].to_numpy(), listings["description"].to_numpy()
        self._prices, self._photos = listings["price"].to_numpy(), photos
        self._by_listing = np.argsort(photos.rows, kind="stable")
        self._starts = np.searchsorted(photos.rows[self._by_listing], np.arange(len(listings) + 1))

    def photos_of(self, row: int) -> np.ndarray:
        return self._by_listing[self._starts[row] : self._starts[row + 1]]

    def keys(self) -> dict[tuple, list[int]]:
        """Rows by price, words of the name, numbers and other TELLING words of the description, and groups of the photos; the
        whole description where there is no photo to compare. Most rows with a key of their own are left out."""
        names = [" ".join(sorted(_words(name))) for name in self._names]
        twice = pd.DataFrame({"name": names, "price": self._prices}).duplicated(keep=False).to_numpy()
        coarse, found = defaultdict(list), defaultdict(list)
        for row in np.flatnonzero(twice).tolist():
            groups = frozenset(self._photos.groups[self.photos_of(row)].tolist())
            coarse[self._prices[row], names[row], groups].append(row)
        for key, rows in coarse.items():
            for row in rows if len(rows) > 1 else ():  # a description takes long to read
                words, has_photos = _words(self._descriptions[row]), bool(key[-1])
                told = sorted(word for word in words if word in TELLING or not word.isalpha()) if has_photos else words
                if has_photos or len(words) + len(names[row].split()) >= MIN_WORDS:
                    found[*key, *told].append(row)
        return found

    def variants(self, rows: list[int]) -> list[list[int]]:
        """Rows with equal words and equal photos, in the order of their first ones: all of each are the same offer."""
        found = defaultdict(list)
        for row in rows:
            looks = {(int(self._photos.hashes[at]), self._photos.colours[at].tobytes()) for at in self.photos_of(row).tolist()}
            found[tuple(_words(self._descriptions[row])), frozenset(looks)].append(row)
        return list(found.values())

    def are_the_same(self, left: int, right: int) -> bool:
        """Whether two listings of one key are the same offer: nearly the same words, and each photo of either is in the other."""
        words = Counter(_words(self._descriptions[left])), Counter(_words(self._descriptions[right]))
        if (words[0] & words[1]).total() < LEAST_SHARED * (words[0] | words[1]).total():
            return False
        alike = self._photos.alike(self.photos_of(left), self.photos_of(right))
        return bool(alike.any(axis=0).all() and alike.any(axis=1).all())


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def fold_ids(listings: pd.DataFrame, photos: Photos) -> np.ndarray:
    """The fold of each listing: the smallest product_id of those that offer the same thing, every two of them.

    listings: product_id (distinct), name, description, price; photos: theirs. Returns (P,) product ids, whatever the rows' order.
    """
    ids, offers = listings["product_id"].to_numpy(), _Offers(listings, photos)
    folds = ids.copy()
    for rows in offers.keys().values():
        if len(rows) == 1:
            continue
        made: list[list[list[int]]] = []  # folds of variants
        for variant in offers.variants(sorted(rows, key=ids.__getitem__)):
            same = (fold for fold in made if all(offers.are_the_same(variant[0], other[0]) for other in fold))
            fold = next(same, None)
            if fold is None:
                made.append(fold := [])
            fold.append(variant)
        for fold in made:
            joined = list(itertools.chain(*fold))
            folds[joined] = ids[joined].min()
    return folds
