"""Measure the published index and its models on the test split, and write a report that anyone can reproduce.

Reads   data/index/, data/embeddings/, data/model/, data/features/, data/dataset/, data/tabular/, data/images/
Writes  data/evaluation/ (report.md, report.json, gallery.png, confusion.png, hardest.png, listings.csv)
Run     python evaluate.py
"""

import argparse
import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.stats import binomtest, bootstrap, permutation_test
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dataset import listings_with_splits
from marketplace import metrics
from marketplace.cleaning import listings, photos, pictures
from marketplace.files import atomic, cli, generations, reading, stages
from marketplace.files.progress import begin, progress
from marketplace.files.stages import StageError
from marketplace.models import charts, training
from marketplace.retrieval import ranking
from marketplace.retrieval.recommender import Recommender

RESAMPLES = 2_000  # of the bootstrap: the ends of its intervals then vary by about a twentieth of their width
PERMUTATIONS = 9_999
WHITENED_DIMENSION = 256  # at most
FITTED_PHOTOS = 10_000  # at most, drawn by seed: to whiten, and for the linear heads of the two ways to split
HEAD_C = 1e-3  # of the linear head: the best of 1e-4 to 1 on validation listings of two real data sets
RETRIEVAL = {
    "category_p_at_1": "category P@1",
    "category_p_at_10": "category P@10",
    "map_at_r": "MAP@R",
    "same_listing_hit_at_1": "same listing hit@1",
    "same_listing_hit_at_10": "same listing hit@10",
}
PRICE_TITLES = {
    "price_log_r2": "R2 of the logarithm",
    "price_median_error_pounds": "median absolute error, pounds",
    "price_median_error_of_median_pounds": "the same for the training listings' median price",
    "price_error_over_median_baseline": "ratio of the two",
    "price_interval_coverage": "share of prices inside the 80% range",
}
SPACES = {"": "ours", "_frozen_trunk": "frozen backbone", "_whitened_trunk": "whitened backbone"}  # suffix -> name
EVIDENCE = {  # asked with -> whether the photo and the words are given, and the kinds of evidence that count
    "photo": (True, False, ranking.KINDS),
    "text": (False, True, ranking.KINDS),
    "both": (True, True, ranking.KINDS),
    "both_without_category": (True, True, tuple(kind for kind in ranking.KINDS if kind != "category")),
}
K = 10  # answers
GALLERY_QUERIES, GALLERY_ANSWERS, GALLERY_TILE_PX = 12, 5, 160
HARDEST_TILES, HARDEST_COLUMNS, HARDEST_TILE_PX = 24, 6, 200
FRAMES = {"query": "#4c78a8", 2: "#3a923a", 1: "#f2a541", 0: "#d64545"}  # answers by their grade
MAIN = (
    *("photo_accuracy", "text_accuracy", "fused_accuracy", "price_log_r2", "price_error_over_median_baseline"),
    *("map_at_r", "same_listing_hit_at_1", "ndcg_at_10_photo", "ndcg_at_10_text", "ndcg_at_10_both"),
)


# What is measured.


@dataclass(frozen=True)
class Catalogue:
    """Everything that is read, its rows aligned.

    products: P listings, with cluster and split beside the table's columns; photos: N, with product_row and pixels;
    vectors (N, D), probabilities (N, C), features (N, F, of the frozen backbone): of the photos;
    measured: (L,) rows of the test listings that figures are of; texts: of them; queries: rows of their photos, listing by
    listing.
    """

    products: pd.DataFrame
    photos: pd.DataFrame
    classes: list[str]
    texts: list[str]
    vectors: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    measured: np.ndarray
    queries: np.ndarray

    def listing_of(self, photo_rows: np.ndarray) -> np.ndarray:
        """The position among `measured` of the listing of each photo; -1 for another listing's."""
        return pd.Index(self.measured).get_indexer(self.photos["product_row"].to_numpy()[photo_rows])


