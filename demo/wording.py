"""What sellers write about each kind of thing, and how: titles, descriptions, prices."""

import colorsys
import math
import random
from dataclasses import dataclass

VAGUE_SHARE = 0.12  # of the listings: the text does not say what it is
PRICE_SPREAD = 0.5  # sigma of the logarithm of the price within a kind


@dataclass(frozen=True)
class Kind:
    """One kind of thing: its median price in pounds, where it is listed, and what sellers write about it.

    Of facts joined by "~" a seller tells one.
    """

    name: str
    price_gbp: float
    category: str
    nouns: list[str]
    brands: list[str]
    facts: list[str]


def _kind(name: str, price_gbp: float, category: str, nouns: str, brands: str, facts: str) -> Kind:
    return Kind(name, price_gbp, category, nouns.split("|"), brands.split("|"), facts.split("|"))


# fmt: off
ALL_KINDS = (
    _kind("washing machine", 140, "Appliances / Washing Machines & Dryers / Washing Machines / Private",
        "washing machine|washer|front loader|8kg washing machine", "Bosch|Hotpoint|Beko|Indesit|Samsung",
        "1400 spin~1200 spin~1600 spin|8kg drum~7kg drum~9kg load|A+++ rated|30 min quick wash|all hoses included|60cm wide"),
    _kind("kettle", 14, "Appliances / Small Appliances",
        "kettle|electric kettle|cordless kettle|1.7l kettle", "Russell Hobbs|Morphy Richards|Breville|Dualit|Swan",
        "1.7 litre~1.5 litre|boils in no time|limescale filter|auto shut off|3kw fast boil|360 degree base"),
    _kind("pram", 95, "Baby & Kids Stuff / Prams & Strollers / Prams/Pushchairs / Pram Bodies / Private",
        "pram|pushchair|stroller|travel system", "Silver Cross|Bugaboo|iCandy|Chicco|Graco",
        "rain cover included|folds flat|carrycot from birth|new tyres|five point harness|big shopping basket"),
    _kind("teddy bear", 9, "Baby & Kids Stuff / Toys / Soft Toys",
        "teddy bear|teddy|cuddly bear|soft toy", "Steiff|Jellycat|Build a Bear|Keel|Harrods",
        "super soft|never chewed|35cm tall~big 60cm one|washed and ready to cuddle|with its bow|tags still on"),
    _kind("T-shirt", 8, "Clothes, Footwear & Accessories / Men's Clothing / T-Shirts",
        "T-shirt|tee|tshirt|short sleeve top", "Nike|Next|Superdry|Fred Perry|Uniqlo",
        "size M~size L~size XL~size S|100% cotton|slim fit|crew neck|washed once|chest 40 inch"),
    _kind("trainers", 28, "Clothes, Footwear & Accessories / Shoes & Boots",
        "trainers|running shoes|sneakers|trainer shoes", "Nike|Adidas|Puma|New Balance|Asics",
        "UK 9~UK 6~size 8~size 5|boxed|worn twice|spare laces|no creases"),
    _kind("laptop", 210, "Computers & Software / Computers, Laptops & Netbooks / PC Laptops & Netbooks",
        "laptop|notebook|15 inch laptop|ultrabook", "Dell|HP|Lenovo|Acer|Asus",
        "i5 8GB RAM~i7 16GB~i7 8GB~i3 4GB|256GB SSD~1TB drive|Windows 11~Windows 10|charger included|5 hours of battery|full HD"),
    _kind("computer keyboard", 18, "Computers & Software / Keyboards, Mice & Input Devices",
        "keyboard|USB keyboard|wireless keyboard|mechanical keyboard", "Logitech|Microsoft|Corsair|Razer|Cherry",
        "UK layout|USB|brown switches|number pad|all keys work|spill proof"),
    _kind("hammer", 9, "DIY Tools & Materials / Hand Tools / Other Hand Tools",
        "hammer|claw hammer|16oz hammer|nail hammer", "Stanley|Estwing|Draper|Bahco|Faithfull",
        "16oz~20oz|hickory handle~steel shaft|good grip|pulls nails easily"),
    _kind("drill", 48, "DIY Tools & Materials / Power Tools / Drills & Screwdrivers",
        "drill|cordless drill|combi drill|drill driver", "Makita|DeWalt|Bosch|Ryobi|Black & Decker",
        "18v~12v~20v|two batteries|13mm chuck|hammer action|charger and case|2 speed gearbox"),
    _kind("hair dryer", 20, "Health & Beauty / Hair Care & Styling / Hair Dryers",
        "hair dryer|hairdryer|salon dryer|blow dryer", "Dyson|Babyliss|Remington|GHD|Tresemme",
        "2200w~1875w|ionic|two heat settings|cool shot button|nozzle included|long cable"),
    _kind("lipstick", 7, "Health & Beauty / Make Up & Cosmetics",
        "lipstick|matte lipstick|lip colour|lippy", "MAC|Rimmel|Chanel|Maybelline|Charlotte Tilbury",
        "only swatched|matte finish|long lasting|unwanted gift|sealed when bought|rose shade"),
    _kind("sofa", 160, "Home & Garden / Dining, Living Room Furniture / Sofas, Armchairs & Suites / Private",
        "sofa|settee|couch|3 seater sofa", "DFS|Ikea|Next|Habitat|SCS",
        "seats three|removable covers|210cm wide|fire label attached|feather cushions|goes through a normal door"),
    _kind("table lamp", 16, "Home & Garden / Dining, Living Room Furniture / Lighting & Fittings",
        "table lamp|bedside lamp|lamp|reading light", "Laura Ashley|Habitat|Ikea|John Lewis|Dunelm",
        "bulb included|45cm high|switch on the cable|shade is fabric|E27 fitting|cosy light"),
    _kind("vinyl record", 11, "Music, Films, Books & Games / Music / Vinyl/LPs",
        "vinyl record|LP|12 inch record|vinyl album", "EMI|Decca|Motown|Island|Parlophone",
        "33rpm|plays without skipping|sleeve VG+|original 1978 pressing|inner sleeve|light surface marks"),
    _kind("book", 5, "Music, Films, Books & Games / Books & Magazines / Fiction",
        "book|novel|hardback book|paperback", "Penguin|Faber|Macmillan|Pan|HarperCollins",
        "no torn pages|412 pages~280 pages|first edition~large print|read once|great holiday read"),
    _kind("acoustic guitar", 85, "Musical Instruments & DJ Equipment / Guitars & Accessories / Acoustic Guitars",
        "acoustic guitar|guitar|classical guitar|6 string guitar", "Yamaha|Fender|Takamine|Tanglewood|Admira",
        "new strings|soft case|full size|low action|spruce top|lovely tone"),
    _kind("piano keyboard", 110, "Musical Instruments & DJ Equipment / Keyboards & Pianos",
        "keyboard|digital piano|electric keyboard|synthesiser", "Casio|Yamaha|Roland|Korg|Kawai",
        "61 keys~88 weighted keys~49 keys|power supply|stand included|MIDI out|headphone socket"),
    _kind("office chair", 42, "Office Furniture & Equipment / Chairs & Seating / Office Chairs",
        "office chair|swivel chair|desk chair|computer chair", "Herman Miller|Ikea|HAG|Orangebox|Staples",
        "gas lift|adjustable arms|lumbar support|five castors|tilts back|mesh back"),
    _kind("filing cabinet", 36, "Office Furniture & Equipment / Filing & Storage",
        "filing cabinet|metal cabinet|4 drawer cabinet|document cabinet", "Bisley|Silverline|Triumph|Ikea|Vickers",
        "two keys|takes A4 hanging files|smooth runners|steel|anti tilt|a small dent at the back"),
    _kind("smartphone", 150, "Phones, Mobile Phones & Telecoms / Mobile Phones / Smartphones",
        "mobile phone|smartphone|sim free phone|handset", "Apple|Samsung|Huawei|OnePlus|Nokia",
        "64GB~128GB unlocked~256GB|screen protector on|battery health 89%|dual sim|cracked corner|IMEI clean"),
    _kind("telephone", 15, "Phones, Mobile Phones & Telecoms / Home Phones & Answering Machines",
        "telephone|landline phone|corded phone|home phone", "BT|Panasonic|Gigaset|GPO|Binatone",
        "loud ringer|curly cord|wall mountable|big buttons|memory dial|works in a power cut"),
    _kind("bicycle", 120, "Sports, Leisure & Travel / Bicycles / Road/Hybrid Bikes",
        "bicycle|bike|road bike|hybrid bike", "Raleigh|Trek|Carrera|Giant|Specialized",
        "21 speed|54cm frame~56cm frame~18 inch frame|new chain|700c wheels|serviced in March|puncture proof tyres"),
    _kind("football", 8, "Sports, Leisure & Travel / Ball & Racquet Sport Equipment",
        "football|match ball|soccer ball|size 5 football", "Adidas|Nike|Mitre|Umbro|Puma",
        "size 5|holds air|stitched panels|pump included|training ball|hardly kicked"),
    _kind("game controller", 24, "Video Games & Consoles / Gaming Accessories / Controllers",
        "controller|game pad|wireless controller|joypad", "Sony|Microsoft|Nintendo|PowerA|Hori",
        "no stick drift|bluetooth|rumble works|charging cable|for PC too|trigger grips"),
    _kind("handheld console", 105, "Video Games & Consoles / Consoles / Handheld Consoles",
        "handheld console|portable console|handheld games machine|games console", "Nintendo|Sony|Sega|Anbernic|Atari",
        "32GB card|two games|charger|dock not included|screen spotless|grip case"),
)

