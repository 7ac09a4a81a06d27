"""The records of an export, whatever its line breaks and quotes have been through.

Python's csv module reads the fields; what is decided here is where a record ends. pandas.read_csv would decide that by itself,
but it pads short rows, mends broken quotes without a word and keeps no raw text for rejected.csv.
"""

import codecs
import csv
import functools
import itertools
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from marketplace.cleaning import redaction
from marketplace.cleaning.listings import CATEGORY_SEPARATOR
from marketplace.cleaning.prices import POUNDS

MAX_PIECES_AHEAD = 50_000  # lines with a comma that one record may have
MAX_STARTS_IN_FIELD = 50  # lines in one quoted field that look like the start of a record
MAX_PIECES_MENDED = 50  # lines with a comma that a record of broken quoting may have


class Piece(NamedTuple):
    """A line with a comma, and the lines without one after it: these go on in an unquoted field, which has none."""

    text: str
    is_start: bool  # of a record: it begins with a row number and a UUID


def read_lines(path: Path) -> Iterator[str]:
    """The lines of an export, each ending in a newline whatever break the file has, without a byte order mark.

    UTF-8. Bytes that are not UTF-8 are read as Windows-1252, and so is the whole file when they are at least as many as its
    valid characters beyond ASCII.
    """
    beyond_ascii = invalid = 0
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        while block := file.read(1 << 20):
            invalid += len(re.findall("[\udc80-\udcff]", block))
            beyond_ascii += len(block) - len(block.encode("ascii", "ignore"))  # the invalid ones too
    encoding = "cp1252" if invalid and beyond_ascii <= 2 * invalid else "utf-8-sig"
    with open(path, encoding=encoding, errors="windows-1252") as file:
        yield from file


def _decode_windows_1252(error: UnicodeDecodeError) -> tuple[str, int]:
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("windows-1252", _decode_windows_1252)


class Layout:
    """The columns of one export, and what a record looks like under them.

    required: the columns that no record may lack; Excel leaves out empty ones after the last of them.
    """

    def __init__(self, columns: list[str], required: list[str]):
        self.columns = columns
        self.least = max(map(columns.index, required)) + 1
        self.price = columns.index("price") if "price" in columns else None
        before_id = columns[: columns.index("id")]
        fields = "".join(r'(?:\d+|"\d+"),' if is_unnamed(name) else r'(?:"[^"\n]*"|[^",\n]*),' for name in before_id)
        self.start = re.compile(rf'{fields}"?({redaction.UUID.pattern})"?(?:,|$)')  # 12,1c58d3f9-...,
        self.description = columns.index("product_description") if "product_description" in columns else len(columns) - 1

    def named(self, fields: list[str]) -> dict[str, str]:
        """Column -> field; of two columns with one name, the first."""
        return dict(zip(reversed(self.columns), reversed(fields), strict=True))

    def id_at_start(self, text: str) -> str:
        """The id that the text of a record starts with, empty when it does not."""
        match = self.start.match(text)
        return match[1] if match else ""

    def is_record(self, fields: list[str] | None) -> bool:
        """Whether the fields are as many as the columns, and the price was not cut at a comma of its own: "£1" and "200"."""
        if fields is None or len(fields) != len(self.columns):
            return False
        following = self.columns[self.price + 1 : self.price + 2] if self.price is not None else []
        if following and following[0] in _TEXT_COLUMNS:
            return not (_THOUSANDS.fullmatch(fields[self.price].strip()) and _HUNDREDS.fullmatch(fields[self.price + 1].strip()))
        return True

    def is_priced(self, fields: list[str] | None) -> bool:
        """Whether the fields are a record's, and its price is a price or empty, so that no column can have shifted."""
        return self.is_record(fields) and (self.price is None or _is_price(fields[self.price]))

    def is_certain(self, fields: list[str]) -> bool:
        """Whether fields, still in their quotes, are each what its column holds, and no other way to part them is."""
        name, category, price = (self._field(fields, column) for column in ("product_name", "category", "price"))
        description = fields[self.description]
        if category and not category.startswith('"') and (CATEGORY_SEPARATOR not in category or description[:1].isspace()):
            return False  # "Table,chairs,Home & Garden / Tables": of "chairs"; "Sports / Bikes, Skates": of "Sports / Bikes"
        if (
            name
            and not name.startswith('"')
            and not name.endswith("Gumtree")
            and CATEGORY_SEPARATOR in description.partition(",")[0]
        ):
            return False  # "Table,red / blue,Home & Garden / Tables"
        return not (price and _HUNDREDS.fullmatch(price) and _ENDS_IN_THOUSANDS.search(description[-8:]))

    def _field(self, fields: list[str], column: str) -> str:
        return fields[self.columns.index(column)] if column in self.columns else ""

    def filled(self, fields: list[str] | None) -> list[str] | None:
        """The fields with empty ones for the last columns, which a record may lack; None unless it is whole so."""
        if fields is None or not self.least <= len(fields) < len(self.columns):
            return None
        fields = fields + [""] * (len(self.columns) - len(fields))
        return fields if self.is_priced(fields) else None


