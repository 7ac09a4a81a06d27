"""Texts -> the words by which they are searched: their exact forms, without case and accents, and their stems."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Sequence

import tantivy

from marketplace.cleaning.folding import ENTITY, INVISIBLE, limit_marks, unescape
from marketplace.cleaning.redaction import MARK

MAX_BYTES = 64  # of a word; longer ones, such as encoded pictures, are nobody's query
_PIECE = re.compile(rf"(?:{ENTITY.pattern}|.)[\u0300-\u036f]{{0,100}}", re.DOTALL)  # an entity or a character, with its accents


def _analyzer(*more: tantivy.Filter) -> tantivy.TextAnalyzer:
    """Splits at what is neither letter nor digit. Accents that fold() leaves, such as that of "ø", are folded here."""
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    folded = tantivy.Filter.lowercase(), tantivy.Filter.ascii_fold(), tantivy.Filter.remove_long(MAX_BYTES)
    for one in (*folded, *more):
        builder = builder.filter(one)
    return builder.build()


ANALYZERS = {"exact": _analyzer(), "stem": _analyzer(tantivy.Filter.stemmer("english"))}


def clean(text: str) -> str:
    """A text as a person sees it: HTML entities as their characters; no soft hyphens, zero-width characters or surrogates."""
    text = unescape(text)
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", limit_marks(INVISIBLE.sub("", text.encode("utf-8", "ignore").decode())))


def aligned(text: str) -> tuple[str, Sequence[int]]:
    """A clean text, and where each of its characters begins in the text as it was; last of all, where that ends."""
    if clean(text) == text:
        return text, range(len(text) + 1)
    parts, starts = [], []
    for piece in _PIECE.finditer(text):
        parts.append(clean(piece[0]))
        starts += [piece.start()] * len(parts[-1])
    return "".join(parts), [*starts, len(text)]


def fold(text: str) -> str:
    """A clean text without accents and marks of redaction, and where it is not ASCII without case."""
    text = MARK.sub(" ", clean(text))
    if text.isascii():
        return text
    letters = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFKC", "".join(itertools.filterfalse(unicodedata.combining, letters)))


def split(text: str) -> list[str]:
    """The words of a text in their exact form: no case, no accents, no punctuation."""
    return ANALYZERS["exact"].analyze(fold(text))


@functools.lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Of one word in its exact form."""
    return ANALYZERS["stem"].analyze(word)[0]
