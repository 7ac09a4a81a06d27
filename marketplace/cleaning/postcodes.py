"""UK postcodes in free text, told from model numbers by the districts that there are and by what stands around them."""

import re

# The districts of each geographic area (Royal Mail), those for large users too; a letter after it: one that London's centre has.
# ZZ is the area of placeholders, which no real postcode has.
_DISTRICTS = """
AB10-16 AB21-25 AB30-39 AB41-45 AB51-56 AB99 AL1-10 B1-21 B23-38 B40 B42-50 B60-80 B90-99 BA1-16 BA20-22 BB1-12 BB18 BB94
BD1-24 BD97-99 BF1 BH1-25 BH31 BL0-9 BL11 BL78 BN1-29 BN41-45 BN50-52 BN88 BN91 BN95 BN99 BR1-8 BR98 BS0-16 BS20-32 BS34-37
BS39-41 BS48-49 BS77 BS80 BS98-99 BT1-49 BT51-58 BT60-71 BT74-82 BT92-94 CA1-28 CA95 CA99 CB1-11 CB21-25 CF3 CF5 CF10-11
CF14-15 CF23-24 CF30-48 CF61-64 CF71-72 CF81-83 CF91 CF95 CF99 CH1-8 CH25-34 CH41-49 CH60-66 CH70 CH88 CH99 CM0-9 CM11-24 CM77
CM92 CM98-99 CO1-16 CR0 CR2-9 CR44 CR90 CT1-21 CT50 CV1-13 CV21-23 CV31-37 CV47 CW1-12 CW98 DA1-18 DD1-11 DE1-7 DE11-15
DE21-24 DE45 DE55-56 DE65 DE72-75 DE99 DG1-14 DG16 DH1-9 DH97-99 DL1-17 DL98 DN1-12 DN14-22 DN31-41 DN55 DT1-11 DY1-14 E1-20
E77 E98 E1W EC1-4 EC50 EC1AMNPRVY EC2AMNPRVY EC3AMNPRV EC4AMNPRVY EH1-49 EH51-55 EH91 EH95 EH99 EN1-11 EN35 EN77 EX1-24
EX31-39 FK1-21 FY0-8 G1-5 G9 G11-15 G20-23 G31-34 G40-46 G51-53 G58 G60-79 G81-84 G90 GL1-20 GL50-56 GU1-35 GU46-47 GU51-52
GU95 GY1-10 HA0-9 HD1-9 HG1-5 HP1-23 HP27 HR1-9 HS1-9 HU1-20 HX1-7 IG1-11 IM1-9 IM86-87 IM99 IP1-33 IP98 IV1-28 IV30-32 IV36
IV40-49 IV51-56 IV63 IV99 JE1-5 KA1-30 KT1-24 KW1-17 KY1-16 KY99 L1-40 L67-75 L80 LA1-23 LD1-8 LE1-14 LE16-19 LE21 LE41 LE55
LE65 LE67 LE87 LE94-95 LL11-49 LL51-78 LN1-13 LS1-29 LS88 LS98-99 LU1-7 M1-9 M11-35 M38 M40-41 M43-46 M50 M60-61 M90 M99
ME1-20 ME99 MK1-19 MK40-46 MK77 ML1-12 N1-22 N81 N1CP NE1-13 NE15-49 NE61-71 NE82-83 NE85 NE88 NE92 NE98-99 NG1-25 NG31-34
NG70 NG80 NG90 NN1-18 NN29 NN99 NP4 NP7-8 NP10-13 NP15-16 NP18-20 NP22-26 NP44 NR1-35 NR99 NW1-11 NW26 NW1W OL1-16 OL95 OX1-18
OX20 OX25-29 OX33 OX39 OX44 OX49 PA1-38 PA41-49 PA60-78 PA80 PE1-17 PE19-38 PE99 PH1-26 PH30-44 PH49-50 PL1-35 PL95 PO1-22
PO30-41 PR0-9 PR11 PR25-26 RG1-2 RG4-10 RG12 RG14 RG17-31 RG40-42 RG45 RH1-20 RH77 RM1-20 RM50 S1-14 S17-18 S20-21 S25-26
S30-33 S35-36 S40-45 S49 S60-66 S70-75 S80-81 S95-99 SA1-20 SA31-48 SA61-73 SA80 SA99 SE1-28 SE1P SG1-19 SK1-17 SK22-23 SL0-9
SL60 SL95 SM1-7 SN1-16 SN25-26 SN38 SN99 SO14-24 SO30-32 SO40-43 SO45 SO50-53 SO97 SP1-11 SR1-8 SR9 SR43 SS0-17 SS22 SS99
ST1-21 ST55 SW1-20 SW95 SW99 SW1AEHPVWXY SY1-25 SY99 TA1-24 TD1-15 TF1-13 TN1-40 TQ1-14 TR1-27 TS1-29 TW1-20 UB1-11 UB18 W1-14
W1ABCDFGHJKSTUW WA1-16 WA55 WA88 WC1-2 WC1ABEHNRVX WC2ABEHNR WD1-7 WD17-19 WD23-25 WD99 WF1-17 WF90 WN1-8 WR1-15 WR78 WR99
WS1-15 WV1-16 WV98-99 YO1 YO7-8 YO10-19 YO21-26 YO30-32 YO41-43 YO51 YO60-62 YO90-91 ZE1-3 ZZ0-99
"""


