"""Train and evaluate on K splits of a data set, each cluster in test once, against plain baselines on the same splits.

Reads   FOLDER: a raw export (Products.csv, Images.csv, images/ or images_fb.zip), or images.csv (image, sender_id, label) with
        images/ (github.com/alexeygrigorev/clothing-dataset)
Writes  data/quality/ (all/: what is cleaned once; fold-0/, fold-1/ ...: every stage's folder)
Run     python benchmarks/quality.py FOLDER --folds 5 --backbone efficientnet_lite0   other flags go to train.py
        python benchmarks/quality.py FOLDER --queries queries.csv                     typed queries, as for evaluate.py
        python benchmarks/quality.py --quick                                            the synthetic marketplace, 2 folds
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import results
from scipy.stats import bootstrap, permutation_test
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from demo import sample
from marketplace import metrics
from marketplace.cleaning import listings
from marketplace.files import atomic, cli, reading, stages
from marketplace.retrieval import search_quality

VALIDATION_SHARE = 0.15
RESAMPLES = 2_000
PERMUTATIONS = 9_999
NOMINAL_COVERAGE = 0.8
QUICK = {"listings": 104, "train": ["--backbone", "efficientnet_lite0", "--image-size", "64", "--epochs", "5"]}
# The clothes have no words: the same for every listing, and under the 8 that would join them, so that the photos alone must do.
NAME = "Second-hand clothing | in London, London | Gumtree"
DESCRIPTION = "Second-hand clothing"
PRICE = "£10.00"
NAMED_AMOUNT = "£ ?[0-9]"  # a seller who names one often names the price, or what the thing cost


# The data.


def write_raw(source_dir: Path, raw_dir: Path) -> None:
    """Write images.csv in the raw export's schema, one listing a photo, and link the photos."""
    table = pd.read_csv(source_dir / "images.csv", dtype=str, keep_default_na=False)
    products = pd.DataFrame(
        {
            "id": [str(uuid.uuid5(uuid.NAMESPACE_OID, image)) for image in table["image"]],
            "product_name": NAME,
            "category": "Clothes / " + table["label"],
            "product_description": DESCRIPTION,
            "price": PRICE,
            "location": "London, London",
            "sender_id": table["sender_id"],
        }
    )
    raw_dir.mkdir(parents=True, exist_ok=True)
    products.to_csv(raw_dir / "Products.csv", lineterminator="\n")
    pd.DataFrame({"id": table["image"], "product_id": products["id"]}).to_csv(raw_dir / "Images.csv", lineterminator="\n")
    (raw_dir / "images").unlink(missing_ok=True)
    (raw_dir / "images").symlink_to((source_dir / "images").resolve())


def run_script(data_dir: Path, script: str, *script_flags: str | Path) -> None:
    command = [sys.executable, ROOT / script, "--data", data_dir, *script_flags]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit(f"error: {script} failed in {data_dir}")


def clean(source_dir: Path | None, data_dir: Path) -> list[str]:
    """Clean the tables and the photos, and cluster the listings; returns the flags of dataset.py. None: synthetic."""
    table_flags, photo_flags, dataset_flags = [], [], []
    if source_dir is None:
        if not (data_dir / "raw" / "Products.csv").exists():
            sample.write(data_dir / "raw", listings=QUICK["listings"])
    elif (source_dir / "Products.csv").exists():
        table_flags = ["--products", source_dir / "Products.csv", "--images-csv", source_dir / "Images.csv"]
        folder = source_dir / "images"
        photo_flags = ["--photos", folder if folder.is_dir() else source_dir / "images_fb.zip"]
    elif (source_dir / "images.csv").exists():
        write_raw(source_dir, data_dir / "raw")
        table_flags, dataset_flags = ["--category-depth", "2"], ["--group-column", "sender_id"]
    else:
        sys.exit(f"error: {source_dir} holds neither Products.csv nor images.csv: give the folder of a data set")
    run_script(data_dir, "clean_tabular_data.py", *table_flags)
    run_script(data_dir, "clean_images.py", *photo_flags)
    run_script(data_dir, "dataset.py", *dataset_flags)
    return dataset_flags


def folds_of(table: pd.DataFrame, folds: int, seed: int) -> list[np.ndarray]:
    """For each fold the split of each listing (cluster, label): no cluster in two splits, each in test once, labels spread."""
    labels, clusters = table["label"].to_numpy(), table["cluster"].to_numpy()
    parts = max(2, round((1 - 1 / folds) / VALIDATION_SHARE))
    splits = []
    for rest, _ in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, clusters):
        inner = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        _, validation = next(inner.split(labels[rest], labels[rest], clusters[rest]))
        split = np.full(len(table), "test", object)
        split[rest] = "train"
        split[rest[validation]] = "validation"
        splits.append(split)
    return splits


