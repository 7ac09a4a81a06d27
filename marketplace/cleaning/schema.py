"""A shop's own table: which column is what, how it is written, and what may be empty. The course's export is built in."""

import dataclasses
import datetime
import functools
import re
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass
from rapidfuzz import process

from marketplace.cleaning import listings, prices
from marketplace.cleaning.prices import PriceFormat
from marketplace.files.stages import StageError

FIELDS = ("id", "name", "category", "description", "price", "place")  # of a listing, in the order in which they are checked
OPTIONAL = ("description", "place")  # that may have no column, or be empty
MARKS = ("photos", "created", "seller")  # further columns with a meaning; always allowed to be empty
ALL = "all"  # columns are extra
EXPLAIN = "python clean_tabular_data.py --schema-example explains every key"
HELP = "give a --schema that names yours, which --schema-example explains"
DELIMITERS = (";", "\t", "|", ",")
MILLISECONDS = 1e11  # as seconds, times from here on are after the year 5000
MAX_SHOWN = 12  # columns in a message, each of ...
MAX_COLUMN = 40  # ... characters


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Schema:
    """The keys of a schema's file; EXAMPLE says what each means. A column that is not there is ""."""

    id: str
    name: str
    category: str
    price: str
    description: str = ""
    place: str = ""
    created: str = ""
    created_format: str = "iso"
    seller: str = ""
    photos: str = ""
    photos_separator: str = "|"
    photo_pattern: str = ""
    separator: str = listings.CATEGORY_SEPARATOR
    currency: str = "GBP"
    decimal: Literal[".", ","] = "."
    format: Literal["", "csv", "jsonl", "parquet", "export"] = ""
    delimiter: str = ","
    encoding: str = "utf-8"
    may_be_empty: tuple[Literal["description", "place"], ...] = ()
    missing: dict[Literal["category", "description", "place"], str] = dataclasses.field(default_factory=dict)
    extra: tuple[str, ...] | Literal["all"] = ()

    @field_validator("id", "name", "price")
    @classmethod
    def _is_column(cls, column: str) -> str:
        if not column:
            raise ValueError("give the name of a column")
        return column

    @field_validator("separator", "photos_separator")
    @classmethod
    def _parts_something(cls, separator: str) -> str:
        if not separator.strip():
            raise ValueError("give a character that is not a blank")
        return separator

    @field_validator("currency")
    @classmethod
    def _is_currency(cls, currency: str) -> str:
        if not prices.is_code(currency):
            raise ValueError(f"{currency!r} is not an ISO 4217 code, such as EUR")
        return currency

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, delimiter: str) -> str:
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ValueError(f'{delimiter!r} is not one character, such as ";" or "\\t"')
        return delimiter

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"{encoding!r} is not an encoding that Python has, such as utf-8 or cp1252") from None
        return encoding

    @field_validator("missing")
    @classmethod
    def _says_something(cls, missing: dict[str, str]) -> dict[str, str]:
        if empty := [field for field, text in missing.items() if not text.strip()]:
            raise ValueError(f"give a text for {empty[0]}, or name it in may_be_empty")
        return missing

    @model_validator(mode="after")
    def _agrees(self) -> "Schema":
        if not self.category and "category" not in self.missing:
            raise ValueError("category: give the name of a column, or a category for all below [missing]")
        if self.photos and self.photo_pattern:
            raise ValueError("photos and photo_pattern are two answers to one question: give one of them")
        if self.photo_pattern and (self.photo_pattern.count("{id}") != 1 or self.photo_pattern.count("{n}") > 1):
            raise ValueError('photo_pattern has to hold {id} once, and may hold {n} once, such as "{id}_{n}.jpg"')
        if self.seller and self.seller in self.extra:
            raise ValueError(f"extra: {self.seller} is the seller, of whom only a keyed hash is kept")
        return self

    @property
    def is_export(self) -> bool:
        """Whether the table is the course's export, whose records and ids have a structure of their own."""
        return self.format == "export"

    @property
    def price_format(self) -> PriceFormat:
        return PriceFormat(self.currency, self.decimal)

    def column(self, field: str) -> str:
        """The raw column of a field, "" where the table has none."""
        return getattr(self, field)

    @functools.cached_property
    def _columns(self) -> dict[str, str]:
        return {field: self.column(field) for field in (*FIELDS, *MARKS)}

    def used(self) -> list[str]:
        """The raw columns that have a meaning, which the table must have."""
        return [self.column(field) for field in (*FIELDS, *MARKS) if self.column(field)]

    def required(self, field: str) -> bool:
        """Whether a listing without this field is rejected."""
        has_default = field in self.missing or field in self.may_be_empty
        return not has_default and (field not in OPTIONAL or bool(self.column(field)))

    def fields(self, raw: dict[str, str]) -> dict[str, str]:
        """Field -> text of a raw record, the constants in place of what is missing."""
        texts = {field: raw[column] if column else "" for field, column in self._columns.items()}
        return {field: text if text.strip() else self.missing.get(field, text) for field, text in texts.items()}

    def date(self, text: str) -> str:
        """The day of a time, YYYY-MM-DD, "" of none; ValueError where it is not of created_format."""
        if not (text := text.strip()):
            return ""
        if self.created_format == "unix":
            seconds = float(text) / (1000 if abs(float(text)) >= MILLISECONDS else 1)
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
        if self.created_format == "iso":
            return datetime.datetime.fromisoformat(text).date().isoformat()
        return datetime.datetime.strptime(text, self.created_format).date().isoformat()

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)