_TEXT_COLUMNS = ("product_name", "category", "product_description", "location")
_THOUSANDS = re.compile("£?[0-9]{1,3}")
_HUNDREDS = re.compile(r"[0-9]{3}(?:\.[0-9]*)?")
_ENDS_IN_THOUSANDS = re.compile(r"(?:^|,)\s?£?[0-9]{1,3}$")


@functools.lru_cache(maxsize=10_000)  # people ask the same prices
def _is_price(text: str) -> bool:
    """Whether a field is a price in any currency, or empty."""
    try:
        return not text.strip() or POUNDS.is_other(text) or POUNDS.parse(text) >= 0
    except ValueError:
        return False


def is_unnamed(column: str) -> bool:
    return not column or column.startswith("Unnamed:")


def read_header(lines: Iterator[str]) -> list[str]:
    """The columns' names: the first line with text."""
    header = next((line for line in lines if line.strip()), "")
    return [name.strip() for name in parse_fields(header) or []]


def parse_fields(text: str) -> list[str] | None:
    """The fields of one CSV record, its unquoted line breaks kept; None when its quoting is broken or unfinished."""
    text, stand_in = text.rstrip("\n"), ""
    if "\n" in text:  # csv ends a record at a break outside quotes, so breaks hide behind a character that the text lacks
        chars = set(text)
        stand_in = next(char for char in map(chr, itertools.count(0xE000)) if char not in chars)
        text = text.replace("\n", stand_in)
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error:
        return None
    return [field.replace(stand_in, "\n") for field in fields] if stand_in else fields


def plain_fields(text: str) -> list[str] | None:
    """What parse_fields() gives of one line without quotes, in a third of the time; None of anything else."""
    line = text.removesuffix("\n")
    return None if not line or '"' in line or "\n" in line or "\r" in line else line.split(",")


def parse_mended(text: str, layout: Layout) -> list[str] | None:
    """The fields of a record with broken quotes or unquoted commas, where only one way to part them is possible, else None."""
    fields = read_from_ends(text, layout)
    return _unquoted(fields, layout) if fields and layout.is_certain(fields) else None


def read_from_ends(text: str, layout: Layout) -> list[str] | None:
    """The fields of a record, still in their quotes: all but the description are read from the two ends towards it.

    A comma outside quotes is part of a field before a blank, in a name and in "Town, County", and between the thousands of a
    price with its pound sign. None unless every column has a field, and the price is a price or empty.
    """
    text = text.rstrip("\n")
    before, after = layout.columns[: layout.description], layout.columns[layout.description + 1 :]
    left, start = _read_fields(text, before, backwards=False)
    right, length = _read_fields(text[start:][::-1], after[::-1], backwards=True)
    fields = [*left, text[start : len(text) - length], *(field[::-1] for field in reversed(right))]
    return fields if layout.is_priced(_unquoted(fields, layout)) else None


def _unquoted(fields: list[str], layout: Layout) -> list[str]:
    plain = [field[1:-1].replace('""', '"') if field.startswith('"') else field for field in fields]
    if len(fields) == len(layout.columns):  # of the description, a half of a pair of quotes may be missing
        description = fields[layout.description].removeprefix('"').removesuffix('"')
        plain[layout.description] = description.replace('""', '"')
    return plain


# A field beside a comma, quoted or not: read backwards it looks the same.
_QUOTED, _PLAIN = re.compile(r'"(?:[^"\n]|"")*+"'), re.compile(r'[^",\n]*')
_PRICE = re.compile(r"£[0-9]{1,3}(?:,[0-9]{3}){1,9}(?:\.[0-9]*)?(?=,|$)")
_PRICE_BACKWARDS = re.compile(r"(?:[0-9]{0,9}\.)?(?:[0-9]{3},){1,9}[0-9]{1,3}£(?=,|$)")
_COMMAS = {"product_name": 100, "location": 1}  # before a blank, which a field may have outside quotes


