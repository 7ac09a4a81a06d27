import sqlite3
import tempfile
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.files.stages import StageError
from marketplace.retrieval import analysis, catalogue, words
from marketplace.retrieval.catalogue import Catalogue, Filters
from marketplace.retrieval.keys import keys

PATHS = [
    "Home & Garden / Beds / Double Beds",
    "Home & Garden / Lighting",
    "Sports / Bicycles",
    "Other Goods",
    "Home/Office / Desks",
]
PLACES = [("Hove", "East Sussex"), ("Bath", "Somerset"), ("Durham", "County Durham"), ("Somerset", "Kent")]
NAMES = ["Pine bed", "Brass lamp", "Racing bicycle", "Box of things", "Oak desk", "Double pine bed frame", "Lamp stand"]


def make_products(rows: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "product_id": [f"p{row}" for row in range(rows)],
            "name": [NAMES[row % len(NAMES)] for row in range(rows)],
            "description": [f"A lovely thing number {row}, café style" for row in range(rows)],
            "category": [PATHS[row % len(PATHS)] for row in range(rows)],
            "price": [float((row * 37) % 200) for row in range(rows)],
            "price_plausible": [row % 9 != 0 for row in range(rows)],
            "town": [PLACES[row % len(PLACES)][0] for row in range(rows)],
            "county": [PLACES[row % len(PLACES)][1] for row in range(rows)],
            "posted_on": "",
        }
    )


PRODUCTS = make_products(60)
PHOTO_PRODUCTS = np.array([row for row in range(60) for _ in range(row % 3)])


