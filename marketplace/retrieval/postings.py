"""Word search: BM25 over memory-mapped postings; words that begin so, or are spelt much alike, for those that nothing holds."""

import contextlib
import functools
import itertools
import math
import re
import sqlite3
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import OSA

from marketplace.files import atomic, generations, reading

ARRAYS = ("words", "stem_of_word", "stems", "postings_starts", "postings_rows", "postings_weights")  # each a .npy of that name
STATISTICS = "word_statistics.json"
K1, B = 1.2, 0.75  # of BM25, as in SQLite's FTS5
LEAST_IDF = 1e-6  # of a word that most listings hold, as in FTS5
MAX_WORDS = 32  # of a query; the rest is noise
MAX_LETTERS = 24  # of a word; longer ones are cut, in listings and queries alike
PREFIX_LETTERS, PREFIX_STEMS = 3, 8  # shorter beginnings mean anything; the commonest words that begin so
TYPO_LETTERS, TYPO_WORDS = 4, 3  # shorter words have too many neighbours; the nearest words, the commonest first
UNSURE = 0.5  # what a guessed word counts, against one that is there
ALL_WORDS = 1e6  # above any score


def split(text: str) -> list[str]:
    """The words of a text, folded: no case, no accents, no punctuation."""
    text = text.casefold()
    if not text.isascii():
        text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return [word[:MAX_LETTERS] for word in re.findall(r"[^\W_]+", text)]


def write(
    folder: Path, blocks: Iterable[Sequence[Sequence[str]]], weights: Sequence[float], previous: Path | None = None
) -> None:
    """Write the index of listings' words.

    blocks: of listings in the order of their rows, each the texts of every field, of as many listings; weights: of a word's
    occurrence in each field; previous: the folder of an index whose listings come before these. Its own files are linked, those
    of what was added since are written anew; how long listings are on average stays as it was at the last full build.
    Source: BM25 (Robertson and Zaragoza 2009) with weighted term frequencies, as SQLite's FTS5 computes it; its inverse document
    frequency is left to the search, so that listings which come later do not change what is written of these.
    """
    earlier: list[_Part] = []  # what was added since the last full build: its postings come before the new ones
    first, mean_length = 0, 0.0
    if previous is not None:
        first, mean_length = reading.read_json(previous / STATISTICS).values()
        for name in ARRAYS:
            generations.link(previous / f"{name}.npy", folder / f"{name}.npy")
        if (previous / generations.added(f"{ARRAYS[0]}.npy")).exists():
            earlier.append(_Part(previous, added=True))
    vocabulary = _Vocabulary(earlier)
    counted, lengths = _count_blocks(blocks, vocabulary, np.array(weights, np.float32))
    starts = first + np.cumsum([len(block_lengths) for block_lengths in lengths])
    norms = np.concatenate(lengths)
    mean_length = mean_length or max(float(norms.mean()), 1e-9)
    norms = (K1 * (1 - B + B * norms / mean_length)).astype(np.float32)

    arrays = vocabulary.arrays()
    postings = _Postings(arrays.pop("place_of_code"), earlier, counted)
    for start in starts[:-1]:
        codes, sizes, rows, frequencies = counted.pop(0)  # its memory is free for those that are placed
        weighted = frequencies * np.float32(K1 + 1) / (frequencies + norms[start - first + rows])
        postings.place(codes, sizes, start + rows, weighted)
    arrays |= postings.arrays()
    for name in ARRAYS:
        file_name = f"{name}.npy"
        atomic.write_array(folder / (file_name if previous is None else generations.added(file_name)), arrays[name])
    atomic.write_json(folder / STATISTICS, {"listings": first + len(norms), "mean_length": mean_length}, indent=None)