def _read_fields(text: str, columns: list[str], backwards: bool) -> tuple[list[str], int]:
    """The fields of these columns, in their quotes, and where the text goes on after their commas; fewer where one is broken."""
    fields, start = [], 0
    for column in columns:
        end = _end_of_field(text, start, column, backwards)
        if text[end : end + 1] != ",":
            break
        fields.append(text[start:end])
        start = end + 1
    return fields, start


def _end_of_field(text: str, start: int, column: str, backwards: bool) -> int:
    if quoted := _QUOTED.match(text, start):
        return quoted.end()
    price = (_PRICE_BACKWARDS if backwards else _PRICE).match(text, start) if column == "price" else None
    if price:
        return price.end()
    end = _PLAIN.match(text, start).end()
    for _ in range(_COMMAS.get(column, 0)):
        beside = text[end - 1 : end] if backwards else text[end + 1 : end + 2]
        if text[end : end + 1] != "," or beside not in (" ", "\t", "\xa0"):
            break
        end = _PLAIN.match(text, end + 1).end()
    return end


def read_records(lines: Iterator[str], layout: Layout) -> Iterator[tuple[list[str] | None, str]]:
    """Each record's fields, None where they cannot be told apart, with its raw text."""
    csv.field_size_limit(sys.maxsize)
    pieces, ahead = read_pieces(lines, layout), deque()
    while True:
        ahead.extend(itertools.islice(pieces, MAX_PIECES_AHEAD - len(ahead)))
        if not ahead:
            return
        for fields, size in next_records(ahead, layout):
            text = "".join(ahead.popleft().text for _ in range(size)).strip("\n")
            if text.strip():
                yield fields, text


def read_pieces(lines: Iterator[str], layout: Layout) -> Iterator[Piece]:
    piece = []
    for line in itertools.chain(lines, [","]):  # the last one only ends the piece before it
        if "," in line and piece:
            yield Piece("".join(piece), layout.start.match(piece[0]) is not None)
            piece = []
        piece.append(line)


def next_records(ahead: deque[Piece], layout: Layout) -> list[tuple[list[str] | None, int]]:
    """The next records, each with its number of pieces: one, or several where it cannot be decided what they are."""
    if layout.is_priced(fields := plain_fields(ahead[0].text)):
        return [(fields, 1)]
    # What starts no record is rubbish, or the rest of one: to look far ahead from each of its lines would take square time.
    within = ahead if ahead[0].is_start else list(itertools.islice(ahead, MAX_PIECES_MENDED))
    fields, size = shortest_run(within, layout, layout.is_priced)
    starts = [place for place, piece in enumerate(itertools.islice(ahead, size)) if piece.is_start and place > 0]
    if fields and not starts:
        return [(fields, size)]
    first = up_to_next_record(ahead, layout)
    texts = list(itertools.accumulate(piece.text for piece in first))
    if fields:
        if not read_from_ends(texts[-1], layout):
            return [(fields, size)]
        # Two descriptions with half a pair of quotes each look like one that quotes records: all of them are rejected.
        return [(None, end - begin) for begin, end in itertools.pairwise([0, *starts, size])]
    if fields := layout.filled(parse_fields(texts[-1])):
        return [(fields, len(first))]
    for count, text in enumerate(texts, start=1):
        if fields := parse_mended(text, layout):
            return [(fields, count)]
    fields, size = shortest_run(first, layout, layout.is_record)  # with a bad price
    return [(fields, size if fields else len(first))]


def up_to_next_record(ahead: deque[Piece], layout: Layout) -> list[Piece]:
    """The pieces before the next one that starts a record, or is one by itself."""
    first = [ahead[0]]
    for piece in itertools.islice(ahead, 1, MAX_PIECES_MENDED):
        if piece.is_start or layout.is_record(parse_fields(piece.text)):
            break
        first.append(piece)
    return first


def shortest_run(
    pieces: deque[Piece] | list[Piece], layout: Layout, is_wanted: Callable[[list[str] | None], bool]
) -> tuple[list[str] | None, int]:
    """The fields of the shortest run of pieces that are wanted and its size; None and how far it was looked for.

    It runs on over the start of another record only inside an open quote: then a proper field quotes text like a record.
    """
    text, starts, is_open, size = "", 0, False, 0
    for piece in pieces:
        if size and piece.is_start:
            starts += 1
            if not is_open or starts > MAX_STARTS_IN_FIELD:
                break
        text += piece.text
        size += 1
        is_open ^= piece.text.count('"') % 2 == 1
        if is_open and size > 1:
            continue
        fields = parse_fields(text)
        if is_wanted(fields):
            return fields, size
        if (fields is None and not is_open) or (fields is not None and len(fields) > len(layout.columns)):
            break
    return None, size
