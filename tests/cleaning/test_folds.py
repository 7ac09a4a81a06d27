"""cleaning/folds.py: the same thing offered twice is one result, and nothing else is."""

import itertools
import re
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.cleaning.duplicates import Photos
from marketplace.cleaning.folds import TELLING, fold_ids
from tests.cleaning.clean_rows import photo, product

TEXT = "A solid oak table that seats six people and comes from a clean home without any pets or smoke at all"
TABLE = {"name": "Oak table", "description": TEXT}


def folds_of(products: list[dict], pictures: list[dict]) -> list[str]:
    listings = pd.DataFrame(products)
    return fold_ids(listings, Photos.of(listings, pd.DataFrame(pictures, columns=list(photo(0))))).tolist()


def are_one(changed: dict, first: dict = TABLE, pictures: list[dict] | None = None) -> bool:
    """Whether a listing and another, `changed` from it, are one; by default both show one photo, the same."""
    if pictures is None:
        pictures = [photo(0), photo(0, "p0001")]
    return folds_of([product(0, **first), product(1, **{**first, **changed})], pictures) == ["p0000", "p0000"]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"name": "OAK  table!", "description": TEXT.upper() + "."},
        {"description": TEXT + " thanks"},
        {"description": TEXT.replace("pets", "animals")},
    ],
    ids=["all equal", "case and spacing", "a word more", "a word changed"],
)
def test_equal_photos_and_nearly_equal_texts_are_one(changed):
    assert are_one(changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"price": "6.00"},
        {"name": "Pine table"},
        {"description": TEXT + " in good condition"},
        {"description": TEXT + " red"},
        {"description": TEXT + " 2"},
        {"description": "Something else of which eight words are told"},
    ],
    ids=["price", "a word of the name", "more than a tenth of the words", "a colour", "a number", "another text"],
)
def test_what_differs_in_the_price_the_name_or_a_telling_word_is_not_one(changed):
    assert not are_one(changed)


def test_a_colour_exchanged_in_the_text_is_not_one():
    assert not are_one({"description": TEXT + " blue"}, TABLE | {"description": TEXT + " red"})


@pytest.mark.parametrize(("level", "one"), [(16, True), (17, False)])
def test_outlines_alike_are_one_only_where_every_part_has_about_the_same_colour(level, one):
    other = photo(0, "p0001") | {"colours": "00" * 47 + f"{level:02x}"}
    assert are_one({}, pictures=[photo(0), other]) == one


def test_photos_6_bits_apart_are_the_same_and_7_bits_apart_are_not():
    for bits, one in ((0b111111, True), (0b1111111, False)):
        other = photo(0, "p0001") | {"phash": f"{int(photo(0)['phash'], 16) ^ bits:016x}"}
        assert are_one({}, pictures=[photo(0), other]) == one


def test_all_photos_of_both_are_compared_whatever_their_order():
    both = [photo(0), photo(1, "p0000"), photo(1, "p0001"), photo(0, "p0001")]
    assert are_one({}, pictures=both)
    assert not are_one({}, pictures=both[:3])
    assert not are_one({}, pictures=[*both, photo(2, "p0000")])
    assert not are_one({}, pictures=[*both, photo(2, "p0000"), photo(3, "p0001")])
    assert not are_one({}, pictures=[photo(0)])


def test_unlike_listings_with_one_logo_stay_apart():
    logo = [photo(100, f"p{number:04d}") for number in range(6)]
    assert folds_of([product(number) for number in range(6)], logo) == [f"p{number:04d}" for number in range(6)]


def test_listings_without_photos_are_one_by_the_whole_text_and_the_price():
    assert are_one({"name": "OAK TABLE", "description": TEXT + "."}, pictures=[])
    assert not are_one({"description": TEXT + " thanks"}, pictures=[])
    assert not are_one({"price": "6.00"}, pictures=[])


