"""What is found without models: browsing, sorting, totals, counts and marks, against a table of the same listings."""

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.cleaning import listings
from marketplace.files import generations
from marketplace.retrieval import analysis, open_index
from marketplace.retrieval.catalogue import Filters
from marketplace.retrieval.open_index import Query
from marketplace.retrieval.recommender import Recommender
from marketplace.retrieval.typed import TypedQuery, TypedWord
from marketplace.retrieval.words import Counts

SHARES = [None, 0.0, 0.3, 0.7, 1.0]  # quantiles of the prices


@pytest.fixture(scope="module")
def recommender(demo_dir):
    return Recommender(generations.current_generation(demo_dir / "index"))


@pytest.fixture(scope="module")
def table(recommender, demo_dir) -> pd.DataFrame:
    """The listings by row, from the catalogue's columns and stage 1's table."""
    catalogue = recommender.catalogue
    names = {kind: np.append(catalogue.names[kind], "") for kind in ("category", "town", "county")}
    codes = catalogue.columns["category"]
    deepest = codes[np.arange(len(codes)), (codes >= 0).sum(axis=1) - 1]
    products = listings.read_products(demo_dir / "tabular").set_index("product_id")
    product_ids = [product["product_id"] for product in catalogue.products(range(catalogue.n_products))]
    told = products.loc[product_ids].reset_index()[["product_id", "name", "description", "posted_on"]]
    places = {kind: names[kind][catalogue.columns[kind]] for kind in ("town", "county")}
    return told.assign(category=names["category"][deepest], price=catalogue.columns["price"], **places)


def stems(text: str) -> set[str]:
    return set(map(analysis.stem, analysis.split(text)))


def words_of(table: pd.DataFrame) -> st.SearchStrategy[str]:
    """Words that listings hold, and one that none does."""
    vocabulary = sorted({word for text in table["name"] + "\n" + table["description"] for word in analysis.split(text)})
    return st.lists(st.sampled_from([*vocabulary, "zeppelin"]), min_size=1, max_size=3).map(" ".join)


def selected(table: pd.DataFrame, filters: Filters) -> pd.DataFrame:
    """The listings that pass the filters, by pandas."""
    passing = pd.Series(True, table.index)
    if filters.category is not None:
        passing &= (table["category"] + " / ").str.startswith(filters.category + " / ")
    if filters.location is not None:
        passing &= (table["town"] == filters.location) | (table["county"] == filters.location)
    if filters.min_price is not None:
        passing &= table["price"] >= np.float32(filters.min_price)
    if filters.max_price is not None:
        passing &= table["price"] <= np.float32(filters.max_price)
    return table[passing]


def credits_of(table: pd.DataFrame, word: TypedWord) -> pd.Series:
    """How much of a word each listing holds: the credit of the best of its alternatives, less where only the category has it."""
    texts = (table["name"] + "\n" + table["description"]).map(stems)
    said = table["category"].map(lambda path: stems(path.split(" / ", 1)[-1]))
    credit = pd.Series(0.0, table.index)
    for one in word.alternatives:
        credit = np.maximum(credit, one.credit * texts.map(lambda held, one=one: set(one.stems) <= held))
        credit = np.maximum(credit, 0.8 * one.credit * said.map(lambda held, one=one: set(one.stems) <= held))
    return credit


def answering(table: pd.DataFrame, query: TypedQuery, filters: Filters) -> pd.DataFrame:
    """The listings that pass the filters and hold every word or, where none does, all but the commonest, and so on; and those
    that hold two fifths of the words, the rarer the more; none where nothing holds as much."""
    passing = selected(table, filters)
    words = sorted(query.required, key=lambda word: -word.rarity)
    holding = pd.Series(False, passing.index)
    while words and not holding.any():
        holding = pd.concat([credits_of(passing, word) > 0 for word in words], axis=1).all(axis=1)
        words.pop()
    content = [query.words[place] for place in query.content]
    rarity = sum(word.rarity for word in content)
    share = sum(word.rarity / rarity * credits_of(passing, word) for word in content)
    return passing[(holding | (share >= 0.4)) & (share >= 0.4).any()]


def ordered(found: pd.DataFrame, sort: str) -> list[float] | list[str]:
    """The values that are sorted by, in the order wanted; NaN last."""
    column = "posted_on" if sort == "newest" else "price"
    return found[column].sort_values(ascending=sort == "price_up", na_position="last").tolist()


