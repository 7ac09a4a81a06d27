"""Clean the table of listings: recognise the records, reject what is incomplete, redact, label.

Reads   data/raw/Products.csv, data/raw/Images.csv (or s3://)
Writes  data/tabular/ (products.csv, images.csv, labels.json, rejected.csv, report.json)
Run     python clean_tabular_data.py
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from marketplace.cleaning import photo_names, records, sources, tables
from marketplace.cleaning import schema as schemas
from marketplace.cleaning.listings import CATEGORY_SEPARATOR, join_spellings, plausible_prices
from marketplace.cleaning.prices import before_amounts
from marketplace.files import atomic, cli, reading, s3, stages
from marketplace.files.stages import StageError

PRODUCTS = "products.csv"
REJECT_COLUMNS = ["source", "record", "id", "reason", "raw"]
SELLERS_KEY = "seller.key"  # below --data: kept from one run to the next, so that a seller's hash stays
KEPT_ROWS = ".cleaned.sqlite"  # rows of the last run, so that the next one cleans only what is new
OLD_KEPT_ROWS = ".cleaned.jsonl"  # of versions before
EXAMPLES, EXAMPLE_ENDS = 3, 80  # rejects of a reason that --dry-run shows, and characters of both ends of each
GUARDED = 100  # listings, from which on a table that lacks many of them is taken to be cut off: fewer are for trying out
DOUBTED = 0.2  # of the records: as many that are rejected for one reason make its key in the schema doubtful
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)  # of the prices, in the report


@dataclass(frozen=True)
class Inputs:
    """What a run reads. images_csv: None where the schema tells the photos' names; photos: where it has a pattern of them."""

    schema: schemas.Schema
    schema_path: Path | None
    products: Path
    images_csv: Path | None
    photos: sources.Source | None
    sellers_key: bytes

    def arguments(self, category_depth: int) -> dict:
        """What decides, beside the files, what is written."""
        if self.schema.is_export:
            return {"category_depth": category_depth}
        key = {"sellers_key": hashlib.sha256(self.sellers_key).hexdigest()} if self.sellers_key else {}
        return {"category_depth": category_depth, "schema": self.schema.as_dict()} | key

    def digests(self) -> dict[str, str]:
        images_csv = {"--images-csv": stages.digest(self.images_csv)} if self.images_csv else {}
        photos = {"--photos": self.photos.names_digest()} if self.photos else {}
        return {"--products": stages.digest(self.products)} | images_csv | photos


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
    parser.add_argument("--schema", type=Path, help="TOML file that describes a table of your own (default: the course's export)")
    parser.add_argument("--schema-example", action="store_true", help="print such a file with every key explained, and end")
    parser.add_argument(
        "--photos",
        help="photos' folder, .zip or s3:// URI, for a schema with a photo_pattern (default: as clean_images.py has it)",
    )
    parser.add_argument(
        "--max-removed",
        default=0.2,
        type=float,
        help=f"share of the listings kept before, of {GUARDED} and more, whose removal fails the run (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be kept and rejected, with examples")
    args = parser.parse_args(argv)
    if not 0 <= args.max_removed <= 1:
        parser.error(f"argument --max-removed: must be from 0 to 1, not {args.max_removed}")
    return args


def run(args: argparse.Namespace) -> dict:
    if args.schema_example:
        print(schemas.EXAMPLE, end="")
        return {}
    inputs = find_inputs(args)
    if args.dry_run:
        return preview(inputs, args.category_depth)
    flags, arguments = cli.flags_of(args, "dry_run", "schema_example", "max_removed"), inputs.arguments(args.category_depth)
    with stages.open_stage(args.data, "tabular", arguments, inputs.digests(), flags=flags) as stage:
        if stage.is_done():
            return stage.summary()
        stage.begin()
        cleaned = clean_tables(inputs, args.category_depth, stage.folder)
        check_removed(stage.folder / PRODUCTS, cleaned.listings, args.max_removed, inputs.products)
        write_listings(stage.folder, cleaned.listings)
        atomic.write_csv(stage.folder / "images.csv", cleaned.photos)
        write_labels(stage.folder, cleaned.labels, args.category_depth)
        write_rejects(stage.folder, cleaned.rejects)
        atomic.write_json(stage.folder / "report.json", cleaned.report)
        print(summarise(cleaned.report, inputs.schema.currency), file=sys.stderr)
        return stage.finish(count(cleaned.report, cleaned.labels))


