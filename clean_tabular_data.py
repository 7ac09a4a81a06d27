"""Clean the table of listings: recognise the records, reject what is incomplete, redact, label.

Reads   data/raw/Products.csv, data/raw/Images.csv (or s3://)
Writes  data/tabular/ (products.csv, images.csv, labels.json, rejected.csv, report.json)
Run     python clean_tabular_data.py
"""

import argparse
import functools
import sys
from collections import Counter
from pathlib import Path

import pandas as pd

from marketplace.cleaning import records
from marketplace.cleaning.listings import CATEGORY_SEPARATOR, join_spellings, plausible_prices
from marketplace.files import atomic, cli, s3, stages
from marketplace.files.stages import StageError

REJECT_COLUMNS = ["source", "record", "id", "reason", "raw"]
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)  # of the prices, in the report


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--products", help="path or s3:// URI of the listings (default: DATA/raw/Products.csv)")
    parser.add_argument("--images-csv", help="path or s3:// URI of the photos' table (default: DATA/raw/Images.csv)")
    parser.add_argument(
        "--category-depth",
        default=1,
        type=cli.positive,
        help="levels of the category path that make the label (default: %(default)s)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    raw_dir = args.data / "raw"
    products_path = s3.local_file(args.products or raw_dir / "Products.csv", raw_dir / "s3")
    photos_path = s3.local_file(args.images_csv or raw_dir / "Images.csv", raw_dir / "s3")
    raw = {"--products": stages.digest(products_path), "--images-csv": stages.digest(photos_path)}
    with stages.open_stage(args.data, "tabular", {"category_depth": args.category_depth}, raw) as stage:
        if stage.is_done():
            return stage.summary()
        stage.begin()

        tidied = Counter()
        listings, rejects = clean_listings(products_path, stage.folder, tidied)
        labels = label(listings, args.category_depth)
        photos, photo_rejects = clean_photos(photos_path, listings)
        listings["price_plausible"] = plausible_prices(listings["price"], listings["main_category"])
        listings["photos"] = listings["product_id"].map(photos["product_id"].value_counts()).fillna(0).astype("int64")
        report = make_report(listings, photos, rejects, photo_rejects, tidied)

        write_listings(stage.folder, listings)
        atomic.write_csv(stage.folder / "images.csv", photos)
        write_labels(stage.folder, labels, args.category_depth)
        write_rejects(stage.folder, rejects + photo_rejects)
        atomic.write_json(stage.folder / "report.json", report)
        print(summarise(report), file=sys.stderr)
        return stage.finish(count(report, labels))


def clean_listings(path: Path, folder: Path, tidied: Counter) -> tuple[pd.DataFrame, list[dict]]:
    """The listings that can be kept, and the rejects; StageError when there is none to keep, with the rejects in `folder`.

    tidied: counts the listings whose texts were spelt in another way, by raw column; "joined" for categories in other capitals.
    """
    clean = functools.partial(records.clean_listing, tidied=tidied)
    rows, rejects = records.clean_records(path, "Products.csv", records.LISTING_COLUMNS, records.CLEAN_LISTING_COLUMNS, clean)
    if not rows:
        write_rejects(folder, rejects)
        reasons = ", ".join(f"{reason}: {times}" for reason, times in count_reasons(rejects).items()) or "no records"
        raise StageError(f"{path} holds no listing that can be kept ({reasons}): see {folder / 'rejected.csv'}")
    listings = pd.DataFrame(rows)
    paths = join_spellings(listings["category"])
    tidied["joined"] = int((paths != listings["category"]).sum())
    levels = paths.str.split(CATEGORY_SEPARATOR)
    return listings.assign(category=paths, main_category=levels.str[0], leaf_category=levels.str[-1]), rejects


def clean_photos(path: Path, listings: pd.DataFrame) -> tuple[pd.DataFrame, list[dict]]:
    """The photos of these listings, and the rejects."""
    labels = dict(zip(listings["product_id"], listings["label"].tolist(), strict=True))
    clean = functools.partial(records.clean_photo, labels=labels)
    rows, rejects = records.clean_records(path, "Images.csv", records.PHOTO_COLUMNS, records.CLEAN_PHOTO_COLUMNS, clean)
    return pd.DataFrame(rows, columns=None if rows else records.CLEAN_PHOTO_COLUMNS), rejects


def label(listings: pd.DataFrame, depth: int) -> dict[str, int]:
    """Number the category paths, cut at `depth` levels, in the column "label"; path -> label."""
    names = listings["category"].map(lambda path: CATEGORY_SEPARATOR.join(path.split(CATEGORY_SEPARATOR)[:depth]))
    labels = {name: number for number, name in enumerate(sorted(set(names)))}
    listings["label"] = names.map(labels)
    return labels


def write_listings(folder: Path, listings: pd.DataFrame) -> None:
    extra = [name for name in listings.columns if name not in records.CLEAN_LISTING_COLUMNS]
    table = listings[records.CLEAN_LISTING_COLUMNS + extra]
    plausible = table["price_plausible"].map({True: "true", False: "false"})
    atomic.write_csv(folder / "products.csv", table.assign(price_plausible=plausible))


def write_labels(folder: Path, labels: dict[str, int], depth: int) -> None:
    names = {str(number): name for name, number in labels.items()}
    atomic.write_json(folder / "labels.json", {"depth": depth, "encoder": labels, "decoder": names})


def write_rejects(folder: Path, rejects: list[dict]) -> None:
    atomic.write_csv(folder / "rejected.csv", pd.DataFrame(rejects, columns=REJECT_COLUMNS))


def count_reasons(rejects: list[dict]) -> dict[str, int]:
    return dict(sorted(Counter(reject["reason"] for reject in rejects).items()))


def make_report(
    listings: pd.DataFrame, photos: pd.DataFrame, rejects: list[dict], photo_rejects: list[dict], tidied: Counter
) -> dict:
    """Counts by reason and of tidied texts, price quantiles (pounds) and rows per category."""
    plausible = listings.loc[listings["price_plausible"], "price"]
    photo_reasons = count_reasons(photo_rejects)
    return {
        "listings": {"read": len(listings) + len(rejects), "kept": len(listings), "rejected": count_reasons(rejects)},
        "photos": {"read": len(photos) + len(photo_rejects), "kept": len(photos), "rejected": photo_reasons},
        "listings_without_photo": int((listings["photos"] == 0).sum()),
        "photos_without_listing": photo_reasons.get("no_listing", 0),
        "texts_tidied": {column: tidied[column] for column in ("product_name", "category", "location")},
        "categories_joined": tidied["joined"],
        "prices_implausible": len(listings) - len(plausible),
        "price_quantiles": {"all": quantiles(listings["price"]), "plausible": quantiles(plausible)},
        "rows_per_main_category": listings["main_category"].value_counts().sort_index().to_dict(),
        "rows_per_category": listings["category"].value_counts().sort_index().to_dict(),
    }


def quantiles(prices: pd.Series) -> dict[str, float]:
    return {f"{share:g}": round(float(prices.quantile(share)), 2) for share in QUANTILES} if len(prices) else {}


def summarise(report: dict) -> str:
    """The report in a few lines for a person."""
    lines = []
    for kind in ("listings", "photos"):
        reasons = ", ".join(f"{reason} {times}" for reason, times in report[kind]["rejected"].items()) or "none"
        lines.append(f"{kind}: {report[kind]['read']} read, {report[kind]['kept']} kept; rejected: {reasons}")
    lines.append(
        f"{report['listings_without_photo']} listings without a photo, {report['prices_implausible']} implausible prices"
    )
    tidied = ", ".join(f"{column} {times}" for column, times in report["texts_tidied"].items() if times) or "none"
    lines.append(f"texts tidied: {tidied}; categories joined to a commoner spelling: {report['categories_joined']}")
    prices = ", ".join(f"{float(share):.0%} £{price:,.2f}" for share, price in report["price_quantiles"]["plausible"].items())
    lines.append(f"plausible prices: {prices or 'none'}")
    lines += [f"{rows:>9,}  {name}" for name, rows in report["rows_per_main_category"].items()]
    return "\n".join(lines)


def count(report: dict, labels: dict[str, int]) -> dict[str, int]:
    """What the stage's summary says."""
    rejected = {kind: sum(report[kind]["rejected"].values()) for kind in ("listings", "photos")}
    return {
        "listings": report["listings"]["kept"],
        "listings_rejected": rejected["listings"],
        "photos": report["photos"]["kept"],
        "photos_rejected": rejected["photos"],
        "labels": len(labels),
    }


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
