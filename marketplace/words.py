"""Word search: BM25 over memory-mapped postings; words that begin so, or are spelt much alike, for those that nothing holds."""

import contextlib
import functools
import itertools
import re
import sqlite3
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
from rapidfuzz import process
from rapidfuzz.distance import OSA
from sklearn.feature_extraction.text import CountVectorizer

from marketplace import storage

ARRAYS = ("words", "stem_of_word", "stems", "postings_starts", "postings_rows", "postings_scores")  # each a .npy of that name
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


def write(folder: Path, fields: Sequence[Sequence[str]], weights: Sequence[float], previous: Path | None = None) -> None:
    """Write the index of listings' words.

    fields: texts of each field, P each; weights: of a word's occurrence in each field; previous: the folder of an index whose
    listings stand before these. What a word is worth is then that of all listings; how long they are on average stays as it was.
    Source: BM25 (Robertson and Zaragoza 2009) with weighted term frequencies, as SQLite's FTS5 computes it.
    """
    added = len(fields[0])
    # The last text is of no listing: scikit-learn refuses to count where there is no word at all.
    counts = CountVectorizer(analyzer=split, dtype=np.float32)
    of_texts = counts.fit_transform(itertools.chain(*fields, ["nothing"]))
    words = counts.get_feature_names_out()
    stems, stem_of_word = np.unique(_stem(words), return_inverse=True)
    merge = scipy.sparse.csr_matrix((np.ones(len(words), np.float32), (np.arange(len(words)), stem_of_word)))
    of_fields = [(of_texts[n * added : (n + 1) * added] @ merge) for n in range(len(fields))]
    lengths = np.sum([of_field.sum(axis=1) for of_field in of_fields], axis=0).ravel()
    frequencies = scipy.sparse.csc_matrix(sum(weight * of_field for weight, of_field in zip(weights, of_fields, strict=True)))
    frequencies.sort_indices()
    words, stems = (np.array([name.encode() for name in names]) for names in (words, stems))
    if previous is None:
        before = {"words": words[:0], "stem_of_word": np.empty(0, np.int32), "stems": stems[:0]}
        before |= {"postings_starts": np.zeros(1, np.int64), "postings_rows": np.empty(0, np.int32)}
        before |= {"postings_scores": np.empty(0, np.float32)}
        listings, mean_length = 0, max(float(lengths.mean()), 1e-9)
    else:
        before = {name: storage.read_array(previous / f"{name}.npy") for name in ARRAYS}
        listings, mean_length = storage.read_json(previous / STATISTICS).values()

    all_words, all_stems = np.union1d(before["words"], words), np.union1d(before["stems"], stems)
    places, places_before = np.searchsorted(all_stems, stems), np.searchsorted(all_stems, before["stems"])
    stem_of = np.empty(len(all_words), np.int32)
    stem_of[np.searchsorted(all_words, words)] = places[stem_of_word]
    stem_of[np.searchsorted(all_words, before["words"])] = places_before[before["stem_of_word"]]
    held, held_before = np.zeros((2, len(all_stems)), np.int64)
    held[places], held_before[places_before] = np.diff(frequencies.indptr), np.diff(before["postings_starts"])
    idf_before, idf = _idf(held_before, listings), _idf(held_before + held, listings + added)
    norm = K1 * (1 - B + B * lengths / mean_length)[frequencies.indices]
    scores = np.repeat(idf[places], held[places]) * frequencies.data * (K1 + 1) / (frequencies.data + norm)
    ends = np.repeat(np.cumsum(held_before)[places], held[places])  # a stem's new listings come after its old ones
    scores_before = before["postings_scores"] * np.repeat((idf / idf_before).astype(np.float32), held_before)
    arrays = {
        "words": all_words,
        "stem_of_word": stem_of,
        "stems": all_stems,
        "postings_starts": np.concatenate([[0], np.cumsum(held_before + held)]),
        "postings_rows": np.insert(before["postings_rows"], ends, frequencies.indices.astype(np.int32) + np.int32(listings)),
        "postings_scores": np.insert(scores_before, ends, scores.astype(np.float32)),
    }
    for name in ARRAYS:
        storage.write_array(folder / f"{name}.npy", arrays[name])
    storage.write_json(folder / STATISTICS, {"listings": listings + added, "mean_length": mean_length}, indent=None)


def _idf(holding: np.ndarray, listings: int) -> np.ndarray:
    return np.maximum(np.log((listings - holding + 0.5) / (holding + 0.5)), LEAST_IDF)


