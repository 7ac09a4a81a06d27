"""Listings that offer the same thing: by equal or near photos, or equal texts."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from marketplace.files.progress import progress

NEAR_BITS = 6  # perceptual hashes (64 bits) at most this far apart show the same photo; with more, unlike photos chain together
BANDS = 9  # of 7 or 8 bits: two hashes that differ in 6 bits are equal in at least 3 bands
LONG_RUN = 256  # hashes with one key; shorter runs are compared shift by shift, longer ones as a block
BLOCK_PAIRS = 1 << 22  # hashes compared at a time in a long run: 32 MB
NEAR_COLOURS = 16  # levels of 256, in any of 48 means: a photo saved again differs by up to 4, one of another ink by 33
# One photo in more offers than this is a shop's logo or a stock picture. The longest series of one offer told in other words
# that a real marketplace of 4,000 listings held shows its photo five times.
MANY_OFFERS = 5

WORD = re.compile(r"[^\W_]+")
MIN_WORDS = 8  # shorter texts ("Sofa, good condition") are the same by chance


# Near duplicates among perceptual hashes.


def near_duplicate_groups(hashes: np.ndarray) -> np.ndarray:
    """Groups of perceptual hashes: two are in one group exactly when steps of at most NEAR_BITS bits lead from one to the other.

    hashes: (N,) uint64. Returns (N,) int, the same number for the same group.
    By the pigeonhole principle two hashes within 6 bits are equal in 3 of 9 bands, so for each of the 84 choices of 3 bands
    the words are sorted with those bands on top and compared with their neighbours only. Source: Manku et al., "Detecting
    near-duplicates for web crawling", WWW 2007, section 3. benchmarks/scale.py times it as a part of dataset.py.
    """
    values, inverse = np.unique(np.asarray(hashes, dtype=np.uint64), return_inverse=True)
    words, bands = _deal_bits(values)
    order = np.argsort(words)
    words = words[order]
    group = np.arange(len(words))
    choices = list(itertools.combinations(range(BANDS), BANDS - NEAR_BITS))
    for chosen in progress(choices, "find near duplicates", "choice of bands"):
        runs = _Runs(words, bands, chosen)
        for left, right in runs.near_pairs():
            group = _merge(group, left, right)
        for rows, keyed in runs.long_runs():
            if (group[rows] != group[rows[0]]).any():
                group = _merge(group, rows, rows[_merge_long_run(keyed, group[rows])])
    by_value = np.empty_like(group)
    by_value[order] = group
    return by_value[inverse.reshape(-1)]


def _deal_bits(values: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The hashes with their bits in an order of bands, and each band's (lowest bit, width); distances stay what they are.

    Bits are dealt to the bands by how even they are, so that bits which hardly vary do not make one band useless.
    """
    ones = np.array([np.count_nonzero(values >> np.uint64(bit) & np.uint64(1)) for bit in range(64)])
    by_evenness = np.argsort(np.abs(2 * ones - len(values)), kind="stable").tolist()
    dealt = [by_evenness[first::BANDS] for first in range(BANDS)]
    widths = [len(bits) for bits in dealt]
    bands = list(zip(itertools.accumulate(widths, initial=0), widths, strict=False))
    return _rearrange(values, [(bit, place, 1) for place, bit in enumerate(itertools.chain(*dealt))]), bands


def _rearrange(words: np.ndarray, parts: list[tuple[int, int, int]]) -> np.ndarray:
    """Move bits of uint64 words: parts are (from, to, width), counted from the lowest bit; together they move every bit once."""
    moved = np.zeros_like(words)
    for source, target, width in parts:
        moved |= ((words >> np.uint64(source)) & np.uint64((1 << width) - 1)) << np.uint64(target)
    return moved


