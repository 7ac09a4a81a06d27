"""The fit of how much each kind of evidence counts, and of what a score means, by questions about validation listings."""

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from marketplace import metrics
from marketplace.cleaning import listings
from marketplace.files.progress import progress
from marketplace.retrieval import questions
from marketplace.retrieval.filters import deepest
from marketplace.retrieval.ranking import BY_HAND, CURVES, KINDS, MIXES, UNCALIBRATED, Ranker, mix_of
from marketplace.retrieval.typed_search import is_sentence

if TYPE_CHECKING:
    from marketplace.models.text_model import TableModels
    from marketplace.retrieval.open_index import OpenIndex, Query

BACKGROUND_PAIRS = 10_000  # random pairs whose mean cosine is what unrelated listings have
FIRST_WORDS = 2  # of a title, that a shopper types beside a photo
JUDGED_LISTINGS = 600  # of the validation split, asked about to fit the ranker
SMALLEST_WEIGHT = 0.01  # of the largest: what is asked with one kind of evidence alone must still be ranked by it
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # on the squared weights; chosen by cross-validation
PAIRS_A_QUERY = 200
DROPPED = 0.25  # of the kinds of a query's evidence while fitting, so that any mix of them works
FOLDS = 5
RIGHT = 2  # the relevance from which a shopper finds an answer right
ASKED_KINDS = ("words", "rarest_2", "title", "misspelt")  # of questions.KINDS
K = 10  # of the nDCG that choices are made by
CALIBRATED_ANSWERS = 20  # the best of each question
LEAST_ANSWERS = 500  # by which a curve is drawn; with fewer it stays straight
TYPED_LISTINGS = 150  # of the validation split, asked for by words
WORDS_SAMPLE = 20_000  # listings whose words tell which are rare
SENTENCE_LETTERS = (20, 100)  # of a description's sentence, typed to describe a thing


@dataclass(frozen=True)
class JudgedQuery:
    """One query with judged answers: evidence as for rank(), relevance (N,) grades of the candidates, and the row of its
    listing; own: the evidence for that, of one candidate, which is none of the N."""

    evidence: dict[str, np.ndarray]
    relevance: np.ndarray
    listing_row: int
    own: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgedAnswers:
    """The best answers to one question: the curve of CURVES that calibrates their raw scores (N,), and whether each is right."""

    curve: str
    raw: np.ndarray
    right: np.ndarray


def judge(
    index: "OpenIndex", models: "TableModels", splits: np.ndarray, probabilities: np.ndarray, seed: int = 0
) -> list[JudgedQuery]:
    """Questions about validation listings, their answers among the training listings, and how relevant those are.

    models: the generation's, which read the words; splits: (rows,) of the catalogue's listings, by name; probabilities: (N, C) of
    its photos.
    """
    allowed = splits == "train"
    asked = np.flatnonzero(splits == "validation")
    asked = np.random.default_rng(seed).permutation(asked)[:JUDGED_LISTINGS]
    judged = []
    for row in progress(asked.tolist(), "ask for the ranker", "listing"):
        for query in _questions(index, models, row, probabilities):
            rows = index.candidates(query, allowed)
            if len(rows):
                evidence, own = (index.evidence(query, some)[0] for some in (rows, np.array([row])))
                judged.append(JudgedQuery(evidence, _relevance(index, row, rows), row, own))
    return judged


def _questions(index: "OpenIndex", models: "TableModels", row: int, probabilities: np.ndarray) -> list["Query"]:
    """A listing is asked for by photo, by photo with the first words of its title, with the title and with the whole text, and by
    the text alone; never by its own category."""
    listing = index.catalogue.product(row)
    text = listings.text(listing["name"], listing["description"])
    title = text.partition("\n")[0]
    whole = [index.query_by(models, None, text)]
    asked = []
    for photo in index.catalogue.photos_of(row)[:1]:
        vector, by_photo = index.photo_index.vectors_of(np.array([photo]))[0], probabilities[photo]
        shorter = dict.fromkeys([" ".join(title.split()[:FIRST_WORDS]), title])
        asked = [index.query_by(models, vector, words, by_photo) for words in (None, *shorter)]
        whole.append(index.query_by(models, vector, text, by_photo))
    price = float(index.catalogue.columns["price"][row])
    for query in whole:  # as one listing is compared with another
        query.price = price if price > 0 else None
        query.place = index.place_of(row)
    return asked + whole


def _relevance(index: "OpenIndex", row: int, rows: np.ndarray) -> np.ndarray:
    """(N,) grades of `rows` as answers for a listing: 2 for the same full category path, 1 for the same main category."""
    codes = index.catalogue.columns["category"]
    same_main, same = codes[rows, 0] == codes[row, 0], (codes[rows] == codes[row]).all(axis=1)
    return np.where(same, 2, np.where(same_main, 1, 0))