def _outward_codes() -> frozenset[str]:
    codes = set()
    for area, first, last, letters in re.findall(r"([A-Z]+)(\d+)(?:-(\d+)|([A-Z]+))?", _DISTRICTS):
        if letters:
            codes.update(f"{area}{first}{letter}" for letter in letters)
        else:
            codes.update(f"{area}{number}" for number in range(int(first), int(last or first) + 1))
    return frozenset(codes)


OUTWARD = _outward_codes()
_AREAS = frozenset(code.rstrip("0123456789") for code in OUTWARD if code[-1].isdigit())

_DISTRICT_TO_UNIT = (
    r"(?P<district>[0-9][0-9A-HJKMNPR-Ya-hjkmnpr-y]?)(?P<gap>\s?[._-]\s?|\s{0,6})"
    r"(?P<inward>[0-9][ABD-HJLNP-UW-Zabd-hjlnp-uw-z]{2})"
)

_POSTCODE = re.compile(f"(?P<area>[A-Za-z]{{1,2}}){_DISTRICT_TO_UNIT}")

_ENDS_IN_POSTCODE = re.compile(rf"(?:{_POSTCODE.pattern}|\])$")

_MAYBE_POSTCODE = re.compile(_DISTRICT_TO_UNIT)

# "M2 8GB", "S2 4FE", "W4 6FT", "S3 4WD": what follows the digit is a unit or the end of a model's name.
_UNITS = frozenset({"GB", "TB", "DR", "WD", "FE", "HD", "FT", "XL", "LB"})

_ORDINAL = re.compile("1st|2nd|3rd|[04-9]th")  # "SE2 2nd hand"

# The word before. Those that lead to a place or end an address ...
_TO_PLACE = frozenset(
    re.findall(
        "[a-z]+",
        """postcode pc address location located in from at near to around off area collect collection collected pick up
        pickup deliver delivery deliverable based is viewing road rd street st lane ln avenue ave close cl drive crescent court
        way place hill gardens park terrace green grove square walk mews house flat and or sw se ne nw london leeds bristol
        birmingham manchester liverpool sheffield nottingham leicester coventry cardiff belfast glasgow edinburgh newcastle
        sunderland bradford derby plymouth southampton portsmouth reading swansea brighton hull wolverhampton york norwich
        exeter oxford cambridge bath chester lincoln luton bolton stockport oldham preston blackpool blackburn wigan warrington
        huddersfield halifax wakefield doncaster rotherham barnsley dundee aberdeen perth inverness newport swindon gloucester
        worcester northampton peterborough ipswich colchester chelmsford southend watford slough guildford croydon bromley kent
        surrey essex cheshire lancashire yorkshire cornwall devon dorset somerset hampshire sussex norfolk suffolk wales england
        scotland uk""",
    )
)

