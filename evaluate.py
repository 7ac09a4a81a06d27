"""Measure the published index and its models on the test split, and write a report that anyone can reproduce.

Reads   data/index/, data/embeddings/, data/model/, data/features/, data/dataset/, data/tabular/, data/images/
Writes  data/evaluation/ (report.md, report.json, gallery.png, confusion.png, hardest.png, listings.csv, questions.csv)
Run     python evaluate.py                          asks what shoppers type, made from the test listings
        python evaluate.py --queries queries.csv    and what your own shoppers type
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dataset import listings_with_splits
from marketplace import metrics
from marketplace.cleaning import photos, pictures
from marketplace.cleaning.listings import category_levels, read_currency, texts
from marketplace.files import atomic, cli, generations, reading, stages
from marketplace.files.progress import begin, progress
from marketplace.files.stages import StageError
from marketplace.models import charts, embedding, report, sample_sizes
from marketplace.models.price_model import Evidence, PriceModel
from marketplace.models.text_model import TableModels
from marketplace.retrieval import ranking, search_quality
from marketplace.retrieval.recommender import Recommender

WHITENED_DIMENSION = 256  # at most
FITTED_PHOTOS = 10_000  # at most, drawn by seed: to whiten, and for the linear heads of the two ways to split
HEAD_C = 1e-3  # of the linear head: strong, as features are many and photos few
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
    *("rarest_1_mrr_at_10", "rarest_2_mrr_at_10", "rarest_3_mrr_at_10", "title_first", "misspelt_ndcg_at_10"),
    *("photo_accuracy", "text_accuracy", "fused_accuracy", "price_log_r2", "price_error_over_median_baseline"),
    *("map_at_r", "same_listing_hit_at_1", "ndcg_at_10_photo", "ndcg_at_10_text", "ndcg_at_10_both"),
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument(
        "--max-queries", default=2000, type=cli.positive, help="test listings measured, drawn by seed (default: %(default)s)"
    )
    parser.add_argument(
        "--queries",
        type=Path,
        help="CSV of what people type, and patterns (Python's re, case-blind) of the category paths and names that are right: "
        "kind, query, category_pattern, title_pattern (default: none)",
    )
    parser.add_argument("--seed", default=0, type=cli.not_negative, help="of every draw (default: %(default)s)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    arguments = {"max_queries": args.max_queries, "seed": args.seed}
    raw = {} if args.queries is None else {"--queries": stages.digest(args.queries)}
    with stages.open_stage(args.data, "evaluation", arguments, raw) as stage:
        if stage.is_done():
            return stage.summary()
        folder, built = generations.current_generation(args.data / "index"), stages.read_manifest(args.data / "index")["counts"]
        if folder.name != built["generation"]:
            raise StageError(
                f"{folder} is served, and was not built from the present data: run python build_index.py --serve "
                f"{built['generation']} first"
            )
        recommender = Recommender(folder)
        if not recommender.takes_photos:
            raise StageError(f"{args.data / 'index'} holds vectors of your own: run python build_index.py without --embeddings")
        catalogue = read(args.data, args.max_queries, args.seed)
        queries = None if args.queries is None else search_quality.read_queries(args.queries)
        stage.begin()
        words = texts(catalogue.listings.iloc[catalogue.measured])
        guesses = guess_categories(catalogue, words, recommender.table_models)
        prices = guess_prices(catalogue, words, recommender.price_model)
        retrieved = retrieve(catalogue, args.seed)
        begin("train a linear head on each way to split")
        split_figures, head_right = compare_splits(catalogue, args.seed)
        ranked, answers = rank(catalogue, recommender)
        answered = search_quality.measure(recommender, catalogue.listings, catalogue.measured, args.seed, queries)
        begin("draw the intervals")
        figures = category_figures(guesses, catalogue.truth, args.seed)
        figures |= price_figures(prices, args.seed, catalogue.price_bounds)
        figures |= {name: metrics.mean(values, args.seed) for name, values in retrieved.items()}
        figures |= rank_figures(ranked, args.seed) | split_figures | answered.figures(args.seed)
        table = tabulate(catalogue, guesses, head_right, prices, retrieved, ranked)
        atomic.write_csv(stage.folder / "listings.csv", table)
        atomic.write_csv(stage.folder / "questions.csv", with_ids(answered.questions, catalogue.listings))
        images_dir, by_photo = args.data / "images", guessed(guesses["photo"], catalogue.truth)
        atomic.write_bytes(stage.folder / "gallery.png", draw_gallery(catalogue, answers, images_dir, args.seed))
        atomic.write_bytes(stage.folder / "confusion.png", charts.draw_confusion(*by_photo, catalogue.classes))
        atomic.write_bytes(stage.folder / "hardest.png", draw_hardest(catalogue, images_dir))
        counts = count(catalogue, table)
        sample_sizes.tell(catalogue.warnings)
        atomic.write_bytes(stage.folder / "report.md", write_report(figures, counts, guesses, catalogue, answered).encode())
        atomic.write_json(
            stage.folder / "report.json",
            figures | {"counts": counts, "reliability": answered.reliability(), "warnings": catalogue.warnings},
        )
        return stage.finish(counts | {name: figures[name]["value"] if figures.get(name) else None for name in MAIN})


@dataclass(frozen=True)
class Catalogue:
    """Everything that is read, its rows aligned.

    listings: P, with cluster and split beside the table's columns; photos: N, with listing_row and pixels;
    vectors (N, D), probabilities (N, C), features (N, F, of the frozen backbone): of the photos;
    measured: (L,) rows of the test listings that figures are of; queries: (Q,) rows of their photos, listing by listing.
    currency: of the prices; price_bounds: of those that figures of prices are of.
    """

    listings: pd.DataFrame
    photos: pd.DataFrame
    classes: list[str]
    vectors: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    measured: np.ndarray
    queries: np.ndarray
    currency: str
    price_bounds: tuple[float, float]

    @property
    def truth(self) -> np.ndarray:
        """(L,) labels of the measured listings."""
        return self.listings["label"].to_numpy()[self.measured]

    @property
    def warnings(self) -> list[str]:
        return sample_sizes.of_evaluation(pd.Series(self.truth), self.classes)

    @property
    def owners(self) -> np.ndarray:
        """(Q,) the position among `measured` of each query's listing."""
        return pd.Index(self.measured).get_indexer(self.photos["listing_row"].to_numpy()[self.queries])

    def mean_of_photos(self, values: np.ndarray) -> np.ndarray:
        """(L, ...) means of values (Q, ...) of the queries over each listing's; NaNs left out, NaN for a listing without any."""
        means = pd.DataFrame(np.asarray(values)).groupby(self.owners).mean().reindex(np.arange(len(self.measured)))
        return means.to_numpy().reshape(-1, *values.shape[1:])


