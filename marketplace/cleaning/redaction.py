"""Personal data becomes a mark: telephone numbers, e-mail addresses, postcodes, and sellers' names.

A mark holds neither a digit nor an "@", so it is never redacted again. Every pattern looks at a bounded part of the text from
each place, so that time grows as the text does: python benchmarks/patterns.py shows it.
"""

import re

from marketplace.cleaning import postcodes, sellers
from marketplace.cleaning.folding import Folded, fold

UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

MAX_ROUNDS = 6  # a mark may free what stood beside it; longer chains are nobody's writing

# Telephone numbers, in folded text.

# Between two digits of one number. Not slashes and commas, which separate dates and sizes.
_GAP = r"[\s().\-_*~:;=+\u2022\[\]{}<>]{0,8}+"

_SOME_GAP = _GAP.replace("{0,", "{1,")

# A number without its 0, in the ranges that Ofcom's National Telephone Numbering Plan opens: ten digits ...
_TEN = f"(?:1{_GAP}[1-9]|2{_GAP}[03489]|3{_GAP}[0347]|5{_GAP}[56]|7{_GAP}[0-9]|8{_GAP}[0-9]|9{_GAP}[018])(?:{_GAP}[0-9]){{8}}"

# ... or nine: area codes of four digits whose local numbers have five, and 0800 with six.
_NINE = f"(?:1[2-9][0-9]{{2}}{_SOME_GAP}(?:[0-9]{{5}}|[0-9]{{2}}{_SOME_GAP}[0-9]{{3}})|800{_GAP}[0-9]{{3}}{_GAP}[0-9]{{3}})"

_MOBILE = f"7(?:{_GAP}[0-9]){{9}}"

_PLUS = (
    rf"\+{_GAP}(?:0{_GAP}0{_GAP})?4{_GAP}4{_GAP}(?:0{_GAP})?(?:{_TEN}|{_NINE})"
    # Of another country: the digits that ITU-T E.164 allows.
    rf"|(?<![0-9])\+(?!44|0)[0-9]{{1,3}}(?:{_GAP}[0-9]){{8,12}}"
)

_DIGITS_ONLY = (
    rf"0{_GAP}0{_GAP}4{_GAP}4{_GAP}(?:0{_GAP})?(?:{_TEN}|{_NINE})"
    rf"|44{_GAP}(?:0{_GAP})?{_MOBILE}"
    rf"|(?<![^\W_])[oO]{_GAP}{_MOBILE}"  # the letter for the 0
    r"|07[0-9]{3}[^\w\n£$€]{1,3}[0-9]{3}[^\w\n£$€]{0,3}[0-9]{3}"  # in a mobile's own groups, whatever separates them
    r"|(?!0\.[0-9](?!\.))"  # 0.75 is a decimal
    r"(?![0-9]{1,2}(?:/[0-9]{1,2}/|-[0-9]{1,2}-|\.[0-9]{1,2}\.)(?:19|20)[0-9]{2}(?![0-9]))"  # 01.12.2022 is a date
    r"(?!0[ -][0-9]{5}[ -][0-9]{5}[ -][0-9](?![0-9]))"  # 0 12345 67890 5 is a bar code
    r"(?![0-2]?[0-9][:;][0-5][0-9](?![0-9]))"  # 07:30 is a time
    rf"0{_GAP}(?:{_TEN}|{_NINE})"
)

# Two numbers may stand glued together, or one to a price ("£42507700900123").
_GLUED_TO_PRICE = "|".join(f"(?<=£[0-9]{{{digits}}})" for digits in range(1, 5)) + "|(?<=£[0-9],[0-9]{3})"

_FIRST = rf"(?:[(\[{{<]?(?:{_PLUS}|(?<![0-9])(?<!(?:19|20)[0-9][0-9][-._:])(?:{_DIGITS_ONLY}))|(?:{_GLUED_TO_PRICE})07[0-9]{{9}})"

