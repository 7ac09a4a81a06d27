"""How well a search answers what shoppers type, beside plain BM25 on the same questions."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from marketplace.retrieval.questions import (
    ASKED_FOR,
    COMMON,
    MISSPELT_LETTERS,
    RIGHT,
    ListingWords,
    Question,
    ask,
    split,
)
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
# kind of question -> what was typed, and what is measured: of the listing asked for its reciprocal rank (the mean is MRR@10) or
# whether it is first, where it alone is wanted; else nDCG@10 by the grades of questions.py.
MEASURED = {
    "rarest_1": ("the rarest word of a title", "mrr_at_10"),
    "rarest_2": ("its two rarest words", "mrr_at_10"),
    "rarest_3": ("its three rarest words", "mrr_at_10"),
    "title": ("a whole title", "first"),
    "words": ("one to four words of a title", "ndcg_at_10"),
    "category": ("a leaf category's name", "ndcg_at_10"),
    "misspelt": ("a misspelt word", "ndcg_at_10"),
}
TARGETS = {  # of what has no right answer, or of the score: figure -> what it should be
    "nonsense_answered_by_nothing": 1.0,
    "impossible_filter_answered_by_nothing": 1.0,
    "good_question_answered_by_nothing": 0.0,
    "score_calibration_error": 0.0,
}
FIGURE_TITLES = {"mrr_at_10": "MRR@10", "first": "that listing first", "ndcg_at_10": "nDCG@10", "p_at_10": "P@10"}
COLUMNS = ("kind", "words", "row", "figure", "ours", "bm25", "answers")


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
        query = recommender.typed(words)
        # Without a word, as of a name that is the mark of a telephone number, all that is for sale would be browsed.
        results = [] if query.typed is None else recommender.search(query, k, filters).results
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


@dataclass(frozen=True)
class Answered:
    """What became of what shoppers type, ours beside plain BM25's.

    questions: a row each: kind ("typed <kind>" of a typed query), words, row (of the listing asked for, -1 for none), figure (of
    FIGURE_TITLES, what is measured), ours and bm25 (its values, NaN where nothing could be right), answers (how many we gave).
    answers: a row each of ours: question (its row in the first table), score, right. nonsense and impossible: (n,) 1 where we
    answer nothing, as is right.
    """

    questions: pd.DataFrame
    answers: pd.DataFrame
    nonsense: np.ndarray
    impossible: np.ndarray

    def figures(self, seed: int) -> dict[str, dict | None]:
        """Every figure with its interval, by name; BM25's with "_bm25" at the end."""
        figures = {}
        for (kind, figure), table in self.questions.groupby(["kind", "figure"], sort=False):
            for suffix in ("", "_bm25"):
                figures[name_of(kind, figure) + suffix] = metrics.mean(table[suffix.strip("_") or "ours"].to_numpy(), seed)
        answerable = self.questions[self.questions["ours"].notna()]
        emptied = (answerable["answers"] == 0).to_numpy(np.float64)
        return figures | {
            "nonsense_answered_by_nothing": metrics.mean(self.nonsense, seed),
            "impossible_filter_answered_by_nothing": metrics.mean(self.impossible, seed),
            "good_question_answered_by_nothing": metrics.mean(emptied, seed),
            "score_calibration_error": self.calibration_error(seed),
        }

    def titles(self) -> dict[str, str]:
        """Figure -> what was typed and how it is measured, in words, in the order asked."""
        pairs = self.questions[["kind", "figure"]].drop_duplicates().itertuples(index=False)
        return {name_of(kind, figure): f"{MEASURED.get(kind, [kind])[0]}: {FIGURE_TITLES[figure]}" for kind, figure in pairs}

    def calibration_error(self, seed: int) -> dict | None:
        """Of the scores as probabilities of being right; its interval is over the questions."""
        question, scores, right = (self.answers[name].to_numpy() for name in ("question", "score", "right"))
        asked = np.unique(question)

        def error(drawn: np.ndarray) -> float:
            return metrics.calibration_error(scores, right, np.bincount(drawn, minlength=len(self.questions))[question])

        return metrics.figure(error, asked, seed)

    def reliability(self) -> list[dict[str, float]]:
        return metrics.reliability(self.answers["score"].to_numpy(), self.answers["right"].to_numpy())


def name_of(kind: str, figure: str) -> str:
    """The name of a figure of one kind of questions in report.json."""
    return f"{kind.replace(' ', '_')}_{figure}"