class _Vocabulary:
    """The words met so far and their stems, each with a code in the order of their first occurrence."""

    def __init__(self, earlier: list["_Part"]):
        """earlier: parts of an index whose words and stems come first."""
        self._words: defaultdict[str, int] = defaultdict()
        self._words.default_factory = self._words.__len__
        self._stems: dict[str, int] = {}
        self._stem_of_word = array("q")
        for part in earlier:
            self._words.update((word.decode(), code) for code, word in enumerate(part.words.tolist()))
            self._stems.update((stem.decode(), code) for code, stem in enumerate(part.stems.tolist()))
            self._stem_of_word.extend(part.stem_of_word.tolist())

    def read(self, texts: Iterable[str]) -> tuple[np.ndarray, list[int]]:
        """Codes of the stems of all words of some texts, and how many words each text has."""
        codes, sizes = array("i"), []
        for text in texts:
            words = split(text)
            codes.extend(map(self._words.__getitem__, words))
            sizes.append(len(words))
        new = list(itertools.islice(self._words, len(self._stem_of_word), None))
        self._stem_of_word.extend(self._stems.setdefault(stem, len(self._stems)) for stem in _stem(new))
        return np.array(self._stem_of_word)[codes], sizes

    def arrays(self) -> dict[str, np.ndarray]:
        """words and stems in ascending order, stem_of_word between them, and place_of_code: where the stem of each code went."""
        words = np.array([word.encode() for word in self._words] or [b""])[: len(self._words)]
        stems = np.array([stem.encode() for stem in self._stems] or [b""])[: len(self._stems)]
        by_word, by_stem = np.argsort(words), np.argsort(stems)
        place_of_code = np.argsort(by_stem)
        return {
            "words": words[by_word],
            "stem_of_word": place_of_code[np.array(self._stem_of_word)[by_word]].astype(np.int32),
            "stems": stems[by_stem],
            "place_of_code": place_of_code,
        }


def _count_blocks(
    blocks: Iterable[Sequence[Sequence[str]]], vocabulary: _Vocabulary, weights: np.ndarray
) -> tuple[list[tuple[np.ndarray, ...]], list[np.ndarray]]:
    """What _count() finds in each block, and (listings,) the number of words of each of its listings, after an empty array."""
    counted, lengths = [], [np.empty(0, np.int64)]
    for fields in blocks:
        stems, sizes = vocabulary.read(itertools.chain(*fields))
        listings = len(fields[0])
        field_of_text, listing_of_text = np.divmod(np.arange(len(sizes)), listings)
        rows = np.repeat(listing_of_text, sizes)
        counted.append(_count(stems, rows, np.repeat(field_of_text, sizes), weights))
        lengths.append(np.bincount(rows, minlength=listings))
    return counted, lengths


