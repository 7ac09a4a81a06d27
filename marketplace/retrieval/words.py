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
    occurrence in each field; previous: the folder of an index whose listings stand before these. Its own files are linked, those
    of what was added since are written anew; how long listings are on average stays as it was at the last full build.
    Source: BM25 (Robertson and Zaragoza 2009) with weighted term frequencies, as SQLite's FTS5 computes it; its inverse document
    frequency is left to the search, so that listings which come later do not change what is written of these.
    """
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    stem_codes: dict[str, int] = {}
    stem_of_word = array("q")
    first, mean_length, before = 0, None, None
    if previous is not None:
        first, mean_length = reading.read_json(previous / STATISTICS).values()
        for name in ARRAYS:
            generations.link(previous / f"{name}.npy", folder / f"{name}.npy")
        if (previous / generations.added(f"{ARRAYS[0]}.npy")).exists():
            before = _Part(previous, added=True)
            vocabulary.update((word.decode(), place) for place, word in enumerate(before.words.tolist()))
            stem_codes = {stem.decode(): place for place, stem in enumerate(before.stems.tolist())}
            stem_of_word.extend(before.stem_of_word.tolist())
    counted, lengths = [], [np.empty(0, np.int64)]
    for fields in blocks:
        codes, sizes = array("i"), []
        for text in itertools.chain(*fields):
            words = split(text)
            codes.extend(map(vocabulary.__getitem__, words))
            sizes.append(len(words))
        new = list(itertools.islice(vocabulary, len(stem_of_word), None))
        stem_of_word.extend(stem_codes.setdefault(stem, len(stem_codes)) for stem in _stem(new))
        listings = len(fields[0])
        rows, of_field = (np.repeat(of, sizes) for of in np.divmod(np.arange(len(sizes)), listings)[::-1])
        counted.append(_count(np.array(stem_of_word)[codes], rows, of_field, np.array(weights, np.float32)))
        lengths.append(np.bincount(rows, minlength=listings))
    starts = first + np.cumsum([len(of_block) for of_block in lengths])
    norms = np.concatenate(lengths)
    mean_length = mean_length or max(float(norms.mean()), 1e-9)
    norms = (K1 * (1 - B + B * norms / mean_length)).astype(np.float32)

    stems = np.array([stem.encode() for stem in stem_codes] or [b""])[: len(stem_codes)]
    order = np.argsort(stems)
    place_of = np.argsort(order)
    held = np.zeros(len(stems), np.int64)
    for codes, sizes, _, _ in counted:
        held[place_of[codes]] += sizes
    if before is not None:
        held[place_of[: len(before.stems)]] += np.diff(before.starts)
    ends = np.cumsum(held)
    postings_rows, postings_weights = np.empty(held.sum(), np.int32), np.empty(held.sum(), np.float32)
    free = ends - held

    def place(codes: np.ndarray, sizes: np.ndarray, rows: np.ndarray, values: np.ndarray) -> None:
        """Postings by stem, after those of the listings before."""
        places = place_of[codes]
        at = np.arange(len(rows)) + np.repeat(free[places] - (np.cumsum(sizes) - sizes), sizes)
        postings_rows[at], postings_weights[at] = rows, values
        free[places] += sizes

    if before is not None:
        place(np.arange(len(before.stems)), np.diff(before.starts), before.rows, before.weights)
    for start in starts[:-1]:
        codes, sizes, rows, frequencies = counted.pop(0)  # its memory is free for those that are placed
        place(codes, sizes, start + rows, frequencies * np.float32(K1 + 1) / (frequencies + norms[start - first + rows]))
    words = np.array([word.encode() for word in vocabulary] or [b""])[: len(vocabulary)]
    by_word = np.argsort(words)
    arrays = {
        "words": words[by_word],
        "stem_of_word": place_of[np.array(stem_of_word)[by_word]].astype(np.int32),
        "stems": stems[order],
        "postings_starts": np.concatenate([[0], ends]),
        "postings_rows": postings_rows,
        "postings_weights": postings_weights,
    }
    for name in ARRAYS:
        file_name = f"{name}.npy"
        atomic.write_array(folder / (file_name if previous is None else generations.added(file_name)), arrays[name])
    atomic.write_json(folder / STATISTICS, {"listings": first + len(norms), "mean_length": mean_length}, indent=None)


def _count(stems: np.ndarray, rows: np.ndarray, fields: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of (n,) occurrences: the different stems, how many rows hold each, those rows, ascending, and their summed weights.

    rows: below 2^24; weights: of the fields.
    """
    keys = np.sort(stems << 32 | rows << 8 | fields)  # plain numbers sort several times as fast as an order of them
    of_pairs, weights = keys >> 8, weights[keys & 0xFF]
    first = np.flatnonzero(np.diff(of_pairs, prepend=-1))
    different, sizes = np.unique(of_pairs[first] >> 24, return_counts=True)
    frequencies = np.add.reduceat(weights, first) if len(first) else weights
    return different, sizes, (of_pairs[first] & 0xFFFFFF).astype(np.int32), frequencies


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
            stems, certainty = self._meaning(word)
            if stems and stems not in found:
                parts = [[part.postings(stem) for stem in stems] for part in self._parts]
                worth = [np.float32(certainty * self._idf(count)) for count in self._holding(np.array(stems))]
                found[stems] = [_union(of_part, worth) for of_part in parts]
        return list(found.values())

    def _idf(self, holding: int) -> float:
        return max(math.log((self._listings - holding + 0.5) / (holding + 0.5)), LEAST_IDF)

    def _meaning(self, word: str) -> tuple[tuple[bytes, ...], float]:
        """The stems that a query's word stands for, and how much they count: itself, else what begins so, else what is alike.

        Of the last, words of 4 or 5 letters may differ by one edit, longer ones by two; a neighbouring pair of letters turned
        round is one. Source: Elasticsearch, "fuzziness AUTO".
        """
        of_word = [
            part.stems[part.stem_of_word[at]] for part in self._parts if (at := _find(part.words, word.encode())) is not None
        ]
        if stems := self._commonest(of_word or [_stem([word])[0].encode()], 1):
            return stems, 1.0
        if len(word) >= PREFIX_LETTERS:
            begun = []
            for part in self._parts:
                first, last = np.searchsorted(part.words, [word.encode(), word.encode() + b"\xff"])
                begun.extend(part.stems[np.unique(part.stem_of_word[first:last])])
            if stems := self._commonest(begun, PREFIX_STEMS):
                return stems, UNSURE
        if len(word) >= TYPO_LETTERS and word.isalpha():
            edits = 1 if len(word) < 6 else 2
            near: list[tuple[int, bytes]] = []
            for part, letters in itertools.product(self._parts, range(len(word) - edits, len(word) + edits + 1)):
                words, places = part.by_length.get(letters, ((), ()))
                hits = process.extract(word, words, scorer=OSA.distance, score_cutoff=edits, limit=None)
                near += [(distance, part.stems[part.stem_of_word[places[at]]]) for _, distance, at in hits]
            for distance in range(1, edits + 1):
                if stems := self._commonest([stem for of_stem, stem in near if of_stem == distance], TYPO_WORDS):
                    return stems, UNSURE
        return (), 0.0

    def _holding(self, stems: np.ndarray) -> np.ndarray:
        """(n,) how many listings hold each of (n,) stems."""
        return np.sum([part.holding(stems) for part in self._parts], axis=0)

    def _commonest(self, stems: Sequence[bytes], most: int) -> tuple[bytes, ...]:
        """Of some stems, those that most listings hold; none that only tombstones do."""
        different = np.unique(np.array(stems, "S"))
        holding = self._holding(different)
        order = np.argsort(-holding, kind="stable")[:most]
        return tuple(different[order[holding[order] > 0]].tolist())


def _union(postings: list[tuple[np.ndarray, np.ndarray]], worth: list[np.float32]) -> tuple[np.ndarray, np.ndarray]:
    """Listings with any of several stems, and the score of each one's best. worth: of a weight of 1 of each stem."""
    if len(postings) == 1:
        return postings[0][0], postings[0][1] * worth[0]
    rows, place = np.unique(np.concatenate([rows for rows, _ in postings]), return_inverse=True)
    scores = np.zeros(len(rows), np.float32)
    np.maximum.at(scores, place, np.concatenate([weights * of for (_, weights), of in zip(postings, worth, strict=True)]))
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
