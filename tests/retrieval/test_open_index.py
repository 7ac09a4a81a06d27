"""What is found without models: browsing, sorting, totals, counts and marks, against a table of the same listings."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.cleaning import listings
from marketplace.files import generations
from marketplace.retrieval import open_index, words
from marketplace.retrieval.catalogue import Filters
from marketplace.retrieval.recommender import Recommender

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
    return set(map(words._stem, words.split(text)))


def words_of(table: pd.DataFrame) -> st.SearchStrategy[str]:
    """Words that listings hold: for others those that are like them are looked for."""
    vocabulary = sorted({word for text in table["name"] + "\n" + table["description"] for word in words.split(text)})
    return st.lists(st.sampled_from(vocabulary), min_size=1, max_size=3).map(" ".join)


def selected(table: pd.DataFrame, filters: Filters, text: str | None) -> pd.DataFrame:
    """The listings that pass the filters and hold any of the words, by pandas."""
    passing = pd.Series(True, table.index)
    if filters.category is not None:
        passing &= (table["category"] + " / ").str.startswith(filters.category + " / ")
    if filters.location is not None:
        passing &= (table["town"] == filters.location) | (table["county"] == filters.location)
    if filters.min_price is not None:
        passing &= table["price"] >= np.float32(filters.min_price)
    if filters.max_price is not None:
        passing &= table["price"] <= np.float32(filters.max_price)
    if text is not None:
        texts = table["name"] + "\n" + table["description"] + "\n" + table["category"]
        passing &= texts.map(lambda held: bool(stems(text) & stems(held)))
    return table[passing]


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
def test_pages_of_a_sorted_result_hold_every_listing_once_and_in_order(recommender, table, data, sort, k):
    filters, text = data.draw(filters_of(table)), data.draw(st.none() | st.just("♞") | words_of(table))
    expected = selected(table, filters, text)
    pages = [recommender.browse(text, k, filters, offset, sort) for offset in range(0, len(expected) + k, k)]
    assert {(page.total, page.total_is_at_least, page.counts) for page in pages} == {(len(expected), False, None)}
    found = [result["product_id"] for page in pages for result in page.results]
    assert sorted(found) == sorted(expected["product_id"])
    by_id = table.set_index("product_id").loc[found]
    np.testing.assert_array_equal(by_id["posted_on" if sort == "newest" else "price"].tolist(), ordered(expected, sort))


def by_value(values: pd.Series) -> dict[str, int]:
    return values[values != ""].value_counts().to_dict()


@settings(max_examples=60)
@given(st.data())
def test_counts_are_those_of_the_whole_result_by_pandas(recommender, table, data):
    filters, text = data.draw(filters_of(table)), data.draw(st.none() | st.just("♞") | words_of(table))
    found = recommender.browse(text, 1, filters, with_counts=True)
    expected = selected(table, filters, text)
    assert found.counts.towns == by_value(expected["town"]) and found.counts.counties == by_value(expected["county"])
    levels = expected["category"].str.split(" / ")
    paths = [" / ".join(path[:depth]) for path in levels for depth in range(1, len(path) + 1)]
    assert found.counts.categories == by_value(pd.Series(paths, dtype=str))
    for (low, high), count in found.counts.prices.items():
        assert count == len(selected(expected, Filters(min_price=low, max_price=high), None))
    assert sum(found.counts.prices.values()) == expected["price"].notna().sum()


@settings(max_examples=30)
@given(st.data(), st.integers(20, 60))
def test_pages_of_a_ranked_result_hold_as_many_listings_as_its_total_says(recommender, table, data, k):
    filters, text = data.draw(filters_of(table)), data.draw(st.just("♞") | words_of(table))
    query = recommender.query(text=text)
    pages = [recommender.search(query, k, filters, offset, with_counts=True) for offset in range(0, len(table) + k, k)]
    passing = selected(table, filters, None)
    if query.text is None and not len(selected(table, filters, text)):
        passing = passing[:0]
    assert {(page.total, page.total_is_at_least) for page in pages} == {(len(passing), False)}
    assert all(page.counts.towns == by_value(passing["town"]) for page in pages)
    results = [result for page in pages for result in page.results]
    assert sum(1 + result["duplicates"] for result in results) == len(passing)
    assert len({result["product_id"] for result in results}) == len(results)


@settings(max_examples=30)
@given(st.data(), st.booleans())
def test_marks_lie_on_the_words_typed_and_on_all_of_them_in_a_name(recommender, table, data, ranked):
    text = data.draw(words_of(table))
    found = recommender.search(recommender.query(text=text), 60) if ranked else recommender.browse(text, 60)
    wanted, marks = stems(text), 0
    for result in found.results:
        name, snippet = result["name"], result["snippet"]
        marked = [name[start:end] for start, end in result["name_marks"]]
        assert marked == [word for word in re.findall(r"[^\W_]+", name) if stems(word) & wanted]
        assert all(stems(snippet["text"][start:end]) <= wanted for start, end in snippet["marks"])
        marks += len(marked) + len(snippet["marks"])
    assert marks


def test_a_total_is_exact_up_to_a_thousand(recommender, monkeypatch):
    everything = recommender.catalogue.n_products
    for most, told in ((everything, (everything, False)), (everything - 1, (everything - 1, True))):
        monkeypatch.setattr(open_index, "EXACT_TOTAL", most)
        for found in (recommender.browse(None, 5), recommender.search(recommender.query(text="good"), 5)):
            assert (found.total, found.total_is_at_least) == told


def test_a_listing_that_is_browsed_shows_its_first_photo(recommender):
    catalogue = recommender.catalogue
    for result in recommender.browse(None, 60).results:
        photos = catalogue.image_ids(catalogue.photos_of(catalogue.product_row(result["product_id"])))
        assert (result["image_id"], result["photo_url"]) == ((photos[0], f"/images/{photos[0]}.jpg") if photos else (None, None))
