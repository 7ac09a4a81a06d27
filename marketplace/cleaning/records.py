"""A raw record of a table becomes a clean row, or a reject with its reason."""

import contextlib
import hashlib
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pandas as pd

from marketplace.cleaning import export_csv, folding, listings, redaction, sellers
from marketplace.cleaning.prices import OtherCurrency
from marketplace.cleaning.schema import ALL, FIELDS, Schema
from marketplace.cleaning.tables import RawTable
from marketplace.files import atomic
from marketplace.files.progress import progress

PHOTO_COLUMNS = ["id", "product_id"]

CLEAN_LISTING_COLUMNS = [
    *("product_id", "name", "description", "category", "main_category", "leaf_category", "label"),
    *("price", "price_plausible", "town", "county", "posted_on", "photos"),
]
CLEAN_PHOTO_COLUMNS = ["image_id", "product_id", "label"]
SHARED = ("category", "main_category", "leaf_category", "town", "county", "posted_on")  # columns of few different texts
MAX_ID = 128  # characters
ROWS_AT_A_TIME = 16_384  # as dictionaries

IN_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def clean_records(
    table: RawTable, source: str, id_column: str, clean: Callable[[dict], tuple[str, dict]], is_id: Callable[[str], bool]
) -> tuple[pd.DataFrame, list[dict]]:
    """Rows and rejects of one table, in its order; every record is one or the other.

    source: its name in the rejects; clean: raw record -> (reason, row), the row's first key being its id.
    """
    blocks, rows, rejects, ids, number = [], [], [], set(), 0
    for number, record in enumerate(progress(table.records, f"clean {source}", "record"), start=1):  # noqa: B007
        reason, row = clean(record.fields) if record.fields else ("bad_record", {})
        row_id = next(iter(row.values()), "")
        if row_id in ids:
            reason = "duplicate_id"
        if reason:
            raw_id = clean_id(record.fields[id_column] if record.fields else record.id, is_id)
            rejects.append({"source": source, "record": number, "id": raw_id, "reason": reason, "raw": clean_text(record.text)})
        else:
            rows.append(row)
            ids.add(row_id)
        if len(rows) == ROWS_AT_A_TIME:  # as dictionaries they take more memory
            blocks.append(pd.DataFrame(rows))
            rows = []
    if rows or not blocks:
        blocks.append(pd.DataFrame(rows))
    kept = pd.concat(blocks, ignore_index=True)
    if len(kept) + len(rejects) != number:
        raise AssertionError(f"{number} records of {source}, but {len(kept)} kept and {len(rejects)} rejected")
    return kept, rejects


