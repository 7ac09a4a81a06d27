import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.retrieval.spelling import Spelling

NAMES = {
    "mattress": 40,
    "guitar": 30,
    "guitars": 8,
    "couch": 2,
    "touch": 60,
    "bicycle": 25,
    "makita": 1,
    "table": 90,
    "cable": 80,
}


def spelling(held: dict[str, int] | None = None) -> Spelling:
    frequencies = NAMES | (held or {})
    return Spelling(lambda: NAMES.items(), lambda word: frequencies.get(word, 0), 1000)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("matress", "mattress"), ("gutiar", "guitar"), ("bycicle", "bicycle"), ("makitta", "makita"), ("mattresss", "mattress")],
)
def test_a_word_that_nothing_holds_is_read_as_the_nearest_word_of_a_name(typed, meant):
    assert spelling().correct(typed) == meant


@pytest.mark.parametrize("typed", ["mattress", "table", "zqxwv", "bed", "tab1e", "2019", "couch", "x" * 30])
def test_words_that_names_hold_short_ones_numbers_and_nonsense_stand(typed):
    # "couch" is held by two listings: "touch" is one letter away, but not ten times as common and of another first letter.
    assert spelling({"touch": 12}).correct(typed) is None


def test_a_misspelling_that_a_seller_shares_is_read_as_a_word_ten_times_as_common():
    assert spelling({"matress": 2}).correct("matress") == "mattress"
    assert spelling({"matress": 4}).correct("matress") == "mattress"
    assert spelling({"matress": 5}).correct("matress") is None  # as many listings as that are no mistake


def test_two_edits_are_only_for_long_words_with_the_right_first_letter():
    assert spelling().correct("mattrasse") == "mattress"
    assert spelling().correct("battrass") is None
    assert spelling().correct("gutira") is None


def test_a_word_that_no_listing_holds_any_more_is_no_correction():
    assert spelling({"makita": 0}).correct("makitta") is None
    assert spelling({"mattress": 0}).correct("matress") is None


@given(st.text(st.characters(categories=["L", "N", "P"]), max_size=40))
def test_a_correction_is_a_word_of_a_name_and_never_the_word_itself(typed):
    found = spelling().correct(typed)
    assert found is None or (found in NAMES and found != typed)


@pytest.mark.parametrize(
    ("typed", "meant"), [("guit", None), ("matt", None), ("mattr", None), ("tabl", None), ("makit", "makita")]
)
def test_the_beginning_of_a_word_that_names_commonly_hold_is_unfinished_not_misspelt(typed, meant):
    assert spelling().correct(typed) == meant


def test_the_beginning_of_a_word_that_is_gone_is_misspelt():
    assert spelling().correct("guita") is None
    gone = Spelling(lambda: [*NAMES.items(), ("tablecloth", 5)], lambda word: (NAMES | {"tablecloth": 0}).get(word, 0), 1000)
    assert gone.correct("tablec") == "table"
