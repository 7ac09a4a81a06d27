"""Personal data becomes a mark, and the site's own "Posted by" sentence goes."""

import contextlib
import datetime
import re
import unicodedata

# Redaction: personal data becomes a mark. A mark holds neither a digit nor an "@", so it is never redacted again.

# Between two digits of one number: spaces, brackets, dots, dashes, invisible characters, the keycap of an emoji digit.
_GAP = "[\\s().\u2010-\u2015\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufe0f\u20e3-]{0,5}+"

_SOME_GAP = _GAP.replace("{0,", "{1,")

# A number without its 0, in the ranges that Ofcom's National Telephone Numbering Plan opens: ten digits ...
_TEN = f"(?:1{_GAP}[1-9]|2{_GAP}[03489]|3{_GAP}[0347]|5{_GAP}[56]|7{_GAP}[0-9]|8{_GAP}[0-9]|9{_GAP}[018])(?:{_GAP}[0-9]){{8}}"

# ... or nine: area codes of four digits whose local numbers have five, and 0800 with six.
_NINE = f"(?:1[2-9][0-9]{{2}}{_SOME_GAP}(?:[0-9]{{5}}|[0-9]{{2}}{_SOME_GAP}[0-9]{{3}})|800{_GAP}[0-9]{{3}}{_GAP}[0-9]{{3}})"

_PLUS_44 = rf"\+{_GAP}(?:0{_GAP}0{_GAP})?4{_GAP}4{_GAP}(?:0{_GAP})?(?:{_TEN}|{_NINE})"

_DIGITS_ONLY = (
    rf"0{_GAP}0{_GAP}4{_GAP}4{_GAP}(?:0{_GAP})?(?:{_TEN}|{_NINE})"
    rf"|44{_GAP}(?:0{_GAP})?7(?:{_GAP}[0-9]){{9}}"
    rf"|(?<![^\W_])[oO]{_GAP}7(?:{_GAP}[0-9]){{9}}"  # the letter for the 0
    r"|(?!0\.[0-9](?!\.))"  # 0.75 is a decimal
    r"(?![0-9]{1,2}(?:/[0-9]{1,2}/|-[0-9]{1,2}-|\.[0-9]{1,2}\.)(?:19|20)[0-9]{2}(?![0-9]))"  # 01.12.2022 is a date
    r"(?!0[ -][0-9]{5}[ -][0-9]{5}[ -][0-9](?![0-9]))"  # 0 12345 67890 5 is a bar code
    rf"0{_GAP}(?:{_TEN}|{_NINE})"
)

# Two numbers may stand glued together, or one to a price ("£42507700900123").
_GLUED_TO_PRICE = "|".join(f"(?<=£[0-9]{{{digits}}})" for digits in range(1, 5)) + "|(?<=£[0-9],[0-9]{3})"

_PHONE = re.compile(
    rf"(?:\(?(?:{_PLUS_44}|(?<![0-9])(?:{_DIGITS_ONLY}))|(?:{_GLUED_TO_PRICE})07[0-9]{{9}})"
    rf"(?:{_PLUS_44}|{_DIGITS_ONLY})*(?![0-9])[\ufe0f\u20e3]*"
)

# A number of another length, mistyped or foreign, is known by the word before it.
_CALLED_PHONE = re.compile(
    r"(?i:\b(?:call|txt|text|tel|telephone|phone|ring|mob|mobile|whats\s?app|contact)(?:ing|s)?\b)[^0-9\n£]{0,25}?"
    rf"(?P<number>\+?0(?!\.[0-9](?!\.))(?:{_GAP}[0-9]){{8,10}})(?![0-9])"
)

UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")  # its digits can look like a number

_MAYBE_PHONE = re.compile(f"[0-9](?:{_GAP}[0-9]){{8}}")

_MAIL_HOST = "(?:gmail|googlemail|hotmail|outlook|yahoo|ymail|live|msn|icloud|aol|btinternet|talktalk|virginmedia|proton)"

_DOT = r"(?:\.|\s?[(\[]\s?dot\s?[)\]]\s?|\sdot\s)"

_EMAIL = re.compile(
    rf"[\w.+%'-]{{1,64}}(?:@|\s?[(\[{{]\s?at\s?[)\]}}]\s?)[\w-]{{1,63}}(?:{_DOT}[\w-]{{1,63}}){{0,4}}{_DOT}[^\W\d_]{{2,}}"
    rf"|[\w.+%'-]{{1,64}}\s?(?:@|\bat\b)\s?{_MAIL_HOST}{_DOT}(?:com|net|org|co{_DOT}uk|me|ie)\b",
    re.IGNORECASE,
)

_MAYBE_EMAIL = re.compile(rf"@|[(\[{{]\s?at\s?[)\]}}]|\bat\s{_MAIL_HOST}\b", re.IGNORECASE)