_NEXT = f"(?:{_PLUS}|{_DIGITS_ONLY})"

# More than three in a row are numbers whatever follows, so that a long row of digits is walked through once.
_PHONE = re.compile(f"{_FIRST}(?:{_NEXT}{{3,}}+|{_NEXT}{{0,2}}(?![0-9]))")

# A number of another length, mistyped, foreign or without its 0, is told by the word before it.
_CALLED_PHONE = re.compile(
    r"(?i:\b(?:call|txt|text|sms|tel|telephone|phone|fone|ring|mob|mobile|whats\s?app|viber|contact|message|msg|my\snumber|fax)"
    r"(?:ing|s)?\b)[^0-9\n£$€\[]{0,25}?"
    rf"(?P<number>[(\[]?(?:00[1-9](?:{_GAP}[0-9]){{8,12}}|\+?0(?!\.[0-9](?!\.))(?:{_GAP}[0-9]){{8,10}}|{_MOBILE}))(?![0-9])"
)

_MAYBE_PHONE = re.compile(r"[0-9oO](?:[\W_]{0,9}+[0-9oOlI]){8}")

# Letters for 0 and 1, beside a digit and in no word: "O77OO 9OO123".
_LETTERS = re.compile(r"(?:(?<=[0-9])|(?<![^\W_]))[oOlI]{1,3}(?:(?=[0-9])|(?<=[0-9].)(?![^\W_])|(?<=[0-9]..)(?![^\W_]))")

_LETTERED_PHONE = re.compile(rf"(?<![0-9])(?:\+?44{_GAP}|0{_GAP}){_MOBILE}(?![0-9])")

_DIGITS_OF_LETTERS = str.maketrans("oOlI", "0011")

# E-mail addresses, in folded text.

_MAIL_HOST = "(?:gmail|googlemail|hotmail|outlook|yahoo|ymail|live|msn|icloud|aol|btinternet|talktalk|virginmedia|proton)"

_OPEN, _CLOSE = r"[(\[{<*_~-]{1,2}\s?", r"\s?[)\]}>*_~-]{1,2}"

_AT = re.compile(
    rf"\s{{0,2}}{_OPEN}(?:at|@|arroba){_CLOSE}\s{{0,2}}|(?P<sign>\s{{0,2}}(?:@|%40)\s{{0,2}})|(?P<word>\s(?:at|arroba)\s)",
    re.IGNORECASE,
)

_LOCAL = re.compile(r"[\w.+%'&!#-]{1,64}")  # read backwards

_DOT = rf"(?:\s?{_OPEN}(?:dot|\.){_CLOSE}\s?|\s?\.\s?|\s(?:dot|punto)\s)"

_END = r"(?![^\W\d_])"

_ENDING = rf"(?:co{_DOT}uk|org{_DOT}uk|ac{_DOT}uk|com|net|org|info|biz|uk|ie|eu){_END}"

_MAIL = rf"{_MAIL_HOST}(?:\scom|\sco\suk)?(?![^\W_])"  # its ending forgotten

_LABEL = r"[\w-]{1,63}"

# After "@" without blanks: any domain; a comma may stand for the last dot.
_ANY_HOST = re.compile(
    rf"{_LABEL}(?:{_DOT}{_LABEL}){{0,3}}{_DOT}{_ENDING}|{_LABEL}(?:\.{_LABEL}){{0,8}}\.[^\W\d_]{{2,24}}"
    rf"|{_LABEL},(?:com|co\.uk|net|org){_END}|{_MAIL}",
    re.IGNORECASE,
)

# After a sign with blanks, or one of brackets: a domain of the endings that mail has here.
_COMMON_HOST = re.compile(
    rf"(?=[\w-]{{0,62}}[^\W\d_])(?:{_LABEL}(?:{_DOT}{_LABEL}){{0,3}}{_DOT}{_ENDING}|{_MAIL})", re.IGNORECASE
)

