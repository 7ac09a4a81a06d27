"""A raw record of an export becomes a clean row, or a reject with its reason."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from marketplace.cleaning import export_csv, folding, listings, redaction, sellers
from marketplace.files.progress import progress

LISTING_COLUMNS = ["id", "product_name", "category", "product_description", "price", "location"]  # none may be empty
PHOTO_COLUMNS = ["id", "product_id"]

CLEAN_LISTING_COLUMNS = [
    *("product_id", "name", "description", "category", "main_category", "leaf_category", "label"),
    *("price", "price_plausible", "town", "county", "posted_on", "photos"),
]
CLEAN_PHOTO_COLUMNS = ["image_id", "product_id", "label"]


def clean_records(
    path: Path, source: str, required: list[str], taken: list[str], clean: Callable[[dict, dict], tuple[str, dict]]
) -> tuple[list[dict], list[dict]]:
    """Rows and rejects of one export, in its order; every record is one or the other.

    source: its name in the rejects; taken: column names that the stage gives itself;
    clean: (raw record, extra columns) -> (reason, row), the row's first key being its id.
    """
    lines = export_csv.read_lines(path)
    layout = export_csv.read_layout(path, lines, required)
    extra = extra_columns(layout.columns, required, taken)
    rows, rejects, ids, number = [], [], set(), 0
    records = progress(export_csv.read_records(lines, layout), f"clean {source}", "record")
    for number, (fields, text) in enumerate(records, start=1):  # noqa: B007
        raw = layout.named(fields) if fields else {}
        reason, row = clean(raw, extra) if raw else ("bad_record", {})
        row_id = next(iter(row.values()), "")
        if row_id in ids:
            reason = "duplicate_id"
        if reason:
            raw_id = clean_id(raw["id"] if raw else layout.id_at_start(text))
            rejects.append({"source": source, "record": number, "id": raw_id, "reason": reason, "raw": clean_text(text)})
        else:
            rows.append(row)
            ids.add(row_id)
    if len(rows) + len(rejects) != number:
        raise AssertionError(f"{number} records of {path}, but {len(rows)} kept and {len(rejects)} rejected")
    return rows, rejects


def clean_listing(raw: dict[str, str], extra: dict[str, str], tidied: Counter) -> tuple[str, dict]:
    """The reason to reject a listing, or an empty one and its row, but for label, price_plausible and photos.

    raw: column -> text; extra: raw column -> its name in the row, from extra_columns(); tidied: counts, by column, the listings
    whose name, category or place had entities, blanks or unseen characters to take out.
    """
    for column in LISTING_COLUMNS:
        if not raw[column].strip():
            return f"null_{column}", {}
    if not redaction.UUID.fullmatch(raw["id"].strip()):
        return "bad_id", {}
    try:
        price = listings.parse_price(raw["price"])
    except listings.OtherCurrency:
        return "other_currency", {}
    except ValueError:
        return "bad_price", {}
    lines = {column: listings.single_line(raw[column]) for column in ("product_name", "category", "location")}
    shown = {column: folding.tidy(line) for column, line in lines.items()}
    name = redaction.redact(listings.title(shown["product_name"]))
    description, posted_on = sellers.strip_leak(listings.normalise_breaks(raw["product_description"]))
    category, place = redaction.redact(shown["category"]), redaction.redact(shown["location"])
    for column, is_there in (
        *(("product_name", name), ("product_description", description)),
        *(("category", listings.has_category(category)), ("location", place)),
    ):
        if not is_there:
            return f"null_{column}", {}
    levels = listings.category_levels(category)
    if len(levels) > listings.MAX_LEVELS:
        return "bad_category", {}
    tidied.update(column for column, line in lines.items() if line != shown[column])
    town, county = listings.split_place(place)
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
    return redaction.redact(listings.normalise_breaks(text))


def clean_id(text: str) -> str:
    """What a reject shows as its id: a UUID in lower case, anything else with its personal data marked."""
    text = text.strip()
    return text.lower() if redaction.UUID.fullmatch(text) else redaction.redact(text)


def extra_columns(columns: list[str], required: list[str], taken: list[str]) -> dict[str, str]:
    """Raw column -> its name in the cleaned file, raw_<name> where the stage has a column of that name itself.

    A column's name is text too: its personal data is marked, and of two names that become one the second gets a number.
    """
    names = {}
    for column in columns:
        if column not in required and not export_csv.is_unnamed(column):
            name = clean_text(column)
            name = f"raw_{name}" if name in taken else name
            while name in names.values():
                name += "_2"
            names[column] = name
    return names