def measure(
    recommender: Recommender, listings: pd.DataFrame, rows: Sequence[int], seed: int, queries: pd.DataFrame | None = None
) -> Answered:
    """Ask for the listings of `rows` among all, their own clusters not left out.

    listings: of dataset.listings_with_splits(); queries: of read_queries().
    """
    words = words_of_listings(recommender, listings)
    ours, bm25 = search_by(recommender, listings["product_id"]), PlainBM25(words)
    questions, answers = answer_questions(ours, bm25, words, ask(words, rows, seed))
    if queries is not None:
        rights = right_answers(queries, listings["name"], listings["category"])
        typed, typed_answers = answer_queries(ours, bm25, queries, rights)
        typed_answers["question"] += len(questions)
        questions, answers = pd.concat([questions, typed], ignore_index=True), pd.concat([answers, typed_answers])
    return Answered(
        questions,
        answers,
        answered_by_nothing(ours, [(text, Filters()) for text in nonsense(words)]),
        answered_by_nothing(ours, impossible(words, listings["price"].to_numpy(), rows, seed)),
    )


def words_of_listings(recommender: Recommender, listings: pd.DataFrame) -> ListingWords:
    """What questions are made from; one fold for listings that answers show as one."""
    rows = [recommender.catalogue.product_row(product_id) for product_id in listings["product_id"]]
    folds = recommender.catalogue.columns["duplicates"][rows]
    return ListingWords(listings["name"], listings["description"], listings["category"], folds)


def answer_questions(
    ours: Search, bm25: Search, listings: ListingWords, questions: Sequence[Question]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of Answered."""
    asked, answers = [], []
    for question in progress(questions, "ask what shoppers type", "question"):
        grades, found = listings.grades(question), ours(question.words, Filters())
        figure = MEASURED[question.kind][1]
        values = [measured(figure, grades, rows) for rows in (found.rows, bm25(question.words, Filters()).rows)]
        row = -1 if question.row is None else question.row
        asked.append((question.kind, question.words, row, figure, *values, len(found.rows)))
        answers.append((found.scores, grades[found.rows] >= RIGHT))
    return pd.DataFrame(asked, columns=COLUMNS), _answers(answers)


def measured(figure: str, grades: np.ndarray, rows: np.ndarray) -> float:
    """One of FIGURE_TITLES of the listings `rows`, best first. grades: (P,) of every listing."""
    if figure == "ndcg_at_10":
        return metrics.ndcg(grades[rows], -np.partition(-grades, min(K, len(grades)) - 1)[:K], K)
    rank = metrics.reciprocal_rank(grades[rows] == ASKED_FOR, K)
    return float(rank == 1) if figure == "first" else rank


def _answers(answers: Sequence[tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """The second table of Answered, of each question's scores and whether they are right."""
    sizes = [len(scores) for scores, _ in answers]
    return pd.DataFrame(
        {
            "question": np.repeat(np.arange(len(answers)), sizes),
            "score": np.concatenate([np.empty(0), *(scores for scores, _ in answers)]),
            "right": np.concatenate([np.empty(0, bool), *(right for _, right in answers)]),
        }
    )


def read_queries(path: Path) -> pd.DataFrame:
    """Queries as people type them, each with the patterns (Python's re, case-blind) of the category paths and of the names that
    are right: QUERY_COLUMNS. StageError where the file has no such columns, no query, or what is no pattern."""
    table = reading.read_csv(path)
    if missing := [name for name in QUERY_COLUMNS if name not in table.columns]:
        raise StageError(f"{path} has no column {missing[0]}: give a CSV with {', '.join(QUERY_COLUMNS)}")
    if table.empty:
        raise StageError(f"{path} holds no query: give at least one")
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


def answer_queries(
    ours: Search, bm25: Search, queries: pd.DataFrame, rights: Iterable[np.ndarray]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of Answered. rights: of right_answers()."""
    asked, answers = [], []
    for kind, query, right in zip(queries["kind"], queries["query"], rights, strict=True):
        found = ours(query, Filters())
        values = [metrics.precision(right[rows], int(right.sum()), K) for rows in (found.rows, bm25(query, Filters()).rows)]
        asked.append((f"typed {kind}", query, -1, "p_at_10", *values, len(found.rows)))
        answers.append((found.scores, right[found.rows]))
    return pd.DataFrame(asked, columns=COLUMNS), _answers(answers)


def nonsense(listings: ListingWords) -> list[str]:
    """NONSENSE that no word of the catalogue is near to."""
    words = list(listings.vocabulary)
    settings = {"scorer": OSA.distance, "score_cutoff": STRANGE_EDITS}
    return [text for text in NONSENSE if not any(process.extractOne(word, words, **settings) for word in split(text))]


def impossible(listings: ListingWords, prices: np.ndarray, rows: Sequence[int], seed: int) -> list[tuple[str, Filters]]:
    """What nothing can answer: a word of a title of `rows`, dearer than anything that holds it or is of its category, while other
    things are so dear.

    prices: (P,), NaN where none.
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


def answered_by_nothing(search: Search, queries: Sequence[tuple[str, Filters]]) -> np.ndarray:
    """(n,) 1 where a query is answered by nothing, else 0."""
    return np.array([len(search(words, filters).rows) == 0 for words, filters in queries], np.float64)
