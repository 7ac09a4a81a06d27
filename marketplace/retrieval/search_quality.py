"""How well a search answers what shoppers type, beside plain BM25 on the same questions."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rapidfuzz import process
from rapidfuzz.distance import OSA
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from marketplace import metrics
from marketplace.files import reading
from marketplace.files.progress import progress
from marketplace.files.stages import StageError
from marketplace.retrieval.filters import Filters
from marketplace.retrieval.questions import ASKED_FOR, COMMON, MISSPELT_LETTERS, RIGHT, ListingWords, Question, split
from marketplace.retrieval.recommender import Recommender

K = 10  # answers looked at
K1, B = 1.2, 0.75  # of BM25: the usual ones
QUERY_COLUMNS = ("kind", "query", "category_pattern", "title_pattern")  # of the file of typed queries
NONSENSE = (
    *("qzxvkp", "wqjxzt", "zzxqwv", "xkcjqv", "vbnmqzx", "hjklqwz", "ptkqxzw", "jqvwxkz"),
    *("blorptang", "snorvelquip", "zarfoplex", "quimbrixel", "frobnizzle", "drungalwex", "yibberzock", "glompfuzz"),
    *("vorplequin zazzlefrop", "skwibbel dronquaff", "mizzorfax plonkergub", "trelvoxian wumpazoid"),
)
STRANGE_EDITS = 2  # a word that is nearer to one of the catalogue is a misspelt word, not nonsense
IMPOSSIBLE_QUERIES = 100  # at most, drawn by seed


@dataclass(frozen=True)
class Found:
    """rows (n,) of the listings answered, best first, and their scores (n,); n is 0 where nothing is close."""

    rows: np.ndarray
    scores: np.ndarray


Search = Callable[[str, Filters], Found]


def search_by(recommender: Recommender, product_ids: pd.Series, k: int = K) -> Search:
    """The search for words that GET /search makes. product_ids: of the listings, in the order that rows count in."""
    row_of_id = {product_id: row for row, product_id in enumerate(product_ids)}

    def search(words: str, filters: Filters = Filters()) -> Found:  # noqa: B008
        results = recommender.recommend(recommender.query(text=words), k, filters)
        rows = [row_of_id[result["product_id"]] for result in results]
        return Found(np.array(rows, np.int64), np.array([result["score"] for result in results], np.float64))

    return search


class PlainBM25:
    """The baseline: BM25 over the words as they are, a name's counted twice, no stems, no spelling, no meaning.

    Source: Robertson and Zaragoza, "The probabilistic relevance framework: BM25 and beyond", 2009; the idf that is never negative
    is Lucene's.
    """

    def __init__(self, listings: ListingWords, k: int = K):
        counts = (2 * listings.in_name + listings.in_description).tocsc().astype(np.float64)
        held = np.diff(counts.indptr)
        idf = np.log1p((len(listings) - held + 0.5) / (held + 0.5))
        length = np.asarray(counts.sum(axis=1)).ravel()
        norm = K1 * (1 - B + B * length / max(length.mean(), 1e-9))
        counts.data *= np.repeat(idf, held) * (K1 + 1) / (counts.data + norm[counts.indices])
        self._weights, self._vocabulary, self._k = counts, listings.vocabulary, k

    def __call__(self, words: str, filters: Filters = Filters()) -> Found:  # noqa: B008
        """filters: must be none."""
        columns = [self._vocabulary[word] for word in dict.fromkeys(split(words)) if word in self._vocabulary]
        scores = np.asarray(self._weights[:, columns].sum(axis=1)).ravel()
        best = np.argsort(-scores, kind="stable")[: self._k]
        best = best[scores[best] > 0]
        return Found(best, scores[best])


def answer_questions(search: Search, listings: ListingWords, questions: Sequence[Question]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What became of each question, and of each of its answers.

    The first table has a row each question: kind, row (of the listing asked for, -1 for a category), reciprocal_rank (of the
    first answer that is the thing asked for), first (1 where the first one is), ndcg_at_10, answers (how many). The second
    one has a row each answer: kind, score, right.
    """
    asked, answered = [], []
    for question in progress(questions, "ask what shoppers type", "question"):
        found, grades = search(question.words, Filters()), listings.grades(question)
        given = grades[found.rows]
        best = np.partition(grades, -min(K, len(grades)))[-K:]
        row = -1 if question.row is None else question.row
        rank = metrics.reciprocal_rank(given == ASKED_FOR, K)
        asked.append((question.kind, row, rank, float(rank == 1), metrics.ndcg(given, best, K), len(given)))
        answered += [(question.kind, score, right) for score, right in zip(found.scores, given >= RIGHT, strict=True)]
    return (
        pd.DataFrame(asked, columns=["kind", "row", "reciprocal_rank", "first", "ndcg_at_10", "answers"]),
        pd.DataFrame(answered, columns=["kind", "score", "right"]),
    )


