"""cleaning/listings.py: titles, places, categories, prices, texts."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.cleaning import listings
from marketplace.files import atomic


@pytest.mark.parametrize(
    ("product_name", "title"),
    [
        ("Sofa | in Leeds, West Yorkshire | Gumtree", "Sofa"),
        ("Sofa | 3 seats | blue | in Leeds, West Yorkshire | Gumtree", "Sofa | 3 seats | blue"),
        ("Sofa | in Bath | Gumtree | in Leeds, West Yorkshire | Gumtree", "Sofa | in Bath | Gumtree"),
        ("Sofa | Gumtree", "Sofa"),
        ("Sofa|in Leeds|gumtree ", "Sofa"),
        ("Sofa | in great condition", "Sofa | in great condition"),
        ("Gumtree sofa", "Gumtree sofa"),
        ("Two\r\nlines | in Leeds, West Yorkshire | Gumtree", "Two lines"),
        ("| in Leeds, West Yorkshire | Gumtree", ""),
    ],
)
def test_the_title_is_the_name_without_its_tail_whatever_pipes_it_has(product_name, title):
    assert listings.title(product_name) == title


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_any_title_survives_the_tail(name):
    assert listings.title(f"{name} | in Town, County | Gumtree") == " ".join(name.splitlines()).strip()


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("Leeds, West Yorkshire", ("Leeds", "West Yorkshire")),
        ("Bath", ("Bath", "")),
        ("A, B, C", ("A, B", "C")),
        (" Newport ,\r\nGwent ", ("Newport", "Gwent")),
    ],
)
def test_a_place_splits_into_town_and_county(location, place):
    assert listings.split_place(location) == place


@pytest.mark.parametrize(
    ("category", "levels"),
    [
        ("Home & Garden / Beds / Private", ["Home & Garden", "Beds", "Private"]),
        ("TV/DVD / Other", ["TV/DVD", "Other"]),
        ("Other Goods", ["Other Goods"]),
        ("A / B /", ["A", "B"]),
        ("A /  / B", ["A", "B"]),
        (" / ", []),
    ],
)
def test_a_category_splits_at_spaced_slashes_only(category, levels):
    assert listings.category_levels(category) == levels


@pytest.mark.parametrize(
    ("category", "separator", "levels"),
    [
        ("Home > Beds > Oak", " > ", ["Home", "Beds", "Oak"]),
        ("Home>Beds", ">", ["Home", "Beds"]),
        ("A > B > ", ">", ["A", "B"]),
        ("TV / DVD|Old /|/", "|", ["TV/DVD", "Old/"]),
    ],
)
def test_a_category_splits_at_a_separator_of_its_own(category, separator, levels):
    assert listings.category_levels(category, separator) == levels


@given(
    st.lists(
        st.text(st.sampled_from("a /"), min_size=1, max_size=6).filter(lambda level: level.strip(" /")), min_size=1, max_size=4
    )
)
def test_levels_of_another_separator_are_the_same_levels_in_our_path(levels):
    split = listings.category_levels("|".join(" ".join(level.split()) for level in levels), "|")
    assert len(split) == len(levels)
    assert listings.category_levels(listings.CATEGORY_SEPARATOR.join(split)) == split


@pytest.mark.parametrize(
    ("path", "is_there"),
    [
        ("A / B", True),
        ("N/A", False),
        ("n/a / B", False),
        ("none", False),
        ("-", False),
        ("", False),
        (" / ", False),
        ("Nan", False),
    ]
    + [("Nana's chairs", True), ("N/A chairs", True), ("NA / B", False), ("...", False)],
)
def test_a_category_that_says_there_is_none_is_none(path, is_there):
    assert listings.has_category(path) == is_there


def test_spellings_of_one_category_are_joined_to_the_commonest():
    paths = ["Home / Beds", "HOME / Beds", "Home / beds", "Home / Beds", "home", "Books", "BOOKS", "Work / beds"]
    joined = ["Home / Beds"] * 4 + ["Home", "BOOKS", "BOOKS", "Work / beds"]
    assert listings.join_spellings(pd.Series(paths)).tolist() == joined


@given(st.lists(st.sampled_from(["A", "a", "B", "b"]), min_size=1, max_size=20))
def test_joined_categories_are_one_where_they_were_one_but_for_capitals(names):
    joined = listings.join_spellings(pd.Series(names))
    assert joined.str.casefold().tolist() == [name.casefold() for name in names]
    assert joined.nunique() == len({name.casefold() for name in names})


def test_zero_and_joke_prices_are_implausible_and_an_expensive_car_is_not():
    cars = pd.Series(
        [500.0, 900.0, 1500.0, 2000.0, 2500.0, 3000.0, 4000.0, 6000.0, 9000.0, 15000.0] * 5
        + [85_000.0, 0.0, 1_234_567.0, 1e7, 1.0]
    )
    plausible = listings.plausible_prices(cars, pd.Series(["Cars"] * len(cars)))
    assert plausible.tolist() == [True] * 51 + [False] * 4


def test_a_category_with_few_prices_is_judged_by_all_categories():
    prices = pd.Series([10.0, 20.0, 40.0, 80.0] * 10 + [99_999_999.0, 30.0])
    categories = pd.Series(["Books"] * 40 + ["Rare"] * 2)
    assert listings.plausible_prices(prices, categories).tolist() == [True] * 40 + [False, True]


def test_a_category_of_equal_prices_does_not_call_other_prices_jokes():
    prices = pd.Series([10.0] * 50 + [15.0, 60.0])
    assert listings.plausible_prices(prices, pd.Series(["Books"] * 52)).all()


def test_prices_that_are_all_zero_are_implausible():
    assert not listings.plausible_prices(pd.Series([0.0, 0.0]), pd.Series(["a", "b"])).any()


def test_training_and_serving_see_the_same_text():
    name, description = "Bed 07700 900123", "Oak bed.\r\nCall 020 7946 0958. Posted by Ann in Beds in Leeds. 2 May 2021"
    served = listings.text(name, description)
    assert served == "Bed [phone]\nOak bed.\nCall [phone]."
    assert listings.text(*served.split("\n", 1)) == served
    assert listings.text("blue bike", "") == "blue bike"


@given(
    st.lists(
        st.sampled_from(
            ["&amp;", "&lt;", "  ", "\xa0", "\u200b", "07700 900123", "Posted by Ann", ". ", " in Leeds", "joe@example.com"]
        )
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    ).map("".join)
)
def test_a_text_that_models_saw_is_seen_unchanged(text):
    served = listings.text("Bed", text)
    assert listings.text(*(served.split("\n", 1) + [""])[:2]) == served


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_breaks_of_every_kind_become_newlines(text):
    assert listings.normalise_breaks(text) == "\n".join(text.replace("\0", "").splitlines()).strip()
    assert listings.single_line(text) == " ".join(text.replace("\0", "").splitlines()).strip()


def test_read_products_gives_typed_columns_and_keeps_words_that_look_null(tmp_path):
    columns = {
        "name": ["NA", "null"],
        "price": ["20.0", "0.1"],
        "price_plausible": ["true", "false"],
        "label": ["3", "0"],
        "photos": ["2", "0"],
    }
    atomic.write_csv(tmp_path / "products.csv", pd.DataFrame(columns))
    products = listings.read_products(tmp_path)
    assert products["name"].tolist() == ["NA", "null"]
    assert products["price"].tolist() == [20.0, 0.1]
    assert products["price_plausible"].tolist() == [True, False] and products["price_plausible"].dtype == bool
    assert products["label"].tolist() == [3, 0] and products["photos"].tolist() == [2, 0]