def read(data_dir: Path, max_queries: int, seed: int) -> Catalogue:
    """Raises StageError when stages are missing or do not fit, or the test split is empty."""
    products = listings_with_splits(data_dir)
    tests = np.flatnonzero(products["split"] == "test")
    if not len(tests):
        raise StageError(
            f"the test split of {data_dir / 'dataset'} has no listing: give more listings, or dataset.py a --split-column"
        )
    if len(tests) > max_queries:
        tests = np.sort(np.random.default_rng(seed).choice(tests, max_queries, replace=False))
    table = reading.read_csv(data_dir / "dataset" / "training_data.csv").astype({"label": int})
    arrays = {}
    for name in ("embeddings/vectors", "embeddings/probabilities", "features/plain"):
        path = data_dir / f"{name}.npy"
        arrays[name] = reading.read_array(path)
        ids = reading.read_json(path.with_name("image_ids.json"))
        if ids != table["image_id"].tolist() or len(arrays[name]) != len(ids):
            script = stages.STAGES[path.parent.name].script
            raise StageError(f"{path} holds other photos than the dataset: run python {script} again")
    table["product_row"] = pd.Index(products["product_id"]).get_indexer(table["product_id"])
    table["pixels"] = photos.pixel_digests(data_dir / "images", table["image_id"])
    queries = np.flatnonzero(table["product_row"].isin(tests))
    return Catalogue(
        products,
        table,
        reading.read_json(generations.current_generation(data_dir / "index") / "image_model.json")["classes"],
        listings.texts(products.iloc[tests]),
        *arrays.values(),
        tests,
        queries[np.argsort(table["product_row"].to_numpy()[queries], kind="stable")],
    )


# Figures: a value, and its 95% interval over listings.


