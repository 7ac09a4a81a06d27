"""A small catalogue to search by typed words, in files of its own."""

from pathlib import Path

import numpy as np
import pandas as pd

from marketplace.retrieval import catalogue, forward, keys, typed, typed_search, words
from marketplace.retrieval.catalogue import Catalogue
from marketplace.retrieval.typed_search import TypedSearch


def table(listings: list[tuple[str, str, str]]) -> pd.DataFrame:
    """listings: name, description, category."""
    rows = [
        {
            "product_id": f"id-{row}",
            **{"name": name, "description": description, "category": category},
            **{"price": 10.0 + row, "price_plausible": True, "town": "Leeds", "county": "Yorkshire", "posted_on": "2022-03-01"},
        }
        for row, (name, description, category) in enumerate(listings)
    ]
    return pd.DataFrame(rows)


def write(folder: Path, listings: list[tuple[str, str, str]], synonyms: str | None = None) -> None:
    """Write what a typed search without an encoder reads."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = table(listings)
    listing_keys = keys.keys(frame["product_id"].tolist())
    np.save(folder / "listing_keys.npy", listing_keys)
    catalogue.write(folder, [frame], [], np.empty(0, np.int32))
    words.write(folder, [frame], [listing_keys])
    forward.write(folder, [frame])
    text = typed.SYNONYMS.read_text(encoding="utf-8") if synonyms is None else synonyms
    (folder / typed_search.SYNONYMS).write_text(text, encoding="utf-8")


def opened(folder: Path) -> TypedSearch:
    return TypedSearch(folder, Catalogue(folder), None)


def ranked(search: TypedSearch, text: str) -> list[int]:
    """Rows, best first, that belong to the answer; none where nothing is close."""
    query = search.read(text)
    candidates = search.candidates(query)
    if not candidates.is_close():
        return []
    raw = np.sum(list(search.score(query, candidates).values()), axis=0)
    kept = search.is_in(search.result(query, candidates, None), candidates)
    order = np.argsort(-raw, kind="stable")
    return candidates.rows[order[kept[order]]].tolist()