def write(folder: Path, listings: list[pd.DataFrame], *arguments) -> None:
    """The catalogue, and the words, which know listings by keys."""
    catalogue.write(folder, listings, *arguments)
    row_keys = keys([product_id for block in listings for product_id in block["product_id"]])
    np.save(folder / catalogue.LISTING_KEYS, row_keys)
    words.write(folder, catalogue.read_listings(folder), [row_keys])


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["", "a" * 32, "b" * 32, "c" * 32]), min_size=1, max_size=12))
def test_the_listings_of_one_seller_are_found_by_any_of_them(sellers):
    products = make_products(len(sellers)).assign(seller=sellers)
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), [products[:2], products[2:]], [], np.empty(0, int))
        written = Catalogue(Path(name))
        for row, seller in enumerate(sellers):
            expected = [other for other, name in enumerate(sellers) if name == seller] if seller else [row]
            assert written.of_same_seller(row).tolist() == expected
        assert written.has_sellers() is any(sellers)
        assert not any("aaaa" in path.read_text(errors="ignore") for path in Path(name).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Catalogue:
    folder = tmp_path_factory.mktemp("catalogue")
    write(folder, [PRODUCTS], [f"i{row}" for row in range(len(PHOTO_PRODUCTS))], PHOTO_PRODUCTS)
    return Catalogue(folder)


CATEGORIES = [
    "home & garden",
    "Lighting",
    "Home & Garden / Beds",
    "Double Beds",
    "Home",
    "Home/Office",
    "nothing",
    "Sports/Bicycles",
]


@settings(max_examples=100, deadline=None)
@given(
    st.none() | st.sampled_from(CATEGORIES),
    st.none() | st.floats(0, 250),
    st.none() | st.floats(0, 250),
    st.none() | st.sampled_from(["hove", "Somerset", "Bath, Somerset", "Bath, Kent", "Atlantis"]),
)
def test_filters_select_what_a_plain_loop_selects(opened, category, low, high, location):
    def passes(product) -> bool:
        levels = product.category.casefold().split(" / ")
        wanted = None if category is None else category.casefold()
        prefixes = [" / ".join(levels[: depth + 1]) for depth in range(len(levels))]
        town, county = product.town.casefold(), product.county.casefold()
        place = None if location is None else location.casefold()
        return (
            (wanted is None or wanted in levels or wanted in prefixes)
            and (low is None or product.price >= np.float32(low))
            and (high is None or product.price <= np.float32(high))
            and (place is None or place in (town, county, f"{town}, {county}"))
        )

    allowed = opened.allowed(Filters(category, low, high, location))
    expected = [passes(product) for product in PRODUCTS.itertuples()]
    assert (allowed if allowed is not None else np.ones(60, bool)).tolist() == expected


def test_the_currency_is_kept(tmp_path):
    write(tmp_path, [PRODUCTS], [], np.empty(0, int), None, "EUR")
    opened = Catalogue(tmp_path)
    assert opened.currency == opened.choices()["price"]["currency"] == "EUR" and "currency" not in opened.names


def test_no_filter_is_no_mask(opened):
    assert opened.allowed(Filters()) is None


def test_photos_of_a_product_are_its_own(opened):
    for row in range(60):
        assert opened.photos_of(row).tolist() == np.flatnonzero(row == PHOTO_PRODUCTS).tolist()
    rows, counts = opened.photos_of_each(np.array([5, 0, 5, 59]))
    assert rows.tolist() == [photo for row in (5, 0, 5, 59) for photo in opened.photos_of(row)]
    assert counts.tolist() == [len(opened.photos_of(row)) for row in (5, 0, 5, 59)]
    assert opened.image_ids(opened.photos_of(5)) == [f"i{row}" for row in np.flatnonzero(PHOTO_PRODUCTS == 5)]


def test_a_product_reads_back_as_it_was_written(opened):
    assert opened.product_row("p7") == 7 and opened.product_row("nobody") is None and opened.product_row("P7") is None
    expected = PRODUCTS.loc[7, list(catalogue.PRODUCT_FIELDS)].to_dict()
    assert opened.product(7) == expected
    assert opened.image_ids([opened.photo_row("i3")]) == ["i3"] and opened.photo_row("i3' OR '1'='1") is None


def meant(text: str) -> list[tuple[words.Alternative, ...]]:
    """Every word of a text by nothing but its stem."""
    return [(words.Alternative((analysis.stem(word),), 1.0, "", word),) for word in dict.fromkeys(analysis.split(text))]


def matched(opened: Catalogue, text: str, depth: int, filters: Filters | None = None, allowed: np.ndarray | None = None) -> list:
    """Rows, ascending, for a text's words as they are typed and by nothing but their stems."""
    rows = opened.match_words(list(dict.fromkeys(analysis.split(text))), meant(text), depth, filters, allowed)
    return sorted(rows.tolist())


def test_listings_with_all_the_words_come_before_those_with_some(opened):
    typed = ("double", "pine", "bed")
    # Words of the main category are no words of a listing.
    texts = [f"{NAMES[row % 7]} {PATHS[row % 5].split(' / ', 1)[-1]}".casefold() for row in range(60)]
    with_all = [row for row in range(60) if all(word in texts[row] for word in typed)]
    some = [row for row in range(60) if any(word in texts[row] for word in typed)]
    found = [sorted(opened.match_words([], meant("double pine bed"), depth).tolist()) for depth in range(1, 61)]
    assert found[-1] == some and found[len(with_all) - 1] == with_all
    for depth, rows in enumerate(found, 1):
        assert len(rows) == min(depth, len(some)) and len(set(rows) & set(with_all)) == min(depth, len(with_all))


def test_where_no_listing_holds_all_words_the_best_of_the_others_are_found(opened):
    rows = matched(opened, "lovely bicycle zeppelin", 5)
    assert 5 <= len(rows) <= 10  # as many as typed, and by what it means
    assert {PRODUCTS["name"][row] for row in rows} == {"Racing bicycle"}


def test_words_match_whatever_their_ending_case_and_accents(opened):
    lamps = [row for row in range(60) if "lamp" in NAMES[row % 7].casefold()]
    assert matched(opened, "LAMPS", 60) == matched(opened, "lámp", 60) == lamps
    assert matched(opened, "CAFE lamps", 60) == list(range(60))  # which all are of the same style


def test_filtered_words_give_k_results_whenever_k_match(opened):
    allowed = np.zeros(60, bool)
    allowed[[3, 17, 44]] = True
    assert matched(opened, "lovely", 3, allowed=allowed) == [3, 17, 44]
    filters = Filters(category="Lighting", max_price=100)
    expected = np.flatnonzero(opened.allowed(filters))
    assert matched(opened, "lovely", 60, filters) == expected.tolist()
    without_first = opened.allowed(filters)
    without_first[expected[0]] = False
    assert matched(opened, "lovely", len(expected) - 1, filters, without_first) == expected[1:].tolist()


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 59)), st.integers(1, 60), st.sampled_from(["lovely", "pine bed", "lamp"]))
def test_listings_that_are_not_allowed_leave_their_places_to_others(opened, excluded, depth, text):
    allowed = np.ones(60, bool)
    allowed[list(excluded)] = False
    rows, every = matched(opened, text, depth, allowed=allowed), matched(opened, text, 60)
    assert set(rows) <= set(every) - excluded and len(rows) >= min(depth, len(set(every) - excluded))


