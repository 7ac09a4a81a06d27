"""An index that hides listings, against a table of the same listings without them."""

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.retrieval import analysis, several, words
from marketplace.retrieval import catalogue as catalogue_module
from marketplace.retrieval.catalogue import Filters, UnknownName
from marketplace.retrieval.open_index import Query
from marketplace.retrieval.recommender import Recommender
from tests.retrieval.test_open_index import (  # noqa: F401
    SORTS,
    answering,
    check_counts,
    filters_of,
    ordered,
    recommender,
    selected,
    table,
    words_of,
)


@st.composite
def hidden_of(draw, product_ids: pd.Series) -> list[str]:
    """Ids of none, few, many or all of the listings."""
    ids = sorted(product_ids)
    if draw(st.booleans()):
        return draw(st.lists(st.sampled_from(ids), unique=True, max_size=5))
    shown = draw(st.lists(st.sampled_from(ids), unique=True, max_size=20))
    return sorted(set(ids) - set(shown))


# Whether so few are hidden that they are found and dropped, or so many that a mask and a set of keys leave them out.
HOW = st.sampled_from([(0, 0), (1, 200)])


def hiding(patch: pytest.MonkeyPatch, whole: Recommender, ids: list[str], how: tuple[float, int]) -> Recommender:
    patch.setattr(catalogue_module, "MANY_HIDDEN", how[0])
    patch.setattr(words, "KEYS_AT_ONCE", how[1])
    return whole.hiding(ids)


def told(results: list[dict]) -> set[str]:
    """Every id that some results hold."""
    return {one for result in results for one in (result["product_id"], *result["duplicate_ids"])}


@settings(max_examples=60)
@given(st.data(), SORTS, HOW)
def test_browsing_lists_and_counts_all_that_pass_but_the_hidden(recommender, table, data, sort, how):  # noqa: F811
    hidden, filters = data.draw(hidden_of(table["product_id"])), data.draw(filters_of(table))
    expected = selected(table[~table["product_id"].isin(hidden)], filters)
    with pytest.MonkeyPatch.context() as patch:
        found = hiding(patch, recommender, hidden, how).search(Query(), 60, filters, sort=sort, with_counts=True)
    ids = [result["product_id"] for result in found.results]
    assert sorted(ids) == sorted(expected["product_id"]) and found.total == len(expected)
    values = table.set_index("product_id").loc[ids, "posted_on" if sort == "newest" else "price"]
    assert values.dropna().tolist() == [value for value in ordered(expected, sort) if value == value]
    check_counts(found.counts, expected)


@settings(max_examples=150)
@given(st.data(), st.none() | SORTS, HOW)
def test_a_search_for_words_finds_and_counts_what_it_would_without_the_hidden(recommender, table, data, sort, how):  # noqa: F811
    hidden, filters, text = data.draw(hidden_of(table["product_id"])), data.draw(filters_of(table)), data.draw(words_of(table))
    with pytest.MonkeyPatch.context() as patch:
        view = hiding(patch, recommender, hidden, how)
        query = view.typed(text)
        found = view.search(query, 60, filters, sort=sort, with_counts=True)
    assert not told(found.results + found.nearest) & set(hidden)
    expected = answering(table[~table["product_id"].isin(hidden)], query.typed.query, filters)
    if not found.total:
        assert found.results == []
        assert not len(expected) or (filters != Filters() and all(result["score"] < 0.5 for result in found.nearest))
        return
    assert found.total == len(expected)
    check_counts(found.counts, expected)
    ranked = [result["product_id"] for result in found.results]
    assert set(ranked) <= set(expected["product_id"])
    if sort is None:
        assert sum(1 + result["duplicates"] for result in found.results) >= len(expected)
    else:
        assert sorted(ranked) == sorted(expected["product_id"])


@settings(max_examples=100)
@given(st.data(), HOW, st.sampled_from(["one", "several", "text"]))
def test_what_is_like_something_is_ranked_as_before_without_the_hidden(recommender, table, data, how, kind):  # noqa: F811
    hidden, filters = data.draw(hidden_of(table["product_id"])), data.draw(filters_of(table))
    rows = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=1, max_size=3, unique=True))
    with pytest.MonkeyPatch.context() as patch:
        view = hiding(patch, recommender, hidden, how)
        query = view.query(None, "guitar" if kind == "text" else "")
        query = view.query_of(rows[0]) if kind == "one" else several.query_of_several(view, query, rows, [], [])
        before = recommender.recommend(query, 60, filters)
        after = view.recommend(query, 60, filters)
    assert not told(after) & set(hidden)
    assert told(after) == told(before) - set(hidden)
    if kind != "text":  # how rare a word is depends on all listings
        kept = {result["product_id"]: result["score"] for result in after}
        assert all(kept[result["product_id"]] == result["score"] for result in before if result["product_id"] in kept)


