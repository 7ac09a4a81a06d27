"""Hits -> what a client gets: the fields of each listing, the words marked in them, and why it was found."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from marketplace.cleaning.listings import CATEGORY_SEPARATOR, category_levels
from marketplace.retrieval.catalogue import PLACES, Catalogue, Photo
from marketplace.retrieval.words import Alternative

if TYPE_CHECKING:
    from marketplace.retrieval.open_index import Query
    from marketplace.retrieval.typed_search import TypedSearch

RESULT_FIELDS = ("product_id", "name", "category", "price", "price_plausible", "town", "county", "posted_on")
MOST_DUPLICATE_IDS = 100
LEAST_SHARE = 0.1  # of a score, for its part to be a reason
LEAST_TOLD = 0.2  # of a score, for more to be said of it than the words that are held: what is hardly alike has no reasons
CLOSE_SCORE = 0.5  # a score is a probability: from here on a listing is more likely right than not
ABOUT_THE_SAME = 0.8  # of two prices the smaller one's share of the larger
ASKED_WITH = ("your photo", "the one you viewed", "the ones you viewed")  # by none, one or more of the catalogue's listings
HOW = {"synonym": "similar word: {}", "corrected": "spelt: {}", "begun": "begins with: {}", "joined": "{}", "split": "{}"}


@dataclass(frozen=True)
class Hit:
    """A listing found: its row, the row of its photo nearest to the query's, its score, the parts of that, and the rows of
    the other listings of the same offer that are folded into it. One that is not ranked has no score."""

    row: int
    photo_row: int | None
    score: float | None
    parts: dict[str, float]
    folded: list[int]


def cards(catalogue: Catalogue, rows: Sequence[int]) -> list[dict]:
    """Listings that were not looked for, each with its first photo."""
    firsts = [next(iter(catalogue.photos_of(row).tolist()), None) for row in rows]
    shown = [row for row in firsts if row is not None]
    photo_of = dict(zip(shown, catalogue.photos(shown), strict=True)) | {None: None}
    listings = catalogue.products(rows, RESULT_FIELDS)
    return [
        listing | {"currency": catalogue.currency} | _photo_fields(photo_of[first])
        for listing, first in zip(listings, firsts, strict=True)
    ]


def _photo_fields(photo: Photo | None) -> dict:
    return {
        "image_id": photo and photo.image_id,
        "photo_url": photo and photo.square_url,
        "display_url": photo and photo.display_url,
        "photo_width": photo and photo.width,
        "photo_height": photo and photo.height,
    }


def describe(
    catalogue: Catalogue, typed_search: "TypedSearch", hits: list[Hit], query: "Query", alike: dict[str, np.ndarray]
) -> list[dict]:
    """The fields of each hit for a client; a query's words are marked in them.

    alike: "category" and "text", (hits,) bool each: which hits are of the kind, and of the meaning, that the query asks for.
    """
    if not hits:
        return []
    photo_rows = [hit.photo_row for hit in hits if hit.photo_row is not None]
    photo_of = dict(zip(photo_rows, catalogue.photos(photo_rows), strict=True)) | {None: None}
    typed = query.typed
    listings = catalogue.products([hit.row for hit in hits], RESULT_FIELDS if typed is None else (*RESULT_FIELDS, "description"))
    highlighter = None if typed is None else catalogue.words.highlighter([word.alternatives for word in typed.query.required])
    told = [row for hit in hits for row in hit.folded[:MOST_DUPLICATE_IDS]]
    id_of = dict(zip(told, (copy["product_id"] for copy in catalogue.products(told, ["product_id"])), strict=True))
    held = [{}] * len(hits) if typed is None else typed_search.explain(typed, [hit.row for hit in hits])
    described = []
    for place, (hit, listing, words) in enumerate(zip(hits, listings, held, strict=True)):
        kinds = {kind for kind, values in alike.items() if values[place]} | {"photo"}
        snippet = highlighter and vars(highlighter.snippet(listing.pop("description")))
        described.append(
            listing
            | {
                "currency": catalogue.currency,
                "name_marks": highlighter.marks(listing["name"]) if highlighter else [],
                "snippet": snippet,
                **_photo_fields(photo_of[hit.photo_row]),
                "duplicates": len(hit.folded),
                "duplicate_ids": [id_of[row] for row in hit.folded[:MOST_DUPLICATE_IDS]],
                "score": None if hit.score is None else round(hit.score, 6),
                "close": None if hit.score is None else round(hit.score, 6) >= CLOSE_SCORE,
                "parts": {kind: round(value, 6) for kind, value in hit.parts.items()},
                "reasons": reasons(catalogue, hit, listing, words, query, kinds),
            }
        )
    return described


def reasons(
    catalogue: Catalogue, hit: Hit, listing: dict, words: dict[str, Alternative], query: "Query", kinds: Collection[str]
) -> list[str]:
    """Why a listing was found, as a shopper would say it, the words first; empty where it was not ranked.

    words: the typed ones that it holds, and by what; kinds: of evidence, those that may be told.
    """
    found = []
    own = [word for word, by in words.items() if by.how == ""]
    if own:
        found.append("has " + ", ".join(f"“{word}”" for word in own))
    found += dict.fromkeys(HOW[by.how].format(by.text) for by in words.values() if by.how)
    asked_with = ASKED_WITH[min(query.viewed, 2)]
    score = hit.score or 0
    counts = {kind for kind in kinds if score >= LEAST_TOLD and hit.parts.get(kind, 0) >= LEAST_SHARE * score}
    if "photo" in counts and hit.photo_row is not None:
        found.append(f"looks like {asked_with}")
    if "text" in counts and not words:
        found.append(f"reads like {asked_with}" if query.viewed else "means something similar")
    if "category" in counts and listing["category"]:
        found.append(f"same kind: {catalogue.telling_names[CATEGORY_SEPARATOR.join(category_levels(listing['category']))]}")
    price = listing["price"]
    if query.price and price and min(price, query.price) / max(price, query.price) >= ABOUT_THE_SAME:
        found.append("about the same price")
    if query.place is not None:
        for kind, code in zip(PLACES, query.place, strict=True):
            if listing[kind] and listing[kind] == catalogue.names[kind][code]:
                found.append(f"in {listing[kind]}")
                break
    return found if hit.parts else []