def read(data_dir: Path, max_queries: int, seed: int) -> Catalogue:
    """Raises StageError when stages are missing or do not fit, or the test split is empty."""
    listings = listings_with_splits(data_dir)
    tests = np.flatnonzero(listings["split"] == "test")
    if not len(tests):
        raise StageError(
            f"the test split of {data_dir / 'dataset'} has no listing: give more listings, or dataset.py a --split-column"
        )
    measured = draw_rows(tests, max_queries, seed)
    table = reading.read_csv(data_dir / "dataset" / "training_data.csv").astype({"label": int})
    table["listing_row"] = pd.Index(listings["product_id"]).get_indexer(table["product_id"])
    table["pixels"] = photos.pixel_digests(data_dir / "images", table["image_id"])
    queries = np.flatnonzero(table["listing_row"].isin(measured))
    return Catalogue(
        listings,
        table,
        reading.read_json(generations.current_generation(data_dir / "index") / "image_model.json")["classes"],
        *(
            read_photo_array(data_dir / name, table["image_id"].tolist())
            for name in ("embeddings/vectors.npy", "embeddings/probabilities.npy", "features/plain.npy")
        ),
        measured,
        queries[np.argsort(table["listing_row"].to_numpy()[queries], kind="stable")],
        read_currency(data_dir / "tabular"),
        report.measured_prices(data_dir, listings),
    )


def read_photo_array(path: Path, image_ids: list[str]) -> np.ndarray:
    array = reading.read_array(path)
    ids = reading.read_json(path.with_name("image_ids.json"))
    if ids != image_ids or len(array) != len(ids):
        script = stages.STAGES[path.parent.name].script
        raise StageError(f"{path} holds other photos than the dataset: run python {script} again")
    return array


