"""The records of a raw table, whatever kind of file it is: the course's export, CSV, JSON Lines or Parquet."""

import csv
import datetime
import decimal
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import pandas as pd

from marketplace.cleaning import export_csv
from marketplace.cleaning.schema import HELP, Schema, check_columns, shown
from marketplace.files.stages import StageError

MAX_FIELD = 1_000_000  # characters: a longer one is a quote without an end
MAX_DIGITS = 100  # of a number that is written out
NO_TABLES = {".json", ".xls", ".xlsx", ".ods", ".gz", ".zip", ".bz2", ".zst"}  # what may be taken for one by its name
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}


class RawRecord(NamedTuple):
    """fields: column -> text, None where they cannot be told apart; text: the record as it was; id: of a bad one, if known."""

    fields: dict[str, str] | None
    text: str
    id: str = ""


@dataclass(frozen=True)
class RawTable:
    columns: list[str]
    records: Iterator[RawRecord]


def open_table(path: Path, schema: Schema, schema_path: Path | None = None) -> RawTable:
    """The listings of a shop's table; StageError in one sentence where it is not what the schema says.

    schema_path: where the schema is from, for the sentence.
    """
    if schema.is_export:
        return open_export(path, [schema.column(field) for field in _EXPORT_ORDER], HELP)
    if not schema.format and path.suffix.lower() in NO_TABLES:
        raise StageError(
            f"{path} is read neither as {path.suffix.lower()} nor unpacked: save it as CSV, JSON Lines or Parquet, or say with "
            "format in --schema which of these it is"
        )
    kind = schema.format or SUFFIXES.get(path.suffix.lower(), "csv")
    table = {"csv": _open_csv, "jsonl": _open_json_lines, "parquet": _open_parquet}[kind](path, schema)
    if not any(table.columns):
        raise StageError(f"{path} is empty, or no {NAMES[kind]}: give another file, or say with format in --schema what it is")
    check_columns(path, table.columns, schema, schema_path)
    return table


NAMES = {"csv": "CSV", "jsonl": "JSON Lines", "parquet": "Parquet"}
_EXPORT_ORDER = ("id", "name", "category", "description", "price", "place")


def open_export(path: Path, required: list[str], remedy: str = "") -> RawTable:
    """An export of the course's kind, Products.csv or Images.csv. remedy: what to do about another file."""
    lines = export_csv.read_lines(path)
    header = export_csv.read_header(lines)
    if missing := [name for name in required if name not in header]:
        names = f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        more = f"; it has {shown(header)}: {remedy}" if remedy else ""
        raise StageError(f"{path} is not such an export: its first line lacks the {names}{more}")
    layout = export_csv.Layout(header, required)

    def records() -> Iterator[RawRecord]:
        for fields, text in export_csv.read_records(lines, layout):
            yield RawRecord(layout.named(fields), text) if fields else RawRecord(None, text, layout.id_at_start(text))

    return RawTable(header, records())


class _Lines:
    """The lines of a file, remembered until the record that they make has been read."""

    def __init__(self, file: TextIO):
        self.file, self.taken = file, []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        self.taken.append(next(self.file))
        return self.taken[-1]

    def take(self) -> str:
        text, self.taken = "".join(self.taken).rstrip("\r\n"), []
        return text


def _open_csv(path: Path, schema: Schema) -> RawTable:
    rows = _csv_rows(path, schema)
    header, _ = next(rows, ([], ""))
    columns = [name.strip() for name in header or []]

    def records() -> Iterator[RawRecord]:
        for fields, text in rows:
            if fields is None or len(fields) != len(columns):
                yield RawRecord(None, text)
            else:
                yield RawRecord(dict(zip(reversed(columns), reversed(fields), strict=True)), text)  # of two columns the first

    return RawTable(columns, records())


def _csv_rows(path: Path, schema: Schema) -> Iterator[tuple[list[str] | None, str]]:
    """The fields of each record, None where its quoting is broken, with its raw text; blank lines aside."""
    csv.field_size_limit(MAX_FIELD)
    encoding = "utf-8-sig" if schema.encoding.lower() in ("utf-8", "utf8") else schema.encoding
    with open(path, encoding=encoding, newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=schema.delimiter, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except UnicodeError:
                raise StageError(f"{path} is not {schema.encoding} after line {start}: name its encoding in --schema") from None
            except csv.Error as error:
                if "end of data" in str(error) or "larger" in str(error):
                    raise StageError(f"{path}: the quotes that open in line {start} do not close: correct that line") from None
                fields = None
            text = lines.take()
            if text.strip():
                yield fields, text


def _open_json_lines(path: Path, schema: Schema) -> RawTable:
    columns = dict.fromkeys(key for value, _ in _json_lines(path) for key in value or ())
    if not columns:
        raise StageError(f"{path} has no line that is a JSON object: write each listing as one, on a line of its own")

    def records() -> Iterator[RawRecord]:
        for value, text in _json_lines(path):
            fields = None if value is None else {name: _text(value.get(name), name, schema) for name in columns}
            yield RawRecord(fields, text)

    return RawTable(list(columns), records())


def _json_lines(path: Path) -> Iterator[tuple[dict | None, str]]:
    """The object of each line, None where it is none, with the line; numbers as they are written, to the last digit."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in file:
            if text := line.strip():
                try:
                    value = json.loads(text, parse_float=decimal.Decimal)
                    if "\\ud" in text.lower():  # half of a pair, which no UTF-8 holds
                        json.dumps(value, ensure_ascii=False, default=str).encode()
                except ValueError:
                    value = None
                yield (value if isinstance(value, dict) else None), text.encode("utf-8", "replace").decode()


def _open_parquet(path: Path, schema: Schema) -> RawTable:
    try:
        frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
    except ImportError:
        raise StageError(f"{path} is Parquet, which needs pyarrow: pip install pyarrow, or give CSV or JSON Lines") from None
    except (ValueError, OSError) as error:
        raise StageError(
            f"{path} is not a readable Parquet file ({str(error).splitlines()[0].rstrip('.')}): give another"
        ) from None
    columns = [str(name) for name in frame.columns]

    def records() -> Iterator[RawRecord]:
        for values in frame.itertuples(index=False, name=None):
            fields = {name: _text(value, name, schema) for name, value in zip(columns, values, strict=True)}
            yield RawRecord(fields, json.dumps(fields, ensure_ascii=False))

    return RawTable(columns, records())


def _text(value: object, column: str, schema: Schema) -> str:
    """A value of a typed file as the text that a CSV of the same schema would hold."""
    if isinstance(value, list | tuple | np.ndarray):
        parts = [_text(part, "", schema) for part in value]
        joiner = schema.separator if column == schema.category else ", "
        return json.dumps(parts) if column == schema.photos else joiner.join(parts)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, datetime.date):
        return _time(value, schema.created_format if column == schema.created else "iso")
    if isinstance(value, float | decimal.Decimal | np.floating):
        return _number(decimal.Decimal(str(value)), column, schema)
    return str(value)


def _number(value: decimal.Decimal, column: str, schema: Schema) -> str:
    if not value.is_finite() or abs(value.adjusted()) > MAX_DIGITS:
        return str(value)
    if column == schema.id and value == value.to_integral_value():
        return str(int(value))  # a column of whole numbers that lacks some is saved as fractions
    text = format(value, "f")
    return text.replace(".", schema.decimal) if column == schema.price else text


def _time(value: datetime.date, form: str) -> str:
    if form == "unix":
        return str(pd.Timestamp(value).timestamp())
    return value.isoformat() if form == "iso" else value.strftime(form)