def check_removed(path: Path, listings: pd.DataFrame, max_removed: float, source: Path) -> None:
    """StageError when too many of the listings in `path`, of an earlier run, would go: the table may have been cut off."""
    try:
        there = reading.read_csv(path, usecols=["product_id"])["product_id"]
    except (StageError, ValueError):  # none yet, or a damaged one, which is written anew
        return
    removed = int((~there.isin(listings["product_id"])).sum())
    if len(there) >= GUARDED and removed > max_removed * len(there):
        raise StageError(
            f"{removed} of {len(there)} listings would be removed, more than --max-removed {max_removed:g}: "
            f"see whether {source} is whole, or allow it with --max-removed 1"
        )


def preview(inputs: Inputs, category_depth: int) -> dict:
    """What a run would keep and reject, with examples on stderr; nothing is written."""
    cleaned = clean_tables(inputs, category_depth, None)
    print("\n".join([summarise(cleaned.report, inputs.schema.currency), *show_rejects(cleaned.rejects)]), file=sys.stderr)
    return {"stage": "tabular", **count(cleaned.report, cleaned.labels), "dry_run": True}


def show_rejects(rejects: list[dict]) -> list[str]:
    """EXAMPLES rejects of each reason, a line each, redacted as in rejected.csv."""
    lines = []
    for source, reason in sorted({(reject["source"], reject["reason"]) for reject in rejects}):
        those = [reject for reject in rejects if (reject["source"], reject["reason"]) == (source, reason)]
        lines.append(f"{source}, {reason}: {len(those)}")
        for reject in those[:EXAMPLES]:
            text = " ".join(reject["raw"].split())
            cut = f"{text[:EXAMPLE_ENDS]} ... {text[-EXAMPLE_ENDS:]}" if len(text) > 2 * EXAMPLE_ENDS else text
            lines.append(f"  record {reject['record']}: {cut}")
    return lines


def find_inputs(args: argparse.Namespace) -> Inputs:
    schema = schemas.load(args.schema) if args.schema else schemas.EXPORT
    raw_dir = args.data / "raw"
    names_photos = schema.photos or schema.photo_pattern
    if names_photos and args.images_csv:
        raise StageError(f"{args.schema} says itself how photos are called: leave out --images-csv, or {names_photos} there")
    products = s3.local_file(args.products or raw_dir / "Products.csv", raw_dir / "s3")
    images_csv = None if names_photos else find_images_csv(args)
    photos = None
    if schema.photo_pattern:
        photos = sources.list_source(sources.uri_of(args.photos, args.data), raw_dir / "s3", sources.MAX_ZIP_BYTES)
    key = read_sellers_key(args.data / SELLERS_KEY, make=not args.dry_run) if schema.seller else b""
    return Inputs(schema, args.schema, products, images_csv, photos, key)


def find_images_csv(args: argparse.Namespace) -> Path:
    path = args.data / "raw" / "Images.csv"
    if args.schema and not args.images_csv and not path.exists():
        raise StageError(
            f"{args.schema} does not tell which photos a listing has, and {path} does not exist: "
            "give photos or photo_pattern there, or --images-csv"
        )
    return s3.local_file(args.images_csv or path, args.data / "raw" / "s3")


def read_sellers_key(path: Path, make: bool) -> bytes:
    """The key of the hash that stands for a seller; one is made where there is none, for the owner's eyes only."""
    if not path.exists() and not make:
        return secrets.token_bytes(32)
    if not path.exists():
        with atomic.atomic_path(path) as temporary:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600))
            temporary.write_text(secrets.token_hex(32) + "\n", encoding="utf-8")
    key = path.read_text(encoding="utf-8", errors="replace").strip()
    if len(key) < 32:
        raise StageError(f"{path} holds no key of at least 32 characters: put the old one back, or delete it to make another")
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True)
class Cleaned:
    """labels: category path -> number."""

    listings: pd.DataFrame
    photos: pd.DataFrame
    labels: dict[str, int]
    rejects: list[dict]
    report: dict