# After the word "at": the providers, or a "dot" in letters, so that "available at argos.co.uk" stays ...
_SAID_HOST = re.compile(
    rf"{_MAIL_HOST}{_DOT}{_ENDING}|[^\W_][\w-]{{0,62}}(?:{_DOT}{_LABEL}){{0,3}}\s(?:dot|punto)\s{_ENDING}", re.IGNORECASE
)

_NO_LOCAL = frozenset(
    re.findall(r"\w+", "look looking available see seen buy bought sold shop find found order ordered online and or is it us")
)

_SAYS_MAIL = re.compile("mail", re.IGNORECASE)  # ... unless this stands before it

# In small letters, without which there is no address.
_MAYBE_EMAIL = re.compile(rf"@|%40|[(\[{{<*_~-]\s?a[tr]|mail|dot|punto|{_MAIL_HOST}")


def redact(text: str) -> str:
    """The text with UK telephone numbers, e-mail addresses and UK postcodes as [phone], [email] and [postcode], and the names of
    sellers after "Posted by" as [name].

    Sizes, dates, prices, bar codes and model numbers stay. Redacting twice is redacting once.
    """
    for _ in range(MAX_ROUNDS):
        marked = _redact_once(text)
        if marked == text:
            break
        text = marked
    return text


def _redact_once(text: str) -> str:
    folded = fold(text)
    for mark, find in _MARKS:
        if found := find(folded.plain):
            folded = fold(folded.replace((start, stop, mark) for start, stop in found))
    return folded.text


def _find_emails(text: str) -> list[tuple[int, int]]:
    if not _MAYBE_EMAIL.search(text.lower()):
        return []
    found, last = [], 0
    for at in _AT.finditer(text):
        local = _LOCAL.match(text[max(at.start() - 64, last) : at.start()][::-1])
        if not local or not any(map(str.isalnum, local[0])):
            continue
        start = at.start() - local.end()
        host = _host(at, text, start, local[0][::-1])
        if host:
            found.append((start, host.end()))
            last = host.end()
    return found


def _host(at: re.Match, text: str, start: int, local: str) -> re.Match | None:
    if at[0] in ("@", "%40"):
        return _ANY_HOST.match(text, at.end())
    if local.lower() in _NO_LOCAL:
        return None
    if not at["word"]:
        return _COMMON_HOST.match(text, at.end())
    if host := _SAID_HOST.match(text, at.end()):
        return host
    return _COMMON_HOST.match(text, at.end()) if _SAYS_MAIL.search(text, max(start - 30, 0), start) else None


def _find_phones(text: str) -> list[tuple[int, int]]:
    if not _MAYBE_PHONE.search(text):
        return []
    text = UUID.sub("-" * 36, text)  # whose digits can look like a number
    found = []
    for pattern, group, letters in ((_PHONE, 0, False), (_CALLED_PHONE, "number", False), (_LETTERED_PHONE, 0, True)):
        if letters:
            text = _LETTERS.sub(lambda match: match[0].translate(_DIGITS_OF_LETTERS), text)
        spans = [_without_bracket(text, *match.span(group)) for match in pattern.finditer(text)]
        text = _blank(text, spans)
        found += spans
    return sorted(found)


def _without_bracket(text: str, start: int, stop: int) -> tuple[int, int]:
    """Without its first bracket when that is around the number, not a part of it: "(07700 900123)"."""
    closing = {"(": ")", "[": "]", "{": "}", "<": ">"}.get(text[start])
    return (start + 1, stop) if closing and closing not in text[start:stop] else (start, stop)


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with these parts as marks of the same length, which no pattern goes across."""
    return Folded(text, text, None).replace((start, stop, "[" * (stop - start)) for start, stop in spans)


_MARKS = (("[name]", sellers.find), ("[email]", _find_emails), ("[phone]", _find_phones), ("[postcode]", postcodes.find))
MARK = re.compile("|".join(re.escape(mark) for mark, _ in _MARKS))
