"""The lists for moderators as a client gets them: a page as JSON, or whole as CSV, a block at a time."""

import csv
import io
from collections.abc import Iterator

from marketplace.retrieval import answers
from marketplace.retrieval.catalogue import Catalogue
from marketplace.retrieval.moderation import DETAILS, Entry, List, Moderation

BLOCK_ROWS = 500  # entries in memory at a time
LISTING_COLUMNS = ("product_id", "name", "category", "price", "currency", "town", "county")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet run a cell. Source: OWASP, "CSV Injection"


def describe(catalogue: Catalogue, entries: list[Entry]) -> list[dict]:
    """The entries, each with the listing that it is about."""
    rows = list(dict.fromkeys(entry.row for entry in entries if entry.row is not None))
    card_of = dict(zip(rows, answers.cards(catalogue, rows), strict=True)) | {None: None}
    hidden = set(catalogue.hidden_rows.tolist())
    return [
        {"reason": entry.reason, "listing": card_of[entry.row], "hidden": entry.row in hidden, "details": entry.details}
        for entry in entries
    ]


def csv_lines(catalogue: Catalogue, moderation: Moderation, name: List, reason: str | None) -> Iterator[str]:
    """The whole list, or the entries of one reason: a header, then some lines at a time."""
    yield _csv([["reason", *LISTING_COLUMNS, "hidden", *DETAILS[name]]])
    for block in moderation.blocks(name, reason, BLOCK_ROWS):
        lines = []
        for entry in describe(catalogue, block):
            listing = entry["listing"] or {}
            about = [listing.get(column, "") for column in LISTING_COLUMNS]
            told = [entry["details"][column] for column in DETAILS[name]]
            lines.append([entry["reason"], *about, "yes" if entry["hidden"] else "no", *told])
        yield _csv(lines)


def _csv(lines: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([map(_cell, line) for line in lines])
    return text.getvalue()


def _cell(value: object) -> object:
    """A text that a spreadsheet shows as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