def judge_typed(index: "OpenIndex", splits: np.ndarray, seed: int = 0) -> list[JudgedAnswers]:
    """Questions in words for validation listings, and for each the best answers of the whole catalogue.

    Right is the listing asked for, another of its category, and another that holds all the words that are meant.
    """
    generator = np.random.default_rng(seed)
    asked = generator.permutation(np.flatnonzero(splits == "validation"))[:TYPED_LISTINGS]
    others = generator.permutation(np.flatnonzero(splits != "validation"))[:WORDS_SAMPLE]
    sample = index.catalogue.products([*asked, *others], ("name", "description", "category"))
    columns = ([listing[column] for listing in sample] for column in ("name", "description", "category"))
    listing_words = questions.ListingWords(*columns, folds=np.arange(len(sample)))
    typed = [(one.words, one.meant, asked[one.row]) for one in questions.ask(listing_words, range(len(asked)), seed, ASKED_KINDS)]
    for row, listing in zip(asked, sample, strict=False):
        typed += [(sentence, (), row) for sentence in _sentences(listing["description"])[:1]]
    paths = deepest(index.catalogue.columns["category"])
    judged = []
    for words, meant, row in progress(typed, "ask by words for the ranker", "question"):
        if (query := index.typed(words).typed) is None:
            continue
        candidates = index.typed_search.candidates(query)
        raw = np.sum(list(index.typed_search.score(query, candidates).values()), axis=0)
        best = np.argsort(-raw, kind="stable")[:CALIBRATED_ANSWERS]
        rows = candidates.rows[best]
        right = (paths[rows] == paths[row]) | (rows == row)
        if meant:
            right |= index.typed_search.evidence(index.typed(" ".join(meant)).typed, rows).matches.all_text_typed > 0
        judged.append(JudgedAnswers("sentence" if is_sentence(query, candidates) else "typed", raw[best], right))
    return judged


def _sentences(description: str) -> list[str]:
    """Those that a person might type to describe a thing."""
    least, most = SENTENCE_LETTERS
    return [sentence.strip() for sentence in re.split(r"[.!?\n]", description) if least <= len(sentence.strip()) <= most]


def calibrate(ranker: Ranker, queries: list[JudgedQuery], typed: list[JudgedAnswers]) -> tuple[Ranker, dict[str, int]]:
    """The ranker whose scores are probabilities that an answer is right, by isotonic regression; and of how many answers each
    curve is drawn, 0 where there are too few.

    The listing that asks is an answer too, a right one: what is as alike as the same photo is what a shopper looks for.
    """
    judged, uncalibrated = list(typed), replace(ranker, calibration=UNCALIBRATED)
    for query in queries:
        order, raw, _ = uncalibrated.rank(query.evidence)
        best = order[:CALIBRATED_ANSWERS]
        judged.append(JudgedAnswers(mix_of(query.evidence), raw[best], query.relevance[best] >= RIGHT))
        if query.own:
            judged.append(JudgedAnswers(mix_of(query.own), uncalibrated.rank(query.own)[1], np.array([True])))
    calibration, drawn = dict(UNCALIBRATED), dict.fromkeys(CURVES, 0)
    for curve in CURVES:
        own = [answers for answers in judged if answers.curve == curve]
        if sum(len(answers.raw) for answers in own) < LEAST_ANSWERS:
            continue
        raw, right = (np.concatenate([getattr(answers, name) for answers in own]) for name in ("raw", "right"))
        fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(raw, right)
        drawn_points = (fitted.X_thresholds_, fitted.y_thresholds_)
        calibration[curve] = [[round(float(value), 6) for value in values] for values in drawn_points]
        drawn[curve] = len(raw)
    return replace(ranker, calibration=calibration), drawn


def fit(queries: list[JudgedQuery], background: dict[str, float], seed: int = 0) -> tuple[Ranker, dict]:
    """The ranker that orders pairs of candidates best, and the nDCG@10 by which its penalty was chosen.

    A logistic model of pairs of differently relevant candidates of one query (RankNet without hidden layers: Burges et al.
    2005), weights not negative, pairs weighed by the difference of their gains. The penalty is chosen by 5-fold
    cross-validation over listings; the weights set by hand are the baseline, and stay when they are better.
    Where no query has a relevant candidate, the weights stay.
    """
    if not any(query.relevance.any() for query in queries):
        return Ranker.by_hand(background), {"chosen": "by_hand"}
    listing_rows = np.array([query.listing_row for query in queries])
    folds = _folds(listing_rows, seed)
    means = {"by_hand": float(np.nanmean([_ndcg(Ranker.by_hand(background), query) for query in queries]))}
    for penalty in PENALTIES:
        means[str(penalty)] = float(np.nanmean(_validated(queries, folds, background, penalty, seed)))
    best = max(means, key=means.get)  # the first of equal ones
    ranker = Ranker.by_hand(background) if best == "by_hand" else _fit(queries, background, float(best), seed)
    figures = {name: round(mean, 4) for name, mean in means.items()}
    return ranker, {"queries": len(queries), "chosen": best, "ndcg_at_10": figures}