def _count(stems: np.ndarray, rows: np.ndarray, fields: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of (n,) occurrences: the different stems, how many rows hold each, those rows, ascending, and their summed weights.

    rows: below 2^24; weights: of the fields.
    """
    keys = np.sort(stems << 32 | rows << 8 | fields)  # plain numbers sort several times as fast as an order of them
    pairs, weights = keys >> 8, weights[keys & 0xFF]
    first = np.flatnonzero(np.diff(pairs, prepend=-1))
    different, sizes = np.unique(pairs[first] >> 24, return_counts=True)
    frequencies = np.add.reduceat(weights, first) if len(first) else weights
    return different, sizes, (pairs[first] & 0xFFFFFF).astype(np.int32), frequencies


class _Postings:
    """The rows that hold each stem, and their weights, put in place one block of listings after the other."""

    def __init__(self, place_of_code: np.ndarray, earlier: list["_Part"], counted: list[tuple[np.ndarray, ...]]):
        """place_of_code: (stems,) of the vocabulary; earlier: parts whose postings come first; counted: the blocks to come."""
        self._place_of_code = place_of_code
        held = np.zeros(len(place_of_code), np.int64)
        for codes, sizes, *_ in [*counted, *((np.arange(len(part.stems)), np.diff(part.starts)) for part in earlier)]:
            held[place_of_code[codes]] += sizes
        self._ends = np.cumsum(held)
        self._free = self._ends - held
        self._rows, self._weights = np.empty(held.sum(), np.int32), np.empty(held.sum(), np.float32)
        for part in earlier:
            self.place(np.arange(len(part.stems)), np.diff(part.starts), part.rows, part.weights)

    def place(self, codes: np.ndarray, sizes: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> None:
        """Put postings, by stem, after those that are there. sizes: of each stem of `codes`."""
        places = self._place_of_code[codes]
        at = np.arange(len(rows)) + np.repeat(self._free[places] - (np.cumsum(sizes) - sizes), sizes)
        self._rows[at], self._weights[at] = rows, weights
        self._free[places] += sizes

    def arrays(self) -> dict[str, np.ndarray]:
        starts = np.concatenate([[0], self._ends])
        return {"postings_starts": starts, "postings_rows": self._rows, "postings_weights": self._weights}


class _Part:
    """The words and postings of the listings of the last full build, or of those added since."""

    def __init__(self, folder: Path, added: bool, live: np.ndarray | None = None):
        """live: (rows,) bool, False for tombstones (default: none are)."""
        names = [generations.added(f"{name}.npy") if added else f"{name}.npy" for name in ARRAYS]
        self.words, self.stem_of_word, self.stems, self.starts, self.rows, self.weights = (
            np.asarray(reading.read_array(folder / name)) for name in names
        )
        self._holding = np.diff(self.starts)
        if live is not None and not live.all():
            stems_of_dead = np.searchsorted(self.starts, np.flatnonzero(~live[self.rows]), side="right") - 1
            self._holding = self._holding - np.bincount(stems_of_dead, minlength=len(self.stems))

    def holding(self, stems: np.ndarray) -> np.ndarray:
        """(n,) how many listings that are no tombstones hold each of (n,) stems."""
        if not len(self.stems):
            return np.zeros(len(stems), np.int64)
        places = np.minimum(np.searchsorted(self.stems, stems), len(self.stems) - 1)
        return np.where(self.stems[places] == stems, self._holding[places], 0)

    def postings(self, stem: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Rows, ascending, and their weights."""
        place = _find(self.stems, stem)
        part = slice(0, 0) if place is None else slice(self.starts[place], self.starts[place + 1])
        return self.rows[part], self.weights[part]

    def holds(self, word: str) -> bool:
        return _find(self.words, word.encode()) is not None

    def stem_of(self, word: str) -> bytes:
        """The stem of a word that it holds."""
        return self.stems[self.stem_of_word[_find(self.words, word.encode())]]

    def stems_beginning(self, start: str) -> np.ndarray:
        """The different stems of the words that begin so."""
        first, last = np.searchsorted(self.words, [start.encode(), start.encode() + b"\xff"])
        return self.stems[np.unique(self.stem_of_word[first:last])]

    def spelt_alike(self, word: str, edits: int) -> list[tuple[int, bytes]]:
        """How many edits, and the stem, of each of its words that is at most so many edits away."""
        found = []
        for letters in range(len(word) - edits, len(word) + edits + 1):
            words, places = self.by_length.get(letters, ((), ()))
            hits = process.extract(word, words, scorer=OSA.distance, score_cutoff=edits, limit=None)
            found += [(distance, self.stems[self.stem_of_word[places[at]]]) for _, distance, at in hits]
        return found

    @functools.cached_property
    def by_length(self) -> dict[int, tuple[list[str], list[int]]]:
        """Number of letters -> the words of so many, and their places; a number is not a misspelt number."""
        grouped: dict[int, tuple[list[str], list[int]]] = {}
        for place, word in enumerate(self.words.tolist()):
            word = word.decode()
            if word.isalpha():
                words, places = grouped.setdefault(len(word), ([], []))
                words.append(word)
                places.append(place)
        return grouped


class WordIndex:
    """The words of one generation's listings; safe to read from many threads."""

    def __init__(self, folder: Path, live: np.ndarray):
        """live: (rows,) bool, False for tombstones."""
        self._rows, self._listings = len(live), int(live.sum())
        self._parts = [_Part(folder, False, live)]
        if (folder / generations.added(f"{ARRAYS[0]}.npy")).exists():
            self._parts.append(_Part(folder, True, live))

    def match(self, query: str, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows of the k listings that match a query's words best: those with all the words first, each kind by score."""
        scores, held = np.zeros(self._rows, np.float32), np.zeros(self._rows, np.uint8)
        words = self._postings(query)
        for rows, values in itertools.chain(*words):
            scores[rows] += values
            held[rows] += 1
        found = np.flatnonzero(held > 0 if allowed is None else (held > 0) & allowed)
        keys = scores[found] + ALL_WORDS * (held[found] == len(words)).astype(float)
        if len(found) > k:
            best = keys >= np.partition(keys, -k)[-k]
            found, keys = found[best], keys[best]
        return found[np.lexsort((found, -keys))][:k]

    def score(self, query: str, rows: np.ndarray) -> np.ndarray:
        """(N,) scores of the listings of `rows` for a query's words; 0 for one that holds none of them."""
        scores = np.zeros(len(rows), np.float32)
        for holding, values in itertools.chain(*self._postings(query)):
            if len(holding):
                places = np.minimum(np.searchsorted(holding, rows), len(holding) - 1)
                scores += np.where(holding[places] == rows, values[places], 0)
        return scores

    def _postings(self, query: str) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """For each different word of a query that anything holds, and each part of the index: rows, ascending, and scores."""
        found: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = {}
        for word in list(dict.fromkeys(split(query)))[:MAX_WORDS]:
            stems, certainty = self._expand(word)
            if stems and stems not in found:
                parts = [[part.postings(stem) for stem in stems] for part in self._parts]
                weights = [np.float32(certainty * self._idf(count)) for count in self._holding(np.array(stems))]
                found[stems] = [_union(postings, weights) for postings in parts]
        return list(found.values())

    def _idf(self, holding: int) -> float:
        return max(math.log((self._listings - holding + 0.5) / (holding + 0.5)), LEAST_IDF)

    def _expand(self, word: str) -> tuple[tuple[bytes, ...], float]:
        """The stems that a query's word means, and how much they count: itself, else what begins so, else what is spelt alike."""
        own = [part.stem_of(word) for part in self._parts if part.holds(word)]
        if stems := self._commonest(own or [_stem([word])[0].encode()], 1):
            return stems, 1.0
        begun = [stem for part in self._parts for stem in part.stems_beginning(word)] if len(word) >= PREFIX_LETTERS else []
        if stems := self._commonest(begun, PREFIX_STEMS):
            return stems, UNSURE
        if len(word) >= TYPO_LETTERS and word.isalpha():
            return self._nearest_spelt(word), UNSURE
        return (), 0.0

    def _nearest_spelt(self, word: str) -> tuple[bytes, ...]:
        """Words of 4 or 5 letters may differ by one edit, longer ones by two; a neighbouring pair of letters turned round is one.

        Source: Elasticsearch, "fuzziness AUTO".
        """
        edits = 1 if len(word) < 6 else 2
        near = [found for part in self._parts for found in part.spelt_alike(word, edits)]
        for wanted in range(1, edits + 1):
            if stems := self._commonest([stem for distance, stem in near if distance == wanted], TYPO_WORDS):
                return stems
        return ()

    def _holding(self, stems: np.ndarray) -> np.ndarray:
        """(n,) how many listings hold each of (n,) stems."""
        return np.sum([part.holding(stems) for part in self._parts], axis=0)

    def _commonest(self, stems: Sequence[bytes], most: int) -> tuple[bytes, ...]:
        """Of some stems, those that most listings hold; none that only tombstones do."""
        different = np.unique(np.array(stems, "S"))
        holding = self._holding(different)
        order = np.argsort(-holding, kind="stable")[:most]
        return tuple(different[order[holding[order] > 0]].tolist())


def _union(postings: list[tuple[np.ndarray, np.ndarray]], weights: list[np.float32]) -> tuple[np.ndarray, np.ndarray]:
    """Listings with any of several stems, and the score of each one's best. weights: factors of the stems' postings."""
    if len(postings) == 1:
        return postings[0][0], postings[0][1] * weights[0]
    rows, place = np.unique(np.concatenate([rows for rows, _ in postings]), return_inverse=True)
    scores = np.zeros(len(rows), np.float32)
    weighted = [values * weight for (_, values), weight in zip(postings, weights, strict=True)]
    np.maximum.at(scores, place, np.concatenate(weighted))
    return rows, scores


def _find(ordered: np.ndarray, word: bytes) -> int | None:
    place = int(np.searchsorted(ordered, word))
    return place if place < len(ordered) and ordered[place] == word else None


def _stem(words: Sequence[str]) -> list[str]:
    """The words' Porter stems, as SQLite's tokenizer makes them."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE VIRTUAL TABLE texts USING fts5 (word, content='', tokenize='porter unicode61')")
        connection.execute("CREATE VIRTUAL TABLE terms USING fts5vocab (texts, 'instance')")
        connection.executemany("INSERT INTO texts (rowid, word) VALUES (?, ?)", enumerate(words))
        stems = dict(connection.execute("SELECT doc, term FROM terms WHERE offset = 0"))
    return [stems.get(place, word) for place, word in enumerate(words)]