@pytest.mark.parametrize(("words", "one"), [(5, False), (6, True)])
def test_listings_without_photos_are_one_from_8_words_on(words, one):
    assert are_one({}, TABLE | {"description": "good " * words}, []) == one


def test_each_of_three_must_be_the_same_as_each_other():
    texts = [TEXT, TEXT + " thanks all", TEXT + " thanks all for looking"]
    products = [product(number, **TABLE | {"description": text}) for number, text in enumerate(texts)]
    assert folds_of(products[1:], [photo(0, "p0001"), photo(0, "p0002")]) == ["p0001", "p0001"]
    assert folds_of(products, [photo(0, row["product_id"]) for row in products]) == ["p0000", "p0000", "p0002"]


# Against the definition, pair by pair.

BASE = TEXT.split()
descriptions = st.builds(
    lambda left_out, more: " ".join([word for place, word in enumerate(BASE) if place not in left_out] + more),
    st.sets(st.integers(0, len(BASE) - 1), max_size=2),
    st.lists(st.sampled_from(["red", "blue", "12", "thanks", "Pets"]), max_size=2),
)
shown = st.lists(st.tuples(st.sampled_from([0, 1, 0b111111, 0b1111111]), st.sampled_from([0, 16, 32])), max_size=2)
markets = st.lists(
    st.tuples(st.sampled_from(["Oak table", "table oak", "Sofa"]), descriptions, st.sampled_from(["5.00", "6.00"]), shown),
    min_size=2,
    max_size=12,
)


def same_offer(left: tuple, right: tuple) -> bool:
    """The definition, by another way: words by re.split(), photos one by one."""
    (name, text, price, photos), (other_name, other_text, other_price, other_photos) = left, right
    words, other_words = (re.split(r"\W+", value.lower()) for value in (text, other_text))
    if price != other_price or sorted(name.lower().split()) != sorted(other_name.lower().split()):
        return False
    if not photos and not other_photos:
        return words == other_words
    different = (Counter(words) - Counter(other_words)) + (Counter(other_words) - Counter(words))
    total = (len(words) + len(other_words) + different.total()) / 2
    if any(word in TELLING or word.isdigit() for word in different) or different.total() > total / 10 + 1e-9:
        return False

    def alike(one, other):
        return (one[0] ^ other[0]).bit_count() <= 6 and abs(one[1] - other[1]) <= 16

    pairs = [(photos, other_photos), (other_photos, photos)]
    return all(any(alike(one, other) for other in others) for ones, others in pairs for one in ones)


@settings(max_examples=150, deadline=None)
@given(markets, st.randoms())
def test_folds_hold_only_what_is_the_same_pair_by_pair_and_do_not_depend_on_the_order_of_the_rows(market, random):
    products = [product(number, name=name, description=text, price=price) for number, (name, text, price, _) in enumerate(market)]
    pictures = [
        photo(0, f"p{number:04d}") | {"phash": f"{bits:016x}", "colours": f"{level:02x}" * 48}
        for number, (*_, photos) in enumerate(market)
        for bits, level in photos
    ]
    found = dict(zip([row["product_id"] for row in products], folds_of(products, pictures), strict=True))
    folds = list(found.values())
    for left, right in itertools.combinations(range(len(market)), 2):
        same = same_offer(market[left], market[right])
        assert same == same_offer(market[right], market[left])
        assert same or folds[left] != folds[right]
        if same and len(market) == 2:
            assert folds[left] == folds[right]
    for fold in set(folds):  # no two folds could be one, and each is named by its smallest id
        members = [number for number, name in enumerate(folds) if name == fold]
        assert fold == f"p{min(members):04d}"
        for other in range(min(members)):
            others = [number for number, name in enumerate(folds) if name == folds[other]]
            assert not all(same_offer(market[one], market[two]) for one in others for two in members)
    random.shuffle(products)
    random.shuffle(pictures)
    assert dict(zip([row["product_id"] for row in products], folds_of(products, pictures), strict=True)) == found