def read_queries(path: Path) -> pd.DataFrame:
    """Queries as people type them, each with the patterns (Python's re, case-blind) of the category paths and of the names that
    are right: QUERY_COLUMNS. StageError where the file has no such columns or a pattern is none."""
    table = reading.read_csv(path)
    if missing := [name for name in QUERY_COLUMNS if name not in table.columns]:
        raise StageError(f"{path} has no column {missing[0]}: give a CSV with {', '.join(QUERY_COLUMNS)}")
    for name in QUERY_COLUMNS[2:]:
        for pattern in table[name]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise StageError(f'{path} holds "{pattern}", which is no pattern: mend it ({error})') from None
    return table[list(QUERY_COLUMNS)]


def right_answers(queries: pd.DataFrame, names: Sequence[str], categories: Sequence[str]) -> Iterator[np.ndarray]:
    """For each query (P,) bool of the listings that either of its patterns finds; an empty pattern finds nothing."""
    for patterns in zip(queries["category_pattern"], queries["title_pattern"], strict=True):
        found = [
            np.array([bool(pattern) and re.search(pattern, text, re.IGNORECASE) is not None for text in texts])
            for pattern, texts in zip(patterns, (categories, names), strict=True)
        ]
        yield found[0] | found[1]


def answer_queries(search: Search, queries: pd.DataFrame, rights: Sequence[np.ndarray]) -> pd.DataFrame:
    """kind, query, p_at_10 (the share of right ones among the ten best answers, of as many as there are; NaN for 0), answers."""
    values = []
    for query, right in zip(queries["query"], rights, strict=True):
        rows = search(query, Filters()).rows
        values.append((metrics.precision(right[rows], int(right.sum()), K), len(rows)))
    return queries[["kind", "query"]].assign(**dict(zip(("p_at_10", "answers"), np.array(values).reshape(-1, 2).T, strict=True)))


def nonsense(listings: ListingWords) -> list[str]:
    """NONSENSE that no word of the catalogue is near to."""
    words = list(listings.vocabulary)
    settings = {"scorer": OSA.distance, "score_cutoff": STRANGE_EDITS}
    return [text for text in NONSENSE if not any(process.extractOne(word, words, **settings) for word in split(text))]


def impossible(listings: ListingWords, prices: np.ndarray, rows: Sequence[int], seed: int) -> list[tuple[str, Filters]]:
    """What nothing can answer: a word of a title of `rows`, dearer than anything that holds it or is of its category, while other
    things are so dear.

    prices: (P,) pounds, NaN where none.
    """
    queries = {}
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        words = [word for word in listings.titles[row] if is_telling(listings, word)]
        if not words or len(queries) == IMPOSSIBLE_QUERIES:
            continue
        word = max(words, key=listings.names_holding)
        alike = listings.grades(Question("words", word, (word,), row)) >= RIGHT
        dearest = float(np.nanmax(prices[alike], initial=0.0))
        if np.nanmax(prices) > dearest + 1:
            queries[word] = Filters(min_price=dearest + 1)
    return list(queries.items())


def is_telling(listings: ListingWords, word: str) -> bool:
    long_enough = len(word) >= MISSPELT_LETTERS and word.isalpha() and word not in ENGLISH_STOP_WORDS
    return long_enough and listings.names_holding(word) >= COMMON


def share_answered_by_nothing(search: Search, queries: Sequence[tuple[str, Filters]]) -> np.ndarray:
    """(n,) 1 where a query is answered by nothing, else 0."""
    return np.array([len(search(words, filters).rows) == 0 for words, filters in queries], np.float64)
