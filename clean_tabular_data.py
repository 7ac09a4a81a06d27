"""Clean the table of listings: recognise the records, reject what is incomplete, redact, label.

Reads   data/raw/Products.csv, data/raw/Images.csv (or s3://)
Writes  data/tabular/ (products.csv, products_records.npy, images.csv, labels.json, rejected.csv, report.json)
Run     python clean_tabular_data.py
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from marketplace.cleaning import export_csv, listings, redaction
from marketplace.files import atomic, changes, cli, s3, stages
from marketplace.files.stages import StageError

PRODUCT_COLUMNS = ["id", "product_name", "category", "product_description", "price", "location"]


PHOTO_COLUMNS = ["id", "product_id"]


CLEAN_PRODUCT_COLUMNS = [
    *("product_id", "name", "description", "category", "main_category", "leaf_category", "label"),
    *("price", "price_plausible", "town", "county", "posted_on", "photos"),
]


CLEAN_PHOTO_COLUMNS = ["image_id", "product_id", "label"]


REJECT_COLUMNS = ["source", "record", "id", "reason", "raw"]


OUTPUTS = ["products.csv", "images.csv", "labels.json", "products_records.npy", "rejected.csv", "report.json"]


READ_LATER = OUTPUTS[:4]  # by other stages


MIN_CATEGORY_PRICES = 30  # fewer prices say little about their category: all categories are taken instead


PRICE_DEVIATIONS = 4.0


PRICE_SPREAD = (0.5, 0.65)  # least and greatest spread of a category's log10 prices, in factors of ten


QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


# Cleaning: a record becomes a row, or a reason.


def clean_product(raw: dict[str, str], extra: dict[str, str]) -> tuple[str, dict]:
    """The reason to reject a listing, or an empty one and its row. extra: raw column -> its name in products.csv."""
    for column in PRODUCT_COLUMNS:
        if not raw[column].strip():
            return f"null_{column}", {}
    if not redaction.UUID.fullmatch(raw["id"].strip()):
        return "bad_id", {}
    try:
        price = listings.parse_price(raw["price"])
    except ValueError:
        return "bad_price", {}
    name = redaction.redact(listings.title(raw["product_name"]))
    description, posted_on = redaction.strip_leak(listings.normalise_breaks(raw["product_description"]))
    levels = listings.category_levels(redaction.redact(raw["category"]))
    for column, value in (("product_name", name), ("product_description", description), ("category", levels)):
        if not value:
            return f"null_{column}", {}
    town, county = listings.split_place(redaction.redact(raw["location"]))
    return "", {
        "product_id": raw["id"].strip().lower(),
        "name": name,
        "description": redaction.redact(description),
        "category": listings.CATEGORY_SEPARATOR.join(levels),
        "main_category": levels[0],
        "leaf_category": levels[-1],
        "price": price,
        "town": town,
        "county": county,
        "posted_on": posted_on,
        **clean_extra(raw, extra),
    }


def clean_photo(raw: dict[str, str], extra: dict[str, str], labels: dict[str, int]) -> tuple[str, dict]:
    """The reason to reject a photo, or an empty one and its row. labels: product id -> label."""
    for column in PHOTO_COLUMNS:
        if not raw[column].strip():
            return f"null_{column}", {}
    image_id, product_id = raw["id"].strip().lower(), raw["product_id"].strip().lower()
    if not redaction.UUID.fullmatch(image_id):
        return "bad_id", {}
    if product_id not in labels:
        return "no_listing", {}
    return "", {"image_id": image_id, "product_id": product_id, "label": labels[product_id], **clean_extra(raw, extra)}


def clean_extra(raw: dict[str, str], extra: dict[str, str]) -> dict[str, str]:
    return {name: clean_text(raw[column]) for column, name in extra.items()}


def clean_text(text: str) -> str:
    """Any raw text with its line breaks normalised and its personal data marked."""
    return redaction.redact(redaction.mask_leak(listings.normalise_breaks(text)))


def extra_columns(columns: list[str], required: list[str], taken: list[str]) -> dict[str, str]:
    """Raw column -> its name in the cleaned file, raw_<name> where the stage has a column of that name itself."""
    return {
        name: f"raw_{name}" if name in taken else name
        for name in columns
        if name not in required and not export_csv.is_unnamed(name)
    }


def clean_records(
    path: Path, source: str, required: list[str], clean: Callable, taken: list[str]
) -> tuple[list[dict], list[dict]]:
    """Rows and rejects of one export, in its order; every record is one or the other.

    clean: (raw record, extra columns) -> (reason, row), the row's first key being its id.
    """
    csv.field_size_limit(sys.maxsize)
    lines = export_csv.read_lines(path)
    layout = export_csv.read_layout(path, lines, required)
    extra = extra_columns(layout.columns, required, taken)
    rows, rejects, seen, number = [], [], set(), 0
    records = tqdm(export_csv.read_records(lines, layout), desc=source, unit=" records", disable=None)
    for number, (fields, text) in enumerate(records, start=1):  # noqa: B007
        reason, row = "bad_record", {}
        raw = dict(zip(reversed(layout.columns), reversed(fields), strict=True)) if fields else {}
        if raw:
            reason, row = clean(raw, extra)
        row_id = next(iter(row.values()), "")
        if row_id in seen:
            reason = "duplicate_id"
        if not reason:
            rows.append(row)
            seen.add(row_id)
            continue
        start = layout.start.match(text)
        known = raw["id"].strip() if raw else start[1] if start else ""
        known = known.lower() if redaction.UUID.fullmatch(known) else redaction.redact(known)
        rejects.append({"source": source, "record": number, "id": known, "reason": reason, "raw": clean_text(text)})
    if len(rows) + len(rejects) != number:
        raise AssertionError(f"{number} records of {path}, but {len(rows)} kept and {len(rejects)} rejected")
    return rows, rejects


# Labels and prices.


def label_names(categories: pd.Series, depth: int) -> pd.Series:
    """The category paths cut at `depth` levels."""
    separator = listings.CATEGORY_SEPARATOR
    return categories.map(lambda path: separator.join(path.split(separator)[:depth]))


def plausible_prices(prices: pd.Series, categories: pd.Series) -> pd.Series:
    """Whether each price, in pounds, can be meant: a bool each.

    Prices of one category spread over factors, so they are compared as log10. The centre is the category's median, the
    spread 1.4826 times the median absolute deviation (the standard deviation of a normal distribution, unmoved by jokes).
    The spread is bounded on both sides: a category of equal prices must not call all others jokes, and one of cars and
    car parts must not believe 1234567. Implausible is what lies more than 4 spreads from the centre, 0, and digits typed
    for fun: 11111, 12345 and longer ones.
    """
    positive = prices > 0
    logs = np.log10(prices.where(positive))
    counts = logs.groupby(categories).transform("count")

    def centre(values: pd.Series) -> pd.Series:
        return values.groupby(categories).transform("median").where(counts >= MIN_CATEGORY_PRICES, values.median())

    deviations = (logs - centre(logs)).abs()
    spread = (1.4826 * centre(deviations)).clip(*PRICE_SPREAD)
    whole = prices.map("{:.0f}".format)
    typed_for_fun = (whole.str.len() >= 5) & (whole.map(lambda digits: digits in "1234567890" or len(set(digits)) == 1))
    return positive & (deviations <= PRICE_DEVIATIONS * spread) & ~typed_for_fun


# The stage.


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
    stage = stages.Stage(
        args.data / "tabular",
        arguments={"category_depth": args.category_depth},
        inputs={"products": stages.digest(products_path), "images_csv": stages.digest(photos_path)},
    )
    if done := stage.finished():
        return done
    stage.begin()

    rows, rejects = clean_records(products_path, "Products.csv", PRODUCT_COLUMNS, clean_product, CLEAN_PRODUCT_COLUMNS)
    if not rows:
        write_rejects(stage.folder, rejects)
        reasons = ", ".join(f"{reason}: {count}" for reason, count in count_reasons(rejects).items()) or "no records"
        raise StageError(f"{products_path} holds no listing that can be kept ({reasons}): see {stage.folder / 'rejected.csv'}")
    products = pd.DataFrame(rows)
    names = label_names(products["category"], args.category_depth)
    encoder = {name: label for label, name in enumerate(sorted(set(names)))}
    products["label"] = names.map(encoder)
    products["price_plausible"] = plausible_prices(products["price"], products["main_category"])
    labels = dict(zip(products["product_id"], products["label"].tolist(), strict=True))

    def clean_listed_photo(raw: dict[str, str], extra: dict[str, str]) -> tuple[str, dict]:
        return clean_photo(raw, extra, labels)

    photo_rows, photo_rejects = clean_records(photos_path, "Images.csv", PHOTO_COLUMNS, clean_listed_photo, CLEAN_PHOTO_COLUMNS)
    photos = pd.DataFrame(photo_rows, columns=None if photo_rows else CLEAN_PHOTO_COLUMNS)
    products["photos"] = products["product_id"].map(photos["product_id"].value_counts()).fillna(0).astype("int64")

    extra = [name for name in products.columns if name not in CLEAN_PRODUCT_COLUMNS]
    report = make_report(products, photos, rejects, photo_rejects)
    atomic.write_csv(
        stage.folder / "products.csv",
        products[CLEAN_PRODUCT_COLUMNS + extra].assign(
            price_plausible=products["price_plausible"].map({True: "true", False: "false"})
        ),
    )
    changes.write_records(stage.folder / "products_records.npy", stage.folder / "products.csv", products["product_id"])
    atomic.write_csv(stage.folder / "images.csv", photos)
    decoder = {str(label): name for name, label in encoder.items()}
    atomic.write_json(stage.folder / "labels.json", {"depth": args.category_depth, "encoder": encoder, "decoder": decoder})
    write_rejects(stage.folder, rejects + photo_rejects)
    atomic.write_json(stage.folder / "report.json", report)
    print(summarise(report), file=sys.stderr)
    counts = {
        "listings": len(products),
        "listings_rejected": len(rejects),
        "photos": len(photos),
        "photos_rejected": len(photo_rejects),
        "labels": len(encoder),
    }
    return stage.finish(counts, OUTPUTS, READ_LATER)


def write_rejects(folder: Path, rejects: list[dict]) -> None:
    atomic.write_csv(folder / "rejected.csv", pd.DataFrame(rejects, columns=REJECT_COLUMNS))


def count_reasons(rejects: list[dict]) -> dict[str, int]:
    return dict(sorted(Counter(reject["reason"] for reject in rejects).items()))


def make_report(products: pd.DataFrame, photos: pd.DataFrame, rejects: list[dict], photo_rejects: list[dict]) -> dict:
    """Counts by reason, price quantiles (pounds) and rows per category."""
    meant = products.loc[products["price_plausible"], "price"]
    photo_reasons = count_reasons(photo_rejects)

    def quantiles(prices: pd.Series) -> dict[str, float]:
        return {f"{share:g}": round(float(prices.quantile(share)), 2) for share in QUANTILES} if len(prices) else {}

    return {
        "listings": {"read": len(products) + len(rejects), "kept": len(products), "rejected": count_reasons(rejects)},
        "photos": {"read": len(photos) + len(photo_rejects), "kept": len(photos), "rejected": photo_reasons},
        "listings_without_photo": int((products["photos"] == 0).sum()),
        "photos_without_listing": photo_reasons.get("no_listing", 0),
        "prices_implausible": len(products) - len(meant),
        "price_quantiles": {"all": quantiles(products["price"]), "plausible": quantiles(meant)},
        "rows_per_main_category": products["main_category"].value_counts().sort_index().to_dict(),
        "rows_per_category": products["category"].value_counts().sort_index().to_dict(),
    }


def summarise(report: dict) -> str:
    """The report in a few lines for a person."""
    lines = []
    for kind in ("listings", "photos"):
        counts = report[kind]
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts["rejected"].items()) or "none"
        lines.append(f"{kind}: {counts['read']} read, {counts['kept']} kept; rejected: {reasons}")
    lines.append(
        f"{report['listings_without_photo']} listings without a photo, {report['prices_implausible']} implausible prices"
    )
    prices = ", ".join(f"{float(share):.0%} £{price:,.2f}" for share, price in report["price_quantiles"]["plausible"].items())
    lines.append(f"plausible prices: {prices or 'none'}")
    lines += [f"{count:>9,}  {name}" for name, count in report["rows_per_main_category"].items()]
    return "\n".join(lines)


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