def test_equal_listings_are_found_together_and_others_not_at_all(opened):
    expected = [row for row in range(60) if NAMES[row % 7] == "Racing bicycle"]
    assert matched(opened, "racing", 60) == expected and matched(opened, "racing", len(expected)) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60)
    | st.sampled_from(['"', "a OR", "NEAR(", "name:", "*", "-pine", "^", "'; DROP TABLE products; --", "AND"])
)
def test_whatever_is_typed_is_words_never_syntax(opened, query):
    rows = matched(opened, query, 5)
    assert rows == sorted(set(rows)) and len(rows) <= 10 and all(0 <= row < 60 for row in rows)
    for row in rows:
        held = analysis.split(f"{PRODUCTS['name'][row]} {PRODUCTS['description'][row]} {PRODUCTS['category'][row]}")
        assert set(map(analysis.stem, analysis.split(query))) & set(map(analysis.stem, held))


def test_many_threads_may_read_at_once(opened):
    expected, answers = matched(opened, "pine", 5), []
    threads = [threading.Thread(target=lambda: answers.append(matched(opened, "pine", 5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(expected) == 5 and answers == [expected] * 8


def test_choices_count_the_listings_of_every_level_and_place(opened):
    choices = opened.choices()
    assert choices["categories"]["Home & Garden"] == 24 and choices["categories"]["Home & Garden / Lighting"] == 12
    assert choices["towns"]["Bath"] == 15 and choices["counties"]["Kent"] == 15
    assert choices["price"] == {"min": PRODUCTS["price"].min(), "max": PRODUCTS["price"].max(), "currency": "GBP"}


def test_the_database_is_read_only(opened):
    with opened._connection() as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM products")


def test_equal_inputs_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, [PRODUCTS], [f"i{row}" for row in range(len(PHOTO_PRODUCTS))], PHOTO_PRODUCTS)
    # tantivy gives its files random names.
    files = sorted(path.name for path in (tmp_path / "one").iterdir() if path.is_file())
    assert [(tmp_path / "one" / name).read_bytes() for name in files] == [
        (tmp_path / "two" / name).read_bytes() for name in files
    ]


def test_columns_of_another_catalogue_are_refused(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    write(tmp_path / "a", [PRODUCTS], ["x"], np.array([0]))
    write(tmp_path / "b", [PRODUCTS[:50]], ["x"], np.array([0]))
    (tmp_path / "a" / "catalogue.sqlite").write_bytes((tmp_path / "b" / "catalogue.sqlite").read_bytes())
    with pytest.raises(StageError, match="do not belong together: run python build_index.py again$"):
        Catalogue(tmp_path / "a")
    (tmp_path / "a" / "catalogue.sqlite").unlink()
    with pytest.raises(StageError, match="catalogue.sqlite is missing: run python build_index.py again$"):
        Catalogue(tmp_path / "a")


@settings(max_examples=20, deadline=None)
@given(st.none() | st.sets(st.integers(0, 59)), st.integers(1, 70))
def test_listings_are_read_back_as_they_were_written(rows, at_a_time):
    products = PRODUCTS.assign(price=PRODUCTS["price"].where(PRODUCTS.index % 7 > 0), posted_on="2024-05-01")
    wanted = np.arange(60) if rows is None else np.array(sorted(rows), int)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "ROWS_AT_A_TIME", at_a_time)
        catalogue.write(Path(name), [products[:25], products[25:]], [], np.empty(0, int))
        blocks = list(catalogue.read_listings(Path(name), None if rows is None else wanted))
    assert all(len(block) == at_a_time for block in blocks[:-1])
    if len(wanted):
        expected = products.iloc[wanted][list(catalogue.PRODUCT_FIELDS)].reset_index(drop=True)
        pd.testing.assert_frame_equal(pd.concat(blocks, ignore_index=True), expected, check_dtype=False)


@pytest.mark.parametrize("field", ["name", "description", "category", "price", "price_plausible", "town", "county", "posted_on"])
def test_a_listing_with_another_field_has_another_content_and_the_others_keep_theirs(field, tmp_path):
    other = PRODUCTS.copy()
    old = other.loc[7, field]
    other.loc[7, field] = f"{old} more" if isinstance(old, str) else not old if isinstance(old, (bool, np.bool_)) else old + 1
    found = []
    for products in (PRODUCTS, other):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        catalogue.write(folder, [products], [], np.empty(0, int))
        found.append(np.load(folder / catalogue.CONTENT))
    assert np.flatnonzero(found[0] != found[1]).tolist() == [7]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(category="Bycicles"), 'no listing has the category "Bycicles": try "Sports / Bicycles"'),
        (Filters(category="Sprots / bicycles"), 'no listing has the category "Sprots / bicycles": try "Sports / Bicycles"'),
        (Filters(category="zzz"), 'no listing has the category "zzz": GET /filters lists them'),
        (Filters(location="Derham"), 'no listing has the place "Derham": try "Durham"'),
        (Filters(location="Atlantis"), 'no listing has the place "Atlantis": GET /filters lists them'),
    ],
)
def test_a_name_that_no_listing_has_is_refused_with_the_nearest_that_some_have(opened, filters, message):
    with pytest.raises(catalogue.UnknownName, match=f"^{message}$"):
        opened.check(filters)