def _folds(listing_rows: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each query: all of a listing's are in one."""
    order = np.random.default_rng(seed).permutation(np.unique(listing_rows))
    fold_of_row = {row: position % FOLDS for position, row in enumerate(order)}
    return np.array([fold_of_row[row] for row in listing_rows])


def _validated(
    queries: list[JudgedQuery], folds: np.ndarray, background: dict[str, float], penalty: float, seed: int
) -> np.ndarray:
    """nDCG@10 of each query, by the fit on the other folds."""
    values = np.full(len(queries), np.nan)
    for fold in np.unique(folds):
        others = [query for query, own_fold in zip(queries, folds, strict=True) if own_fold != fold]
        ranker = _fit(others, background, penalty, seed)
        for position in np.flatnonzero(folds == fold):
            values[position] = _ndcg(ranker, queries[position])
    return values


def _ndcg(ranker: Ranker, query: JudgedQuery) -> float:
    return metrics.ndcg(query.relevance[ranker.rank(query.evidence)[0]], query.relevance, K)


def _fit(queries: list[JudgedQuery], background: dict[str, float], penalty: float, seed: int) -> Ranker:
    generator = np.random.default_rng(seed)
    fitted = [_fit_mix([query for query in queries if mix_of(query.evidence) == mix], penalty, generator) for mix in MIXES]
    return Ranker(*(dict(zip(MIXES, values, strict=True)) for values in zip(*fitted, strict=True)), background)


def _fit_mix(queries: list[JudgedQuery], penalty: float, generator: np.random.Generator) -> tuple[dict, dict]:
    """weights and missing of one of MIXES; those set by hand where nothing can be learned."""
    matrix, weight = _pairs(queries, generator)
    if not len(matrix):
        return BY_HAND, dict.fromkeys(KINDS, 0.0)
    weight = weight / weight.sum()

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margins = matrix @ parameters
        value = weight @ np.logaddexp(0, -margins) + penalty * parameters @ parameters
        return value, -matrix.T @ (weight * expit(-margins)) + 2 * penalty * parameters

    start = np.array([BY_HAND[kind] for kind in KINDS] + [0.0] * len(KINDS))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start)).x
    learned = matrix[:, : len(KINDS)].any(axis=0)
    largest = found[: len(KINDS)][learned].max(initial=0)
    if not largest:
        return BY_HAND, dict.fromkeys(KINDS, 0.0)
    weights = np.maximum(found[: len(KINDS)], SMALLEST_WEIGHT * largest)
    weights[~learned] = largest * np.array(list(BY_HAND.values()))[~learned]
    missing = np.clip(found[len(KINDS) :] / np.maximum(weights, 1e-12), 0, 1)
    return _by_kind(weights), _by_kind(missing)


def _by_kind(values: np.ndarray) -> dict[str, float]:
    return dict(zip(KINDS, (round(float(value), 6) for value in values), strict=True))


def _pairs(queries: list[JudgedQuery], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, 2 kinds) differences between the features of a better candidate and of a worse one, and (pairs,) of their gains.

    Features are the values of each kind of evidence, and a flag for each kind that a candidate lacks; both are 0 where the query
    has no such evidence.
    """
    differences, importance = [np.empty((0, 2 * len(KINDS)))], [np.empty(0)]
    for query in queries:
        gains = 2.0**query.relevance - 1
        pairs = generator.integers(len(gains), size=(2, PAIRS_A_QUERY))
        better, worse = pairs[:, gains[pairs[0]] > gains[pairs[1]]]
        features = np.zeros((len(gains), 2 * len(KINDS)))
        kinds = [kind for kind in query.evidence if generator.random() >= DROPPED] or list(query.evidence)
        for kind in kinds:
            column, values = KINDS.index(kind), query.evidence[kind]
            features[:, column] = np.nan_to_num(values)
            features[:, len(KINDS) + column] = np.isnan(values)
        differences.append(features[better] - features[worse])
        importance.append(gains[better] - gains[worse])
    return np.concatenate(differences), np.concatenate(importance)


def background_cosine(vectors: np.ndarray, seed: int = 0) -> float:
    """The mean cosine of random pairs of (N, D) unit rows; rows of zeros (texts of no word that the model learned) left out."""
    generator = np.random.default_rng(seed)
    pairs = generator.integers(len(vectors), size=(BACKGROUND_PAIRS, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    left, right = vectors[pairs[:, 0]], vectors[pairs[:, 1]]
    filled = left.any(axis=1) & right.any(axis=1)
    if not filled.any():
        return 0.0
    # A background of 1 would leave no room for similarity: identical vectors only.
    return float(np.clip(np.einsum("nd,nd->n", left[filled], right[filled]).mean(), 0, 0.99))