PLACES = ("Leeds, West Yorkshire", "Bristol", "Norwich, Norfolk", "Kendal, Cumbria", "Hove, East Sussex", "Truro, Cornwall",
    "Perth, Perth and Kinross", "Swansea", "Derby, Derbyshire", "Wigan, Manchester", "Ely, Cambridgeshire", "Bath, Somerset",
    "Lisburn, County Antrim", "Durham, County Durham", "Hackney, London", "Croydon, London", "Stirling, Stirling",
    "Gateshead, Tyne and Wear", "Wrexham, Wrexham", "Bury St Edmunds, Suffolk", "Stow-on-the-Wold, Gloucestershire",
    "King's Lynn, Norfolk")
SELLERS = ("Aisha", "Brian", "Mary Jane", "Callum", "Dorota", "Femi", "Gwen", "Hamid", "Siobhan", "Jean-Paul", "O'Brien", "priya")
DATES = ("14 February 2022", "25 February 2022", "3 March 2022", "30 January 2022", "8 August 2021")
# Only numbers that Ofcom keeps for drama: 07700 900000 to 900999, 020 7946 0000 to 0999, 0161 496 0000 to 0999,
# 01632 960000 to 960999.
PHONES = ("07700 900{n}", "07700900{n}", "+44 7700 900{n}", "0044 7700 900{n}", "+44 (0)7700 900 {n}", "07700-900-{n}",
    "0 7 7 0 0 9 0 0 {n}", "(020) 7946 0{n}", "020.7946.0{n}", "0161 496 0{n}", "01632 960{n}", "+447700900{n}")