def test_every_choice_is_a_filter_that_finds_as_many_listings_and_none_is_refused(opened):
    choices = opened.choices()
    for field, names in (("category", choices["categories"]), ("location", choices["towns"]), ("location", choices["counties"])):
        for name, count in names.items():
            opened.check(Filters(**{field: name}))
            assert opened.allowed(Filters(**{field: name})).sum() >= count > 0
    opened.check(Filters(category="Lighting", location="Bath", min_price=1e9))  # valid, though nothing meets all
    opened.check(Filters(category="Lighting", location="Dur"))


def test_a_listing_without_a_category_or_place_offers_none(tmp_path):
    nowhere = PRODUCTS[:3].assign(category=["", " / ", PATHS[0]], town=["", "Bath", " , "], county=["", "", "Kent"])
    write(tmp_path, [nowhere], [], np.empty(0, int))
    choices = Catalogue(tmp_path).choices()
    assert choices["towns"] == {"Bath": 1} and choices["counties"] == {"Kent": 1}
    assert choices["categories"] == {"Home & Garden": 1, "Home & Garden / Beds": 1, PATHS[0]: 1}


# The ranges that prices are counted in


@pytest.mark.parametrize(
    ("prices", "steps"),
    [
        (np.geomspace(1, 2000, 500), (10, 25, 50, 100, 250, 500, 1000)),
        (np.linspace(5000, 80_000, 500), (10_000, 25_000, 50_000)),
        (np.geomspace(0.2, 3, 100), (0.25, 0.5, 1, 2.5)),
        (np.linspace(20, 24, 100), (20.08,)),  # no such number lies between
        ([0, np.nan, 7], (7,)),
        ([0, np.nan], words.PRICE_STEPS),
    ],
)
def test_price_ranges_begin_at_round_numbers_between_nearly_all_prices(prices, steps):
    assert catalogue.price_steps(np.array(prices)) == steps


@given(st.lists(st.floats(0, 2**40, width=32) | st.just(np.nan), max_size=30))
def test_every_price_is_in_one_range_whatever_the_prices_are(prices):
    prices = np.array(prices, np.float32)
    steps = catalogue.price_steps(prices)
    assert list(steps) == sorted(set(steps)) and len(steps) <= 7
    ranges = words._price_ranges(steps).values()
    for price in prices[prices == prices]:
        assert sum(each.get("from", 0) <= price < each.get("to", np.inf) for each in ranges) == 1


def test_more_of_the_same_seller_are_found_the_newest_first_and_never_where_none_is_told(tmp_path):
    dates = [f"2022-01-{row + 1:02}" for row in range(6)]
    products = make_products(6).assign(seller=["a", "b", "", "a", "", "a"], posted_on=dates)
    write(tmp_path, [products[:4], products[4:]], ["i"], np.array([0]))
    opened = Catalogue(tmp_path)
    assert opened.same_seller(0, 5) == ([5, 3], 2)
    assert opened.same_seller(5, 1) == ([3], 2)
    assert opened.same_seller(1, 5) == opened.same_seller(2, 5) == ([], 0)
    assert opened.hiding(["p3"]).same_seller(0, 5) == ([5], 1)
    assert "seller" not in opened.product(0)


def test_the_size_and_the_price_range_that_are_given_are_kept(tmp_path):
    sizes = np.array([[800, 600], [30, 40]])
    ranges = [("p1", 1.5, 2.0, 9.25), ("of a listing that is gone", 1.0, 2.0, 3.0)]
    write(tmp_path, [make_products(3)], ["i", "j"], np.array([0, 2]), None, "EUR", sizes, ranges)
    opened = Catalogue(tmp_path)
    assert opened.photos([1, 0]) == [("j", 30, 40), ("i", 800, 600)]
    assert [opened.price_range(row) for row in range(3)] == [None, (1.5, 2.0, 9.25), None]