def clean_tables(inputs: Inputs, category_depth: int, folder: Path | None) -> Cleaned:
    """The listings and photos that can be kept. folder: where rows are kept for the next run, and rejects go when no listing can
    be kept; None: to stderr."""
    table, cleaner = open_listings(inputs, folder)
    with contextlib.closing(cleaner.before):
        listings, rejects = clean_listings(inputs.products, table, cleaner, folder)
        cleaner.before.save()
    labels = label(listings, category_depth)
    photos, photo_rejects = clean_photos(inputs, cleaner, listings)
    listings["price_plausible"] = plausible_prices(listings["price"], listings["main_category"])
    listings["photos"] = listings["product_id"].map(photos["product_id"].value_counts()).fillna(0).astype("int64")
    report = make_report(listings, photos, rejects, photo_rejects, cleaner)
    return Cleaned(listings, photos, labels, rejects + photo_rejects, report)


def open_listings(inputs: Inputs, folder: Path | None) -> tuple[tables.RawTable, records.ListingCleaner]:
    table = tables.open_table(inputs.products, inputs.schema, inputs.schema_path)
    extra = records.extra_columns(table.columns, inputs.schema)
    cleaner = records.ListingCleaner(inputs.schema, extra, inputs.sellers_key)
    if folder:
        (folder / OLD_KEPT_ROWS).unlink(missing_ok=True)
        made_by = [stages.STAGES["tabular"].schema, inputs.arguments(0), extra]
        cleaner.before = records.CleanedBefore(folder / KEPT_ROWS, hashlib.sha256(json.dumps(made_by).encode()).hexdigest())
    return table, cleaner


def clean_listings(
    path: Path, table: tables.RawTable, cleaner: records.ListingCleaner, folder: Path | None
) -> tuple[pd.DataFrame, list[dict]]:
    """The listings that can be kept, and the rejects; StageError when there is none to keep, with the rejects in `folder`."""
    rows, rejects = records.clean_records(
        table, "Products.csv" if cleaner.schema.is_export else path.name, cleaner.schema.id, cleaner.clean, cleaner.is_id
    )
    doubts = doubted_keys(cleaner.schema, count_reasons(rejects), len(rows) + len(rejects))
    if rows.empty:
        reasons = ", ".join(f"{reason}: {times}" for reason, times in count_reasons(rejects).items()) or "no records"
        if folder:
            write_rejects(folder, rejects)
        else:
            print("\n".join(show_rejects(rejects)), file=sys.stderr)
        where = f"see {folder / 'rejected.csv'}" if folder else "see the examples above"
        raise StageError("; ".join([f"{path} holds no listing that can be kept ({reasons}): {where}", *doubts]))
    for doubt in doubts:
        print(f"warning: {doubt}", file=sys.stderr)
    paths = join_spellings(rows["category"])
    cleaner.tidied["joined"] = int((paths != rows["category"]).sum())
    levels = {path: path.split(CATEGORY_SEPARATOR) for path in paths.unique()}
    ends = [paths.map({path: own[place] for path, own in levels.items()}) for place in (0, -1)]
    return rows.assign(category=paths, main_category=ends[0], leaf_category=ends[1]), rejects


def doubted_keys(schema: schemas.Schema, reasons: Mapping[str, int], records: int) -> list[str]:
    """A question for each key of a shop's schema by which many records are rejected."""
    if schema.is_export:
        return []
    keys = {"bad_price": ("decimal", "encoding"), "other_currency": ("currency",), f"bad_{schema.created}": ("created_format",)}
    doubts = []
    for reason, times in reasons.items():
        if reason in keys and times >= DOUBTED * records:
            values = " and ".join(f'{key} = "{getattr(schema, key)}"' for key in keys[reason])
            doubts.append(f"{reason} rejects {times} of {records} listings: is {values} meant in --schema?")
    return doubts


def clean_photos(inputs: Inputs, cleaner: records.ListingCleaner, listings: pd.DataFrame) -> tuple[pd.DataFrame, list[dict]]:
    """The photos of these listings, and the rejects."""
    labels = dict(zip(listings["product_id"], listings["label"].tolist(), strict=True))
    schema = inputs.schema
    if inputs.images_csv is None:
        rows, rejects = photo_names.clean(named_photos(inputs, cleaner, labels), labels)
        return pd.DataFrame(rows, columns=[*records.CLEAN_PHOTO_COLUMNS, photo_names.FILE]), rejects
    table = tables.open_export(inputs.images_csv, records.PHOTO_COLUMNS)
    others = [column for column in table.columns if column not in records.PHOTO_COLUMNS]
    extra = records.named_apart(others, [*records.CLEAN_PHOTO_COLUMNS, photo_names.FILE])
    is_id = records.is_uuid if schema.is_export else sources.is_image_id
    clean = functools.partial(records.clean_photo, extra=extra, labels=labels, is_image_id=is_id)
    rows, rejects = records.clean_records(table, "Images.csv", "id", clean, is_id)
    return (pd.DataFrame(columns=records.CLEAN_PHOTO_COLUMNS) if rows.empty else rows), rejects