# The 124 geographic postcode areas (Royal Mail), and ZZ, the area of placeholders that no real postcode has.
_AREAS = frozenset(
    re.findall(
        r"\w+",
        """AB AL B BA BB BD BH BL BN BR BS BT CA CB CF CH CM CO CR CT CV CW DA DD DE DG DH DL DN DT DY E EC EH EN EX FK FY G
    GL GU GY HA HD HG HP HR HS HU HX IG IM IP IV JE KA KT KW KY L LA LD LE LL LN LS LU M ME MK ML N NE NG NN NP NR NW OL
    OX PA PE PH PL PO PR RG RH RM S SA SE SG SK SL SM SN SO SP SR SS ST SW SY TA TD TF TN TQ TR TS TW UB W WA WC WD WF WN
    WR WS WV YO ZE ZZ""",
    )
)

_DISTRICT_TO_UNIT = (
    r"(?P<district>[0-9][0-9A-HJKMNPR-Ya-hjkmnpr-y]?)(?P<space>[^\S\n]{0,3})(?P<inward>[0-9][ABD-HJLNP-UW-Zabd-hjlnp-uw-z]{2})"
)

_POSTCODE = re.compile(f"(?P<area>[A-Za-z]{{1,2}}){_DISTRICT_TO_UNIT}")

_MAYBE_POSTCODE = re.compile(_DISTRICT_TO_UNIT)

# "M2 8GB", "S2 4FE", "W4 6FT", "S3 4WD": what follows the digit is a unit or the end of a model's name.
_UNITS = frozenset({"GB", "TB", "DR", "WD", "FE", "HD", "FT", "XL", "LB"})

_ORDINAL = re.compile("[0-9](?:st|nd|rd|th)")


def redact(text: str) -> str:
    """The text with UK telephone numbers, e-mail addresses and UK postcodes as [phone], [email] and [postcode].

    Sizes, dates, prices, bar codes and model numbers stay. Redacting twice is redacting once.
    """
    while (marked := _redact_once(text)) != text:  # a mark may free what stood beside it; each round leaves fewer digits or "@"
        text = marked
    return text


def _redact_once(text: str) -> str:
    if _MAYBE_EMAIL.search(text):
        text = _EMAIL.sub("[email]", text)
    text = _mark_phones(text)
    if _MAYBE_POSTCODE.search(text):
        text = _POSTCODE.sub(_mark_postcode, text)
    return text


def _mark_phones(text: str) -> str:
    # Digits of other alphabets (full-width, bold) are one character each as well, so the positions stay the same.
    plain = text
    if not text.isascii() and (others := {char for char in set(text) if char.isdecimal() and not char.isascii()}):
        plain = text.translate({ord(char): str(unicodedata.decimal(char)) for char in others})
    if not _MAYBE_PHONE.search(plain):
        return text
    kept = [match.span() for match in UUID.finditer(plain)]
    found = [match.span() for match in _PHONE.finditer(plain)]
    taken = [*kept, *found]
    for match in _CALLED_PHONE.finditer(plain):
        start, stop = match.span("number")
        if not any(begin < stop and start < end for begin, end in taken):
            found.append((start, stop))
    parts, last = [], 0
    for start, stop in sorted(found):
        if any(begin <= start < end for begin, end in kept):
            continue
        if text[start] == "(" and ")" not in text[start:stop]:  # the bracket is around the number, not a part of it
            start += 1
        parts += [text[last:start], "[phone]"]
        last = stop
    return "".join([*parts, text[last:]])


def _mark_postcode(match: re.Match) -> str:
    area = match["area"]
    if area.upper() not in _AREAS or (area[0].islower() and area[1:].isupper()):  # "ROADB45 9XE", "inN1 1AA"
        area = area[-1]
    start = match.end("area") - len(area)
    if not _is_postcode(match, area, start):
        return match[0]
    return f"{match.string[match.start() : start]}[postcode]"


def _is_postcode(match: re.Match, area: str, start: int) -> bool:
    """Whether what has a postcode's shape is one, by its area, its ending and what stands around it."""
    if area.upper() not in _AREAS:
        return False
    if area.upper() == "ZZ":
        return True
    before, after = match.string[max(start - 1, 0) : start], match.string[match.end() : match.end() + 2]
    district, inward, spaced = match["district"], match["inward"], bool(match["space"])
    unit = inward[1:].upper() in _UNITS
    if _ORDINAL.fullmatch(inward) or (len(area) == 1 and unit):
        return False
    if (len(area) == 1 or not spaced) and (before in ("-", "/") or after[:1] in ("-", "/")):
        return False
    # Glued to words. Capitals may stand beside small letters ("ValleyBS4 1AB", "LaneSl9 9XX", "BS4 1ABCollection");
    # between capitals only the longer shapes are safe ("LS9 9XXBLUE", "ROADB45 9XEWAREHOUSE").
    capital = area[0].isupper() and (inward[1:].isupper() or (len(area) == 2 and not unit))
    two_digits = len(district) == 2 and district.isdigit()
    long = area.isupper() and inward[1:].isupper() and spaced and not unit
    new_word = after[:1].isupper() and after[1:].islower()
    starts = not before.isalnum() or (capital and before.islower()) or (long and two_digits and before.isalpha())
    ends = (
        not after[:1].isalnum()
        or (capital and new_word)
        or (capital and inward[1:].isupper() and after[:1].islower())
        or (long and after[:1].isalpha() and (two_digits or (len(area) == 2 and not before.isalnum())))
    )
    return starts and ends