class _Runs:
    """The words sorted with the chosen bands on top: words that are equal in these are one run.

    words: (N,) uint64, sorted, distinct; bands: (lowest bit, width) of each; chosen: numbers of bands, ascending.
    """

    def __init__(self, words: np.ndarray, bands: list[tuple[int, int]], chosen: tuple[int, ...]):
        others = [band for band in range(len(bands)) if band not in chosen]
        moves, place = [], 0
        self._earlier_bands = []  # where one of these is equal as well, an earlier choice has compared the two words
        for band in [*others, *chosen]:
            lowest, width = bands[band]
            moves.append((lowest, place, width))
            if band in others and band < chosen[-1]:
                self._earlier_bands.append(np.uint64(((1 << width) - 1) << place))
            place += width
        self._words = words
        self._back = [(place, lowest, width) for lowest, place, width in moves]
        self._keyed = np.sort(_rearrange(words, moves))
        key = self._keyed >> np.uint64(64 - sum(bands[band][1] for band in chosen))
        self._starts = np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])
        self._lengths = np.diff(np.append(self._starts, len(key)))

    def _rows(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._words, _rearrange(self._keyed[places], self._back))

    def near_pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of words at most NEAR_BITS apart, of runs of up to LONG_RUN words; pairs of earlier choices are left out."""
        end = np.repeat(self._starts + self._lengths, self._lengths)
        left = np.flatnonzero(np.repeat(self._lengths, self._lengths) <= LONG_RUN)
        for shift in range(1, LONG_RUN):
            left = left[left + shift < end[left]]
            if not left.size:
                return
            differing = self._keyed[left] ^ self._keyed[left + shift]
            near = np.bitwise_count(differing) <= NEAR_BITS
            places, differing = left[near], differing[near]
            for band_mask in self._earlier_bands:
                unequal = differing & band_mask != 0
                places, differing = places[unequal], differing[unequal]
            yield self._rows(places), self._rows(places + shift)

    def long_runs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows, and rearranged words, of each run of more than LONG_RUN words."""
        for run in np.flatnonzero(self._lengths > LONG_RUN):
            places = np.arange(self._starts[run], self._starts[run] + self._lengths[run])
            yield self._rows(places), self._keyed[places]