@st.composite
def filters_of(draw, table: pd.DataFrame) -> Filters:
    path = draw(st.none() | st.sampled_from(sorted(set(table["category"]))))
    levels = path and path.split(" / ")
    category = path and " / ".join(levels[: draw(st.integers(1, len(levels)))])
    low, high = (
        share if share is None else float(table["price"].quantile(share))
        for share in draw(st.tuples(*2 * [st.sampled_from(SHARES)]))
    )
    location = draw(st.none() | st.sampled_from(sorted({*table["town"], *table["county"]} - {""})))
    kept = draw(st.sets(st.integers(0, 3), max_size=2))
    return Filters(*(value if place in kept else None for place, value in enumerate((category, low, high, location))))


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["price_up", "price_down", "newest"]), st.integers(3, 60))
def test_pages_of_all_listings_hold_every_one_that_passes_once_and_in_order(recommender, table, data, sort, k):
    filters = data.draw(filters_of(table))
    expected = selected(table, filters)
    pages = [recommender.search(Query(), k, filters, offset, sort=sort) for offset in range(0, len(expected) + k, k)]
    assert {(page.total, page.counts, *page.nearest, *page.corrections) for page in pages} == {(len(expected), None)}
    found = [result["product_id"] for page in pages for result in page.results]
    assert sorted(found) == sorted(expected["product_id"])
    by_id = table.set_index("product_id").loc[found]
    np.testing.assert_array_equal(by_id["posted_on" if sort == "newest" else "price"].tolist(), ordered(expected, sort))


def test_all_listings_come_the_newest_first_and_without_a_score(recommender):
    whole = recommender.search(Query(), 60)
    assert whole == recommender.search(Query(), 60, sort="newest") and whole.total == len(whole.results) == 60
    assert {(result["score"], *result["parts"], *result["reasons"], result["snippet"]) for result in whole.results} == {
        (None, None)
    }
    assert all(result["name_marks"] == [] and result["duplicates"] == 0 for result in whole.results)


SORTS = st.sampled_from(["price_up", "price_down", "newest"])


@settings(max_examples=300)
@given(st.data(), SORTS, st.integers(1, 60), st.sampled_from([1, 3, 100]))
def test_a_result_holds_the_same_listings_on_all_pages_however_it_is_sorted(recommender, table, data, sort, k, window):
    filters, text = data.draw(filters_of(table)), data.draw(words_of(table))
    query = recommender.typed(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_index, "WINDOW", window)
        whole = recommender.search(query, 100, filters, sort=sort, with_counts=True)
        pages = [recommender.search(query, k, filters, offset) for offset in range(0, 60 + k, k)]
        by_value_pages = [recommender.search(query, k, filters, offset, sort=sort) for offset in range(0, 60 + k, k)]
    found = [result["product_id"] for result in whole.results]
    assert {page.total for page in [*pages, *by_value_pages]} == {whole.total} == {len(found)}
    assert sum(whole.counts.towns.values() if whole.counts else ()) == len(found)
    assert [result for page in by_value_pages for result in page.results] == whole.results
    groups = recommender.catalogue.columns["duplicates"]

    def group_of(product_id: str) -> int:
        return int(groups[recommender.catalogue.product_row(product_id)])

    ranked = [result["product_id"] for page in pages for result in page.results]
    assert set(ranked) <= set(found)
    assert sorted(map(group_of, ranked)) == sorted({group_of(product_id) for product_id in found})


@settings(max_examples=100)
@given(st.data(), SORTS)
def test_a_result_holds_the_listings_with_all_the_words_and_those_with_most(recommender, table, data, sort):
    filters, text = data.draw(filters_of(table)), data.draw(words_of(table))
    query = recommender.typed(text)
    found = recommender.search(query, 60, filters, sort=sort, with_counts=True)
    expected = answering(table, query.typed.query, filters)
    if not found.total:  # nothing is close, whether or not the filters leave it out
        assert found.results == [] and len(found.nearest) <= 3
        assert not len(expected) or (filters != Filters() and all(result["score"] < 0.5 for result in found.nearest))
        return
    assert found.nearest == [] and found.total == len(expected)
    ids = [result["product_id"] for result in found.results]
    assert sorted(ids) == sorted(expected["product_id"])
    by_id = table.set_index("product_id").loc[ids]
    np.testing.assert_array_equal(by_id["posted_on" if sort == "newest" else "price"].tolist(), ordered(expected, sort))
    check_counts(found.counts, expected)


def by_value(values: pd.Series) -> dict[str, int]:
    return values[values != ""].value_counts().to_dict()