EXPORT = Schema(
    id="id",
    name="product_name",
    category="category",
    description="product_description",
    price="price",
    place="location",
    format="export",
    extra=ALL,
)

EXAMPLE = """# What a shop's table looks like: python clean_tabular_data.py --schema shop.toml --products shop.csv
# Without --schema, the course's export is read. Keys that are marked (optional) may be left out.

# Columns. The four without which there is no listing:
id = "sku"                # any text of up to 128 characters; UUIDs in lower case, all others exactly as they are
name = "title"
category = "path"         # from the widest level to the narrowest (a shop without any has one for all below [missing])
price = "price"

# (optional) Columns that a shop may not have:
description = "body"
place = "town"            # "Town" or "Town, County"
created = "added"         # when it was listed: the order of "newest"
created_format = "iso"    # "iso" (2026-11-27, 2026-11-27T10:30:00Z), "unix" (seconds, or milliseconds), or as Python's strptime
                          # ("%d.%m.%Y")
seller = "vendor"         # kept only as a keyed hash, so that listings of one seller can be told; the key is in seller.key
extra = ["url"]           # more columns to keep, redacted like all texts; "all": every other column

# (optional) Photos, where no Images.csv (a table of "id", the photo's file name without its ending, and "product_id") tells:
photos = "pictures"       # a column of file names: one, several, or a list in JSON; may be empty
photos_separator = "|"    # between several
# photo_pattern = "{id}_{n}.jpg"   # in place of a column: how the files are called; {n} is a number, and the order

# (optional) How the table is written:
separator = ">"           # between the levels of a category (default: " / ")
currency = "EUR"          # ISO 4217 (default: GBP); prices in another one are rejected, as nothing is converted
decimal = ","             # before the decimals of a price: "." (default) or ","
format = "csv"            # csv, jsonl or parquet (default: as the file's name ends, csv where that tells nothing)
delimiter = ";"           # of a CSV (default: ","), "\\t" for a tab
encoding = "utf-8"        # (default) or another that Python has, such as cp1252

# (optional) What may be missing. A listing that lacks another field is rejected.
may_be_empty = ["description", "place"]   # these two can; created, seller and photos always may

[missing]                 # what stands in place of an empty category, description or place
category = "Other"
"""


def load(path: Path) -> Schema:
    """The schema of a TOML file; StageError says in one sentence what is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        keys = tomllib.loads(text)
    except (FileNotFoundError, IsADirectoryError):
        raise StageError(f"{path} does not exist: give a TOML file with --schema; {EXPLAIN}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StageError(f"{path} is not TOML ({error}): correct it; {EXPLAIN}") from None
    if keys.get("format") == "export":
        raise StageError(f"{path}: format export is read without --schema: leave one of the two out; {EXPLAIN}")
    if isinstance(keys.get("missing"), dict) and "category" in keys["missing"]:
        keys.setdefault("category", "")
    try:
        return Schema(**keys)
    except ValidationError as error:
        raise StageError(f"{path} {_fault(error.errors())}; {EXPLAIN}") from None


def _fault(errors: list[dict]) -> str:
    """What is wrong with a schema, as the end of a sentence: a mistyped key before the one that it then lacks."""
    error = next((error for error in errors if error["type"] == "unexpected_keyword_argument"), errors[0])
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "unexpected_keyword_argument":
        names = [field.name for field in dataclasses.fields(Schema)]
        meant = nearest(key, names)
        return f"has a key that there is not, {key}" + (f": did you mean {meant}?" if meant else "")
    if error["type"] == "missing":
        return f'lacks the key {key}: add {key} = "NAME OF ITS COLUMN"'
    return f"has a bad value: {f'{key}: ' if key else ''}{error['msg'].removeprefix('Value error, ')}"


def check_columns(path: Path, found: list[str], schema: Schema, schema_path: Path | None = None) -> None:
    """StageError names the columns that the table lacks, those it has, and the nearest of them."""
    extra = [] if schema.extra == ALL else schema.extra
    missing = [name for name in dict.fromkeys([*schema.used(), *extra]) if name not in found]
    if missing:
        raise StageError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} of --schema {schema_path}: "
            f"it has {shown(found)}{_hint(missing, found)}"
        )


def _hint(missing: list[str], found: list[str]) -> str:
    """What may be meant by columns that are not there."""
    if len(found) == 1 and (others := [mark for mark in DELIMITERS if mark in found[0]]):
        return f' (is delimiter = "{others[0]}" meant?)'
    near = {name: nearest(name, found) for name in missing}
    meant = ", ".join(f"{column} for {name}" for name, column in near.items() if column)
    return f" (nearest: {meant})" if meant else ""


def nearest(name: str, names: list[str]) -> str:
    """The name most like this one, whatever their capitals; "" where none is like it."""
    found = process.extractOne(name, names, processor=str.casefold, score_cutoff=50)
    return found[0] if found else ""


def shown(columns: list[str]) -> str:
    """A table's columns as a message names them: on one line, not too many, none too long."""
    names = [re.sub(r"[^\x20-\x7e\xa0-\uffff]|[\ud800-\udfff]", "?", name)[:MAX_COLUMN] for name in columns if name]
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f"{', '.join(names[:MAX_SHOWN]) or 'no columns'}{more}"