POSTCODES = ("ZZ99 9ZZ", "zz99 3wz", "ZZ993WZ", "ZZ99 1AA", "zz9 9xy", "ZZ1 4QT")  # ZZ is no postcode area

_CONDITIONS = ("good condition", "excellent condition", "used but tidy", "like new", "fair condition", "as new", "bit worn",
    "great nick")
_WHY = ("moving house so it has to go", "upgraded to a newer one", "unwanted gift", "no longer needed", "clearing out the loft",
    "kids have grown out of it", "surplus to requirements", "downsizing after 12 years")
_HOW = ("collection only", "buyer to collect", "can deliver locally for petrol money", "cash on collection", "can post at cost",
    "pick up any evening after 6", "first to see will buy", "no time wasters please")
_MORE = ("Open to sensible offers", "Smoke and pet free home", "Any questions just ask", "Priced to sell 👍", "Grab a bargain!!",
    "Genuine reason for sale", "It’s been looked after", 'Was "as good as new" when I got it', "Dont miss out")
_VAGUE_TITLES = ("bargain, must go", "{colour} - {state}", "job lot, {state}", "see photos, {colour}", "quick sale, {how}")
_TITLES = ("{brand} {noun}", "{colour} {noun}", "{brand} {colour} {noun}", "{noun} - {state}", "{noun}, {fact}",
    "lovely {colour} {noun}", "{noun} for sale", "{brand} {noun} {fact}", "{noun} ({brand})", "{brand} - bargain, {state}")
_OPENINGS = ("{brand} {same} in {colour}, {state}", "selling my {colour} {same}", "{state} {same} by {brand}",
    "for sale: {same}, {why}", "had this {same} {years} years", "this is a {colour} one made by {brand}", "{why}, {state}")
_HUES = ((0.03, "red"), (0.1, "orange"), (0.19, "yellow"), (0.45, "green"), (0.53, "turquoise"), (0.7, "blue"), (0.82, "purple"),
    (0.94, "pink"), (1.01, "red"))
# fmt: on


def colour_word(colour: tuple[int, ...]) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in colour))
    if saturation < 0.15:
        return "black" if value < 0.28 else "grey" if value < 0.75 else "white"
    return next(word for limit, word in _HUES if hue <= limit)


def title_and_description(kind: Kind, colour: str, rng: random.Random) -> tuple[str, str]:
    """What one seller writes; the description's sentences are run together the way sellers do it.

    A few sellers say so little that only the photo tells what it is.
    """
    facts = [rng.choice(fact.split("~")) for fact in rng.sample(kind.facts, rng.randint(2, 4))]
    why, how = rng.choice(_WHY), rng.choice(_HOW)
    words = {"colour": colour, "why": why, "how": how, "fact": facts[0], "years": rng.randint(2, 11)}
    words |= {"noun": rng.choice(kind.nouns), "same": rng.choice(kind.nouns)}
    words |= {"brand": rng.choice(kind.brands), "state": rng.choice(_CONDITIONS)}
    paid = f"paid £{round(kind.price_gbp * rng.uniform(1.5, 4))} {rng.randint(2, 30)} months ago"
    if rng.random() < VAGUE_SHARE:
        title, sentences = rng.choice(_VAGUE_TITLES), ["see photos", why, paid, how]
    else:
        more = rng.sample((how, paid, rng.choice(_MORE)), rng.randint(1, 3))
        title, sentences = rng.choice(_TITLES), [rng.choice(_OPENINGS).format(**words), *facts[1:], *more]
    title, *sentences = (text[0].upper() + text[1:] for text in (title.format(**words), *sentences))
    title = rng.choice((title.upper(), title.lower(), *[title] * 6))
    return title, rng.choice((". ", ".\n", "\n", " \n", "\n\n", " ", "")).join(sentences)


def price(kind: Kind, rng: random.Random) -> str:
    pounds = kind.price_gbp * math.exp(rng.gauss(0, PRICE_SPREAD))
    return f"£{max(1, round(pounds)) + rng.choice((0, 0, 0, 0, -0.01, 0.5)):,.2f}"
