"""Clean the table of listings: recognise the records, reject what is incomplete, redact, label.

Reads   data/raw/Products.csv, data/raw/Images.csv (or s3://)
Writes  data/tabular/ (products.csv, products_records.npy, images.csv, labels.json, rejected.csv, report.json)
Run     python clean_tabular_data.py
"""

import argparse
import csv
import itertools
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from marketplace import changes, errors, flags, listings, storage
from marketplace.errors import StageError

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

MAX_HEADER_CHARS = 65_536  # a longer first line is no header
MAX_STARTS_IN_FIELD = 50  # lines in one quoted field that look like the start of a record
MAX_PREFIXES = 20  # line ends at which a record of broken quoting may end

MIN_CATEGORY_PRICES = 30  # fewer prices say little about their category: all categories are taken instead
PRICE_DEVIATIONS = 4.0
PRICE_SPREAD = (0.5, 0.65)  # least and greatest spread of a category's log10 prices, in factors of ten
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


# Reading: lines, pieces, records.

# What a byte that is no UTF-8 stands for, keyed by what "surrogateescape" makes of it.
WINDOWS_1252 = {0xDC00 + byte: bytes([byte]).decode("cp1252", "replace") for byte in range(0x80, 0x100)}


def read_lines(path: Path) -> Iterator[str]:
    """The lines of an export, each ending in a newline whatever break the file has; BOM dropped.

    UTF-8. Where bytes are no UTF-8, they are Windows-1252; when these are not outnumbered by valid characters
    beyond ASCII, the whole file is Windows-1252.
    """
    encoding, handler = "utf-8-sig", "strict"
    try:
        with open(path, encoding=encoding) as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        handler, valid, invalid = "surrogateescape", 0, 0
        with open(path, encoding=encoding, errors=handler) as file:
            while block := file.read(1 << 20):
                escaped = len(re.findall("[\udc80-\udcff]", block))
                valid += len(re.findall("[^\0-\x7f]", block)) - escaped
                invalid += escaped
        if valid <= invalid:
            encoding, handler = "cp1252", "replace"
    with open(path, encoding=encoding, errors=handler) as file:
        if handler != "surrogateescape":
            yield from file
        else:
            for line in file:
                yield line.translate(WINDOWS_1252)


class Layout:
    """The columns of one export, and what the start of a record looks like under them."""

    def __init__(self, columns: list[str]):
        self.columns = columns
        self.description = columns.index("product_description") if "product_description" in columns else len(columns) - 1
        self.price = columns.index("price") if "price" in columns else None
        before = columns[: columns.index("id")]
        fields = "".join(r'(?:\d+|"\d+"),' if is_unnamed(name) else r'(?:"[^"\n]*"|[^",\n]*),' for name in before)
        # A record starts like `12,1c58d3f9-...,`; one whose id is null or damaged only like `12,`.
        self.start = re.compile(rf'{fields}"?({listings.UUID.pattern})"?(?:,|$)')
        self.weak_start = re.compile(fields if before else "[^\n]*,")
        self.left = re.compile(rf'(?:(?:"(?:[^"]|"")*+"|[^",\n]*),){{{self.description}}}')

    def has_price(self, fields: list[str]) -> bool:
        """Whether the price column holds a price or nothing, so that no column can have shifted."""
        if self.price is None or not fields[self.price].strip():
            return True
        try:
            listings.parse_price(fields[self.price])
        except ValueError:
            return False
        return True


def is_unnamed(column: str) -> bool:
    return not column or column.startswith("Unnamed:")


def read_layout(path: Path, lines: Iterator[str], required: list[str]) -> Layout:
    """The layout that the first line with text gives; StageError names the required columns it lacks."""
    header = next((line for line in lines if line.strip()), "")
    columns = []
    if len(header) <= MAX_HEADER_CHARS:
        columns = [name.strip() for name in parse_fields(header) or []]
    if missing := [name for name in required if name not in columns]:
        names = f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise StageError(f"{path} is not such an export: its first line lacks the {names}")
    return Layout(columns)


def parse_fields(text: str) -> list[str] | None:
    """The fields of one CSV record, its unquoted line breaks kept; None when its quoting is broken or unfinished."""
    text = text.rstrip("\n")
    stand_in = ""
    if "\n" in text:  # csv ends a record at a break outside quotes, so the breaks hide behind a character the text lacks
        stand_in = next(char for char in map(chr, itertools.count(0xE000)) if char not in text)
        text = text.replace("\n", stand_in)
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error:
        return None
    return [field.replace(stand_in, "\n") for field in fields] if stand_in else fields


