"""report.md: the figures of evaluate.py as tables, and what a reader must know about each."""

from pathlib import Path

import pandas as pd

from marketplace import metrics
from marketplace.files import stages

CATEGORY_TITLES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "calibration_error": "expected calibration error"}
RETRIEVAL = {
    "category_p_at_1": "category P@1",
    "category_p_at_1_learned": "the same among training and validation photos",
    "category_p_at_10": "category P@10",
    "map_at_r": "MAP@R",
    "same_listing_hit_at_1": "same listing hit@1",
    "same_listing_hit_at_10": "same listing hit@10",
}
CLOSENESS = {
    "nonsense_answered_by_nothing": "nonsense: share answered by nothing",
    "impossible_filter_answered_by_nothing": "impossible filters: share answered by nothing",
    "good_question_answered_by_nothing": "good questions: share answered by nothing",
    "score_calibration_error": "calibration error of the score",
}
PRICE_TITLES = {
    "price_log_r2": "R2 of the logarithm",
    "price_median_error": "median absolute error",
    "price_median_error_of_median": "the same for the training listings' median price",
    "price_error_over_median_baseline": "ratio of the two",
    "price_interval_coverage": "share of prices inside the 80% range",
}
SPLIT_TITLES = {
    "accuracy_by_photo_our_split": "by cluster, as everywhere in this report",
    "accuracy_by_photo_leaky_split": "by photo: siblings of test photos are trained on",
}
SPACES = {"": "ours", "_frozen_trunk": "frozen backbone", "_whitened_trunk": "whitened backbone"}  # suffix -> name
REPORT = """# Quality on the test split

{counts[measured]:,} of the {counts[test_listings]:,} test listings, {counts[measured_photos]:,} photos of
{counts[measured_with_photo]:,} of them; the catalogue has {counts[listings]:,} listings and {counts[photos]:,} photos.
Every figure is by listing: a listing's value is the mean over its photos. In brackets: the 95% interval of the bootstrap over
listings (percentile, {resamples:,} resamples). "-": the data has no such evidence.
{warnings}
## What shoppers type

{searched}

Answered by the published index as GET /search does, beside plain BM25 (k1 1.2, b 0.75, no stems, a name counted twice) on the
same questions: made from the test listings, their answers among all, their own clusters not left out. The rarest words are those
of the fewest listings; a listing of the same title, or one that answers show as one with it, counts as the one asked for. In
nDCG@10 that counts 3, another that holds all the words or is of its leaf category 2, of its main category 1. P@10: of as many as
are right by the patterns of --queries.

{closeness}

Nonsense: words that no word of the catalogue is near to. Impossible filters: a word with a price above everything that holds it.
Good questions: all those above.

| score | answers | mean score | share right |
| --- | --- | --- | --- |
{reliability}

Right: grade 2 or more, or by the patterns. Calibration error as below, its interval over the questions.

## Category models

{categories}

Of a listing's photos the mean probabilities count, alone for the photo model, with its words for the fused one. Macro-F1 is over
the classes among the test listings and the answers. Calibration error: {bins} equal bins of confidence.

## Price

{prices}

In {currency}, on {counts[measured_priced]:,} listings from {price_bounds[0]:,.0f} to {price_bounds[1]:,.0f}.

## Photos to photos

{retrieved}

Nearest by cosine. Category: against the catalogue without the query's cluster (its listing, its duplicates, what was grouped
with it); MAP@R as in "A metric learning reality check" (2020). Same listing: against all other photos, those equal to the query
pixel by pixel left out, for the {counts[measured_with_sibling]:,} listings with another photo; ties count against the answer.
Frozen backbone: its pooled features before training. Whitened backbone: the same, PCA-whitened on at most {fitted_photos:,}
training photos to the embedding's dimension (at most {whitened_dimension} and the rank).

## Ranked listings

{ranked}

The published ranker, as the API calls it, on the {counts[compared]:,} listings with photo and words: a listing's title and
description, its photos one by one, its own category hidden, against the catalogue without its cluster. Grades: same category
path 2, same main category 1; gains 2^grade - 1. p: paired permutation test, one-sided, {permutations:,} sign flips (all where
they are fewer); its bracket is the precision of those draws.

## Why figures elsewhere are higher

{splits}

One and the same head on both: logistic regression (C = {head_c:g}) on the frozen backbone's standardised features, trained on at
most {fitted_photos:,} photos.

## Every category

{per_class}

## Mistakes

![confusion](confusion.png)

![hardest photos](hardest.png)

The photos that the model is surest about, and wrong, one by one.

## Gallery

![queries and answers](gallery.png)

In each row a query (blue) with its photo and words, and the best answers: same category path (green), same main category
(orange), another (red). Half of the queries shown begin with a wrong answer, where there are as many: these are no shares.
"""


