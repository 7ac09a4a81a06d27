"""Several listings as one query: what they have in common, away from counter-examples, weighed and spread as a client asks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from marketplace.retrieval.answers import Hit
from marketplace.retrieval.ranking import Ranker

if TYPE_CHECKING:
    from marketplace.retrieval.open_index import OpenIndex, Query

# Of the counter-examples' mean, taken from the query. Qdrant's average-vector strategy takes 1, by which right answers are lost:
# a counter-example shares most of what it is with the listings that it is told from. A quarter is what Rocchio's method takes.
COUNTER_WEIGHT = 0.25


def query_of_several(
    index: "OpenIndex", query: "Query", rows: Sequence[int], not_rows: Sequence[int], left_out: Sequence[int]
) -> "Query":
    """A query for listings like those of `rows`, unlike those of `not_rows`; none of them is an answer, nor those of `left_out`,
    nor what is folded with any of them.

    query: of words, which count as one listing more; an empty one where there are none. Each listing counts the same, however
    many photos it has. The price is the median of those of `rows`, the place theirs where all have the same.
    """
    viewed, counter = [index.query_of(row) for row in rows], [index.query_of(row) for row in not_rows]
    asked = [query, *viewed]
    category = _away([one.category for one in asked], [one.category for one in counter])
    if category is not None:
        category = np.clip(category, 0, 1)
    prices = [one.price for one in viewed if one.price is not None]
    places = {one.place for one in viewed}
    excluded = [index.catalogue.duplicates_of(row) for row in (*rows, *not_rows, *left_out)]
    photo = _unit(_away([_photo(one) for one in asked], [_photo(one) for one in counter]))
    return replace(
        query,
        photos=None if photo is None else photo[None],
        text=_unit(_away([one.text for one in asked], [one.text for one in counter])),
        category=category if category is not None and category.any() else None,
        price=float(np.median(prices)) if prices else None,
        place=places.pop() if len(places) == 1 else None,
        excluded_rows=np.unique(np.concatenate([query.excluded_rows, *excluded])),
        viewed=len(rows),
    )


def _photo(query: "Query") -> np.ndarray | None:
    """(D,) the mean of a listing's photos, of unit length."""
    return None if query.photos is None else mean_photo(query.photos)


def mean_photo(vectors: np.ndarray) -> np.ndarray | None:
    """(D,) the mean of photos' vectors (n, D), of unit length; None where they cancel each other."""
    return _unit(vectors.mean(axis=0))


def _away(asked: Sequence[np.ndarray | None], counter: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """The mean of vectors, moved away from that of the counter-examples'; None where there is nothing to be moved."""
    asked, counter = ([vector for vector in some if vector is not None] for some in (asked, counter))
    if not asked:
        return None
    mean = np.mean(asked, axis=0)
    return mean if not counter else mean + COUNTER_WEIGHT * (mean - np.mean(counter, axis=0))


def _unit(vector: np.ndarray | None) -> np.ndarray | None:
    """None for a vector of no direction."""
    if vector is None or (length := float(np.linalg.norm(vector))) < 1e-9:
        return None
    return (vector / length).astype(np.float32)


def reweighted(ranker: Ranker, query: "Query") -> Ranker:
    """The ranker whose weights are multiplied by those that the query asks for, by kind of evidence.

    Raises ValueError where nothing that the query has counts any more.
    """
    weights = {mix: _times(own, query.weights) for mix, own in ranker.weights.items()}
    if not any(weights[mix][kind] > 0 for mix in weights for kind in query.kinds):
        raise ValueError("nothing to compare by is left")
    return replace(ranker, weights=weights)


def _times(weights: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    return {kind: weight * factors.get(kind, 1.0) for kind, weight in weights.items()}


def diversify(index: "OpenIndex", hits: list[Hit], diversity: float) -> list[Hit]:
    """Hits in another order: each next one is the best by its score less its likeness to the most alike one before it.

    diversity: in [0, 1], the weight of likeness against score; 0 leaves the order. Likeness is that of photo and of text, each
    in [0, 1], on average. Source: maximal marginal relevance, Carbonell and Goldstein 1998.
    """
    scores, alike = np.array([hit.score for hit in hits]), _likeness(index, hits)
    nearest, left, order = np.zeros(len(hits)), np.ones(len(hits), bool), []
    for _ in hits:
        values = np.where(left, (1 - diversity) * scores - diversity * nearest, -np.inf)
        best = int(values.argmax())
        order.append(hits[best])
        left[best] = False
        nearest = np.maximum(nearest, alike[best])
    return order


def _likeness(index: "OpenIndex", hits: list[Hit]) -> np.ndarray:
    """(N, N) in [0, 1]; 0 of hits that have nothing in common to compare."""
    photo_rows = [hit.photo_row for hit in hits]
    photos = np.zeros((len(hits), index.dimension), np.float32)
    having = [place for place, row in enumerate(photo_rows) if row is not None]
    photos[having] = index.photo_index.vectors_of(np.array([photo_rows[place] for place in having], np.int64))
    vectors = {"photo": photos, "text": index.text_index.vectors_of(np.array([hit.row for hit in hits], np.int64))}
    total, compared = np.zeros((len(hits), len(hits))), np.zeros((len(hits), len(hits)))
    for kind, own in vectors.items():
        both = np.outer(own.any(axis=1), own.any(axis=1))
        total += np.where(both, index.ranker.similarity(kind, own @ own.T), 0)
        compared += both
    return total / np.maximum(compared, 1)