def link_folder(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link)


def prepare_fold(cleaned_dir: Path, fold_dir: Path, product_split: pd.Series) -> None:
    """A data folder whose cleaned photos and tables are those of `cleaned_dir`, the split a column more of products.csv."""
    for name in ("tabular", "images"):
        link_folder(cleaned_dir / name, fold_dir / name)
    folder, cleaned = fold_dir / "tabular", stages.read_manifest(fold_dir / "tabular")
    products = reading.read_csv(folder / "products.csv")
    atomic.write_csv(folder / "products.csv", products.assign(fold_split=products["product_id"].map(product_split)))
    stages.Stage(fold_dir, "tabular", cleaned["arguments"], cleaned["inputs"]).finish(cleaned["counts"], cleaned["outputs"])


# The baselines, on the training rows alone.


def tfidf():
    """Words and word pairs, and two to five characters within words."""
    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, dtype=np.float32),
    )


def baselines(fold_dir: Path) -> pd.DataFrame:
    """Of each test listing: the category by TF-IDF and a linear SVM, the price by TF-IDF, one-hot category and ridge, and whether
    its seller names an amount in pounds."""
    products = listings.read_products(fold_dir / "tabular")
    products["text"] = listings.texts(products)
    train, test = (products[products["fold_split"] == name] for name in ("train", "test"))
    priced = train[train["price_plausible"] & (train["price"] > 0)]
    category = make_pipeline(tfidf(), LinearSVC()).fit(train["text"], train["label"])
    kinds = [("words", tfidf(), "text"), ("category", OneHotEncoder(handle_unknown="ignore", dtype=np.float32), ["label"])]
    price = make_pipeline(ColumnTransformer(kinds), Ridge()).fit(priced, np.log10(priced["price"]))
    return pd.DataFrame(
        {
            "product_id": test["product_id"],
            "text_guess_baseline": category.predict(test["text"]),
            "price_baseline": 10 ** price.predict(test),
            "names_amount": test["text"].str.contains(NAMED_AMOUNT),
        }
    )


# The comparison.


class Pooled:
    """The test listings of all folds, for statistics that are means over the folds, and resampled by cluster."""

    def __init__(self, table: pd.DataFrame):
        """table: fold, cluster, and the columns that statistics are made of; a row each listing."""
        table = table.sort_values("cluster", kind="stable", ignore_index=True)
        self.columns = {name: column.to_numpy() for name, column in table.items()}
        self.clusters, self._start, self._size = np.unique(table["cluster"], return_index=True, return_counts=True)

    def rows(self, drawn: np.ndarray) -> np.ndarray:
        """The rows of drawn clusters, as often as they were drawn."""
        size = self._size[drawn]
        return np.repeat(self._start[drawn] - size.cumsum() + size, size) + np.arange(size.sum())

    def mean_over_folds(self, statistic: Callable[..., float], names: list[str], drawn: np.ndarray) -> float:
        """statistic(column, ...) of the drawn clusters' rows where no column is NaN, in each fold, and the mean of that."""
        rows = self.rows(drawn)
        columns = [self.columns[name][rows] for name in names]
        fold = np.where(np.isnan(np.stack(columns)).any(axis=0), -1, self.columns["fold"][rows])
        return float(np.mean([statistic(*(column[fold == one] for column in columns)) for one in np.unique(fold[fold >= 0])]))


