"""Evidence -> one ranked, explained list; and the fit of how much each kind of evidence counts."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from marketplace import metrics
from marketplace.files import atomic, reading

KINDS = ("photo", "text", "words", "category", "price", "place")
MIXES = ("photo", "words")  # a query without words, and one with: its photo, and the category that it tells, weigh differently
BACKGROUND_PAIRS = 10_000  # random pairs whose mean cosine is what unrelated listings have
BY_HAND = {"photo": 1.0, "text": 0.5, "words": 0.5, "category": 0.5, "price": 0.1, "place": 0.05}  # before there is a fit
SMALLEST_WEIGHT = 0.01  # of the largest: what is asked with one kind of evidence alone must still be ranked by it
PENALTIES = (1e-5, 1e-4, 1e-3)  # on the squared weights; chosen by cross-validation
PAIRS_A_QUERY = 200
DROPPED = 0.25  # of the kinds of a query's evidence while fitting, so that any mix of them works
FOLDS = 5
SURELY = 2.0  # standard errors of a mean: chance alone gives more once in forty times
K = 10  # of the nDCG that choices are made by


@dataclass(frozen=True)
class Ranker:
    """How much each kind of evidence counts; ranker.json.

    weights: "words" for queries with words and "photo" for those without -> by kind, any positive scale. missing: likewise, in
    [0, 1], the evidence that stands in where a candidate has none (no photo, no price). background: by kind, the mean cosine of
    unrelated pairs, from which similarity counts at all. fuses_category: whether the category of a query with photo and words is
    predicted from both, or from its words alone.
    """

    weights: dict[str, dict[str, float]]
    missing: dict[str, dict[str, float]]
    background: dict[str, float]
    fuses_category: bool = True

    @classmethod
    def by_hand(cls, background: dict[str, float]) -> "Ranker":
        """What ranks before there is a fit."""
        return cls(dict.fromkeys(MIXES, BY_HAND), dict.fromkeys(MIXES, dict.fromkeys(KINDS, 0.0)), background)

    def save(self, path: Path) -> None:
        atomic.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Ranker":
        return cls(**reading.read_json(path))

    def similarity(self, kind: str, cosines: np.ndarray) -> np.ndarray:
        """Cosines rescaled to [0, 1]: 0 is as alike as two unrelated listings, 1 is the same; NaN stays."""
        background = self.background[kind]
        return np.clip((cosines - background) / (1 - background), 0, 1)

    def rank(self, evidence: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Order candidates by the weighted mean of their evidence.

        evidence: kind -> (N,) in [0, 1], for the kinds that the query has; NaN for a candidate without such evidence.
        Returns the order (N,), best first, ties in the given order; the scores (N,) in [0, 1]; and each kind's
        contributions (N,), which add up to the score. Kinds that count nothing are left out.
        """
        weights, missing = (values[_mix(evidence)] for values in (self.weights, self.missing))
        counted = {kind: values for kind, values in evidence.items() if weights[kind] > 0}
        total = sum(weights[kind] for kind in counted)
        parts = {
            kind: weights[kind] / total * np.where(np.isnan(values), missing[kind], values) for kind, values in counted.items()
        }
        scores = np.sum(list(parts.values()), axis=0)
        return np.argsort(-scores, kind="stable"), scores, parts


@dataclass(frozen=True)
class Judged:
    """One query whose answers are known: evidence as for rank(), relevance (N,) grades of the candidates, and its listing.

    category_by_words: (N,) what the category's evidence is when a query with a photo takes it from its words alone.
    """

    evidence: dict[str, np.ndarray]
    relevance: np.ndarray
    product_row: int
    category_by_words: np.ndarray | None = None

    def by_words(self) -> "Judged":
        if self.category_by_words is None:
            return self
        return replace(self, evidence=self.evidence | {"category": self.category_by_words})


