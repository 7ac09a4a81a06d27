"""cleaning/listings.py: titles, places, categories, prices, texts."""

import math

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
    ("text", "pounds"),
    [
        ("£1,234.56", 1234.56),
        ("£ 20", 20.0),
        ("1234.5", 1234.5),
        ("GBP 20", 20.0),
        ("20.00 GBP", 20.0),
        ("\u00c2£20.00", 20.0),
        ("£0.00", 0.0),
        ("£10,000,000.00", 1e7),
        (" £.50 ", 0.5),
        ("£5.", 5.0),
    ],
)
def test_a_price_is_read_in_pounds(text, pounds):
    assert listings.parse_price(text) == pounds


@pytest.mark.parametrize(
    "text",
    ["", "-5", "£-5", "-£5", "free", "nan", "inf", "1e5", "1,23", "£1.234,56", "£12 ono", "5 6", "9" * 400, "9" * 40, "£", "١٢"],
)
def test_what_is_no_price_raises(text):
    with pytest.raises(ValueError, match="is not a price in pounds"):
        listings.parse_price(text)


@pytest.mark.parametrize("text", ["$40", "€1.999", "40 €", "EUR 5", "5 usd", "US$5", "£5 $3", "1,000.00 CHF", "5 Euros", "₹500"])
def test_an_amount_in_another_currency_is_no_price_in_pounds(text):
    with pytest.raises(listings.OtherCurrency, match="is not a price in pounds"):
        listings.parse_price(text)


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


@given(st.decimals(0, 10**9, places=2))
def test_every_amount_that_an_export_writes_is_read_back(amount):
    assert math.isclose(listings.parse_price(f"£{amount:,.2f}"), float(amount), abs_tol=1e-9)


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