@settings(max_examples=40)
@given(st.data())
def test_choices_lookups_and_photos_know_only_what_is_shown(recommender, table, data):  # noqa: F811
    hidden = data.draw(hidden_of(table["product_id"]))
    catalogue, shown = recommender.hiding(hidden).catalogue, table[~table["product_id"].isin(hidden)]
    choices = catalogue.choices()
    assert choices["towns"] == {town: count for town, count in shown["town"].value_counts().items() if town}
    assert sum(count for path, count in choices["categories"].items() if " / " not in path) == (shown["category"] != "").sum()
    prices = shown["price"].dropna()
    if len(prices):
        assert choices["price"] == {"min": prices.min(), "max": prices.max(), "currency": "GBP"}
    for row, product_id in table["product_id"].items():
        is_shown = product_id not in hidden
        assert catalogue.product_row(product_id.upper()) == (row if is_shown else None)
        assert all((catalogue.photo_row(one) is not None) is is_shown for one in catalogue.image_ids(catalogue.photos_of(row)))
    assert catalogue.find_ids([*hidden, "nobody"]) == set(hidden)


def test_a_word_that_only_hidden_listings_hold_is_held_by_none(recommender, table):  # noqa: F811
    word = next(word for word in table["name"].str.lower().str.split().explode() if word.isalpha() and len(word) > 5)
    holding = table["product_id"][(table["name"] + " " + table["description"]).str.lower().str.contains(word[:-1])]
    assert recommender.catalogue.words.frequency(word) > 0
    assert recommender.hiding(list(holding)).catalogue.words.frequency(word) == 0


def names_held(table: pd.DataFrame) -> Counter:  # noqa: F811
    """In how many names each word is."""
    return Counter(word for name in table["name"] for word in set(analysis.split(name)))


@settings(max_examples=40)
@given(st.data(), HOW)
def test_words_of_names_are_counted_as_without_the_hidden(recommender, table, data, how):  # noqa: F811
    hidden = data.draw(hidden_of(table["product_id"]))
    with pytest.MonkeyPatch.context() as patch:
        index = hiding(patch, recommender, hidden, how).catalogue.words
        shown = table[~table["product_id"].isin(hidden)]
        assert Counter(dict(index.name_words())) == names_held(shown)
        stems = shown["name"].map(lambda name: {analysis.stem(word) for word in analysis.split(name)})
        pair = tuple(
            sorted({analysis.stem(word) for word in analysis.split(data.draw(st.sampled_from(list(table["name"]))))})[:2]
        )
        assert index.names_with(pair) == sum(set(pair) <= held for held in stems)


@settings(max_examples=40)
@given(st.data())
def test_a_category_or_place_of_hidden_listings_alone_is_unknown_and_never_suggested(recommender, table, data):  # noqa: F811
    kind = data.draw(st.sampled_from(["category", "town", "county"]))
    name = data.draw(st.sampled_from(sorted(set(table[kind]) - {""})))
    asked = Filters(category=name) if kind == "category" else Filters(location=name)
    places = table["product_id"][(table["town"] == name) | (table["county"] == name)]
    doomed = table["product_id"][(table["category"] + " / ").str.startswith(name + " / ")] if kind == "category" else places
    kept = data.draw(st.lists(st.sampled_from(sorted(doomed)), max_size=1))
    catalogue = recommender.hiding(set(doomed) - set(kept)).catalogue
    recommender.catalogue.check(asked)
    if kept:
        catalogue.check(asked)
        assert catalogue.allowed(asked).sum() == 1
    else:
        with pytest.raises(UnknownName) as unknown:
            catalogue.check(asked)
        assert f'"{name}"' not in str(unknown.value).partition(": ")[2]
        assert not catalogue.allowed(asked).any()


def test_another_set_of_hidden_listings_takes_the_place_of_the_one_before(recommender, table):  # noqa: F811
    first, second = table["product_id"][:2]
    view = recommender.hiding([first]).hiding([second, "gone-from-the-table"])
    ids = {result["product_id"] for result in view.search(Query(), 60).results}
    assert ids == set(table["product_id"]) - {second}
    assert recommender.search(Query(), 60).total == len(table)