def fit(queries: list[Judged], background: dict[str, float], seed: int = 0) -> tuple[Ranker, dict]:
    """The ranker that orders pairs of candidates best, and the nDCG@10 by which its penalty was chosen.

    A logistic model of pairs of differently relevant candidates of one query (RankNet without hidden layers: Burges et al.
    2005), weights not negative, pairs weighed by the difference of their gains. The penalty is chosen by 5-fold
    cross-validation over listings; the weights set by hand stand beside it as a baseline, and stay when they are better.
    A query's photo has a say in its category, beside its words, only where that is better by more than chance (SURELY): poor
    photos tell the category little, and less than they blur it. Where no query has a relevant candidate, the weights stay.
    """
    if not any(query.relevance.any() for query in queries):
        return Ranker.by_hand(background), {"chosen": "by_hand"}
    listings = np.array([query.product_row for query in queries])
    fold_of = {row: position % FOLDS for position, row in enumerate(np.random.default_rng(seed).permutation(np.unique(listings)))}
    folds = np.array([fold_of[row] for row in listings])
    by_words = [query.by_words() for query in queries]

    def validated(of: list[Judged], penalty: float) -> np.ndarray:
        """nDCG@10 of each query, by the fit on the other folds."""
        values = np.full(len(of), np.nan)
        for fold in np.unique(folds):
            ranker = _fit([query for query, own in zip(of, folds, strict=True) if own != fold], background, penalty, seed)
            for position in np.flatnonzero(folds == fold):
                values[position] = _ndcg(ranker, of[position])
        return values

    scores = {str(penalty): validated(by_words, penalty) for penalty in PENALTIES}
    means = {name: float(np.nanmean(values)) for name, values in scores.items()}
    best = max(means, key=means.get)
    fused = validated(queries, float(best))
    gains = metrics.by_listing(fused - scores[best], listings).dropna().to_numpy()
    fuses = bool(gains.sum() > SURELY * gains.std(ddof=1) * len(gains) ** 0.5) if len(gains) > 1 else False
    means[f"{best}, category from photo and words"] = float(np.nanmean(fused))
    means["by_hand"] = float(np.nanmean([_ndcg(Ranker.by_hand(background), query) for query in queries]))
    if means["by_hand"] >= (np.nanmean(fused) if fuses else means[best]):
        best, ranker = "by_hand", Ranker.by_hand(background)
    else:
        ranker = replace(_fit(queries if fuses else by_words, background, float(best), seed), fuses_category=fuses)
    figures = {name: round(mean, 4) for name, mean in means.items()}
    return ranker, {"queries": len(queries), "chosen": best, "fuses_category": ranker.fuses_category, "ndcg_at_10": figures}


def _mix(evidence: dict[str, np.ndarray]) -> str:
    return "words" if "words" in evidence or "text" in evidence else "photo"


def _ndcg(ranker: Ranker, query: Judged) -> float:
    return metrics.ndcg(query.relevance[ranker.rank(query.evidence)[0]], query.relevance, K)


def _fit(queries: list[Judged], background: dict[str, float], penalty: float, seed: int) -> Ranker:
    generator = np.random.default_rng(seed)
    fitted = [_fit_mix([query for query in queries if _mix(query.evidence) == mix], penalty, generator) for mix in MIXES]
    return Ranker(*(dict(zip(MIXES, values, strict=True)) for values in zip(*fitted, strict=True)), background)


def _fit_mix(queries: list[Judged], penalty: float, generator: np.random.Generator) -> tuple[dict, dict]:
    """weights and missing of one of MIXES; those set by hand where nothing can be learned."""
    differences, importance = [np.empty((0, 2 * len(KINDS)))], [np.empty(0)]
    for query in queries:
        gains = 2.0**query.relevance - 1
        pairs = generator.integers(len(gains), size=(2, PAIRS_A_QUERY))
        better, worse = pairs[:, gains[pairs[0]] > gains[pairs[1]]]
        # Values, and a flag for each kind that a candidate lacks; both are nothing where the query has no such evidence.
        features = np.zeros((len(gains), 2 * len(KINDS)))
        kinds = [kind for kind in query.evidence if generator.random() >= DROPPED] or list(query.evidence)
        for kind in kinds:
            column, values = KINDS.index(kind), query.evidence[kind]
            features[:, column] = np.nan_to_num(values)
            features[:, len(KINDS) + column] = np.isnan(values)
        differences.append(features[better] - features[worse])
        importance.append(gains[better] - gains[worse])
    matrix, weight = np.concatenate(differences), np.concatenate(importance)
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
    return tuple(dict(zip(KINDS, (round(float(value), 6) for value in values), strict=True)) for values in (weights, missing))


def background_cosine(vectors: np.ndarray, seed: int = 0) -> float:
    """The mean cosine of random pairs of (N, D) unit rows; rows of zeros (texts without a known word) left out."""
    generator = np.random.default_rng(seed)
    pairs = generator.integers(len(vectors), size=(BACKGROUND_PAIRS, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    left, right = vectors[pairs[:, 0]], vectors[pairs[:, 1]]
    filled = left.any(axis=1) & right.any(axis=1)
    if not filled.any():
        return 0.0
    # A background of 1 would leave no room for similarity: identical vectors only.
    return float(np.clip(np.einsum("nd,nd->n", left[filled], right[filled]).mean(), 0, 0.99))