def named_photos(inputs: Inputs, cleaner: records.ListingCleaner, labels: Mapping[str, int]) -> Iterable[photo_names.Named]:
    if inputs.photos:
        names, pattern = [photo.name for photo in inputs.photos.photos()], inputs.schema.photo_pattern
        found = photo_names.by_pattern(names, pattern, labels)
        if names and not any(photo.product_id for photo in found):
            called = f"no photo is called like photo_pattern {pattern} of {inputs.schema_path}"
            raise StageError(f"{called}: mend it, as they are called like {names[0]}")
        return found
    return photo_names.in_column(cleaner.photos, inputs.schema.photos_separator)


def label(listings: pd.DataFrame, depth: int) -> dict[str, int]:
    """Number the category paths, cut at `depth` levels, in the column "label"; path -> label."""
    paths = listings["category"].unique()
    cut = {path: CATEGORY_SEPARATOR.join(path.split(CATEGORY_SEPARATOR)[:depth]) for path in paths}
    labels = {name: number for number, name in enumerate(sorted(set(cut.values())))}
    listings["label"] = listings["category"].map({path: labels[name] for path, name in cut.items()})
    return labels


def write_listings(folder: Path, listings: pd.DataFrame) -> None:
    extra = [name for name in listings.columns if name not in records.CLEAN_LISTING_COLUMNS]
    table = listings[records.CLEAN_LISTING_COLUMNS + extra]
    plausible = table["price_plausible"].map({True: "true", False: "false"})
    atomic.write_csv(folder / PRODUCTS, table.assign(price_plausible=plausible))


def write_labels(folder: Path, labels: dict[str, int], depth: int) -> None:
    names = {str(number): name for name, number in labels.items()}
    atomic.write_json(folder / "labels.json", {"depth": depth, "encoder": labels, "decoder": names})


def write_rejects(folder: Path, rejects: list[dict]) -> None:
    atomic.write_csv(folder / "rejected.csv", pd.DataFrame(rejects, columns=REJECT_COLUMNS))


def count_reasons(rejects: list[dict]) -> dict[str, int]:
    return dict(sorted(Counter(reject["reason"] for reject in rejects).items()))


def make_report(
    listings: pd.DataFrame,
    photos: pd.DataFrame,
    rejects: list[dict],
    photo_rejects: list[dict],
    cleaner: records.ListingCleaner,
) -> dict:
    """Counts by reason and of tidied texts, price quantiles and rows per category."""
    plausible = listings.loc[listings["price_plausible"], "price"]
    photo_reasons = count_reasons(photo_rejects)
    return {
        "listings": {"read": len(listings) + len(rejects), "kept": len(listings), "rejected": count_reasons(rejects)},
        "photos": {"read": len(photos) + len(photo_rejects), "kept": len(photos), "rejected": photo_reasons},
        "listings_without_photo": int((listings["photos"] == 0).sum()),
        "photos_without_listing": photo_reasons.get("no_listing", 0),
        "texts_tidied": {column: cleaner.tidied[column] for column in tidied_columns(cleaner.schema)},
        "categories_joined": cleaner.tidied["joined"],
        "prices_implausible": len(listings) - len(plausible),
        "price_quantiles": {"all": quantiles(listings["price"]), "plausible": quantiles(plausible)},
        "rows_per_main_category": listings["main_category"].value_counts().sort_index().to_dict(),
        "rows_per_category": listings["category"].value_counts().sort_index().to_dict(),
    }


def tidied_columns(schema: schemas.Schema) -> list[str]:
    return [schema.column(field) for field in ("name", "category", "place") if schema.column(field)]


def quantiles(prices: pd.Series) -> dict[str, float]:
    return {f"{share:g}": round(float(prices.quantile(share)), 2) for share in QUANTILES} if len(prices) else {}


def summarise(report: dict, currency: str) -> str:
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
    prices = ", ".join(
        f"{float(share):.0%} {before_amounts(currency)}{price:,.2f}"
        for share, price in report["price_quantiles"]["plausible"].items()
    )
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