@dataclass
class ListingCleaner:
    """Cleans the listings of one table, and gathers what is told of them together.

    extra: raw column -> its name in the row, from extra_columns(); sellers_key: of the hash that stands for a seller.
    tidied: counts, by raw column, the listings whose name, category or place had entities, blanks or unseen characters to take
    out; photos: id -> what the photos' column of the first listing of that id says.
    """

    schema: Schema
    extra: dict[str, str]
    sellers_key: bytes = b""
    tidied: Counter = field(default_factory=Counter)
    photos: dict[str, str] = field(default_factory=dict)
    before: "CleanedBefore" = field(default_factory=lambda: CleanedBefore())
    _same: dict[str, str] = field(default_factory=dict)  # text -> the one object that stands for it in all rows

    def is_id(self, text: str) -> bool:
        return is_uuid(text) if self.schema.is_export else is_id(text)

    def clean(self, raw: dict[str, str]) -> tuple[str, dict]:
        """The reason to reject a listing, or an empty one and its row, but for label, price_plausible and photos.

        raw: column -> text.
        """
        texts, extra = self.schema.fields(raw), {name: raw[column] for column, name in self.extra.items()}
        told = repr((texts, extra)).encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(told, key=self.sellers_key, digest_size=16).digest()
        if (found := self.before.find(key)) is None:
            reason, found, is_plain = self._clean(texts, extra)
            if reason:
                return reason, {}
            if is_plain:
                self.before.keep(key, found)
        row, tidied = found
        self.tidied.update(tidied)
        if self.schema.photos:
            self.photos.setdefault(row["product_id"], texts["photos"])
        return "", row | {name: self._same.setdefault(row[name], row[name]) for name in SHARED}

    def _clean(self, texts: dict[str, str], extra: dict[str, str]) -> tuple[str, tuple[dict, list[str]], bool]:
        """The reason to reject a listing; its row and the columns that were tidied; whether nothing of it was taken out."""
        reason, price, posted_on = self._check(texts)
        if reason:
            return reason, ({}, []), False
        lines = {name: listings.single_line(texts[name]) for name in ("name", "category", "place")}
        shown = {name: folding.tidy(line) for name, line in lines.items()}
        written = listings.normalise_breaks(texts["description"])
        description, told_on = sellers.strip_leak(written)
        is_plain = [description == written]

        def redact(text: str) -> str:
            marked = redaction.redact(text)
            is_plain.append(marked == text)
            return marked

        levels = self._levels(redact(shown["category"]))
        cleaned = {
            "name": redact(listings.title(shown["name"])),
            "description": description,
            "category": listings.CATEGORY_SEPARATOR.join(levels),
            "place": redact(shown["place"]),
        }
        if reason := self._check_cleaned(cleaned, levels):
            return reason, ({}, []), False
        town, county = listings.split_place(cleaned["place"])
        row = {
            "product_id": listings.canonical_id(texts["id"].strip()),
            "name": cleaned["name"],
            "description": redact(description),
            "category": cleaned["category"],
            "main_category": levels[0],
            "leaf_category": levels[-1],
            "price": price,
            "town": town,
            "county": county,
            "posted_on": posted_on or told_on,
            **self._seller(texts["seller"]),
            **{name: redact(listings.normalise_breaks(text)) for name, text in extra.items()},
        }
        tidied = [self.schema.column(name) for name, line in lines.items() if line != shown[name]]
        return "", (row, tidied), all(is_plain)

    def _levels(self, category: str) -> list[str]:
        levels = listings.category_levels(category, self.schema.separator)
        if "category" in self.schema.missing and not listings.has_category(listings.CATEGORY_SEPARATOR.join(levels)):
            return listings.category_levels(self.schema.missing["category"], self.schema.separator)
        return levels

    def _check(self, texts: dict[str, str]) -> tuple[str, float, str]:
        """The reason to reject a listing as it was written, empty where there is none; its price, and the day it was listed."""
        for name in FIELDS:
            if self.schema.required(name) and not texts[name].strip():
                return f"null_{self.schema.column(name)}", 0, ""
        if not self.is_id(texts["id"].strip()):
            return "bad_id", 0, ""
        try:
            price = self.schema.price_format.parse(texts["price"])
        except OtherCurrency:
            return "other_currency", 0, ""
        except ValueError:
            return "bad_price", 0, ""
        try:
            return "", price, self.schema.date(texts["created"])
        except (ValueError, OverflowError, OSError):  # the latter two of seconds that no calendar has
            return f"bad_{self.schema.created}", 0, ""

    def _check_cleaned(self, cleaned: dict[str, str], levels: list[str]) -> str:
        """The reason to reject a listing of which too little was left, empty where there is none."""
        for name in ("name", "description", "category", "place"):
            is_there = listings.has_category(cleaned[name]) if name == "category" else cleaned[name]
            if self.schema.required(name) and not is_there:
                return f"null_{self.schema.column(name)}"
        return "bad_category" if len(levels) > listings.MAX_LEVELS else ""

    def _seller(self, text: str) -> dict[str, str]:
        if not self.schema.seller:
            return {}
        who = folding.tidy(listings.single_line(text))
        digest = hashlib.blake2b(who.encode(), key=self.sellers_key, digest_size=16).hexdigest()
        return {"seller": digest if who else ""}