def compare(pooled: Pooled, statistic: Callable[..., float], ours: list[str], baseline: list[str] | float) -> dict | None:
    """Ours, the baseline's, their difference, and the 95% interval of that by the percentile bootstrap over clusters.

    baseline: columns as for ours, or a constant. None where no listing has such evidence.
    """
    named = [*ours, *(baseline if isinstance(baseline, list) else [])]
    defined = ~np.isnan(np.stack([pooled.columns[name] for name in named])).any(axis=0)
    clusters = np.unique(np.searchsorted(pooled.clusters, pooled.columns["cluster"][defined]))
    if len(clusters) < 2:
        return None

    def values(drawn: np.ndarray) -> tuple[float, float]:
        own = pooled.mean_over_folds(statistic, ours, drawn)
        return own, pooled.mean_over_folds(statistic, baseline, drawn) if isinstance(baseline, list) else baseline

    def difference(drawn: np.ndarray) -> float:
        own, other = values(drawn)
        return own - other

    own, other = values(clusters)
    if not np.isfinite([own, other]).all():
        return None
    drawn = bootstrap(
        (clusters,), difference, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = drawn.confidence_interval
    numbers = {"ours": own, "baseline": other, "difference": own - other, "low": low, "high": high}
    return {name: round(float(number), 4) for name, number in numbers.items()} if np.isfinite([low, high]).all() else None


def p_value(pooled: Pooled, ours: str, baseline: str) -> float:
    """One-sided, by flipping the signs of the clusters' summed differences."""
    table = pd.DataFrame({name: pooled.columns[name] for name in ("cluster", ours, baseline)}).dropna()
    sums = (table[ours] - table[baseline]).groupby(table["cluster"]).sum().to_numpy()
    test = permutation_test(
        (sums,),
        lambda sums, axis: sums.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=500,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return round(float(test.pvalue), 5)


def compare_all(table: pd.DataFrame) -> dict[str, dict | None]:
    """table: evaluate.py's listings.csv of every fold, with the baselines' columns and `fold`."""
    table = table.assign(
        text_right=(table["text_guess"] == table["label"]).astype(float),
        fused_right=(table["fused_guess"] == table["label"]).astype(float),
        text_right_baseline=(table["text_guess_baseline"] == table["label"]).astype(float),
        priced=table["price"].where(table["price"].between(*metrics.PRICE_BOUNDS)),
    )
    table["inside"] = (
        table["priced"].between(table["price_low"], table["price_high"]).where(table["priced"].notna()).astype(float)
    )
    table["priced_unnamed"] = table["priced"].where(~table["names_amount"])
    for name in ("price_median", "price_baseline", "training_median_price"):
        table[f"{name}_error"] = (table["priced"] - table[name]).abs()
    for name in ("price_median", "training_median_price"):
        table[f"{name}_error_unnamed"] = table[f"{name}_error"].where(~table["names_amount"])
    # Photo, words and both on the same listings; the better single kind of evidence is the one with the better mean.
    asked = ["ndcg_at_10_photo", "ndcg_at_10_text", "ndcg_at_10_both", "ndcg_at_10_both_without_category"]
    table.loc[table[asked].isna().any(axis=1), asked] = np.nan
    single = table[asked[:2]].mean().fillna(0).idxmax()
    pooled = Pooled(table)

    def means(ours: str, baseline: str | float) -> dict | None:
        return compare(pooled, np.mean, [ours], [baseline] if isinstance(baseline, str) else baseline)

    ratio = metrics.error_ratio
    median = "training_median_price_error"
    found = {
        "text_accuracy": means("text_right", "text_right_baseline"),
        "fused_accuracy": means("fused_right", "text_right"),
        "price_log_r2": compare(pooled, metrics.log_r2, ["priced", "price_median"], ["priced", "price_baseline"]),
        "price_error_over_median_baseline": compare(pooled, ratio, ["price_median_error", median], 1.0),
        "price_log_r2_no_amount_named": compare(
            pooled, metrics.log_r2, ["priced_unnamed", "price_median"], ["priced_unnamed", "price_baseline"]
        ),
        "price_error_over_median_baseline_no_amount_named": compare(
            pooled, ratio, ["price_median_error_unnamed", f"{median}_unnamed"], 1.0
        ),
        "price_error_over_median_baseline_ridge": compare(
            pooled, ratio, ["price_median_error", median], ["price_baseline_error", median]
        ),
        "price_interval_coverage": means("inside", NOMINAL_COVERAGE),
        "photo_accuracy": means("photo_right", "photo_right_same_head"),
        "category_p_at_1": means("category_p_at_1", "category_p_at_1_whitened_trunk"),
        "category_p_at_1_learned": means("category_p_at_1_learned", "category_p_at_1_learned_whitened_trunk"),
        "map_at_r": means("map_at_r", "map_at_r_frozen_trunk"),
        "map_at_r_whitened": means("map_at_r", "map_at_r_whitened_trunk"),
        "same_listing_hit_at_1": means("same_listing_hit_at_1", "same_listing_hit_at_1_whitened_trunk"),
        "same_listing_hit_at_10": means("same_listing_hit_at_10", "same_listing_hit_at_10_whitened_trunk"),
        "ndcg_at_10_both": means("ndcg_at_10_both", single),
        "ndcg_at_10_both_without_category": means("ndcg_at_10_both_without_category", single),
    }
    if found["map_at_r"]:
        found["map_at_r"]["relative"] = round(found["map_at_r"]["difference"] / found["map_at_r"]["baseline"], 4)
    for name in ("ndcg_at_10_both", "ndcg_at_10_both_without_category"):
        if found[name]:
            found[name] |= {"baseline_is": single.removeprefix("ndcg_at_10_"), "p": p_value(pooled, name, single)}
    return found


def compare_questions(questions: pd.DataFrame) -> dict[str, dict | None]:
    """What shoppers type, ours beside plain BM25's. questions: evaluate.py's questions.csv of every fold, with `fold` and the
    `cluster` of the listing asked for; what asks for no listing is a cluster of its own words."""
    questions = questions.assign(cluster=questions["cluster"].fillna(questions["words"]))
    return {
        search_quality.name_of(kind, figure): compare(Pooled(table), np.mean, ["ours"], ["bm25"])
        for (kind, figure), table in questions.groupby(["kind", "figure"], sort=False)
    }


def compare_with_targets(reports: list[dict]) -> dict[str, dict | None]:
    """What should be answered by nothing, and how honest the score is: the mean over the folds' report.json."""
    found: dict[str, dict | None] = {}
    for name, target in search_quality.TARGETS.items():
        values = [report[name]["value"] for report in reports if report[name]]
        ours = round(float(np.mean(values)), 4) if values else np.nan
        found[name] = {"ours": ours, "baseline": target, "difference": round(ours - target, 4)} if values else None
    return found


def show(found: dict[str, dict | None]) -> None:
    print(f"\n{'mean over folds':40}{'ours':>10}{'baseline':>10}{'difference':>12}   95% interval", file=sys.stderr)
    for name, figure in found.items():
        if figure is None:
            print(f"{name:40}{'-':>10}", file=sys.stderr)
            continue
        row = f"{name:40}{figure['ours']:10.4f}{figure['baseline']:10.4f}{figure['difference']:+12.4f}"
        print(f"{row}   {figure['low']:+.4f} to {figure['high']:+.4f}" if "low" in figure else row, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False, epilog="Other flags go to train.py."
    )
    parser.add_argument("source", nargs="?", type=Path, help="folder of a data set")
    parser.add_argument("--data", default="data/quality", type=Path, help="folder of all folds (default: %(default)s)")
    parser.add_argument("--folds", default=5, type=cli.positive, help="splits (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the synthetic marketplace in 2 folds, in DATA/quick")
    parser.add_argument("--queries", type=Path, help="typed queries, for evaluate.py")
    parser.add_argument("--seed", default=0, type=cli.not_negative, help="of the folds (default: %(default)s)")
    args, train_flags = parser.parse_known_args()
    if args.quick == bool(args.source):
        parser.error("give the folder of a data set, or --quick")
    if args.quick:
        args.data, args.folds, train_flags = args.data / "quick", 2, [*QUICK["train"], *train_flags]
    if args.folds < 2:
        parser.error("--folds is at least 2")

    dataset_flags = clean(args.source, args.data / "all")
    table = reading.read_csv(args.data / "all" / "dataset" / "listings.csv").astype({"label": int})
    evaluate_flags = ["--max-queries", str(len(table)), *(["--queries", args.queries] if args.queries else [])]
    measured_folds, questions, reports = [], [], []
    for fold, split in enumerate(folds_of(table, args.folds, args.seed)):
        fold_dir = args.data / f"fold-{fold}"
        print(f"fold {fold + 1} of {args.folds}", file=sys.stderr)
        prepare_fold(args.data / "all", fold_dir, pd.Series(split, index=table["product_id"]))
        if fold:  # the untrained backbone's features of every photo depend on no split
            link_folder(args.data / "fold-0" / "features", fold_dir / "features")
        run_script(fold_dir, "dataset.py", "--split-column", "fold_split", *dataset_flags)
        torn = stages.read_manifest(fold_dir / "dataset")["counts"]["clusters_spanning_given_splits"]
        assert not torn, f"{torn} clusters are in two splits"
        run_script(fold_dir, "train.py", *train_flags)
        run_script(fold_dir, "extract_embeddings.py")
        run_script(fold_dir, "build_index.py")
        run_script(fold_dir, "evaluate.py", *evaluate_flags)
        measured = pd.read_csv(fold_dir / "evaluation" / "listings.csv")
        measured_folds.append(measured.merge(baselines(fold_dir), on="product_id", validate="one_to_one").assign(fold=fold))
        asked = pd.read_csv(fold_dir / "evaluation" / "questions.csv")
        questions.append(asked.merge(table[["product_id", "cluster"]], on="product_id", how="left").assign(fold=fold))
        reports.append(reading.read_json(fold_dir / "evaluation" / "report.json"))
    pooled = pd.concat(measured_folds, ignore_index=True)
    assert sorted(pooled["product_id"]) == sorted(table["product_id"]), "each listing is in test once"
    found = compare_questions(pd.concat(questions, ignore_index=True)) | compare_with_targets(reports) | compare_all(pooled)
    show(found)
    print(json.dumps(found))
    if not args.quick:
        kind = "export" if (args.source / "Products.csv").exists() else "clothing"
        results.save(f"quality_{kind}", found, results.command(args.source, args.data, args.queries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
