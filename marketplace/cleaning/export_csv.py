"""The records of an export, whatever its line breaks and quotes have been through."""

import csv
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from marketplace.cleaning import listings, redaction
from marketplace.files.stages import StageError

MAX_HEADER_CHARS = 65_536  # a longer first line is no header


MAX_STARTS_IN_FIELD = 50  # lines in one quoted field that look like the start of a record


MAX_PREFIXES = 20  # line ends at which a record of broken quoting may end


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
        self.start = re.compile(rf'{fields}"?({redaction.UUID.pattern})"?(?:,|$)')
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
