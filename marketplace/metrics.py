"""Figures of quality: retrieval by category and by listing, graded ranking, categories, calibration, prices; intervals."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, permutation_test
from sklearn.metrics import r2_score

# Of the export, in pounds: beyond are gifts, jokes and houses, which no median error should hang on.
PRICE_BOUNDS = (1.0, 20_000.0)
CALIBRATION_BINS = 15
RELIABILITY_BINS = 10  # of a score
RESAMPLES = 2_000  # of the bootstrap: the ends of its intervals then vary by about a twentieth of their width
PERMUTATIONS = 9_999
CHUNK_SCORES = 1 << 23  # similarities held at a time: 32 MB, some 150 MB with the orders made of them


def retrieval(
    vectors: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    listings: np.ndarray,
    clusters: np.ndarray,
    pixels: np.ndarray,
    learned: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """How well the photos nearest to each query by cosine show its category, and its listing.

    vectors: (N, D) float32 unit rows; queries: (Q,) rows of them; labels, listings, clusters, pixels: (N,) codes of each photo's
    category, listing, cluster of the split, and pixels (the same code for photos that are equal pixel by pixel); learned: (N,)
    bool, the photos of the training and validation splits.
    Returns arrays (Q,) float64, NaN where undefined. Against the photos outside the query's cluster: category_p_at_1 and
    category_p_at_10, the share of the query's category in the nearest (of fewer, where fewer are left; NaN where none is), and
    map_at_r, the mean over the ranks i <= R of precision at i where the i-th is relevant, else 0; R is the number of relevant
    photos left, NaN where 0. Against all photos but the query and those equal to it pixel by pixel: same_listing_hit_at_1 and
    same_listing_hit_at_10, 1 where a photo of the same listing is among the nearest, ties counted against it; NaN where no
    other photo of the listing is left. With `learned`, too, category_p_at_1_learned: against those of them alone.
    Source of MAP@R: Musgrave, Belongie and Lim, "A metric learning reality check", ECCV 2020, section 4.1.
    """
    queries = np.asarray(queries, np.int64)
    parts = []
    for chunk in np.array_split(queries, max(1, -(-len(queries) * len(vectors) // CHUNK_SCORES))):
        scores = vectors[chunk] @ vectors.T
        hits = _listing_hits(scores, listings[chunk, None] == listings, pixels[chunk, None] == pixels)
        scores[clusters[chunk, None] == clusters] = -np.inf
        relevant = labels[chunk, None] == labels
        figures = _category_figures(scores, relevant) | hits
        if learned is not None:
            scores[:, ~learned] = -np.inf
            figures["category_p_at_1_learned"] = _precision_at_1(scores, relevant)
        parts.append(figures)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _category_figures(scores: np.ndarray, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """P@1, P@10 and MAP@R of (Q, N) similarities; -inf marks photos that may not be found."""
    allowed = np.isfinite(scores)
    left, relevant_left = allowed.sum(axis=1), (relevant & allowed).sum(axis=1)
    depth = min(scores.shape[1], max(10, relevant_left.max(initial=0)))
    nearest = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    by_score = np.argsort(-np.take_along_axis(scores, nearest, axis=1), axis=1, kind="stable")
    nearest = np.take_along_axis(nearest, by_score, axis=1)
    found = np.take_along_axis(relevant & allowed, nearest, axis=1)
    ranks = np.arange(1, depth + 1)
    precision = found.cumsum(axis=1) / ranks
    gained = (precision * found * (ranks <= relevant_left[:, None])).sum(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an undefined figure
        return {
            "category_p_at_1": found[:, 0] / np.minimum(left, 1),
            "category_p_at_10": found[:, :10].sum(axis=1) / np.minimum(left, 10),
            "map_at_r": gained / relevant_left,
        }


def _precision_at_1(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """1 where the best of (Q, N) similarities is relevant, NaN where all are -inf."""
    best = scores.argmax(axis=1)[:, None]
    is_found = np.isfinite(np.take_along_axis(scores, best, axis=1))
    return np.where(is_found, np.take_along_axis(relevant, best, axis=1), np.nan)[:, 0]


def _listing_hits(scores: np.ndarray, same_listing: np.ndarray, same_pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Whether a photo of the query's listing is among the 1 and the 10 nearest that are not the query's own pixels."""
    wanted, others = same_listing & ~same_pixels, ~same_listing & ~same_pixels
    best = np.where(wanted, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = (others & (scores >= best)).sum(axis=1)
    undefined = ~wanted.any(axis=1)
    return {f"same_listing_hit_at_{k}": np.where(undefined, np.nan, ahead < k) for k in (1, 10)}


def by_listing(values: np.ndarray, listings: np.ndarray) -> pd.Series:
    """The mean of each listing's values (Q,), by the listing's code in listings (Q,); NaNs left out, NaN where all are."""
    return pd.Series(np.asarray(values, np.float64)).groupby(np.asarray(listings)).mean()


def ndcg(found: np.ndarray, available: np.ndarray, k: int = 10) -> float:
    """Normalised discounted cumulative gain at k, with gains 2^grade - 1.

    found: grades (whole numbers from 0) of the results, best first; available: grades of all that could have been found, in any
    order. NaN where nothing of a grade above 0 could.
    Source: Burges et al., "Learning to rank using gradient descent", ICML 2005, section 6 (the discount is log2(1 + rank)).
    """
    ideal = _dcg(-np.sort(-np.asarray(available, np.float64))[:k])
    return _dcg(np.asarray(found, np.float64)[:k]) / ideal if ideal else np.nan


def _dcg(grades: np.ndarray) -> float:
    return float(((2.0**grades - 1) / np.log2(np.arange(2, len(grades) + 2))).sum())


def reciprocal_rank(right: np.ndarray, k: int = 10) -> float:
    """1 over the rank of the first right one among k results, best first; 0 where none is. Its mean is MRR@k."""
    places = np.flatnonzero(np.asarray(right)[:k])
    return 1 / (int(places[0]) + 1) if len(places) else 0.0


def precision(right: np.ndarray, available: int, k: int = 10) -> float:
    """The share of right ones among k results, of `available` where fewer than k could be right; NaN where none could."""
    return float(np.asarray(right)[:k].sum() / min(k, available)) if available else np.nan


def reliability(scores: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """What share is right at each height of a score (N,) in [0, 1]: RELIABILITY_BINS equal bins, those without any left out.

    Each: low and high ends, answers, their mean score, and the share of them that is right.
    """
    bins = np.minimum((np.asarray(scores) * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    table = pd.DataFrame({"score": np.asarray(scores, np.float64), "right": np.asarray(right, np.float64)}).groupby(bins)
    return [
        {
            "low": index / RELIABILITY_BINS,
            "high": (index + 1) / RELIABILITY_BINS,
            "answers": len(rows),
            "score": round(float(rows["score"].mean()), 6),
            "right": round(float(rows["right"].mean()), 6),
        }
        for index, rows in table
    ]


def macro_f1(labels: np.ndarray, guesses: np.ndarray, weights: np.ndarray) -> float:
    """The mean F1 over the classes that labels or guesses (N,) name with a weight (N,) above 0."""
    classes = int(max(labels.max(), guesses.max())) + 1
    hits = np.bincount(labels, weights * (labels == guesses), classes)
    named = np.bincount(labels, weights, classes) + np.bincount(guesses, weights, classes)
    return float((2 * hits[named > 0] / named[named > 0]).mean())


def calibration_error(confidences: np.ndarray, right: np.ndarray, weights: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence|, averaged over equal bins of confidence.

    confidences: (N,) probability of each guess; right: (N,) bool, whether it was right; weights: (N,).
    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.
    """
    bins = np.minimum((confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights * (right - confidences.astype(np.float64)))
    return float(np.abs(gaps).sum() / weights.sum())


def log_r2(prices: np.ndarray, guesses: np.ndarray) -> float:
    """R2 of the logarithms of prices and guesses (N,), both above 0; not finite where all prices are the same."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(r2_score(np.log10(prices), np.log10(guesses), force_finite=False))


def error_ratio(errors: np.ndarray, baseline_errors: np.ndarray) -> float:
    """Median of errors over median of the baseline's; NaN where that is 0."""
    baseline = np.median(baseline_errors)
    return float(np.median(errors) / baseline) if baseline else np.nan


Statistic = Callable[[np.ndarray], float]  # of some rows, each as often as it is given: what a bootstrap draws


def category_statistics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Statistic]:
    """accuracy, macro_f1 and calibration_error of a category model, of rows of labels (L,) and probabilities (L, C).

    A row is a listing: what the photo model says of one is the mean of its photos' probabilities.
    """
    guesses, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = guesses == labels

    def weights(rows: np.ndarray) -> np.ndarray:
        return np.bincount(rows, minlength=len(labels)).astype(np.float64)

    return {
        "accuracy": lambda rows: float(right[rows].mean()),
        "macro_f1": lambda rows: macro_f1(labels, guesses, weights(rows)),
        "calibration_error": lambda rows: calibration_error(confidences, right, weights(rows)),
    }


def class_scores(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict[str, dict[str, float]]:
    """By class: precision, recall, f1 and its listings; 0 where not defined."""
    guesses = probabilities.argmax(axis=1)
    counted = (labels[labels == guesses], labels, guesses)
    hits, own, called = (np.bincount(codes, minlength=len(classes)).astype(np.float64) for codes in counted)
    shares = (hits / np.maximum(called, 1), hits / np.maximum(own, 1), 2 * hits / np.maximum(own + called, 1))
    rows = np.transpose([*shares, own]).tolist()
    return {
        name: dict(zip(("precision", "recall", "f1", "listings"), row, strict=True))
        for name, row in zip(classes, rows, strict=True)
    }


def category_report(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict:
    """category_statistics() of all rows, the number of listings, and class_scores()."""
    if not len(labels):
        return {"listings": 0}
    figures = {name: each(np.arange(len(labels))) for name, each in category_statistics(labels, probabilities).items()}
    return figures | {"listings": len(labels), "per_class": class_scores(labels, probabilities, classes)}


def price_statistics(prices: np.ndarray, quantiles: np.ndarray, median_price: float) -> dict[str, Statistic]:
    """Figures of the price model, of rows of prices (L,) and the log10 of their 10%, 50% and 90% quantiles (L, 3).

    median_price: of the training listings, the baseline. The range is compared in logarithms, where the price model's
    margins are fitted: a validation listing that lies on its range's end would be in or out by rounding otherwise.
    """
    low, middle, high = quantiles[:, 0], 10 ** quantiles[:, 1], quantiles[:, 2]
    with np.errstate(divide="ignore"):
        log_prices = np.log10(prices)
    error, error_of_median = np.abs(prices - middle), np.abs(prices - median_price)
    inside = (low <= log_prices) & (log_prices <= high)
    return {
        "log_r2": lambda rows: log_r2(prices[rows], middle[rows]),
        "error_over_median_baseline": lambda rows: error_ratio(error[rows], error_of_median[rows]),
        "interval_coverage": lambda rows: float(inside[rows].mean()),
        "median_error": lambda rows: float(np.median(error[rows])),
        "median_error_of_median": lambda rows: float(np.median(error_of_median[rows])),
    }


def priced_rows(prices: np.ndarray, bounds: tuple[float, float] = PRICE_BOUNDS) -> np.ndarray:
    """The rows of prices (L,) within the bounds, which figures of prices are of."""
    return np.flatnonzero((prices >= bounds[0]) & (prices <= bounds[1]))


def price_report(
    prices: np.ndarray, quantiles: np.ndarray, median_price: float, bounds: tuple[float, float] = PRICE_BOUNDS
) -> dict[str, float | None]:
    """price_statistics() of the priced rows, None where not defined, and their number."""
    rows = priced_rows(prices, bounds)
    statistics = price_statistics(prices, quantiles, median_price)
    figures = {name: statistic(rows) if len(rows) else np.nan for name, statistic in statistics.items()}
    return {"listings": len(rows)} | {name: value if np.isfinite(value) else None for name, value in figures.items()}


def figure(statistic: Statistic, rows: np.ndarray, seed: int) -> dict[str, float] | None:
    """statistic(rows) with the percentile bootstrap's 95% interval over rows; None where it is not defined.

    The interval is stretched to hold the value where resampling is biased, as it is for calibration errors.
    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
    """
    if not len(rows):
        return None
    low = high = value = float(statistic(rows))
    if len(rows) > 1 and np.isfinite(value):
        settings = {"n_resamples": RESAMPLES, "vectorized": False, "method": "percentile"}
        drawn = bootstrap((rows,), statistic, **settings, rng=np.random.default_rng(seed))
        low, high = (float(end) for end in drawn.confidence_interval)
    return _rounded(value, low, high) if np.isfinite([value, low, high]).all() else None


def mean(values: np.ndarray, seed: int) -> dict[str, float] | None:
    """The mean of values (L,) of listings as a figure(), NaNs left out."""
    values = np.asarray(values, np.float64)
    return figure(lambda rows: values[rows].mean(), np.flatnonzero(~np.isnan(values)), seed)


def p_of_gain(values: np.ndarray, others: np.ndarray, seed: int) -> dict[str, float] | None:
    """p of values (L,) being no larger than others (L,) of the same listings, by a paired permutation test; None for L < 2.

    Its interval is the precision of the PERMUTATIONS draws (all where they are fewer): Wilson's.
    """
    if len(values) < 2:
        return None
    test = permutation_test(
        (values, others),
        lambda values, others, axis: (values - others).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=500,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    draws = len(test.null_distribution)
    ends = binomtest(min(round(test.pvalue * draws), draws), draws).proportion_ci(method="wilson")
    return _rounded(float(test.pvalue), ends.low, ends.high)


def _rounded(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": round(value, 6), "low": round(float(min(low, value)), 6), "high": round(float(max(high, value)), 6)}
