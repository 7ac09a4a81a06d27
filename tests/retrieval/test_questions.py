import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import OSA

from marketplace.retrieval import questions
from marketplace.retrieval.questions import ListingWords, Question

NAMES = ["Blue pram, hardly used", "blue PRAM: hardly used!", "Red pram", "Oak table & 4 chairs", "Table lamp", "!!!"]
DESCRIPTIONS = ["With a rain cover.", "Sold as seen", "blue wheels", "Seats six; a lamp goes with it", "", "a bag of marbles"]
PATHS = ["Baby / Prams", "Baby / Toys", "Baby / Prams", "Home / Tables / Oak", "Home / Lighting", "Baby / Other toys"]
FOLDS = np.array([0, 1, 2, 3, 4, 2])


@pytest.fixture
def listings():
    return ListingWords(NAMES, DESCRIPTIONS, PATHS, FOLDS)


@pytest.fixture
def many():
    """200 listings of which the names share a few words."""
    generator = np.random.default_rng(0)
    things = ["table", "lamp", "guitar", "blanket", "mirror", "bicycle"]
    names = [f"{things[i % 6]} {'very nice' if i % 2 else 'old'} {generator.integers(1000)}" for i in range(200)]
    return ListingWords(names, [""] * 200, [f"Things / {things[i % 6]}" for i in range(200)], np.arange(200))


def test_words_are_runs_of_ascii_letters_and_digits_without_case():
    assert questions.split("Café-table, 3/4 SIZE!") == ["caf", "table", "3", "4", "size"]


def test_a_listing_counts_once_for_a_word_wherever_it_holds_it(listings):
    assert [listings.holding(word) for word in ("blue", "pram", "lamp", "a", "zebra")] == [3, 3, 2, 3, 0]
    assert [listings.names_holding(word) for word in ("blue", "lamp", "zebra")] == [2, 1, 0]


def test_holders_hold_all_the_words(listings):
    assert listings.holders(["blue", "pram"]).tolist() == [0, 1, 2]
    assert listings.holders(["blue", "pram", "hardly"]).tolist() == [0, 1]
    assert listings.holders(["blue", "zebra"]).tolist() == listings.holders([]).tolist() == []


def test_the_thing_asked_for_is_3_what_holds_the_words_or_is_of_its_leaf_2_its_main_category_1(listings):
    # 1 has the same title, 2 holds the words and is a pram, 5 is of the same main category only, 3 and 4 are something else.
    assert listings.grades(Question("words", "blue pram", ("blue", "pram"), 0)).tolist() == [3, 3, 2, 0, 0, 1]
    # 5 is folded into 2; 0 is of its leaf category.
    assert listings.grades(Question("words", "red", ("red",), 2)).tolist() == [2, 1, 3, 0, 0, 3]
    # 3 holds the word and has no category in common with a toy.
    assert listings.grades(Question("words", "table", ("table",), 1)).tolist() == [3, 3, 1, 2, 2, 1]
    # Without words, by a photo say, only categories speak.
    assert listings.grades(Question("photo", "", (), 0)).tolist() == [3, 3, 2, 0, 0, 1]


def test_who_asks_for_a_category_is_answered_by_all_of_its_name(listings):
    assert listings.grades(Question("category", "Prams", ("prams",), category="Prams")).tolist() == [3, 1, 3, 0, 0, 1]


def test_the_rarest_words_are_those_of_the_fewest_listings_in_the_titles_order(listings):
    asked = {question.kind: question.words for question in questions.ask(listings, [3], kinds=questions.RAREST)}
    assert asked == {"rarest_1": "oak", "rarest_2": "oak 4", "rarest_3": "oak 4 chairs"}
    assert [question.kind for question in questions.ask(listings, [4, 5], kinds=questions.RAREST)] == ["rarest_1", "rarest_2"]


def test_the_same_seed_asks_the_same_whatever_other_kinds_are_asked(many):
    rows = np.arange(0, 200, 3)
    asked = questions.ask(many, rows, seed=1)
    assert asked == questions.ask(many, rows, seed=1)
    for kind in questions.KINDS:
        assert [each for each in asked if each.kind == kind] == questions.ask(many, rows, seed=1, kinds=[kind])
    assert asked != questions.ask(many, rows, seed=2)


def test_some_words_of_a_title_are_one_to_four_of_it_in_its_order_and_none_is_a_mere_the(many):
    asked = questions.ask(many, range(200), kinds=["words"])
    assert {len(each.meant) for each in asked} == {1, 2, 3}  # no title has four that are not "very"
    for each in asked:
        positions = [many.titles[each.row].index(word) for word in each.meant]
        assert positions == sorted(positions) and "very" not in each.meant and each.words == " ".join(each.meant)


def test_each_leaf_category_is_asked_for_once_and_other_things_by_nobody(listings):
    asked = questions.ask(listings, range(6), kinds=["category"])
    assert [each.words for each in asked] == ["Lighting", "Oak", "Prams", "Toys"]


def test_only_a_common_word_is_misspelt_and_as_no_name_spells_it(many):
    asked = questions.ask(many, range(200), kinds=["misspelt"])
    assert len(asked) > 190
    for each in asked:
        wrong, right = each.words.split()[0], each.meant[0]
        assert many.names_holding(right) >= questions.COMMON and right.isalpha()
        assert many.names_holding(wrong) == 0
        assert each.words.split()[1:] == list(each.meant[1:])


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=12), st.integers(0, 2**32 - 1))
def test_a_misspelt_word_has_one_error_after_its_first_letter(word, seed):
    wrong = questions.misspell(word, np.random.default_rng(seed))
    assert wrong != word and wrong[0] == word[0]
    assert OSA.distance(word, wrong) == 1  # swapped neighbours are one edit


def test_keys_beside_each_other_are_of_one_row_of_the_keyboard():
    assert (questions.NEIGHBOURS["q"], questions.NEIGHBOURS["s"], questions.NEIGHBOURS["m"]) == ("w", "ad", "n")
    assert all(re.fullmatch("[a-z]{1,2}", beside) for beside in questions.NEIGHBOURS.values())


def test_a_title_without_words_asks_nothing(listings):
    assert questions.ask(listings, [5], kinds=[*questions.RAREST, "title", "words", "misspelt"]) == []