class CleanedBefore:
    """Rows that an earlier run made, by the digests of the records that they were made of; without a path there are none.

    Kept only of records of which nothing was taken out: beside what is left of another one, its digest would tell a telephone
    number to who tries them all.
    """

    # Rows in the order in which they come: only the keys, which are of no order, are put here and there.
    SCHEMA = "CREATE TABLE rows (key BLOB UNIQUE, made BLOB); CREATE TABLE made (by TEXT);"

    def __init__(self, path: Path | None = None, made_by: str = ""):
        """made_by: a digest of all that decides, beside a record, how its row looks."""
        self.path, self._earlier, self._n_earlier, self._n_new = path, None, 0, 0
        if path is None:
            return
        self._made = path.with_name(path.name + atomic.TEMPORARY_SUFFIX)
        self._kept = sqlite3.connect(self._made, isolation_level=None)
        self._kept.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;" + self.SCHEMA)
        self._kept.execute("INSERT INTO made VALUES (?)", (made_by,))
        with contextlib.suppress(sqlite3.Error):  # a damaged one, or none
            earlier = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            if earlier.execute("SELECT by FROM made").fetchone() == (made_by,):
                (self._n_earlier,) = earlier.execute("SELECT COUNT(*) FROM rows").fetchone()
                self._earlier = earlier

    def find(self, key: bytes) -> tuple[dict, list[str]] | None:
        """The row and the columns that were tidied of a record that was met before."""
        if self.path is None:
            return None
        query = "SELECT made FROM rows WHERE key = ?"
        if (found := self._kept.execute(query, (key,)).fetchone()) is None and self._earlier:
            with contextlib.suppress(sqlite3.Error):
                found = self._earlier.execute(query, (key,)).fetchone()
            if found:
                self._kept.execute("INSERT INTO rows VALUES (?, ?)", (key, *found))
        return tuple(orjson.loads(found[0])) if found else None

    def keep(self, key: bytes, made: tuple[dict, list[str]]) -> None:
        if self.path is not None:
            self._kept.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (key, orjson.dumps(made)))
            self._n_new += 1

    def save(self) -> None:
        """Have those that this run met or made in the file, for the next one."""
        if self.path is None:
            return
        (n_kept,) = self._kept.execute("SELECT COUNT(*) FROM rows").fetchone()
        self._kept.execute("COMMIT")
        self._kept.close()
        if not self._earlier or self._n_new or n_kept != self._n_earlier:
            atomic.flush(self._made)
            os.replace(self._made, self.path)

    def close(self) -> None:
        """Take away what save() has not put in the file's place."""
        if self.path is not None:
            self._kept.close()
            self._made.unlink(missing_ok=True)
        if self._earlier:
            self._earlier.close()


def clean_photo(
    raw: dict[str, str], extra: dict[str, str], labels: dict[str, int], is_image_id: Callable[[str], bool]
) -> tuple[str, dict]:
    """The reason to reject a photo, or an empty one and its row. labels: product id -> label."""
    for column in PHOTO_COLUMNS:
        if not raw[column].strip():
            return f"null_{column}", {}
    image_id, product_id = (listings.canonical_id(raw[column].strip()) for column in PHOTO_COLUMNS)
    if not is_image_id(image_id):
        return "bad_id", {}
    if product_id not in labels:
        return "no_listing", {}
    return "", {"image_id": image_id, "product_id": product_id, "label": labels[product_id], **clean_extra(raw, extra)}


def clean_extra(raw: dict[str, str], extra: dict[str, str]) -> dict[str, str]:
    return {name: clean_text(raw[column]) for column, name in extra.items()}


def clean_text(text: str) -> str:
    """Any raw text with its line breaks normalised and its personal data marked."""
    return redaction.redact(listings.normalise_breaks(text))


def is_uuid(text: str) -> bool:
    """Whether a text is an id of the export."""
    return redaction.UUID.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Whether a text is an id of a shop: of at most MAX_ID characters, none of them a break or unseen control.

    "." and ".." cannot stand in an address, percent-encoded or not: clients take them for steps along the path.
    """
    return 0 < len(text) <= MAX_ID and text not in (".", "..") and not IN_NO_NAME.search(text)


def clean_id(text: str, is_id: Callable[[str], bool] = is_uuid) -> str:
    """What a reject shows as its id: the id, a UUID in lower case, and of anything else its personal data marked."""
    text = text.strip()
    return listings.canonical_id(text) if is_id(text) else redaction.redact(text)


def extra_columns(columns: list[str], schema: Schema) -> dict[str, str]:
    """Raw column of the listings -> its name in the cleaned file, for those to keep."""
    wanted = [name for name in columns if name not in schema.used()] if schema.extra == ALL else list(schema.extra)
    return named_apart(wanted, [*CLEAN_LISTING_COLUMNS, *(["seller"] if schema.seller else [])])


def named_apart(columns: list[str], taken: list[str]) -> dict[str, str]:
    """Raw column -> its name in the cleaned file, raw_<name> where the stage has a column of that name itself.

    A column's name is text too: its personal data is marked, and of two names that become one the second gets a number.
    """
    names = {}
    for column in columns:
        if not export_csv.is_unnamed(column):
            name = clean_text(column)
            name = f"raw_{name}" if name in taken else name
            while name in names.values():
                name += "_2"
            names[column] = name
    return names