# The site's own sentence in a description tells the category, so that a model must not see it, and the seller's name:
# "Posted by Ann in Home & Garden, Beds in Leeds. 25 February 2022".

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

_MONTH = (
    "(?i:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?"
    "|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)

_DATE = (
    rf"(?:(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\.?\s+(?P<month>{_MONTH})\.?,?\s+(?P<year>(?:19|20)\d\d)"
    rf"|(?P<month_2>{_MONTH})\.?\s+(?P<day_2>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year_2>(?:19|20)\d\d))"
)

_PLACE = r"(?:[^.]|(?<=\bSt)\.|(?<=\bMt)\.|\.(?=\S))"  # one character: the full stops of "St. Albans" and "A.B" end nothing

_NAME = r"(?:[^.\n\"]|(?<=\b[A-Z])\.|(?<=\bMr)\.|(?<=\bMrs)\.|(?<=\bMs)\.|(?<=\bDr)\.)"  # one character, as above

_NO_SELLER = (
    r"(?!(?i:royal|post|courier|recorded|special|first|second|1st|2nd|parcel|dpd|hermes|evri|yodel|ups|me|us|air|mail)\b)"
)

_LEAK = re.compile(
    # With its date, wherever it stands.
    rf"Posted\s+by\s+(?P<name>(?:(?!\sin\s|Posted\s+by).){{1,80}}?)\s+in\s+(?=[A-Z]){_PLACE}{{1,200}}?[.\s]\s*{_DATE}"
    # "Posted by Ann.Leeds. 25 February 2022".
    rf"|Posted\s+by\s+(?P<name_2>[^.\n]{{1,60}}?)\s*\.\s*[A-Z][^.\n]{{1,40}}\.\s*{_DATE.replace('>', '_b>')}"
    # Without a date, or cut short in it: "Posted by Ann in Leeds." A seller's own "Posted by Royal Mail in ..." stays.
    rf"|Posted\s+by\s+{_NO_SELLER}(?P<name_3>{_NAME}{{1,60}}?)\s+in\s+(?=[A-Z]){_PLACE}{{2,200}}?"
    r"(?:\s*$|\.(?=\s|$)(?:\s*\d{1,2}(?:\s+[A-Z][a-z]*)?(?:\s+\d{1,3})?\s*$)?)"
    # Cut short before the place.
    rf"|Posted\s+by(?:\s+{_NO_SELLER}(?P<name_4>{_NAME}{{1,60}}))?\s*$",
    re.DOTALL,
)

# In a raw record the end of the description cannot be seen: any name after the words is masked there.
_SELLER = re.compile(
    rf"(Posted\s+by\s+)(?!\[name\]){_NO_SELLER}{_NAME}{{1,60}}?(?=\s+in\s|[,\"\n]|(?<!\b[A-Z])(?<!\bM[rs])(?<!\bMrs)(?<!\bDr)\.|$)"
)

_MAYBE_LEAK = re.compile(r"Posted\s+by")


def strip_leak(description: str) -> tuple[str, str]:
    """The description without the site's "Posted by ... in ..." sentences, and their date.

    The date is the first one found, as YYYY-MM-DD; empty when there is none, or no such day in the calendar.
    """
    posted_on = ""
    while _MAYBE_LEAK.search(description) and (match := _LEAK.search(description)):
        posted_on = posted_on or _iso_date(match)
        before, after = description[: match.start()], description[match.end() :]
        after = after.lstrip(" ") if before[-1:].isspace() else after
        space = " " if before[-1:].strip() and after[:1].isalnum() else ""
        description = (before + space + after).strip()
    return description, posted_on


def mask_leak(text: str) -> str:
    """The text with the seller's name in each "Posted by ... in ..." sentence as [name]."""
    if not _MAYBE_LEAK.search(text):
        return text
    return _SELLER.sub(r"\1[name]", _LEAK.sub(_mask_name, text))


def _mask_name(match: re.Match) -> str:
    for group in ("name", "name_2", "name_3", "name_4"):
        if match[group] is not None:
            start, end = (position - match.start() for position in match.span(group))
            return f"{match[0][:start]}[name]{match[0][end:]}"
    return match[0]


def _iso_date(match: re.Match) -> str:
    for suffix in ("", "_2", "_b", "_2_b"):
        if match[f"day{suffix}"]:
            month = _MONTHS.index(match[f"month{suffix}"][:3].lower()) + 1
            with contextlib.suppress(ValueError):  # 31 February
                return datetime.date(int(match[f"year{suffix}"]), month, int(match[f"day{suffix}"])).isoformat()
    return ""