def parse_anchored(text: str, layout: Layout) -> list[str] | None:
    """The fields of a record whose description has broken quoting: all others are read from the two ends towards it.

    None unless each of them is quoted, or free of quotes and commas, and the price is a price or empty.
    """
    text = text.rstrip("\n")
    if not (left := layout.left.match(text)):
        return None
    right, end = [], len(text)
    for _ in range(len(layout.columns) - layout.description - 1):
        comma = text.rfind(",", 0, end)
        if text.endswith('"', left.end(), end):
            quote = text.rfind('"', 0, end - 1)
            while quote > 0 and text[quote - 1] == '"':  # a doubled quote inside the field
                quote = text.rfind('"', 0, quote - 1)
            comma = quote - 1
            if comma < 0 or text[comma] != ",":
                return None
        field = text[comma + 1 : end]
        if comma < left.end() or "\n" in field or (not field.startswith('"') and '"' in field):
            return None
        right.insert(0, field[1:-1].replace('""', '"') if field.startswith('"') else field)
        end = comma
    description = text[left.end() : end].removeprefix('"').removesuffix('"').replace('""', '"')
    fields = [*(parse_fields(left[0][:-1]) or []), description, *right] if left[0] else [description, *right]
    return fields if len(fields) == len(layout.columns) and layout.has_price(fields) else None


def read_pieces(lines: Iterable[str], layout: Layout) -> Iterator[tuple[str, bool]]:
    """The text cut before every line that may start a record, and whether a row number and a UUID say that it does.

    It is cut after a whole record too: what a tool appended, such as a line of totals, is none of the last listing's.
    """
    piece, is_start = [], False
    for line in lines:
        # With a comma: what goes on in the last, unquoted field has none.
        if layout.weak_start.match(line) or (piece and "," in line and is_whole("".join(piece), layout)):
            if piece:
                yield "".join(piece), is_start
            piece, is_start = [], layout.start.match(line) is not None
        piece.append(line)
    if piece:
        yield "".join(piece), is_start


def is_whole(text: str, layout: Layout) -> bool:
    """Whether the text is a record with every column, a price among them."""
    width = len(layout.columns)
    if layout.price is None or text.count(",") < width - 1 or text.count('"') % 2:
        return False
    fields = parse_fields(text)
    return fields is not None and len(fields) == width and bool(fields[layout.price].strip()) and layout.has_price(fields)


def read_records(lines: Iterable[str], layout: Layout) -> Iterator[tuple[list[str] | None, str]]:
    """Each record's fields, None where they cannot be told apart, with its raw text.

    A record is the shortest run of pieces that parses to the header's number of fields. It runs on over the start of
    another only inside an open quote: then a proper multi-line field holds text that imitates a record.
    """
    source = read_pieces(lines, layout)
    queue: deque[tuple[str, bool]] = deque()

    def ahead() -> Iterator[tuple[str, bool]]:
        for position in itertools.count():
            while position >= len(queue):
                if (piece := next(source, None)) is None:
                    return
                queue.append(piece)
            yield queue[position]

    while any(True for _ in ahead()):
        if not queue[0][0].strip():
            queue.popleft()
            continue
        for fields, size in next_records(ahead, layout):
            yield fields, "".join(queue.popleft()[0] for _ in range(size)).strip("\n")


def next_records(ahead: Callable[[], Iterator[tuple[str, bool]]], layout: Layout) -> list[tuple[list[str] | None, int]]:
    """The next records, each with its number of pieces: one, or several where it cannot be decided what they are."""
    width = len(layout.columns)
    parts: list[str] = []
    starts: list[int] = []  # positions of the pieces, after the first, that start a record
    exact = None  # fields and size of a run that has the right width but no price
    open_quote = False
    for part, is_start in ahead():
        if parts and is_start:
            if not open_quote or len(starts) == MAX_STARTS_IN_FIELD:
                break
            starts.append(len(parts))
        parts.append(part)
        open_quote ^= part.count('"') % 2 == 1
        if open_quote and len(parts) > 1:
            continue
        fields = parse_fields("".join(parts))
        if fields is None:
            if open_quote:
                continue
            break
        if len(fields) > width:
            break
        if len(fields) == width:
            if layout.has_price(fields):
                return whole_record(fields, parts, starts, layout)
            exact = exact or (fields, len(parts))
    parts = parts[: starts[0]] if starts else parts
    for size in range(1, min(len(parts), MAX_PREFIXES) + 1):
        if fields := parse_anchored("".join(parts[:size]), layout):
            return [(fields, size)]
    if exact and exact[1] <= len(parts):
        return [exact]
    alone = (size for size in range(1, len(parts)) if len(parse_fields(parts[size]) or []) == width)
    return [(None, next(alone, len(parts)))]


