"""The records of an export, whatever its line breaks and quotes have been through.

Python's csv module reads the fields; what is decided here is where a record ends. pandas.read_csv would decide that by itself,
but it pads short rows, mends broken quotes without a word and keeps no raw text for rejected.csv.
"""

import codecs
import csv
import itertools
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from marketplace.cleaning import listings, redaction
from marketplace.files.stages import StageError

MAX_PIECES_AHEAD = 10_000  # lines with a comma that one record may have
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
    """The columns of one export, and what a record looks like under them."""

    def __init__(self, columns: list[str]):
        self.columns = columns
        self.price = columns.index("price") if "price" in columns else None
        before_id = columns[: columns.index("id")]
        fields = "".join(r'(?:\d+|"\d+"),' if is_unnamed(name) else r'(?:"[^"\n]*"|[^",\n]*),' for name in before_id)
        self.start = re.compile(rf'{fields}"?({redaction.UUID.pattern})"?(?:,|$)')  # 12,1c58d3f9-...,
        self.description = columns.index("product_description") if "product_description" in columns else len(columns) - 1
        left = rf'(?P<left>(?:(?:"(?:[^"]|"")*+"|[^",\n]*),){{{self.description}}})'
        right = rf'(?P<right>(?:,(?:"(?:[^"\n]|"")*+"|[^",\n]*)){{{len(columns) - self.description - 1}}})'
        self.around_description = re.compile(rf"{left}(?P<description>(?s:.*)){right}")

    def named(self, fields: list[str]) -> dict[str, str]:
        """Column -> field; of two columns with one name, the first."""
        return dict(zip(reversed(self.columns), reversed(fields), strict=True))

    def id_at_start(self, text: str) -> str:
        """The id that the text of a record starts with, empty when it does not."""
        match = self.start.match(text)
        return match[1] if match else ""

    def is_record(self, fields: list[str] | None) -> bool:
        return fields is not None and len(fields) == len(self.columns)

    def is_priced(self, fields: list[str] | None) -> bool:
        """Whether the fields are a record's, and its price is a price or empty, so that no column can have shifted."""
        if not self.is_record(fields):
            return False
        try:
            return self.price is None or not fields[self.price].strip() or listings.parse_price(fields[self.price]) >= 0
        except ValueError:
            return False


def is_unnamed(column: str) -> bool:
    return not column or column.startswith("Unnamed:")


def read_layout(path: Path, lines: Iterator[str], required: list[str]) -> Layout:
    """The layout that the first line with text gives; StageError names the required columns it lacks."""
    header = next((line for line in lines if line.strip()), "")
    columns = [name.strip() for name in parse_fields(header) or []]
    if missing := [name for name in required if name not in columns]:
        names = f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise StageError(f"{path} is not such an export: its first line lacks the {names}")
    return Layout(columns)


def parse_fields(text: str) -> list[str] | None:
    """The fields of one CSV record, its unquoted line breaks kept; None when its quoting is broken or unfinished."""
    text, stand_in = text.rstrip("\n"), ""
    if "\n" in text:  # csv ends a record at a break outside quotes, so breaks hide behind a character that the text lacks
        stand_in = next(char for char in map(chr, itertools.count(0xE000)) if char not in text)
        text = text.replace("\n", stand_in)
    try:
        fields = next(csv.reader([text], strict=True), [])
    except csv.Error:
        return None
    return [field.replace(stand_in, "\n") for field in fields] if stand_in else fields


def parse_mended(text: str, layout: Layout) -> list[str] | None:
    """The fields of a record whose description has broken quoting: all others are read from the two ends towards it.

    None unless each of them is quoted, or free of quotes and commas, and the price is a price or empty.
    """
    if not (match := layout.around_description.fullmatch(text.rstrip("\n"))):
        return None
    fields = parse_fields(f"{match['left']}x{match['right']}")
    if fields:
        fields[layout.description] = match["description"].removeprefix('"').removesuffix('"').replace('""', '"')
    return fields if layout.is_priced(fields) else None


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
    fields, size = shortest_run(ahead, layout, layout.is_priced)
    starts = [place for place, piece in enumerate(itertools.islice(ahead, size)) if piece.is_start and place > 0]
    if fields and not starts:
        return [(fields, size)]
    first = up_to_next_record(ahead, layout)
    texts = list(itertools.accumulate(piece.text for piece in first))
    if fields:
        if not parse_mended(texts[-1], layout):
            return [(fields, size)]
        # Two descriptions with half a pair of quotes each look like one that quotes records: all of them are rejected.
        return [(None, end - begin) for begin, end in itertools.pairwise([0, *starts, size])]
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
