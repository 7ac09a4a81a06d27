"""The site's own sentence in a description: "Posted by Ann in Home & Garden, Beds in Leeds. 25 February 2022".

It tells the category, so that a model must not see it, and the seller's name. Each sentence is read in a window that ends where
the next one may begin, so that time grows as the text does.
"""

import contextlib
import datetime
import re
from collections.abc import Iterator
from typing import NamedTuple

from marketplace.cleaning.folding import fold

MAX_NAME, MAX_CUT_NAME, MAX_PLACE = 80, 60, 200  # characters; a name with nothing after it is believed less
MAX_SENTENCE = 400
MAX_ROUNDS = 4  # what a sentence leaves may join to another one; longer chains are nobody's writing

_POSTED = re.compile(r"posted\s+by\b[\s:]*", re.IGNORECASE)

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

_MONTH = (
    "(?i:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?"
    "|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)

_YEAR = r"(?:19|20)\d\d"

_DATE = re.compile(
    rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\.?\s{{1,9}}(?P<month>{_MONTH})\.?,?\s{{1,9}}(?P<year>{_YEAR})"
    rf"|(?P<month_2>{_MONTH})\.?\s{{1,9}}(?P<day_2>\d{{1,2}})(?:st|nd|rd|th)?,?\s{{1,9}}(?P<year_2>{_YEAR})"
    rf"|(?P<day_3>\d{{1,2}})/(?P<month_3>\d{{1,2}})/(?P<year_3>{_YEAR})|(?P<year_4>{_YEAR})-(?P<month_4>\d\d)-(?P<day_4>\d\d)"
)

# "Ann.Leeds. " before a date.
_NAME_AND_PLACE = re.compile(r"(?P<name>[^.\n]{1,60})\.\s{0,9}[A-Z][^.\n]{1,40}\.\s{0,9}")

_IN = re.compile(r"\sin\s+", re.IGNORECASE)

_NAME = re.compile(r"(?:[^.\n\"]|(?<=\b[A-Z])\.|(?<=\bMr)\.|(?<=\bMrs)\.|(?<=\bMs)\.|(?<=\bDr)\.){1,60}")  # "J. Smith", "Dr. Ann"

_NAME_END = re.compile(
    r"\s(?:in|on|at|from|for)\s|[,\"\n!?;|()<>]|\s[-&]\s*$|(?<!\b[A-Z])(?<!\bM[rs])(?<!\bMrs)(?<!\bDr)\.|$", re.IGNORECASE
)

_FIRST_WORDS = re.compile(r"[^\W\d_][\w'\u2019-]*(?:\s[^\W\d_][\w'\u2019-]*){0,2}")

_PLACE_END = re.compile(r"(?<!\bSt)(?<!\bMt)\.(?=\s|$)")  # the full stops of "St. Albans" and "A.B" end nothing

_CUT_DATE = re.compile(r"\s{0,9}\d{1,2}(?:\s+[A-Z][a-z]*)?(?:\s+\d{1,3})?\s*$")

# Sellers' own words about the post: by whom or when something is posted ...
_NO_SELLER = re.compile(
    r"""(?i:royal|post|postal|courier|recorded|special|first|second|1st|2nd|parcel\w*|dpd|hermes|my\s?hermes|evri|yodel|ups|dhl|fedex
    |tnt|inpost|tuffnells|me|us|air|air\s?mail|mail|myself|ourselves|buyer|buyers|tracked|signed|standard|next|express|freight|hand
    |arrangement|request|agreement|letter|large|small|international|economy|insured|mon|tue|wed|thu|fri|sat|sun|\w{2,6}day
    |tomorrow|weekend|noon|christmas|easter|january|february|march|april|june|july|august|september|october|november|december
    |[0-9]{1,9})\b
    |(?:the|an?|my|our|your|their|his|her|this|that|these|then|now|and|or|if|no|it|someone|anyone|who|what|which|van|boat|road|rail
    |box|whoever|friends?|family|one|two|three|same|end|latest|early|late)\b""",
    re.VERBOSE,
)

# ... and what stands before it in small letters: "can be posted by".
_OWN_WORDS = re.compile(
    r"\b(?:be|been|being|is|are|was|were|get|gets|got|if|or|and|not|only|items?|it|them|parcels?|sent|usually|normally|always)\s$"
)


class Sentence(NamedTuple):
    """One "Posted by", as (start, stop) in the text. whole: from it to the end of the site's sentence; None when it is none."""

    whole: tuple[int, int] | None
    name: tuple[int, int] | None
    posted_on: str


def strip_leak(description: str) -> tuple[str, str]:
    """The description without the site's "Posted by ... in ..." sentences, and their date.

    The date is the first one found, as YYYY-MM-DD; empty when there is none, or no such day in the calendar.
    """
    posted_on = ""
    for _ in range(MAX_ROUNDS):
        folded = fold(description)
        found = [sentence for sentence in _sentences(folded.plain) if sentence.whole]
        if not found:
            break
        posted_on = posted_on or next((sentence.posted_on for sentence in found if sentence.posted_on), "")
        description = _without(description, [folded.origin(*sentence.whole) for sentence in found])
    return description, posted_on


def find(text: str) -> list[tuple[int, int]]:
    """Where the sellers' names after "Posted by" are in a folded text: (start, stop) each, ascending."""
    return [sentence.name for sentence in _sentences(text) if sentence.name]


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    parts, last = [], 0
    for start, stop in [*spans, (len(text), len(text))]:
        part = text[last:start]
        if parts and part:
            before = parts[-1][-1:]
            part = part.lstrip(" ") if not before or before.isspace() else part
            part = f" {part}" if before.strip() and part[:1].isalnum() else part
        if part:
            parts.append(part)
        last = stop
    return "".join(parts).strip()


def _sentences(text: str) -> Iterator[Sentence]:
    starts = list(_POSTED.finditer(text))
    for number, posted in enumerate(starts):
        is_last = number + 1 == len(starts)
        window_end = min(len(text) if is_last else starts[number + 1].start(), posted.end() + MAX_SENTENCE)
        yield _read(text, posted, window_end)


def _read(text: str, posted: re.Match, window_end: int) -> Sentence:
    start, name_start = posted.span()
    is_own = not posted[0][0].isupper() and bool(_OWN_WORDS.search(text, max(start - 12, 0), start))
    no_seller = bool(_NO_SELLER.match(text, name_start, window_end))
    if sentence := _dated(text, posted, window_end, is_own, no_seller):
        return sentence
    if is_own or no_seller or text.startswith("[name]", name_start):  # marked already: what was left then stays
        return Sentence(None, None, "")
    return Sentence(_undated(text, posted, window_end), _name(text, posted, window_end), "")


def _dated(text: str, posted: re.Match, window_end: int, is_own: bool, no_seller: bool) -> Sentence | None:
    """The sentence with its date, wherever it stands."""
    start, name_start = posted.span()
    inside = _IN.search(text, name_start, min(name_start + MAX_NAME + 9, window_end))
    if inside and name_start < inside.start() <= name_start + MAX_NAME:
        date = _DATE.search(text, inside.end(), window_end)
        place = text[inside.end() : date.start()] if date else ""
        sites = (posted[0][0].isupper() and place[:1].isupper()) or not (is_own or no_seller)
        stripped = place.rstrip(" \n\t.")
        if sites and 0 < len(stripped) <= MAX_PLACE and stripped != place and not _PLACE_END.search(stripped[:-1]):
            return Sentence((start, date.end()), (name_start, inside.start()), _iso(date))
    match = _NAME_AND_PLACE.match(text, name_start, window_end)
    date = _DATE.match(text, match.end(), window_end) if match and not is_own else None
    return Sentence((start, date.end()), match.span("name"), _iso(date)) if date else None


def _undated(text: str, posted: re.Match, window_end: int) -> tuple[int, int] | None:
    """The sentence without a date, or cut short in it: "Posted by Ann in Leeds." or at the text's end."""
    start, name_start = posted.span()
    inside = list(_IN.finditer(text, name_start, window_end))
    capital = posted[0][0].isupper()
    for number, word in enumerate(inside):
        name = text[name_start : word.start()]
        if not 0 < len(name) <= MAX_CUT_NAME or not _NAME.fullmatch(name):
            break
        if not (capital and text[word.end() : word.end() + 1].isupper()) and len(inside) == number + 1:
            continue
        place_end = _PLACE_END.search(text, word.end() + 1, min(word.end() + MAX_PLACE + 1, window_end + 1))
        if place_end and place_end.start() < window_end:
            cut_date = _CUT_DATE.match(text, place_end.end())
            return start, cut_date.end() if cut_date else place_end.end()
        if _ends_within(text, word.end(), MAX_PLACE, window_end):
            return start, len(text)
    if capital and _ends_within(text, name_start, MAX_CUT_NAME, window_end):
        rest = text[name_start:].rstrip()
        return (start, len(text)) if not rest or _NAME.fullmatch(rest) else None
    return None


def _ends_within(text: str, start: int, characters: int, window_end: int) -> bool:
    """Whether the text ends so soon, blanks aside."""
    return window_end == len(text) and len(text) - start <= characters


def _name(text: str, posted: re.Match, window_end: int) -> tuple[int, int] | None:
    start = posted.end()
    end = _NAME_END.search(text, start, min(start + MAX_CUT_NAME + 9, window_end))
    stop = end.start() if end else start
    if stop - start > MAX_CUT_NAME or (stop == window_end < len(text)):
        words = _FIRST_WORDS.match(text, start, window_end)
        stop = words.end() if words else start
    name = text[start:stop].rstrip()
    is_name = any(map(str.isalnum, name)) and (posted[0][0].isupper() or len(name.split()) <= 4)
    return (start, start + len(name)) if is_name else None


def _iso(date: re.Match) -> str:
    for suffix in ("", "_2", "_3", "_4"):
        if date[f"day{suffix}"]:
            month = date[f"month{suffix}"]
            number = int(month) if month.isdigit() else _MONTHS.index(month[:3].lower()) + 1
            with contextlib.suppress(ValueError):  # 31 February
                return datetime.date(int(date[f"year{suffix}"]), number, int(date[f"day{suffix}"])).isoformat()
    return ""
