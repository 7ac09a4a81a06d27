"""The fields of one listing: name, text, price, category path, place; which prices can be meant."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from marketplace.cleaning import prices
from marketplace.cleaning.folding import limit_marks, tidy
from marketplace.cleaning.redaction import UUID, redact
from marketplace.cleaning.sellers import strip_leak
from marketplace.files import reading, stages

CATEGORY_SEPARATOR = " / "
MAX_LEVELS = 12  # of a category; the site has five

MIN_CATEGORY_PRICES = 30  # fewer prices say little about their category: those of all categories are taken instead
PRICE_DEVIATIONS = 4.0
PRICE_SPREAD = (0.5, 0.65)  # least and greatest spread of a category's log10 prices, in factors of ten

# Every break that str.splitlines() knows, so that no reader of a cleaned file sees a line that another does not.
_BREAK = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")


def normalise_breaks(text: str) -> str:
    """The text with every line break as a newline, without NUL characters, outer white space and towers of accents."""
    return limit_marks(_BREAK.sub("\n", text.replace("\0", "")).strip())


def single_line(text: str) -> str:
    """The text with every line break as a space, without NUL characters, outer white space and towers of accents."""
    return limit_marks(_BREAK.sub(" ", text.replace("\0", "")).strip())


# Fields of a listing.

_TAIL = re.compile(r"(?:\|\s*in\s[^|]*)?\|\s*Gumtree$", re.IGNORECASE)

_SLASH = re.compile(r"\s{1,9}/\s{0,9}|/\s{1,9}")

_NO_CATEGORY = re.compile("n/?a|none|null|nil|nan|[-?._]+", re.IGNORECASE)


def canonical_id(text: str) -> str:
    """An id as the tables have it: a UUID in lower case."""
    return text.lower() if UUID.fullmatch(text) else text


def title(product_name: str) -> str:
    """The seller's title: the name on one line without its last " | in Town, County | Gumtree"."""
    name = single_line(product_name)
    tail = _TAIL.search(name, max(name.rfind("|", 0, max(name.rfind("|"), 0)) - 1, 0))
    return name[: tail.start()].rstrip() if tail else name


def split_place(location: str) -> tuple[str, str]:
    """Town and county of "Town, County": the county stands after the last comma, and is empty without one."""
    town, comma, county = single_line(location).rpartition(",")
    return (town.strip(), county.strip()) if comma else (county.strip(), "")


def category_levels(category: str, separator: str = CATEGORY_SEPARATOR) -> list[str]:
    """The levels of a path "A / B / C", widest first; a slash without spaces belongs to a name.

    separator: what a raw table has between levels; the blanks beside a slash in a level then go, as " / " parts ours.
    """
    levels = [level.strip() for level in f" {single_line(category)} ".split(separator) if level.strip()]
    if separator == CATEGORY_SEPARATOR:
        return levels
    return [_SLASH.sub("/", level) for level in levels if level.strip("/ ")]


def has_category(path: str) -> bool:
    """Whether a path names a category: "N/A" and "-" do not."""
    levels = category_levels(path)
    return bool(levels) and not _NO_CATEGORY.fullmatch(levels[0])


def join_spellings(paths: pd.Series) -> pd.Series:
    """Category paths with every level in its commonest spelling; those of one category may differ in capitals."""
    counts: dict[tuple[str, ...], Counter] = {}
    split = {path: category_levels(path) for path in paths.unique()}
    for path, times in paths.value_counts().items():
        for depth, level in enumerate(split[path], start=1):
            counts.setdefault(_folded(split[path][:depth]), Counter())[level] += times
    common = {prefix: min(spelt, key=lambda level: (-spelt[level], level)) for prefix, spelt in counts.items()}
    joined = {
        path: CATEGORY_SEPARATOR.join(common[_folded(levels[: depth + 1])] for depth in range(len(levels)))
        for path, levels in split.items()
    }
    return paths.map(joined)


def _folded(levels: list[str]) -> tuple[str, ...]:
    return tuple(map(str.casefold, levels))


def plausible_prices(prices: pd.Series, categories: pd.Series) -> pd.Series:
    """Whether each price can be meant: a bool each.

    Prices of one category spread over factors, so they are compared as log10. The centre is the category's median, the
    spread 1.4826 times the median absolute deviation (the standard deviation of a normal distribution, unmoved by jokes).
    The spread is bounded on both sides: a category of equal prices must not call all others jokes, and one of cars and
    car parts must not believe 1234567. Implausible is what lies more than 4 spreads from the centre, 0, and digits typed
    for fun: 11111, 12345 and longer ones.
    """
    positive = prices > 0
    logs = np.log10(prices.where(positive))
    deviations = (logs - _medians(logs, categories)).abs()
    spread = (1.4826 * _medians(deviations, categories)).clip(*PRICE_SPREAD)
    return positive & (deviations <= PRICE_DEVIATIONS * spread) & ~prices.map(_is_typed_for_fun)


def _medians(values: pd.Series, categories: pd.Series) -> pd.Series:
    """The median of each row's category, or of all rows where the category has few values."""
    grouped = values.groupby(categories)
    return grouped.transform("median").where(grouped.transform("count") >= MIN_CATEGORY_PRICES, values.median())


def _is_typed_for_fun(price: float) -> bool:
    digits = f"{price:.0f}"
    return len(digits) >= 5 and (digits in "1234567890" or len(set(digits)) == 1)


def text(name: str, description: str) -> str:
    """What text models see of a listing, in training and in serving alike: redacted name, newline, redacted description.

    name: a title, or a user's own words; description: may be empty. Cleaned fields come through unchanged.
    """
    return f"{redact(tidy(single_line(name)))}\n{redact(strip_leak(normalise_breaks(description))[0])}".strip()


def texts(products: pd.DataFrame) -> list[str]:
    """text() of every row of read_products(), whose fields are cleaned: text() would leave them as they are, in minutes."""
    return [f"{name}\n{text}".strip() for name, text in zip(products["name"], products["description"], strict=True)]


def read_classes(tabular_dir: Path) -> list[str]:
    """The categories that labels are the numbers of."""
    decoder = reading.read_json(tabular_dir / "labels.json")["decoder"]
    return [decoder[str(label)] for label in range(len(decoder))]


def read_currency(tabular_dir: Path) -> str:
    """The currency of all prices: its ISO 4217 code."""
    return stages.read_manifest(tabular_dir)["arguments"].get("schema", {}).get("currency", prices.POUNDS.currency)


def read_products(tabular_dir: Path) -> pd.DataFrame:
    """products.csv with its types: price float64, price_plausible bool, label and photos int64, the rest text."""
    return typed(reading.read_csv(Path(tabular_dir) / "products.csv"))


def typed(products: pd.DataFrame) -> pd.DataFrame:
    """Rows of products.csv, as text, with the types of read_products()."""
    return products.assign(
        price=products["price"].astype("float64"),
        price_plausible=products["price_plausible"] == "true",
        label=products["label"].astype("int64"),
        photos=products["photos"].astype("int64"),
    )