def measured_prices(data_dir: Path, listings: pd.DataFrame) -> tuple[float, float]:
    """The least and the greatest price that figures of the price model are of: metrics.PRICE_BOUNDS in the course's export, and
    the plausible ones in a shop's own table, whose amounts may be of any size.

    listings: all of read_products().
    """
    plausible = listings.loc[listings["price_plausible"], "price"]
    if "schema" not in stages.read_manifest(data_dir / "tabular")["arguments"] or plausible.empty:
        return metrics.PRICE_BOUNDS
    return float(plausible.min()), float(plausible.max())


def write(
    figures: dict[str, dict | None],
    counts: dict[str, int],
    class_scores: dict[str, dict],
    evidence: list[str],
    settings: dict,
    searched: dict[str, str],
    reliability: list[dict[str, float]],
    warnings: list[str],
) -> str:
    """class_scores: of metrics.class_scores(), by model; evidence: what listings are ranked by; settings: fitted_photos,
    whitened_dimension and head_c, of the comparisons with the frozen backbone, and currency and price_bounds; searched: figure ->
    what shoppers typed and how it is measured; reliability: of metrics.reliability().
    """

    def table(head: list[str], rows: list[tuple[str, list[str]]]) -> str:
        return _markdown_table(["", *head], [[title, *(_cell(figures[name]) for name in names)] for title, names in rows])

    ranked = [(name.replace("_", " "), [f"ndcg_at_10_{name}"]) for name in evidence]
    ranked.append(("p of both being no better than the better of photo and text", ["ndcg_both_over_best_single_p"]))
    formats = {"precision": ".2f", "recall": ".2f", "f1": ".2f", "listings": ".0f"}
    per_class = [
        [category, *(format(scores[category][key], form) for scores in class_scores.values() for key, form in formats.items())]
        for category in class_scores["text"]
    ]
    columns = [f"{name} {key}".replace("f1", "F1") for name in class_scores for key in formats]
    heights = [
        f"| {each['low']:.1f} to {each['high']:.1f} | {each['answers']:,} | {each['score']:.3f} | {each['right']:.3f} |"
        for each in reliability
    ]
    return REPORT.format(
        searched=table(["ours", "plain BM25"], [(title, [name, f"{name}_bm25"]) for name, title in searched.items()]),
        closeness=table(["ours"], [(title, [name]) for name, title in CLOSENESS.items()]),
        reliability="\n".join(heights),
        categories=table(
            [*class_scores], [(title, [f"{name}_{key}" for name in class_scores]) for key, title in CATEGORY_TITLES.items()]
        ),
        prices=table(["model"], [(title, [name]) for name, title in PRICE_TITLES.items()]),
        retrieved=table([*SPACES.values()], [(title, [name + suffix for suffix in SPACES]) for name, title in RETRIEVAL.items()]),
        ranked=table(["nDCG@10"], ranked),
        splits=table(["accuracy by photo"], [(title, [name]) for name, title in SPLIT_TITLES.items()]),
        per_class=_markdown_table(["", *columns], per_class),
        counts=counts,
        warnings="".join(f"\n**{sentence[0].upper()}{sentence[1:]}.**\n" for sentence in warnings),
        resamples=metrics.RESAMPLES,
        permutations=metrics.PERMUTATIONS,
        bins=metrics.CALIBRATION_BINS,
        **settings,
    )


def _markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _cell(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