def check_counts(counts: Counts, expected: pd.DataFrame) -> None:
    """The counts are those of the expected listings by pandas."""
    assert counts.towns == by_value(expected["town"]) and counts.counties == by_value(expected["county"])
    levels = expected["category"].str.split(" / ")
    paths = [" / ".join(path[:depth]) for path in levels for depth in range(1, len(path) + 1)]
    assert counts.categories == by_value(pd.Series(paths, dtype=str))
    for (low, high), count in counts.prices.items():
        assert count == len(selected(expected, Filters(min_price=low, max_price=high)))
    assert sum(counts.prices.values()) == expected["price"].notna().sum()


@settings(max_examples=60)
@given(st.data())
def test_counts_are_those_of_all_that_pass_by_pandas(recommender, table, data):
    filters = data.draw(filters_of(table))
    check_counts(recommender.search(Query(), 1, filters, with_counts=True).counts, selected(table, filters))


@settings(max_examples=60)
@given(st.data())
def test_scores_fall_from_the_first_to_the_last_and_are_the_sum_of_their_parts(recommender, table, data):
    filters, text = data.draw(filters_of(table)), data.draw(words_of(table))
    found = recommender.search(recommender.typed(text), 60, filters)
    for results in (found.results, found.nearest):
        scores = [result["score"] for result in results]
        assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
        assert all(sum(result["parts"].values()) == pytest.approx(result["score"], abs=1e-5) for result in results)


@settings(max_examples=60)
@given(st.data(), st.floats(0, 1), st.integers(0, 20), st.integers(1, 20))
def test_a_cut_off_leaves_what_reaches_it_and_the_total_as_it_is(recommender, table, data, min_score, offset, k):
    query = recommender.typed(data.draw(words_of(table)))
    whole, kept = (recommender.search(query, k, offset=offset, min_score=least) for least in (0.0, min_score))
    assert kept.results == [result for result in whole.results if result["score"] >= min_score]
    assert (kept.total, kept.nearest) == (whole.total, whole.nearest)


@pytest.mark.parametrize("text", ["zzkrtplm flurbington", "qwxzvbn", "♞x♞ qqqqqq"])
@pytest.mark.parametrize("sort", [None, "price_up", "newest"])
def test_nothing_close_is_no_result_and_at_most_three_nearest_listings(recommender, text, sort):
    found = recommender.search(recommender.typed(text), 10, sort=sort, with_counts=True)
    assert (found.results, found.total, found.counts, found.corrections) == ([], 0, None, {})
    assert len(found.nearest) <= 3


def test_what_holds_too_few_of_the_words_is_shown_as_nearest_only(recommender):
    found = recommender.search(recommender.typed("bicycle zzkrtplm flurbington qwxzvbn"), 10)
    assert (found.results, found.total) == ([], 0) and 1 <= len(found.nearest) <= 3
    best = recommender.search(recommender.typed("bicycle"), 60).results
    assert {result["product_id"] for result in found.nearest} <= {result["product_id"] for result in best}


def test_a_misspelt_word_is_told_and_finds_what_the_right_one_finds(recommender, table):
    counted = Counter(word for name in table["name"] for word in set(analysis.split(name)) if word.isalpha() and len(word) > 4)
    word, count = counted.most_common(1)[0]
    typed = word[:2] + word[3] + word[2] + word[4:]
    right, misspelt = (recommender.search(recommender.typed(text), 60) for text in (word, typed))
    assert count >= 5 and typed not in " ".join(table["name"] + table["description"]).lower()
    assert (right.corrections, misspelt.corrections) == ({}, {typed: word})
    assert [hit["product_id"] for hit in misspelt.results] == [hit["product_id"] for hit in right.results] != []


@settings(max_examples=30)
@given(st.data(), st.none() | SORTS)
def test_marks_lie_on_the_words_meant_and_on_all_of_them_in_a_name(recommender, table, data, sort):
    query = recommender.typed(data.draw(words_of(table)))
    found = recommender.search(query, 60, sort=sort)
    alternatives = [set(one.stems) for word in query.typed.query.required for one in word.alternatives]
    wanted = set().union(*alternatives)
    for result in found.results:
        name, snippet = result["name"], result["snippet"]
        marked = [name[start:end] for start, end in result["name_marks"]]
        assert marked == [word for word in re.findall(r"[^\W_]+", name) if stems(word) & wanted]
        assert all(stems(snippet["text"][start:end]) <= wanted for start, end in snippet["marks"])


def test_a_listing_that_is_browsed_shows_its_first_photo(recommender):
    catalogue = recommender.catalogue
    for result in recommender.search(Query(), 60).results:
        photos = catalogue.image_ids(catalogue.photos_of(catalogue.product_row(result["product_id"])))
        assert (result["image_id"], result["photo_url"]) == ((photos[0], f"/images/{photos[0]}.jpg") if photos else (None, None))