def draw_rows(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` of the rows, or all when there are fewer; ascending."""
    return rows if len(rows) <= size else np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))


def guess_categories(catalogue: Catalogue, words: list[str], models: TableModels) -> dict[str, np.ndarray]:
    """(L, C) probabilities by the photo, text and fused models; of the photo model NaN for a listing without a photo."""
    by_photo = catalogue.mean_of_photos(catalogue.probabilities[catalogue.queries])
    by_text = models.category_probabilities(words)
    return {"photo": by_photo, "text": by_text, "fused": models.fuse(by_photo, by_text)}


def guessed(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The truth and the probabilities of the listings that a model guesses for."""
    rows = ~np.isnan(probabilities).any(axis=1)
    return truth[rows], probabilities[rows]


def is_right(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) 1 or 0, NaN where the probabilities are."""
    return np.where(np.isnan(probabilities).any(axis=1), np.nan, probabilities.argmax(axis=1) == labels)


def category_figures(guesses: dict[str, np.ndarray], truth: np.ndarray, seed: int) -> dict[str, dict | None]:
    figures = {}
    for name, probabilities in guesses.items():
        labels, certain = guessed(probabilities, truth)
        for key, statistic in metrics.category_statistics(labels, certain).items():
            figures[f"{name}_{key}"] = metrics.figure(statistic, np.arange(len(labels)), seed)
    return figures


def guess_prices(catalogue: Catalogue, words: list[str], price_model: PriceModel) -> pd.DataFrame:
    """Of each measured listing its price, its 10%, 50% and 90% quantiles, and the training listings' median price."""
    train = catalogue.listings[(catalogue.listings["split"] == "train") & catalogue.listings["price_plausible"]]
    listings = catalogue.listings.iloc[catalogue.measured]
    vectors = catalogue.mean_of_photos(catalogue.vectors[catalogue.queries])
    paths, counties = listings["category"].tolist(), listings["county"].tolist()
    low, median, high = 10 ** price_model.quantiles(Evidence(words, paths, counties, vectors)).T
    prices = {"price": listings["price"].to_numpy(), "price_low": low, "price_median": median, "price_high": high}
    return pd.DataFrame(prices).assign(training_median_price=train["price"].median())


def price_figures(prices: pd.DataFrame, seed: int, bounds: tuple[float, float] = metrics.PRICE_BOUNDS) -> dict[str, dict | None]:
    """prices: of guess_prices()."""
    price, quantiles = prices["price"].to_numpy(), np.log10(prices[["price_low", "price_median", "price_high"]].to_numpy())
    statistics = metrics.price_statistics(price, quantiles, prices["training_median_price"].iloc[0])
    return {f"price_{name}": metrics.figure(each, metrics.priced_rows(price, bounds), seed) for name, each in statistics.items()}


def training_photos(catalogue: Catalogue, seed: int) -> np.ndarray:
    return draw_rows(np.flatnonzero(catalogue.photos["split"] == "train"), FITTED_PHOTOS, seed)


def retrieve(catalogue: Catalogue, seed: int) -> dict[str, np.ndarray]:
    """metrics.retrieval() in each of report.SPACES by measured listing (L,), NaN for listings without such evidence."""
    codes = [pd.factorize(catalogue.photos[column])[0] for column in ("label", "product_id", "cluster", "pixels")]
    learned = (catalogue.photos["split"] != "test").to_numpy()
    features = np.array(catalogue.features, np.float32)
    dimension = min(WHITENED_DIMENSION, catalogue.vectors.shape[1])
    embedders = embedding.frozen_embedders(features[training_photos(catalogue, seed)], dimension)
    found = {}
    for suffix, embedder in progress(
        zip(report.SPACES, (None, *embedders.values()), strict=True), "find the nearest photos", "space"
    ):
        vectors = np.asarray(catalogue.vectors) if embedder is None else embedding.embed(embedder, features)
        for name, values in metrics.retrieval(vectors, catalogue.queries, *codes, learned).items():
            found[name + suffix] = catalogue.mean_of_photos(values)
    return found


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


def accuracy_by_photo(right: np.ndarray, listing_rows: np.ndarray, seed: int) -> dict | None:
    """The share of photos that are right, its interval over their listings."""
    counts = pd.DataFrame({"right": right}).groupby(listing_rows)["right"].agg(["sum", "count"]).to_numpy().T
    rows = np.flatnonzero(counts[1])
    return metrics.figure(lambda drawn: counts[0, drawn].sum() / counts[1, drawn].sum(), rows, seed)


def compare_splits(catalogue: Catalogue, seed: int) -> tuple[dict[str, dict | None], np.ndarray]:
    """The same head on our split and on one by photo of the same sizes; and whether it is right by measured listing.

    The figures are by photo: the other split tears listings apart.
    """
    rows, labels = catalogue.photos["listing_row"].to_numpy(), catalogue.photos["label"].to_numpy()
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
    return figures, is_right(catalogue.mean_of_photos(ours), catalogue.truth)


@dataclass(frozen=True)
class Answered:
    """One query of the gallery: its photo's row, and the rows of the listings answered, with their grades."""

    photo_row: int
    listing_rows: np.ndarray
    grades: np.ndarray


def rank(catalogue: Catalogue, recommender: Recommender) -> tuple[dict[str, np.ndarray], list[Answered]]:
    """nDCG@10 by measured listing (L,) with each of EVIDENCE, NaN where a listing has no such evidence; and answers to both."""
    catalogue_row = pd.Index([recommender.catalogue.product_row(name) for name in catalogue.listings["product_id"]])
    path, main, cluster = (pd.factorize(catalogue.listings[name])[0] for name in ("category", "main_category", "cluster"))
    photos_of = pd.Series(catalogue.queries).groupby(catalogue.owners).apply(list)
    scores = {name: np.full(len(catalogue.measured), np.nan) for name in EVIDENCE}
    answers = []
    for position, row in enumerate(progress(catalogue.measured, "rank", "listing")):
        own = cluster == cluster[row]
        grades = np.where(path == path[row], 2, np.where(main == main[row], 1, 0))
        text = "\n".join(catalogue.listings.loc[row, ["name", "description"]])
        evidence_of_photos = [
            {"vectors": catalogue.vectors[photo], "probabilities": catalogue.probabilities[photo]}
            for photo in photos_of.get(position, [])
        ]
        for name, (with_photo, with_text, kinds) in EVIDENCE.items():
            found = []
            for evidence in evidence_of_photos if with_photo else [{}]:
                query = recommender.query(text=text if with_text else None, **evidence)
                if with_text and query.text is None and query.words is None:
                    continue
                rows = recommender.ranked(query, K, catalogue_row[own].to_numpy(), kinds=kinds)
                found.append(catalogue_row.get_indexer(rows))
            if found:
                scores[name][position] = np.mean([metrics.ndcg(grades[rows], grades[~own], K) for rows in found])
            if found and name == "both":
                answers.append(Answered(photos_of[position][0], found[0], grades[found[0]]))
    return scores, answers


def rank_figures(scores: dict[str, np.ndarray], seed: int) -> dict[str, dict | None]:
    """On the listings that have both kinds of evidence; the p-value is of both being no better than the better single kind."""
    compared = ~np.isnan(scores["photo"] + scores["text"] + scores["both"])
    scores = {name: values[compared] for name, values in scores.items()}
    figures = {f"ndcg_at_10_{name}": metrics.mean(values, seed) for name, values in scores.items()}
    single = max((scores["photo"], scores["text"]), key=lambda values: values.sum())
    return figures | {"ndcg_both_over_best_single_p": metrics.p_of_gain(scores["both"], single, seed)}


def count(catalogue: Catalogue, table: pd.DataFrame) -> dict[str, int]:
    """table: listings.csv."""
    return {
        "listings": len(catalogue.listings),
        "photos": len(catalogue.photos),
        "test_listings": int((catalogue.listings["split"] == "test").sum()),
        "measured": len(catalogue.measured),
        "measured_photos": len(catalogue.queries),
        "measured_with_photo": int(table["photo_right"].notna().sum()),
        "measured_with_sibling": int(table["same_listing_hit_at_1"].notna().sum()),
        "measured_priced": int(table["price"].between(*catalogue.price_bounds).sum()),
        "compared": int(table[["ndcg_at_10_photo", "ndcg_at_10_text"]].notna().all(axis=1).sum()),
    }


def tabulate(
    catalogue: Catalogue,
    guesses: dict[str, np.ndarray],
    head_right: np.ndarray,
    prices: pd.DataFrame,
    retrieved: dict[str, np.ndarray],
    ranked: dict[str, np.ndarray],
) -> pd.DataFrame:
    """listings.csv: what was found for each measured listing."""
    listings = catalogue.listings.iloc[catalogue.measured].reset_index(drop=True)
    return listings[["product_id", "cluster", "label"]].assign(
        photo_right=is_right(guesses["photo"], catalogue.truth),
        photo_right_same_head=head_right,
        **{f"{name}_guess": guesses[name].argmax(axis=1) for name in ("text", "fused")},
        **prices,
        **retrieved,
        **{f"ndcg_at_10_{name}": values for name, values in ranked.items()},
    )


def with_ids(questions: pd.DataFrame, listings: pd.DataFrame) -> pd.DataFrame:
    """questions.csv: the id of the listing asked for, "" for none, in place of its row."""
    ids = np.append(listings["product_id"].to_numpy(), "")  # the row -1 is the last
    return questions.drop(columns="row").assign(product_id=ids[questions["row"].to_numpy()])


def write_report(
    figures: dict,
    counts: dict[str, int],
    guesses: dict[str, np.ndarray],
    catalogue: Catalogue,
    answered: search_quality.Answered,
) -> str:
    """report.md."""
    class_scores = {
        name: metrics.class_scores(*guessed(each, catalogue.truth), catalogue.classes) for name, each in guesses.items()
    }
    settings = {
        "currency": catalogue.currency,
        "price_bounds": catalogue.price_bounds,
        "fitted_photos": FITTED_PHOTOS,
        "whitened_dimension": WHITENED_DIMENSION,
        "head_c": HEAD_C,
    }
    return report.write(
        figures, counts, class_scores, list(EVIDENCE), settings, answered.titles(), answered.reliability(), catalogue.warnings
    )


def draw_gallery(catalogue: Catalogue, answers: list[Answered], images_dir: Path, seed: int) -> bytes:
    """Queries and their best answers, a row each: as far as there are, half of them begin with a right answer."""
    right = [answer for answer in answers if answer.grades[:1].any()]
    wrong = [answer for answer in answers if not answer.grades[:1].any()]
    n_right = max(GALLERY_QUERIES // 2, GALLERY_QUERIES - len(wrong))
    shown = []
    for part, size in ((right, n_right), (wrong, GALLERY_QUERIES - min(n_right, len(right)))):
        shown += [part[position] for position in draw_rows(np.arange(len(part)), size, seed)]
    first_photo = catalogue.photos.drop_duplicates("listing_row").set_index("listing_row")["image_id"]
    tiles = []
    for answer in shown:
        asked = catalogue.photos.iloc[answer.photo_row]
        best = list(zip(answer.listing_rows, answer.grades, strict=True))[:GALLERY_ANSWERS]
        for image_id, row, frame in [
            (asked["image_id"], asked["listing_row"], "query"),
            *((first_photo.get(row), row, grade) for row, grade in best),
        ]:
            jpeg = photos.load(images_dir, image_id, bytes) if image_id else None
            tiles.append((jpeg, catalogue.listings["leaf_category"][row], FRAMES[frame]))
        tiles += [(None, "", None)] * (GALLERY_ANSWERS - len(best))
    return pictures.contact_sheet(tiles, GALLERY_ANSWERS + 1, GALLERY_TILE_PX)


def draw_hardest(catalogue: Catalogue, images_dir: Path) -> bytes:
    """A contact sheet (PNG) of the test photos that the model is surest about, and wrong; below, the truth and its guess."""
    short = [re.split(",| & ", category_levels(name)[-1])[0] for name in catalogue.classes]
    table, probabilities = catalogue.photos.iloc[catalogue.queries], np.asarray(catalogue.probabilities[catalogue.queries])
    labels, guess = table["label"].to_numpy(), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(guess != labels)
    hardest = wrong[np.argsort(-probabilities[wrong, guess[wrong]], kind="stable")][:HARDEST_TILES]
    tiles = []
    for row in hardest:
        jpeg = photos.load(images_dir, table["image_id"].iloc[row], bytes)
        tiles.append((jpeg, f"{short[labels[row]]}, not {short[guess[row]]}", FRAMES[0]))
    return pictures.contact_sheet(tiles, HARDEST_COLUMNS, HARDEST_TILE_PX)


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