def _merge(group: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The groups (N,) after joining rows left[i] and right[i]; a group is named by its smallest row."""
    ends = np.stack([group[left], group[right]])
    ends = ends[:, ends[0] != ends[1]]
    if not ends.size:
        return group
    names, ends = np.unique(ends, return_inverse=True)
    ends = ends.reshape(2, -1)
    graph = csr_array((np.ones(ends.shape[1], dtype=bool), tuple(ends)), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    smallest = np.unique(component, return_index=True)[1]
    renamed = np.arange(len(group))
    renamed[names] = names[smallest[component]]
    return renamed[group]


def _merge_long_run(words: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The groups (n,) of n words after joining every two at most NEAR_BITS apart.

    Members of the largest group need no comparing: two words that were never compared both belong to it at the end.
    Where very many hashes are near one another that group takes them in after a few blocks.
    """
    _, first_rows, numbers = np.unique(group, return_index=True, return_inverse=True)
    group = first_rows[numbers]  # named by rows of this run
    waiting = np.arange(len(words))
    while True:
        waiting = waiting[group[waiting] != np.bincount(group).argmax()]
        if not waiting.size:
            return group
        size = max(1, BLOCK_PAIRS // len(words))
        block, waiting = waiting[:size], waiting[size:]
        left, right = np.nonzero(np.bitwise_count(words[block][:, None] ^ words) <= NEAR_BITS)
        group = _merge(group, block[left], right)


# Photos.


@dataclass(frozen=True)
class Photos:
    """The photos of listings, N: rows (N,) of their listings; sha256 (N,) of their pixels; hashes (N,) uint64, perceptual;
    colours (N, 48) int16, mean R G B of 4 x 4 parts."""

    rows: np.ndarray
    sha256: np.ndarray
    hashes: np.ndarray
    colours: np.ndarray

    @classmethod
    def of(cls, listings: pd.DataFrame, kept: pd.DataFrame) -> "Photos":
        """listings: product_id; kept: product_id, sha256, phash, colours of the photos, as photos.csv has them."""
        return cls(
            pd.Index(listings["product_id"]).get_indexer(kept["product_id"]),
            kept["sha256"].to_numpy(),
            np.frombuffer(bytes.fromhex("".join(kept["phash"])), dtype=">u8").astype(np.uint64),
            np.frombuffer(bytes.fromhex("".join(kept["colours"])), dtype=np.uint8).reshape(-1, 48).astype(np.int16),
        )

    @cached_property
    def groups(self) -> np.ndarray:
        """(N,) near_duplicate_groups(): photos that look the same are in one; those in one may look unlike."""
        return near_duplicate_groups(self.hashes)

    def alike(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(L, R) bool: whether two photos look the same, in outline and in every part's colour."""
        near = np.bitwise_count(self.hashes[left][:, None] ^ self.hashes[right]) <= NEAR_BITS
        ones, others = np.nonzero(near)
        distances = np.abs(self.colours[left[ones]] - self.colours[right[others]])
        near[ones, others] = distances.max(axis=1, initial=0) <= NEAR_COLOURS
        return near


def shown_by_many(photos: Photos, folds: np.ndarray) -> np.ndarray:
    """(N,) bool: photos that more than MANY_OFFERS folds show, the same pixels or what looks the same.

    folds: (P,) of the listings. Photos of one group are counted one by one: a group may be a chain of unlike photos.
    """
    offers = pd.factorize(folds)[0][photos.rows]
    pixels = pd.factorize(photos.sha256)[0]
    found = (_distinct(pixels, offers) > MANY_OFFERS)[pixels]
    crowded = (_distinct(photos.groups, offers) > MANY_OFFERS)[photos.groups]
    rows = np.flatnonzero(crowded)
    for group in np.split(rows[np.argsort(photos.groups[rows], kind="stable")], _ends(np.sort(photos.groups[rows]))):
        looks = np.column_stack([photos.hashes[group].astype(">u8").view(np.uint8).reshape(-1, 8), photos.colours[group]])
        _, first, look = np.unique(looks, axis=0, return_index=True, return_inverse=True)
        look, offer = look.reshape(-1), pd.factorize(offers[group])[0]
        shows = csr_array((np.ones(len(group), np.int32), (look, offer)), shape=(len(first), offer.max(initial=-1) + 1))
        size = max(1, BLOCK_PAIRS // 32 // max(len(first), 1))  # a photo of 48 colours is a lot more than a hash
        for start in range(0, len(first), size):
            alike = csr_array(photos.alike(group[first[start : start + size]], group[first]).astype(np.int32))
            many = np.diff((alike @ shows).indptr) > MANY_OFFERS
            found[group[np.isin(look, start + np.flatnonzero(many))]] = True
    return found


def _distinct(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(G,) how many distinct values each group has; both are whole numbers from 0 on."""
    pairs = np.unique(groups * (values.max(initial=-1) + 1) + values)
    return np.bincount(pairs // (values.max(initial=-1) + 1), minlength=groups.max(initial=-1) + 1) if len(pairs) else pairs


def _ends(groups: np.ndarray) -> np.ndarray:
    return np.flatnonzero(groups[1:] != groups[:-1]) + 1


# Clusters.


def equal_texts(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `texts`, and a key for each that is equal for texts that differ in case, spacing and punctuation only.

    Texts of fewer than MIN_WORDS words, and texts that start like no other, are left out.
    """
    openings = np.array([_words(text, MIN_WORDS) for text in texts], dtype=object)
    rows = np.flatnonzero(pd.Series(openings).duplicated(keep=False).to_numpy() & (openings != ""))
    return rows, np.array([_words(texts[row]) for row in rows], dtype=object)


def _words(text: str, count: int | None = None) -> str:
    """The words of a text, or its first `count` and nothing when it has fewer."""
    words = [match[0] for match in itertools.islice(WORD.finditer(text), count)]
    return " ".join(words).casefold() if count is None or len(words) == count else ""


def cluster_ids(product_ids: pd.Series, links: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The cluster of each listing: the smallest product_id that links lead to, so that it stays when others join.

    product_ids: (P,), distinct. links: pairs of arrays (rows of listings, keys of any type); listings with the same key are
    joined, but only within one pair of arrays. Returns (P,) product ids.
    """
    nodes, ends = len(product_ids), []
    for rows, keys in links:
        codes, distinct = pd.factorize(keys)
        ends.append(np.stack([rows, nodes + codes]))
        nodes += len(distinct)
    rows, keys = np.concatenate(ends, axis=1) if ends else np.zeros((2, 0), dtype=int)
    graph = csr_array((np.ones(len(rows), dtype=bool), (rows, keys)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][: len(product_ids)]
    by_id = pd.DataFrame({"component": component, "product_id": product_ids.to_numpy()}).sort_values("product_id", kind="stable")
    return by_id.drop_duplicates("component").set_index("component")["product_id"].reindex(component).to_numpy()


def find_clusters(listings: pd.DataFrame, photos: Photos, folds: np.ndarray, groups: pd.DataFrame) -> np.ndarray:
    """The cluster of each listing: joined by equal pixels, near perceptual hashes, equal texts, one fold or an equal group.

    listings: product_id, name, description; photos: theirs; folds: (P,) the listings' folds; groups: product_id, value.
    A photo that is shown_by_many() joins nobody. Returns (P,) product ids.
    """
    many = shown_by_many(photos, folds)
    own, near = np.flatnonzero(~many), photos.groups.copy()
    torn = np.flatnonzero(np.isin(near, near[many]) & ~many)  # their chains led over a photo that joins nobody
    near[torn] = len(near) + near_duplicate_groups(photos.hashes[torn])
    return cluster_ids(
        listings["product_id"],
        [
            (photos.rows[own], photos.sha256[own]),
            (photos.rows[own], near[own]),
            (np.arange(len(listings)), folds),
            equal_texts((listings["name"] + " " + listings["description"]).tolist()),
            (pd.Index(listings["product_id"]).get_indexer(groups["product_id"]), groups["value"].to_numpy()),
        ],
    )
