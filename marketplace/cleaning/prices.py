"""A price as a table writes it becomes a number: its currency's signs, its decimal mark, its thousands."""

import functools
import math
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

MAX_PRICE = float(np.finfo(np.float32).max)  # as float32 prices are filtered

# What stands beside an amount in place of the ISO code, for the currencies that marketplaces here meet.
_NAMES = {
    "GBP": ("\u00c2£", "£"),  # a pound sign that was read as Windows-1252
    "EUR": ("€", "euros", "euro"),
    "USD": ("US$", "$"),
    "CAD": ("CA$", "C$", "$"),
    "AUD": ("AU$", "A$", "$"),
    "NZD": ("NZ$", "$"),
    "CHF": ("SFr.", "Fr."),
    "JPY": ("¥", "円"),
    "CNY": ("¥", "元"),
    "INR": ("₹", "Rs."),
    "PLN": ("zł",),
    "CZK": ("Kč",),
    "SEK": ("kr",),
    "NOK": ("kr",),
    "DKK": ("kr.", "kr"),
    "TRY": ("₺",),
}
_OTHERS = (
    *("GBP", "EUR", "USD", "AUD", "CAD", "NZD", "CHF", "JPY", "CNY", "INR", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF", "RON"),
    *("TRY", "ZAR", "AED", "HKD", "SGD", "euros?", "dollars?"),
)
_OWN_WORDS = {"EUR": "euros?", "USD": "dollars?", "CAD": "dollars?", "AUD": "dollars?", "NZD": "dollars?"}


class OtherCurrency(ValueError):
    """A price that is not in the table's currency."""


@dataclass(frozen=True)
class PriceFormat:
    """currency: its ISO 4217 code; decimal: the mark before the decimals, "." or ","."""

    currency: str = "GBP"
    decimal: str = "."

    def parse(self, text: str) -> float:
        """The amount of "£1,234.56", "£ 20", "1234.5" or "GBP 20"; with a decimal comma of "1.234,56 €", "EUR 12,50",
        "12,-" or "12:-".

        Raises OtherCurrency for an amount in another one, by its sign or code. Raises ValueError for anything else: negative, not
        a number, or too large for a float32, as which prices are filtered.
        """
        text = text.strip()
        if self.is_other(text):
            raise OtherCurrency(f"{text!r} is not a price in {self.currency}")
        match = pattern(self.currency, self.decimal).fullmatch(text)
        price = float(self._plain(match[1])) if match else math.nan
        if not price <= MAX_PRICE:
            raise ValueError(f"{text!r} is not a price in {self.currency}")
        return price

    def is_other(self, text: str) -> bool:
        """Whether a price says that it is in another currency: for pounds "$40", "1.999 €", "EUR 5"."""
        if not any(map(str.isdigit, text)):
            return False
        own = set("".join(_NAMES.get(self.currency, ())))
        has_sign = any(unicodedata.category(char) == "Sc" and char not in own for char in text)
        return has_sign or bool(_other_codes(self.currency).search(text))

    def _plain(self, amount: str) -> str:
        whole, _, decimals = amount.partition(self.decimal)
        return f"{re.sub('[^0-9]', '', whole) or '0'}.{re.sub('[^0-9]', '', decimals) or '0'}"


POUNDS = PriceFormat()


def is_code(currency: str) -> bool:
    """Whether a text has the form of an ISO 4217 code."""
    return re.fullmatch("[A-Z]{3}", currency) is not None


def before_amounts(currency: str) -> str:
    """What our own lines write before an amount: the pound's sign, and any other currency's code, as dollars are many."""
    return "£" if currency == POUNDS.currency else f"{currency} "


def named_amounts(text: str, currency: str) -> list[float]:
    """The amounts that a text names beside the currency's sign, name or code, without their decimals."""
    found = [before or after for before, after in _beside(currency).findall(text)]
    if currency != POUNDS.currency:  # in pounds a comma stands between thousands alone, and the full stop is not read
        found = [re.sub("[.,][0-9]{0,2}$", "", digits) for digits in found]
    return [float(re.sub("[^0-9]", "", digits)) for digits in found]


def count_signs(text: str, currency: str) -> int:
    """How often a text has the currency's sign, name or code."""
    return len(_names_in_text(currency).findall(text))


@functools.cache
def _names_in_text(currency: str) -> re.Pattern:
    if currency == POUNDS.currency:
        return re.compile("£")  # as British sellers write it
    names = sorted({currency, *_NAMES.get(currency, ())}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(_apart, names)), re.IGNORECASE)


def _apart(name: str) -> str:
    """A pattern of a name that is no part of a word: "kr" is none of "kraft"."""
    before = r"(?<![^\W\d_])" if name[0].isalpha() else ""
    after = r"(?![^\W\d_])" if name[-1].isalpha() else ""
    return f"{before}{re.escape(name)}{after}"


@functools.cache
def _beside(currency: str) -> re.Pattern:
    names = _names_in_text(currency).pattern
    if currency == POUNDS.currency:
        return re.compile(rf"{names}\s?([0-9][0-9,]{{0,6}})()")  # in front alone
    digits = "[0-9](?:[0-9.,'\u2019]{0,9}[0-9])?"
    return re.compile(rf"(?:{names})\s?({digits})|(?<![0-9.,])({digits})\s?(?:{names})", re.IGNORECASE)


@functools.cache
def pattern(currency: str, decimal: str) -> re.Pattern:
    """What parse() takes for a price."""
    name = f"(?:{'|'.join(map(re.escape, (currency, *_NAMES.get(currency, ()))))})?"
    point, thousands = (r"\.", ",") if decimal == "." else (",", "[. '\u2019\u00a0\u202f]")
    decimals = "[0-9]*" if decimal == "." else "(?:[-\u2013]{1,2}|[0-9]*)"
    end = f"{point}{decimals}" if decimal == "." else f"{point}{decimals}|:[-\u2013]"
    amount = f"(?:[0-9]{{1,3}}(?:{thousands}[0-9]{{3}}){{1,13}}|[0-9]{{1,40}})(?:{end})?|{point}[0-9]+"
    return re.compile(rf"{name}\s{{0,9}}({amount})\s{{0,9}}{name}", re.IGNORECASE)


@functools.cache
def _other_codes(currency: str) -> re.Pattern:
    others = "|".join(code for code in _OTHERS if code not in (currency, _OWN_WORDS.get(currency)))
    return re.compile(f"(?<![^\\W\\d_])(?:{others})(?![^\\W\\d_])", re.IGNORECASE)
