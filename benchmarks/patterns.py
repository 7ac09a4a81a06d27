"""Whether the time that a text takes grows as the text does.

Every regular expression that meets a user's text is run on texts made from it to be hard: what it matches, over and over, and
what it begins to match, without an end. The functions are run on pieces of what they look for. Time is the processor's.

Run     python benchmarks/patterns.py --quick
        python benchmarks/patterns.py
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _constants, _parser

import results

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from marketplace.cleaning import duplicates, export_csv, folding, listings, postcodes, prices, redaction, sellers
from marketplace.retrieval import filters, words
from marketplace.service import middleware
from tests.cleaning import pattern_growth

MODULES = (duplicates, export_csv, folding, listings, postcodes, redaction, sellers, words, middleware)
FUNCTIONS: dict[str, Callable[[str], object]] = {
    "redact": redaction.redact,
    "strip_leak": sellers.strip_leak,
    "tidy": folding.tidy,
    "normalise_breaks": listings.normalise_breaks,
    "title": listings.title,
    "category_levels": listings.category_levels,
    "split_place": listings.split_place,
    "is_other_currency": prices.POUNDS.is_other,
    "parse_fields": export_csv.parse_fields,
    "words.fold": words.fold,
    "words.split": words.split,
    "category_names of 200 characters": lambda text: [
        filters.category_names(text[k : k + 200]) for k in range(0, len(text), 200)
    ],
    "place_names of 200 characters": lambda text: [
        filters.place_names(text[start : start + 200], "Kent") for start in range(0, len(text), 200)
    ],
}
PIECES = (
    *(
        "0",
        "0 ",
        "07 ",
        "4",
        "44 ",
        "+0",
        "+1 ",
        "7 ",
        "o7",
        "O0 ",
        "(",
        "[0",
        "0.",
        "01.12.",
        "call 7700 ",
        "07700900123",
        "0\u200d",
    ),
    *("a@", "@ ", "a.", "a at ", " dot ", "(at)", "a @ b . ", "a%40", "a-at-", "gmail ", "E1 6AN/", "E16AN", "e16anE1 6AN"),
    *("Posted by ", "posted by x in ", "Posted by A in B. ", "Posted by\t", "Posted Posted by A in B. by ", "Posted by Dr. "),
    *(
        "Posted by Ann in Leeds 25 February ",
        " ",
        "\n",
        "\xa0",
        "\u200b",
        "&",
        "&amp;",
        "&#6",
        "<br ",
        "<b>",
        "£1,000",
        "1,",
        '"',
        '",',
    ),
    *(
        "|",
        "| in ",
        " / ",
        "a / ",
        ",",
        "\u0315\u0316",
        "\ufdfa",
        "\u0660",
        "–",
        "12c0b5e6-",
        "[phone]",
        "\ue000\ue001",
        "a" * 64 + " ",
    ),
)
LONG_RUNS = 6  # of patterns and of functions, on a million characters
LEAST_SECONDS = 0.05  # shorter ones cannot be told from noise
STARTS = ("", "Posted by", "Posted by Ann in ", "call ", "joe@", "&", "a | ")


def example(items: list, pattern: re.Pattern) -> str:
    """A text that these parts of a pattern match, as short as its repeats allow."""
    text = ""
    for kind, value in items:
        if kind in pattern_growth.CHARACTERS:
            text += min(pattern_growth.taken(kind, value, pattern.flags), default="")
        elif kind in (*pattern_growth.REPEATS, _constants.POSSESSIVE_REPEAT):
            text += example(list(value[2]), pattern) * max(value[0], min(value[1], 1))
        elif kind is _constants.SUBPATTERN:
            text += example(list(value[3]), pattern)
        elif kind is _constants.BRANCH:
            text += example(list(value[1][0]), pattern)
        elif kind is _constants.ATOMIC_GROUP:
            text += example(list(value), pattern)
    return text


def units(items: list, pattern: re.Pattern, before: str = "") -> Iterator[tuple[str, str]]:
    """(what leads to a repeat, what it repeats) for each repeat of a pattern, and for each of its alternatives."""
    for number, (kind, value) in enumerate(items):
        so_far = before + example(items[:number], pattern)
        if kind in (*pattern_growth.REPEATS, _constants.POSSESSIVE_REPEAT):
            yield so_far, example(list(value[2]), pattern)
            yield from units(list(value[2]), pattern, so_far)
        elif kind is _constants.SUBPATTERN:
            yield from units(list(value[3]), pattern, so_far)
        elif kind is _constants.BRANCH:
            for branch in value[1]:
                yield so_far, example(list(branch), pattern)
                yield from units(list(branch), pattern, so_far)


def hard_texts(pattern: re.Pattern) -> list[tuple[str, str]]:
    """(beginning, unit) of hard texts, once each: the repeats without an end, and all of them over and over."""
    tree = list(_parser.parse(pattern.pattern, pattern.flags))
    found = [("", example(tree, pattern))]
    for lead, unit in units(tree, pattern):
        found += [(lead, unit), ("", lead + unit), ("", lead)]
    return list(dict.fromkeys((lead, unit) for lead, unit in found if unit))


def seconds(run: Callable[[str], object], text: str, times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.process_time()
        run(text)
        taken.append(time.process_time() - start)
    return min(taken)


def text_of(lead: str, unit: str, characters: int) -> str:
    return lead + unit * (characters // len(unit)) + "\0"  # which nothing expects


def measure(kind: str, runs: list[tuple[str, Callable, str, str]], characters: int) -> dict:
    """The slowest of the runs, each (name, function, beginning, unit), and by which power of a text's length time grows.

    All are run on a small part of the characters; those that took longest there, of each name the worst, on a hundredth and on
    all of them.
    """
    small = {run: seconds(run[1], text_of(*run[2:], characters // 250), 1) for run in runs}
    by_name = {}
    for run in sorted(runs, key=small.get):
        by_name[run[0]] = run
    chosen = sorted(by_name.values(), key=small.get, reverse=True)[:LONG_RUNS]
    table = []
    for name, function, lead, unit in chosen:
        least = seconds(function, text_of(lead, unit, characters // 100), 3)
        most = seconds(function, text_of(lead, unit, characters), 1)
        power = math.log10(most / max(least, 1e-5)) / 2 if most > LEAST_SECONDS else 1.0
        table.append((most, power, name))
        print(f"{most:8.2f} s, power {power:.2f}: {name} of {lead[:20]!r} and {unit[:20]!r}", file=sys.stderr, flush=True)
    slowest, steepest = max(table), max(table, key=lambda row: row[1])
    return {
        f"{kind}s": len(by_name),
        f"{kind}_texts": len(runs),
        f"{kind}_slowest": slowest[2],
        f"{kind}_slowest_s": round(slowest[0], 2),
        f"{kind}_steepest": steepest[2],
        f"{kind}_power": round(steepest[1], 2),
    }


def measure_patterns(characters: int) -> dict:
    patterns = {
        f"{module.__name__.rpartition('.')[2]}.{name}": value
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    }
    runs = [
        (name, lambda text, pattern=pattern: sum(1 for _ in pattern.finditer(text)), lead, unit)
        for name, pattern in patterns.items()
        for lead, unit in hard_texts(pattern)
    ]
    return measure("pattern", runs, characters)


def measure_functions(characters: int) -> dict:
    texts = [*(("", piece) for piece in PIECES), *((start, unit) for start in STARTS for unit in (" ", "a"))]
    return measure("function", [(name, run, *text) for name, run in FUNCTIONS.items() for text in texts], characters)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="texts of 100,000 characters, not a million")
    args = parser.parse_args()
    characters = 100_000 if args.quick else 1_000_000
    figures = {"characters": characters, **measure_patterns(characters), **measure_functions(characters)}
    print(json.dumps(figures))
    if not args.quick:
        results.save("patterns", figures, results.command())
    return 0


if __name__ == "__main__":
    sys.exit(main())