# ... those that lead to a model, and makers.
_TO_MODEL = frozenset(
    re.findall(
        "[a-z]+",
        """model serial part ref reference sku mpn number no type series version catalogue code
        laptop tv monitor printer camera phone tablet
        fridge freezer washer dryer hoover drill saw amp guitar lens tyre filter battery cartridge bulb toner motherboard
        asus acer dell lenovo sony samsung lg bosch siemens canon nikon epson brother panasonic philips toshiba hitachi sharp
        miele neff beko hotpoint indesit zanussi aeg smeg whirlpool dyson vax shark makita dewalt ryobi karcher stihl husqvarna
        yamaha casio roland korg fender ibanez honda ford bmw audi nokia huawei motorola oneplus google apple msi gigabyte nvidia
        intel amd logitech corsair razer benq viewsonic iiyama netgear linksys garmin tomtom bose jvc pioneer kenwood marantz
        denon onkyo technics lego""",
    )
)

_WORD_BEFORE = re.compile(r"([^\W\d_]{1,24})([^\w\n]{0,3})$")


def find(text: str) -> list[tuple[int, int]]:
    """Where the UK postcodes of a folded text are: (start, stop) each, ascending."""
    if not _MAYBE_POSTCODE.search(text):
        return []
    found = []
    for match in _POSTCODE.finditer(text):
        start, outward = _outward(match)
        if outward and _is_postcode(match, start, outward):
            found.append((start, match.end()))
    return found


def _outward(match: re.Match) -> tuple[int, str]:
    """Where the postcode starts, and its outward code; an empty one when there is no such district."""
    area, district = match["area"], match["district"].upper()
    first_of_two = area.upper() not in _AREAS or (area[0].islower() and area[1:].isupper())  # "ROADB45 9XE", "inN1 1AA"
    letters = area[-1:] if first_of_two else area
    outward = letters.upper() + district
    return match.end("area") - len(letters), outward if outward in OUTWARD else ""


def _is_postcode(match: re.Match, start: int, outward: str) -> bool:
    """Whether what has a postcode's shape is one, by its ending, its gap and what stands around it."""
    text, inward, gap = match.string, match["inward"], match["gap"]
    area = text[start : match.end("area")]
    if outward.startswith("ZZ"):
        return True
    before, after = text[max(start - 1, 0) : start], text[match.end() : match.end() + 2]
    unit = inward[1:].upper() in _UNITS
    if len(area) == 1 and unit:
        return False
    word = _WORD_BEFORE.search(text, max(start - 24, 0), start)
    to_place = bool(word) and word[1].lower() in _TO_PLACE
    if _ORDINAL.fullmatch(inward.lower()) and (not inward.isupper() or not (to_place or len(outward) == 4)):
        return False
    after_name = bool(word) and word[1][0].isupper() and word[2].isspace()
    if gap.strip() and not to_place and (len(area) == 1 or unit or not area.isupper() or after_name):
        return False  # "S4-3WE" and "Baumatic BT10.3GL" are models
    if "\n" in gap and not (area.isupper() and inward[1:].isupper() and not unit):
        return False
    if not to_place and word and word[2].isspace() and _is_model(word[1], bool(gap)):
        return False
    if (len(area) == 1 or not gap) and (before in ("-", "/") or after[:1] in ("-", "/")) and not _beside_another(match, start):
        return False
    return _stands_apart(match, area, start)


def _is_model(word: str, has_gap: bool) -> bool:
    """Whether a code after this word is rather a model's: after a maker, or in one piece after capitals ("ROG GL503GE")."""
    return word.lower() in _TO_MODEL or (not has_gap and len(word) > 1 and word.isupper())


def _beside_another(match: re.Match, start: int) -> bool:
    """Whether a slash separates it from another postcode, marked already or not: "E1 6AN/E2 7BB"."""
    text, end = match.string, match.end()
    after = text[end : end + 1] == "/" and (text[end + 1 : end + 2] == "[" or _POSTCODE.match(text, end + 1))
    before = text[start - 1 : start] == "/" and _ENDS_IN_POSTCODE.search(text, max(start - 16, 0), start - 1)
    return bool(after or before)


def _stands_apart(match: re.Match, area: str, start: int) -> bool:
    """Whether its ends are its own, although it may be glued to words.

    Capitals may stand beside small letters ("ValleyBS4 1AB", "LaneSl9 9XX", "BS4 1ABCollection"); between capitals only the
    longer shapes are safe ("LS9 9XXBLUE", "ROADB45 9XEWAREHOUSE").
    """
    before, after = match.string[max(start - 1, 0) : start], match.string[match.end() : match.end() + 2]
    district, inward, spaced = match["district"], match["inward"], bool(match["gap"])
    unit = inward[1:].upper() in _UNITS
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