def figure(statistic: Callable[[np.ndarray], float], rows: np.ndarray, seed: int) -> dict[str, float] | None:
    """statistic(rows) with the percentile bootstrap's 95% interval over rows; None where it is not defined.

    The interval is stretched to hold the value where resampling is biased, as it is for calibration errors.
    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
    """
    if not len(rows):
        return None
    low = high = value = float(statistic(rows))
    if len(rows) > 1 and np.isfinite(value):
        drawn = bootstrap(
            (rows,),
            statistic,
            n_resamples=RESAMPLES,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        low, high = (float(end) for end in drawn.confidence_interval)
    if not np.isfinite([value, low, high]).all():
        return None
    return {"value": round(value, 6), "low": round(min(low, value), 6), "high": round(max(high, value), 6)}


def mean(values: np.ndarray, seed: int) -> dict[str, float] | None:
    """The mean of (L,) values of listings, NaNs left out."""
    values = np.asarray(values, np.float64)
    return figure(lambda rows: values[rows].mean(), np.flatnonzero(~np.isnan(values)), seed)


def spread(values: pd.Series, size: int) -> np.ndarray:
    """(size,) values by listing's position, NaN for listings that have none."""
    return values.reindex(np.arange(size)).to_numpy(np.float64)


# Category models.


@dataclass(frozen=True)
class Guesses:
    """What a category model says of measured listings, one a row: listing, truth (n,), probabilities (n, C)."""

    listing: np.ndarray
    truth: np.ndarray
    probabilities: np.ndarray

    def figures(self, name: str, seed: int) -> dict[str, dict | None]:
        if not len(self.listing):
            return dict.fromkeys((f"{name}_accuracy", f"{name}_macro_f1", f"{name}_calibration_error"))
        statistics = metrics.category_statistics(self.truth, self.probabilities)
        rows = np.arange(len(self.listing))
        return {f"{name}_{key}": figure(statistic, rows, seed) for key, statistic in statistics.items()}

    def right(self) -> pd.Series:
        """1 or 0 by listing."""
        return pd.Series((self.probabilities.argmax(axis=1) == self.truth).astype(float), self.listing)


def guess_categories(catalogue: Catalogue, models) -> dict[str, Guesses]:
    """Of the photo, text and fused models; of a listing's photos the mean counts."""
    truth = catalogue.products["label"].to_numpy()[catalogue.measured]
    everyone = np.arange(len(truth))
    means = (
        pd.DataFrame(np.asarray(catalogue.probabilities[catalogue.queries]))
        .groupby(catalogue.listing_of(catalogue.queries))
        .mean()
    )
    by_text = models.category_probabilities(catalogue.texts)
    by_photo = means.reindex(everyone).to_numpy(np.float32)  # NaN: no photo
    return {
        "photo": Guesses(means.index.to_numpy(), truth[means.index], means.to_numpy()),
        "text": Guesses(everyone, truth, by_text),
        "fused": Guesses(everyone, truth, models.fuse(by_photo, by_text)),
    }


# Price.


def training_median_price(products: pd.DataFrame) -> float:
    """Pounds: of the training listings whose price tells anything."""
    usable = (products["split"] == "train") & products["price_plausible"] & (products["price"] > 0)
    return float(products.loc[usable, "price"].median())


def guess_prices(catalogue: Catalogue, price_model) -> pd.DataFrame:
    """The price of each measured listing in pounds, and its 10%, 50% and 90% quantiles by the model."""
    products = catalogue.products.iloc[catalogue.measured]
    of_photos = pd.DataFrame(catalogue.vectors[catalogue.queries]).groupby(catalogue.listing_of(catalogue.queries)).mean()
    vectors = of_photos.reindex(np.arange(len(products))).to_numpy(np.float32)  # NaN: no photo
    quantiles = 10 ** price_model.quantiles(catalogue.texts, products["category"].tolist(), products["county"].tolist(), vectors)
    return pd.DataFrame(
        {"price": products["price"].to_numpy()} | dict(zip(("price_low", "price_median", "price_high"), quantiles.T, strict=True))
    )


def price_figures(prices: pd.DataFrame, median_price: float, seed: int) -> dict[str, dict | None]:
    """median_price: pounds, of the training listings."""
    price, quantiles = prices["price"].to_numpy(), np.log10(prices[["price_low", "price_median", "price_high"]].to_numpy())
    statistics = metrics.price_statistics(price, quantiles, median_price)
    rows = metrics.priced_rows(price)
    return {f"price_{name}": figure(statistic, rows, seed) for name, statistic in statistics.items()}


# Photo retrieval.


def training_photos(catalogue: Catalogue, seed: int) -> np.ndarray:
    rows = np.flatnonzero(catalogue.photos["split"] == "train")
    return draw_rows(rows, FITTED_PHOTOS, seed)


def draw_rows(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` of the rows, or all when there are fewer; ascending."""
    return rows if len(rows) <= size else np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    vectors = np.array(vectors, np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def whitened(features: np.ndarray, fitted: np.ndarray, dimension: int) -> np.ndarray:
    """(N, d) unit rows, PCA-whitened as training.whitening() does on the `fitted` rows, d at most `dimension` and the rank."""
    projection = training.whitening(np.array(features[fitted], np.float32), dimension, power=False)
    with torch.inference_mode():
        return unit_rows(projection(torch.from_numpy(np.array(features, np.float32))).numpy())


def retrieve(catalogue: Catalogue, seed: int) -> dict[str, np.ndarray]:
    """Each of RETRIEVAL for each of SPACES by measured listing (L,), NaN for listings without such evidence."""
    listing, size = catalogue.listing_of(catalogue.queries), len(catalogue.measured)
    if not len(catalogue.queries):
        return {name + suffix: np.full(size, np.nan) for suffix in SPACES for name in RETRIEVAL}
    codes = [pd.factorize(catalogue.photos[column])[0] for column in ("label", "product_id", "cluster", "pixels")]
    dimension = min(WHITENED_DIMENSION, catalogue.vectors.shape[1])
    spaces = {
        "": lambda: np.asarray(catalogue.vectors),
        "_frozen_trunk": lambda: unit_rows(catalogue.features),
        "_whitened_trunk": lambda: whitened(catalogue.features, training_photos(catalogue, seed), dimension),
    }
    found = {}
    for suffix, vectors in progress(spaces.items(), "find the nearest photos", "space"):
        for name, values in metrics.retrieval(vectors(), catalogue.queries, *codes).items():
            found[name + suffix] = spread(metrics.by_listing(values, listing), size)
    return found


# Linear heads on the frozen backbone: what the split does to a figure.


def head_of_photos(catalogue: Catalogue, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(n, C) probabilities of photos `test` by a linear head that is trained on the frozen backbone's features of `train`.

    NaN where the training photos are of one category only.
    """
    labels = catalogue.photos["label"].to_numpy()
    probabilities = np.zeros((len(test), len(catalogue.classes)))
    if len(np.unique(labels[train])) < 2 or not len(test):
        return np.full_like(probabilities, np.nan)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=HEAD_C, max_iter=200))
    with threadpool_limits(1):  # ten times faster: its steps are too small to share out
        head.fit(catalogue.features[train], labels[train])
        probabilities[:, head.classes_] = head.predict_proba(catalogue.features[test])
    return probabilities


def is_right(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) 1 or 0, NaN where the probabilities are."""
    return np.where(np.isnan(probabilities).any(axis=1), np.nan, probabilities.argmax(axis=1) == labels)


def accuracy_by_photo(right: np.ndarray, product_rows: np.ndarray, seed: int) -> dict | None:
    """The share of photos that are right, its interval over their listings."""
    counts = pd.DataFrame({"right": right}).groupby(product_rows)["right"].agg(["sum", "count"]).to_numpy().T
    rows = np.flatnonzero(counts[1])
    return figure(lambda drawn: counts[0, drawn].sum() / counts[1, drawn].sum(), rows, seed)


def compare_splits(catalogue: Catalogue, seed: int) -> tuple[dict[str, dict | None], np.ndarray]:
    """The same head on our split and on one by photo of the same sizes; and whether it is right by measured listing.

    The figures are by photo: the other split tears listings apart.
    """
    rows, labels = catalogue.photos["product_row"].to_numpy(), catalogue.photos["label"].to_numpy()
    train = training_photos(catalogue, seed)
    ours = head_of_photos(catalogue, train, catalogue.queries)
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    leaky_test = shuffled[len(train) : len(train) + len(catalogue.queries)]
    leaky = is_right(head_of_photos(catalogue, shuffled[: len(train)], leaky_test), labels[leaky_test])
    figures = {
        "accuracy_by_photo_leaky_split": accuracy_by_photo(leaky, rows[leaky_test], seed),
        "accuracy_by_photo_our_split": accuracy_by_photo(
            is_right(ours, labels[catalogue.queries]), rows[catalogue.queries], seed
        ),
    }
    means = pd.DataFrame(ours).groupby(catalogue.listing_of(catalogue.queries)).mean()
    truth = catalogue.products["label"].to_numpy()[catalogue.measured[means.index]]
    return figures, spread(pd.Series(is_right(means.to_numpy(), truth), means.index), len(catalogue.measured))


# Ranking.


@dataclass(frozen=True)
class Answered:
    """One query of the gallery: its photo's row, and the rows of the listings answered, with their grades."""

    photo_row: int
    product_rows: np.ndarray
    grades: np.ndarray


def rank(catalogue: Catalogue, recommender: Recommender) -> tuple[dict[str, np.ndarray], list[Answered]]:
    """nDCG@10 by measured listing (L,) with each of EVIDENCE, NaN where a listing has no such evidence; and answers to both."""
    catalogue_row = pd.Index([recommender.catalogue.product_row(name) for name in catalogue.products["product_id"]])
    path, main, cluster = (pd.factorize(catalogue.products[name])[0] for name in ("category", "main_category", "cluster"))
    photos_of = pd.Series(catalogue.queries).groupby(catalogue.listing_of(catalogue.queries)).apply(list)
    scores = {name: np.full(len(catalogue.measured), np.nan) for name in EVIDENCE}
    answers = []
    for position, row in enumerate(progress(catalogue.measured, "rank", "listing")):
        own = cluster == cluster[row]
        grades = np.where(path == path[row], 2, np.where(main == main[row], 1, 0))
        text = "\n".join(catalogue.products.loc[row, ["name", "description"]])
        for name, (with_photo, with_text, kinds) in EVIDENCE.items():
            gained = []
            for photo in photos_of.get(position, []) if with_photo else [None]:
                evidence = (
                    {"vector": catalogue.vectors[photo], "probabilities": catalogue.probabilities[photo]} if with_photo else {}
                )
                query = recommender.query(text=text if with_text else None, **evidence)
                if with_text and query.text is None and query.words is None:
                    continue
                found = recommender.ranked(query, K, catalogue_row[own].to_numpy(), kinds=kinds)
                found = catalogue_row.get_indexer(found)
                gained.append(metrics.ndcg(grades[found], grades[~own], K))
                if name == "both" and len(gained) == 1:
                    answers.append(Answered(photo, found, grades[found]))
            scores[name][position] = np.mean(gained) if gained else np.nan
    return scores, answers


def rank_figures(scores: dict[str, np.ndarray], seed: int) -> dict[str, dict | None]:
    """On the listings that have both kinds of evidence; the p-value is of both being no better than the better single kind."""
    compared = ~np.isnan(scores["photo"] + scores["text"] + scores["both"])
    scores = {name: values[compared] for name, values in scores.items()}
    figures = {f"ndcg_at_10_{name}": mean(values, seed) for name, values in scores.items()}
    figures["ndcg_both_over_best_single_p"] = None
    if compared.sum() > 1:
        single = max((scores["photo"], scores["text"]), key=np.mean)
        test = permutation_test(
            (scores["both"], single),
            lambda both, single, axis: (both - single).mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=PERMUTATIONS,
            batch=500,
            alternative="greater",
            rng=np.random.default_rng(seed),
        )
        draws = len(test.null_distribution)
        ends = binomtest(min(round(test.pvalue * draws), draws), draws).proportion_ci(method="wilson")
        low, high = min(ends.low, test.pvalue), max(ends.high, test.pvalue)
        figures["ndcg_both_over_best_single_p"] = {
            name: round(float(value), 6) for name, value in (("value", test.pvalue), ("low", low), ("high", high))
        }
    return figures


# The report.


def draw_gallery(catalogue: Catalogue, answers: list[Answered], images_dir: Path, seed: int) -> bytes:
    """Queries and their best answers, a row each: as far as there are, half of them begin with a right answer."""
    right = [answer for answer in answers if len(answer.grades) and answer.grades[0]]
    wrong = [answer for answer in answers if not len(answer.grades) or not answer.grades[0]]
    n_right = max(GALLERY_QUERIES // 2, GALLERY_QUERIES - len(wrong))
    shown = []
    for part, count in ((right, n_right), (wrong, GALLERY_QUERIES - min(n_right, len(right)))):
        shown += [part[position] for position in draw_rows(np.arange(len(part)), count, seed)]
    first_photo = catalogue.photos.drop_duplicates("product_row").set_index("product_row")["image_id"]
    leaf = catalogue.products["leaf_category"]
    blank = io.BytesIO()
    Image.new("RGB", (GALLERY_TILE_PX, GALLERY_TILE_PX), "#eeeeee").save(blank, "JPEG")
    tiles = []
    for answer in shown:
        asked = catalogue.photos.iloc[answer.photo_row]
        tiles.append((photos.load(images_dir, asked["image_id"], bytes), leaf[asked["product_row"]], FRAMES["query"]))
        for row, grade in zip(answer.product_rows[:GALLERY_ANSWERS], answer.grades[:GALLERY_ANSWERS], strict=True):
            image_id = first_photo.get(row)
            jpeg = photos.load(images_dir, image_id, bytes) if image_id else blank.getvalue()
            tiles.append((jpeg, leaf[row], FRAMES[grade]))
        tiles += [(blank.getvalue(), "", None)] * (GALLERY_ANSWERS - len(answer.product_rows[:GALLERY_ANSWERS]))
    sheet = io.BytesIO()
    pictures.contact_sheet(tiles, GALLERY_ANSWERS + 1, GALLERY_TILE_PX).save(sheet, "PNG")
    return sheet.getvalue()


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def cell(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def class_rows(guesses: dict[str, Guesses], classes: list[str]) -> list[list[str]]:
    """By class: its name, and of each model its precision, recall, F1 and number of listings."""
    nothing = dict.fromkeys(("precision", "recall", "f1", "listings"), 0.0)
    reports = [metrics.category_report(each.truth, each.probabilities, classes) for each in guesses.values()]
    rows = []
    for name in classes:
        scores = [report["per_class"][name] if report["listings"] else nothing for report in reports]
        cells = [format(value, ".0f" if key == "listings" else ".2f") for score in scores for key, value in score.items()]
        rows.append([name, *cells])
    return rows


def draw_confusion(guess: Guesses, classes: list[str]) -> bytes:
    labels = range(len(classes))
    empty = np.zeros((len(classes), len(classes)), int)
    confusion = confusion_matrix(guess.truth, guess.probabilities.argmax(axis=1), labels=labels) if len(guess.truth) else empty
    return charts.draw_confusion(confusion, classes, "Test listings, photo model")


def draw_hardest(catalogue: Catalogue, images_dir: Path) -> bytes:
    """A contact sheet (PNG) of the test photos that the model is surest about, and wrong; below, the truth and its guess."""
    short = [re.split(",| & ", listings.category_levels(name)[-1])[0] for name in catalogue.classes]
    table, probabilities = catalogue.photos.iloc[catalogue.queries], np.asarray(catalogue.probabilities[catalogue.queries])
    labels, guess = table["label"].to_numpy(), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(guess != labels)
    hardest = wrong[np.argsort(-probabilities[wrong, guess[wrong]], kind="stable")][:HARDEST_TILES]
    tiles = []
    for row in hardest:
        jpeg = photos.load(images_dir, table["image_id"].iloc[row], bytes)
        tiles.append((jpeg, f"{short[labels[row]]}, not {short[guess[row]]}", FRAMES[0]))
    sheet = io.BytesIO()
    pictures.contact_sheet(tiles, HARDEST_COLUMNS, HARDEST_TILE_PX).save(sheet, "PNG")
    return sheet.getvalue()


def write_report(figures: dict[str, dict | None], counts: dict[str, int], guesses: dict[str, Guesses], classes: list[str]) -> str:
    """report.md."""

    def table(head: list[str], rows: list[tuple[str, list[str]]]) -> str:
        return markdown_table(["", *head], [[title, *(cell(figures[name]) for name in names)] for title, names in rows])

    models = list(guesses)
    titles = {"accuracy": "accuracy", "macro_f1": "macro-F1", "calibration_error": "expected calibration error"}
    categories = table(models, [(titles[key], [f"{name}_{key}" for name in models]) for key in titles])
    prices = table(["model"], [(title, [name]) for name, title in PRICE_TITLES.items()])
    retrieved = table([*SPACES.values()], [(title, [name + suffix for suffix in SPACES]) for name, title in RETRIEVAL.items()])
    p_title = "p of both being no better than the better of photo and text"
    ranked = [(name.replace("_", " "), [f"ndcg_at_10_{name}"]) for name in EVIDENCE] + [
        (p_title, ["ndcg_both_over_best_single_p"])
    ]
    split_titles = {
        "accuracy_by_photo_our_split": "by cluster, as everywhere in this report",
        "accuracy_by_photo_leaky_split": "by photo: siblings of test photos are trained on",
    }
    splits = table(["accuracy by photo"], [(title, [name]) for name, title in split_titles.items()])
    columns = [f"{name} {what}" for name in models for what in ("precision", "recall", "F1", "listings")]
    per_class = class_rows(guesses, classes)
    return f"""# Quality on the test split

{counts["measured"]:,} of the {counts["test_listings"]:,} test listings, {counts["measured_photos"]:,} photos of
{counts["measured_with_photo"]:,} of them; the catalogue has {counts["listings"]:,} listings and {counts["photos"]:,} photos.
Every figure is by listing: a listing's value is the mean over its photos. In brackets: the 95% interval of the bootstrap over
listings (percentile, {RESAMPLES:,} resamples). "-": the data has no such evidence.

## Category models

{categories}

Of a listing's photos the mean probabilities count, alone for the photo model, with its words for the fused one. Macro-F1 is over
the classes among the test listings and the answers. Calibration error: {metrics.CALIBRATION_BINS} equal bins of confidence.

## Price

{prices}

On {counts["measured_priced"]:,} listings from £{metrics.PRICE_BOUNDS[0]:,.0f} to £{metrics.PRICE_BOUNDS[1]:,.0f}.

## Photos to photos

{retrieved}

Nearest by cosine. Category: against the catalogue without the query's cluster (its listing, its duplicates, what was grouped
with it); MAP@R as in "A metric learning reality check" (2020). Same listing: against all other photos, those equal to the query
pixel by pixel left out, for the {counts["measured_with_sibling"]:,} listings with another photo; ties count against the answer.
Frozen backbone: its pooled features before training. Whitened backbone: the same, PCA-whitened on at most {FITTED_PHOTOS:,}
training photos to the embedding's dimension (at most {WHITENED_DIMENSION} and the rank).

## Ranked listings

{table(["nDCG@10"], ranked)}

The published ranker, as the API calls it, on the {counts["compared"]:,} listings with photo and words: a listing's title and
description, its photos one by one, its own category hidden, against the catalogue without its cluster. Grades: same category
path 2, same main category 1; gains 2^grade - 1. p: paired permutation test, one-sided, {PERMUTATIONS:,} sign flips (all where
they are fewer); its bracket is the precision of those draws.

## Why figures elsewhere are higher

{splits}

One and the same head on both: logistic regression (C = {HEAD_C:g}) on the frozen backbone's standardised features, trained on at
most {FITTED_PHOTOS:,} photos.

## Every category

{markdown_table(["", *columns], per_class)}

## Mistakes

![confusion](confusion.png)

![hardest photos](hardest.png)

The photos that the model is surest about, and wrong, one by one.

## Gallery

![queries and answers](gallery.png)

In each row a query (blue) with its photo and words, and the best answers: same category path (green), same main category
(orange), another (red). Half of the queries shown begin with a wrong answer, where there are as many: these are no shares.
"""


# The stage.


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument(
        "--max-queries", default=2000, type=cli.positive, help="test listings measured, drawn by seed (default: %(default)s)"
    )
    parser.add_argument("--seed", default=0, type=cli.not_negative, help="of every draw (default: %(default)s)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    with stages.open_stage(args.data, "evaluation", {"max_queries": args.max_queries, "seed": args.seed}) as stage:
        if stage.is_done():
            return stage.summary()
        recommender = Recommender(generations.current_generation(args.data / "index"))
        if not recommender.takes_photos:
            raise StageError(f"{args.data / 'index'} holds vectors of your own: run python build_index.py without --embeddings")
        catalogue = read(args.data, args.max_queries, args.seed)
        stage.begin()
        answered = ask(catalogue, recommender, args.seed)
        table = tabulate(catalogue, answered)
        counts = count(catalogue, table)
        figures = summarise(answered, args.seed)
        draw_pictures(stage.folder, catalogue, answered, args.data / "images", args.seed)
        atomic.write_csv(stage.folder / "listings.csv", table)
        report = write_report(figures, counts, answered.guesses, catalogue.classes)
        atomic.write_bytes(stage.folder / "report.md", report.encode())
        atomic.write_json(stage.folder / "report.json", figures | {"counts": counts})
        return stage.finish(counts | {name: figures[name] and figures[name]["value"] for name in MAIN})


@dataclass(frozen=True)
class Answers:
    """What the models and the index said of the measured listings (L of them).

    guesses: of each category model; prices: of guess_prices(); median_price: of the training listings; retrieved: figure -> (L,);
    split_figures: what the way to split does to a figure; head_right: (L,); ranked: kind of query -> (L,) nDCG@10; shown: the
    answers for the gallery.
    """

    guesses: dict[str, Guesses]
    prices: pd.DataFrame
    median_price: float
    retrieved: dict[str, np.ndarray]
    split_figures: dict
    head_right: np.ndarray
    ranked: dict[str, np.ndarray]
    shown: list


def ask(catalogue: Catalogue, recommender: Recommender, seed: int) -> Answers:
    guesses = guess_categories(catalogue, recommender.table_models)
    prices = guess_prices(catalogue, recommender.price_model)
    retrieved = retrieve(catalogue, seed)
    begin("train a linear head on each way to split")
    split_figures, head_right = compare_splits(catalogue, seed)
    ranked, shown = rank(catalogue, recommender)
    median_price = training_median_price(catalogue.products)
    return Answers(guesses, prices, median_price, retrieved, split_figures, head_right, ranked, shown)


def summarise(answers: Answers, seed: int) -> dict[str, dict | None]:
    """Every figure with its interval."""
    begin("draw the intervals")
    figures: dict[str, dict | None] = {}
    for name, guess in answers.guesses.items():
        figures |= guess.figures(name, seed)
    figures |= price_figures(answers.prices, answers.median_price, seed)
    figures |= {name: mean(values, seed) for name, values in answers.retrieved.items()}
    return figures | rank_figures(answers.ranked, seed) | answers.split_figures


def tabulate(catalogue: Catalogue, answers: Answers) -> pd.DataFrame:
    """listings.csv: what was found for each measured listing."""
    listings_measured = catalogue.products.iloc[catalogue.measured].reset_index(drop=True)
    return listings_measured[["product_id", "cluster", "label"]].assign(
        photo_right=spread(answers.guesses["photo"].right(), len(catalogue.measured)),
        photo_right_same_head=answers.head_right,
        **{f"{name}_guess": answers.guesses[name].probabilities.argmax(axis=1) for name in ("text", "fused")},
        **answers.prices,
        training_median_price=answers.median_price,
        **answers.retrieved,
        **{f"ndcg_at_10_{name}": values for name, values in answers.ranked.items()},
    )


def count(catalogue: Catalogue, table: pd.DataFrame) -> dict[str, int]:
    return {
        "listings": len(catalogue.products),
        "photos": len(catalogue.photos),
        "test_listings": int((catalogue.products["split"] == "test").sum()),
        "measured": len(catalogue.measured),
        "measured_photos": len(catalogue.queries),
        "measured_with_photo": int(table["photo_right"].notna().sum()),
        "measured_with_sibling": int(table["same_listing_hit_at_1"].notna().sum()),
        "measured_priced": int(table["price"].between(*metrics.PRICE_BOUNDS).sum()),
        "compared": int(table[["ndcg_at_10_photo", "ndcg_at_10_text"]].notna().all(axis=1).sum()),
    }


def draw_pictures(folder: Path, catalogue: Catalogue, answers: Answers, images_dir: Path, seed: int) -> None:
    atomic.write_bytes(folder / "gallery.png", draw_gallery(catalogue, answers.shown, images_dir, seed))
    atomic.write_bytes(folder / "confusion.png", draw_confusion(answers.guesses["photo"], catalogue.classes))
    atomic.write_bytes(folder / "hardest.png", draw_hardest(catalogue, images_dir))


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
