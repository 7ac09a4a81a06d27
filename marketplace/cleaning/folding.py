"""A text as a person sees it: entities, invisible characters, look-alikes; and where each character of it came from."""

import functools
import html
import itertools
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

# Bounded, as html.unescape is not: it fails on a number of more than 4,300 digits. "&amp;amp;" has been through two programs.
ENTITY = re.compile(r"&(?:amp;){0,9}(?P<name>#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,30});")

# Unicode's Default_Ignorable_Code_Point: soft hyphens, zero-width characters, directions, fillers, variation selectors, tags.
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
INVISIBLE = re.compile(f"[{_IGNORABLE}]")

# What is shown, but where: joiners and variation selectors are part of an emoji, or of a letter's shape.
_UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")

_BLANKS = re.compile(r"[^\S\n]+")

# What takes another number of characters when it is shown: an entity, a tag, an invisible character, an emoji digit's keycap.
_RESHAPED = re.compile(
    rf"{ENTITY.pattern}|</?(?:br|wbr|p|b|i|u|em|strong|span|div|font|a|ul|ol|li|td|tr|h[1-6])\b[^<>\n]{{0,80}}>|[{_IGNORABLE}\u20e3]+",
    re.IGNORECASE,
)

_LOOK_ALIKE = {"\u2043": "-", "\u2212": "-", "\u00b7": "\u2022", "\u2027": "\u2022", "\u2219": "\u2022", "\u3002": "."}

MAX_MARKS = 30  # combining marks in a row: Unicode's stream-safe format (UAX #15), beyond which normalising is quadratic


class Folded(NamedTuple):
    """A text as it is shown, in the plainest characters, and where its characters came from.

    plain: one character for each one that is shown; pieces: where runs of characters begin, as (in plain, in the text, whether
    the run is as long there); None where both are of one length throughout.
    """

    text: str
    plain: str
    pieces: list[tuple[int, int, bool]] | None

    def origin(self, start: int, stop: int) -> tuple[int, int]:
        """Where the characters [start, stop) of `plain`, at least one, are in the text."""
        if self.pieces is None:
            return start, stop
        return self._begin(start), self._end(stop)

    def _begin(self, place: int) -> int:
        begin, origin, _ = self.pieces[bisect_right(self.pieces, place, key=lambda piece: piece[0]) - 1]
        return origin + place - begin

    def _end(self, place: int) -> int:
        """What is invisible after the last character goes with it: an emoji digit's keycap."""
        number = bisect_right(self.pieces, place - 1, key=lambda piece: piece[0])
        if number < len(self.pieces) and self.pieces[number][0] == place:
            return self.pieces[number][1]
        begin, origin, _ = self.pieces[number - 1]
        return origin + place - begin

    def replace(self, found: Iterable[tuple[int, int, str]]) -> str:
        """The text with each (start, stop, word) of `plain`, sorted and disjoint, replaced by its word."""
        parts, last = [], 0
        for start, stop, word in found:
            begin, end = self.origin(start, stop)
            parts += [self.text[last:begin], word]
            last = end
        return "".join([*parts, self.text[last:]])


def fold(text: str) -> Folded:
    """The text in its plainest characters: tags as a blank, entities, NFKC, one kind of dash and of bullet, ASCII digits."""
    if text.isascii() and "&" not in text and "<" not in text:
        return Folded(text, text, None)
    plain, pieces = _reshape(text) if _RESHAPED.search(text) else (text, None)
    if not plain.isascii() and (others := {ord(char): _plain(char) for char in set(plain) if _plain(char) != char}):
        plain = plain.translate(others)
    return Folded(text, plain, pieces)


def _reshape(text: str) -> tuple[str, list[tuple[int, int, bool]]]:
    parts, pieces, length, last = [], [], 0, 0
    for match in _RESHAPED.finditer(text):
        shown = _shown(match[0])
        for part, origin, same_length in ((text[last : match.start()], last, True), (shown, match.start(), False)):
            if part:
                parts.append(part)
                pieces.append((length, origin, same_length))
                length += len(part)
        last = match.end()
    pieces.append((length, last, True))
    return "".join([*parts, text[last:]]), pieces


def _shown(special: str) -> str:
    if special[0] == "<":
        return " "
    shown = INVISIBLE.sub("", unescape(special)) if special[0] == "&" else ""
    return shown if len(shown) < 2 else " "


@functools.lru_cache(maxsize=10_000)
def _plain(char: str) -> str:
    """One character for one: what has no such form stays."""
    if char in _LOOK_ALIKE:
        return _LOOK_ALIKE[char]
    if unicodedata.category(char) == "Pd":
        return "-"
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    folded = unicodedata.normalize("NFKC", char)
    return folded if len(folded) == 1 else char


def unescape(text: str) -> str:
    """The text with HTML entities as their characters, though they were escaped more than once."""
    return ENTITY.sub(lambda entity: html.unescape(f"&{entity['name']};"), text)


def tidy(text: str) -> str:
    """One line of a table as it is shown: entities as their characters, every run of blanks as one, nothing unseen."""
    return _BLANKS.sub(" ", _UNSEEN.sub("", unescape(text))).strip()


def limit_marks(text: str) -> str:
    """The text without what goes beyond 30 combining marks in a row, so that normalising it takes linear time."""
    if text.isascii() or sum(map(bool, map(unicodedata.combining, text))) <= MAX_MARKS:
        return text
    runs = itertools.groupby(text, lambda char: unicodedata.combining(char) > 0)
    return "".join("".join(itertools.islice(run, MAX_MARKS) if is_marks else run) for is_marks, run in runs)
