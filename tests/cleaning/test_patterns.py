"""Every pattern that meets a user's text takes linear time, by its structure; python benchmarks/patterns.py measures it."""

import re

import pytest

from marketplace.cleaning import duplicates, export_csv, folding, listings, postcodes, prices, records, redaction, schema, sellers
from marketplace.retrieval import words
from tests.cleaning.pattern_growth import faults

MODULES = (duplicates, export_csv, folding, listings, postcodes, records, redaction, schema, sellers, words)
PATTERNS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
} | {
    f"prices {currency} {decimal}": prices.pattern(currency, decimal)
    for currency in ("GBP", "EUR", "CHF")
    for decimal in (".", ",")
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_takes_linear_time(name):
    assert list(faults(PATTERNS[name])) == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"a+a",
        r"x\s+\s*y",
        r"x(?:a+)+y",
        r"\s+by",
        r"x\w+\d",
        r"x(?:a|bc)*d",
        r"(?:£)?\s*\d",
        r"(?:[0-9]*x)?y",
        r"(?:a+|b)c",
        r"x\s*(?:\s|y)",
        r"(?<=x)\s+\s?y",
    ],
)
def test_a_pattern_of_square_time_is_found(pattern):
    assert list(faults(re.compile(pattern)))


@pytest.mark.parametrize("pattern", [r"a+", r"x\s+y", r"x\s++\s*y", r"x[^,]*,", r"(?:a{1,9}){1,9}b"])
def test_a_pattern_of_linear_time_is_not(pattern):
    assert list(faults(re.compile(pattern))) == []