def whole_record(fields: list[str], parts: list[str], starts: list[int], layout: Layout) -> list[tuple[list[str] | None, int]]:
    """The record, unless it runs over starts of records and is a record without them as well.

    Then two descriptions with half a pair of quotes each look like one that quotes records, and all are rejected.
    """
    if starts and parse_anchored("".join(parts[: starts[0]]), layout):
        ends = [*starts, len(parts)]
        return [(None, end - begin) for begin, end in zip([0, *starts], ends, strict=True)]
    return [(fields, len(parts))]


# Cleaning: a record becomes a row, or a reason.


def clean_product(raw: dict[str, str], extra: dict[str, str]) -> tuple[str, dict]:
    """The reason to reject a listing, or an empty one and its row. extra: raw column -> its name in products.csv."""
    for column in PRODUCT_COLUMNS:
        if not raw[column].strip():
            return f"null_{column}", {}
    if not listings.UUID.fullmatch(raw["id"].strip()):
        return "bad_id", {}
    try:
        price = listings.parse_price(raw["price"])
    except ValueError:
        return "bad_price", {}
    name = listings.redact(listings.title(raw["product_name"]))
    description, posted_on = listings.strip_leak(listings.normalise_breaks(raw["product_description"]))
    levels = listings.category_levels(listings.redact(raw["category"]))
    for column, value in (("product_name", name), ("product_description", description), ("category", levels)):
        if not value:
            return f"null_{column}", {}
    town, county = listings.split_place(listings.redact(raw["location"]))
    return "", {
        "product_id": raw["id"].strip().lower(),
        "name": name,
        "description": listings.redact(description),
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
    if not listings.UUID.fullmatch(image_id):
        return "bad_id", {}
    if product_id not in labels:
        return "no_listing", {}
    return "", {"image_id": image_id, "product_id": product_id, "label": labels[product_id], **clean_extra(raw, extra)}


def clean_extra(raw: dict[str, str], extra: dict[str, str]) -> dict[str, str]:
    return {name: clean_text(raw[column]) for column, name in extra.items()}


def clean_text(text: str) -> str:
    """Any raw text with its line breaks normalised and its personal data marked."""
    return listings.redact(listings.mask_leak(listings.normalise_breaks(text)))


def extra_columns(columns: list[str], required: list[str], taken: list[str]) -> dict[str, str]:
    """Raw column -> its name in the cleaned file, raw_<name> where the stage has a column of that name itself."""
    return {name: f"raw_{name}" if name in taken else name for name in columns if name not in required and not is_unnamed(name)}


def clean_records(
    path: Path, source: str, required: list[str], clean: Callable, taken: list[str]
) -> tuple[list[dict], list[dict]]:
    """Rows and rejects of one export, in its order; every record is one or the other.

    clean: (raw record, extra columns) -> (reason, row), the row's first key being its id.
    """
    csv.field_size_limit(sys.maxsize)
    lines = read_lines(path)
    layout = read_layout(path, lines, required)
    extra = extra_columns(layout.columns, required, taken)
    rows, rejects, seen, number = [], [], set(), 0
    records = tqdm(read_records(lines, layout), desc=source, unit=" records", disable=None)
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
        known = known.lower() if listings.UUID.fullmatch(known) else listings.redact(known)
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
        type=flags.positive,
        help="levels of the category path that make the label (default: %(default)s)",
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    raw_dir = args.data / "raw"
    products_path = storage.local_file(args.products or raw_dir / "Products.csv", raw_dir / "s3")
    photos_path = storage.local_file(args.images_csv or raw_dir / "Images.csv", raw_dir / "s3")
    stage = storage.Stage(
        args.data / "tabular",
        arguments={"category_depth": args.category_depth},
        inputs={"products": storage.digest(products_path), "images_csv": storage.digest(photos_path)},
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
    storage.write_csv(
        stage.folder / "products.csv",
        products[CLEAN_PRODUCT_COLUMNS + extra].assign(
            price_plausible=products["price_plausible"].map({True: "true", False: "false"})
        ),
    )
    changes.write_records(stage.folder / "products_records.npy", stage.folder / "products.csv", products["product_id"])
    storage.write_csv(stage.folder / "images.csv", photos)
    decoder = {str(label): name for name, label in encoder.items()}
    storage.write_json(stage.folder / "labels.json", {"depth": args.category_depth, "encoder": encoder, "decoder": decoder})
    write_rejects(stage.folder, rejects + photo_rejects)
    storage.write_json(stage.folder / "report.json", report)
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
    storage.write_csv(folder / "rejected.csv", pd.DataFrame(rejects, columns=REJECT_COLUMNS))


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
    return errors.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