class WordIndex:
    """The words of one generation's listings; safe to read from many threads."""

    def __init__(self, folder: Path, listings: int):
        self._listings = listings
        self._words, self._stem_of_word, self._stems, self._starts, self._rows, self._scores = (
            np.asarray(storage.read_array(folder / f"{name}.npy")) for name in ARRAYS
        )

    def match(self, query: str, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows of the k listings that match a query's words best: those with all the words first, each kind by score."""
        scores, held = np.zeros(self._listings, np.float32), np.zeros(self._listings, np.uint8)
        words = self._postings(query)
        for rows, values in words:
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
        for holding, values in self._postings(query):
            if len(holding):
                places = np.minimum(np.searchsorted(holding, rows), len(holding) - 1)
                scores += np.where(holding[places] == rows, values[places], 0)
        return scores

    def _postings(self, query: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each different word of a query that anything holds: rows, ascending, and their scores."""
        found: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        for word in list(dict.fromkeys(split(query)))[:MAX_WORDS]:
            stems, certainty = self._meaning(word)
            if stems and stems not in found:
                found[stems] = self._union(stems, certainty)
        return list(found.values())

    def _union(self, stems: tuple[int, ...], certainty: float) -> tuple[np.ndarray, np.ndarray]:
        """Listings with any of the stems, and the score of each one's best."""
        slices = [slice(self._starts[stem], self._starts[stem + 1]) for stem in stems]
        if len(slices) == 1:
            return self._rows[slices[0]], self._scores[slices[0]] * np.float32(certainty)
        rows, place = np.unique(np.concatenate([self._rows[part] for part in slices]), return_inverse=True)
        scores = np.zeros(len(rows), np.float32)
        np.maximum.at(scores, place, np.concatenate([self._scores[part] for part in slices]))
        return rows, scores * np.float32(certainty)

    def _meaning(self, word: str) -> tuple[tuple[int, ...], float]:
        """The stems that a query's word stands for, and how much they count: itself, else what begins so, else what is alike.

        Of the last, words of 4 or 5 letters may differ by one edit, longer ones by two; a neighbouring pair of letters turned
        round is one. Source: Elasticsearch, "fuzziness AUTO".
        """
        if (at := _find(self._words, word)) is not None:
            return (int(self._stem_of_word[at]),), 1.0
        if (stem := _find(self._stems, _stem([word])[0])) is not None:
            return (stem,), 1.0
        if len(word) >= PREFIX_LETTERS:
            first, last = np.searchsorted(self._words, [word.encode(), word.encode() + b"\xff"])
            if first < last:
                return self._commonest(np.unique(self._stem_of_word[first:last]), PREFIX_STEMS), UNSURE
        if len(word) >= TYPO_LETTERS and word.isalpha():
            edits = 1 if len(word) < 6 else 2
            near: list[tuple[int, int]] = []
            for letters in range(len(word) - edits, len(word) + edits + 1):
                words, places = self._by_length.get(letters, ((), ()))
                hits = process.extract(word, words, scorer=OSA.distance, score_cutoff=edits, limit=None)
                near += [(distance, int(self._stem_of_word[places[at]])) for _, distance, at in hits]
            if near:
                nearest = min(distance for distance, _ in near)
                return self._commonest(np.unique([stem for distance, stem in near if distance == nearest]), TYPO_WORDS), UNSURE
        return (), 0.0

    def _commonest(self, stems: np.ndarray, most: int) -> tuple[int, ...]:
        holding = self._starts[stems + 1] - self._starts[stems]
        return tuple(stems[np.argsort(-holding, kind="stable")][:most].tolist())

    @functools.cached_property
    def _by_length(self) -> dict[int, tuple[list[str], list[int]]]:
        """Number of letters -> the words of so many, and their places; a number is not a misspelt number."""
        grouped: dict[int, tuple[list[str], list[int]]] = {}
        for place, word in enumerate(self._words.tolist()):
            word = word.decode()
            if word.isalpha():
                words, places = grouped.setdefault(len(word), ([], []))
                words.append(word)
                places.append(place)
        return grouped


def _find(ordered: np.ndarray, word: str) -> int | None:
    place = int(np.searchsorted(ordered, word.encode()))
    return place if place < len(ordered) and ordered[place] == word.encode() else None


def _stem(words: Sequence[str]) -> list[str]:
    """The words' Porter stems, as SQLite's tokenizer makes them."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE VIRTUAL TABLE texts USING fts5 (word, content='', tokenize='porter unicode61')")
        connection.execute("CREATE VIRTUAL TABLE terms USING fts5vocab (texts, 'instance')")
        connection.executemany("INSERT INTO texts (rowid, word) VALUES (?, ?)", enumerate(words))
        stems = dict(connection.execute("SELECT doc, term FROM terms WHERE offset = 0"))
    return [stems.get(place, word) for place, word in enumerate(words)]
