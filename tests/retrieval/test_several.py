"""Several listings as one query, against vectors averaged here and an MMR that follows its definition word by word."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.files import generations
from marketplace.retrieval import several
from marketplace.retrieval.open_index import CANDIDATES, WINDOW, OpenIndex, Query
from marketplace.retrieval.ranking import KINDS


@pytest.fixture(scope="module")
def index(demo_dir):
    return OpenIndex(generations.current_generation(demo_dir / "index"))


@pytest.fixture(scope="module")
def rows(index) -> list[int]:
    """Three listings with photos, no two of one fold."""
    groups = index.catalogue.columns["duplicates"]
    with_photos = [row for row in range(index.catalogue.n_products) if len(index.catalogue.photos_of(row))]
    return [with_photos[place] for place in np.sort(np.unique(groups[with_photos], return_index=True)[1])[:3]]


def unit(vector):
    return vector / np.linalg.norm(vector)


def mean_photo(index, row):
    return unit(index.photo_index.vectors[index.catalogue.photos_of(row)].mean(axis=0))


def test_the_query_is_the_mean_of_its_listings_whatever_their_number_of_photos(index, rows):
    query = several.query_of_several(index, Query(), rows, [], [])
    assert query.photos[0] == pytest.approx(unit(sum(mean_photo(index, row) for row in rows)), abs=1e-5)
    assert query.text == pytest.approx(unit(sum(index.text_index.vectors[row] for row in rows)), abs=1e-5)
    levels = [index.tree.own_levels(row) for row in rows]
    assert query.category == pytest.approx(np.mean(levels, axis=0))
    assert query.price == np.median(index.catalogue.columns["price"][rows]) and query.viewed == 3
    assert several.query_of_several(index, Query(), rows[::-1], [], []).photos == pytest.approx(query.photos, abs=1e-6)


def test_a_place_counts_only_where_all_listings_share_it(index):
    places = [index.place_of(row) for row in range(index.catalogue.n_products)]
    first = next(place for place in places if place)
    alike = [row for row, place in enumerate(places) if place == first]
    other = next(row for row, place in enumerate(places) if place != first)
    assert several.query_of_several(index, Query(), alike[:2], [], []).place == first
    assert several.query_of_several(index, Query(), [alike[0], other], [], []).place is None


def test_a_counter_example_moves_the_query_away_from_itself(index, rows):
    *asked, other = rows
    plain, away = (several.query_of_several(index, Query(), asked, counter, []) for counter in ([], [other]))
    assert away.photos[0] @ mean_photo(index, other) < plain.photos[0] @ mean_photo(index, other)
    assert away.text @ index.text_index.vectors[other] < plain.text @ index.text_index.vectors[other]
    assert ((away.category >= 0) & (away.category <= 1)).all()
    assert (away.price, away.place) == (plain.price, plain.place)


def test_a_listing_that_is_its_own_counter_example_changes_no_vector(index, rows):
    plain, same = (several.query_of_several(index, Query(), rows[:1], counter, []) for counter in ([], rows[:1]))
    assert same.photos == pytest.approx(plain.photos, abs=1e-6) and same.text == pytest.approx(plain.text, abs=1e-6)


def test_listings_of_all_three_kinds_are_no_answer_and_neither_are_their_folds(index):
    groups = index.catalogue.columns["duplicates"]
    sizes = np.bincount(groups)
    folded = np.flatnonzero(sizes[groups] > 1)
    assert len(folded) > 1
    named = [int(folded[0]), *(row for row in range(index.catalogue.n_products) if row not in folded)][:3]
    query = several.query_of_several(index, Query(), named[1:2], named[2:3], named[:1])
    found = [index.catalogue.product_row(result["product_id"]) for result in index.recommend(query, 200)]
    left_out = np.isin(groups, groups[named])
    assert not left_out[found].any() and left_out.sum() > 3
    assert {groups[row] for row in found} == set(groups[~left_out])


def test_what_the_words_mean_counts_as_one_listing_more(index, rows):
    words = replace(index.typed("guitar"), text=index.text_index.vectors[rows[2]], category=index.tree.own_levels(rows[2]))
    mixed = several.query_of_several(index, words, rows[:2], [], [])
    listings = several.query_of_several(index, Query(), rows, [], [])
    assert mixed.text == pytest.approx(listings.text, abs=1e-6) and mixed.category == pytest.approx(listings.category)
    assert mixed.typed == words.typed


def test_a_query_of_several_looks_deeper_and_still_finds_its_depth_beside_what_is_left_out(index, rows, monkeypatch):
    depths = []
    nearest = index.text_index.nearest
    monkeypatch.setattr(index.text_index, "nearest", lambda vector, k, *more: depths.append(k) or nearest(vector, k, *more))
    for viewed in (rows[:1], rows):
        query = several.query_of_several(index, Query(), viewed, [], [])
        index.candidates(query, None)
        assert depths.pop() == CANDIDATES * WINDOW * len(viewed) + len(query.excluded_rows)


def test_weights_multiply_the_rankers_own_and_zero_leaves_a_kind_out(index, rows):
    query = several.query_of_several(index, Query(), rows, [], [])
    ranker = several.reweighted(index.ranker, replace(query, weights={"photo": 2, "price": 0}))
    for mix, weights in index.ranker.weights.items():
        assert ranker.weights[mix] == weights | {"photo": 2 * weights["photo"], "price": 0}
    results = index.recommend(replace(query, weights={"price": 0, "text": 0}), 10)
    assert results and not {"price", "text"} & set().union(*(result["parts"] for result in results))
    with pytest.raises(ValueError, match="^nothing to compare by is left$"):
        index.recommend(replace(query, weights=dict.fromkeys(KINDS, 0)), 10)
    with pytest.raises(ValueError, match="^nothing to compare by is left$"):  # a weight of what the query has nothing of
        index.recommend(replace(query, weights=dict.fromkeys(set(KINDS) - {"words"}, 0)), 10)


def hits_of(index, query, count):
    allowed = None
    return index._hits(lambda window: index._rank_by_evidence(query, window, allowed), 0, count, allowed, query.excluded_rows)


def slow_mmr(index, hits, diversity):
    """By its definition, pair by pair."""

    def alike(one, other):
        told = []
        if one.photo_row is not None and other.photo_row is not None:
            cosine = index.photo_index.vectors[one.photo_row] @ index.photo_index.vectors[other.photo_row]
            told.append(index.ranker.similarity("photo", cosine))
        vectors = [index.text_index.vectors[hit.row] for hit in (one, other)]
        if all(vector.any() for vector in vectors):
            told.append(index.ranker.similarity("text", vectors[0] @ vectors[1]))
        return np.mean(told) if told else 0

    left, order = list(hits), []
    while left:
        nearest = [max((alike(hit, before) for before in order), default=0) for hit in left]
        values = [(1 - diversity) * hit.score - diversity * near for hit, near in zip(left, nearest, strict=True)]
        order.append(left.pop(int(np.argmax(values))))
    return order


@given(diversity=st.sampled_from([0.0, 0.3, 0.5, 0.8]), count=st.integers(0, 12))
def test_diverse_answers_are_those_of_maximal_marginal_relevance(index, rows, diversity, count):
    hits = hits_of(index, several.query_of_several(index, Query(), rows, [], []), count)
    order = several.diversify(index, hits, diversity)
    assert [hit.row for hit in order] == [hit.row for hit in slow_mmr(index, hits, diversity)]
    assert diversity or order == hits


def test_pages_of_diverse_answers_follow_each_other(index, rows):
    query = several.query_of_several(index, Query(), rows, [], [])
    whole = index.recommend(query, 40, diversity=0.5)
    assert sorted(index.recommend(query, 200), key=str) == sorted(index.recommend(query, 200, diversity=0.5), key=str)
    assert [index.recommend(query, 5, offset=offset, diversity=0.5) for offset in (0, 5)] == [whole[:5], whole[5:10]]


def test_reasons_tell_of_the_listings_viewed(index, rows):
    for viewed, words in ((rows[:1], "the one you viewed"), (rows, "the ones you viewed")):
        results = index.recommend(several.query_of_several(index, Query(), viewed, [], []), 10)
        reasons = {reason for result in results for reason in result["reasons"]}
        assert f"looks like {words}" in reasons and f"reads like {words}" in reasons
        assert not any("photo" in reason for reason in reasons)
