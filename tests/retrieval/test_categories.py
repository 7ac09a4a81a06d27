import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.retrieval.categories import CategoryTree

NAMES = ["Home", "Home / Beds", "Home / Lamps", "Music", "Music / Guitars", "Music / Guitars / Basses"]
CODES = np.array([[0, 1, -1], [0, 1, -1], [0, 2, -1], [3, 4, 5], [3, 4, -1], [-1, -1, -1]])
PATHS = ["Home / Beds", "Home / Lamps", "Music / Guitars / Basses", "Music / Guitars / Ukuleles"]
TREE = CategoryTree(CODES, NAMES, ["Home", "Music"], PATHS)


def test_without_paths_a_label_is_shared_out_as_the_catalogue_is():
    probabilities = dict(zip(NAMES, TREE.predicted(np.array([0.6, 0.4])), strict=True))
    expected = [0.6, 0.6 * 2 / 3, 0.6 / 3, 0.4, 0.4, 0.4 / 2]
    assert probabilities == pytest.approx(dict(zip(NAMES, expected, strict=True)))


def test_below_a_label_the_paths_probabilities_decide_and_an_unknown_path_counts_for_its_known_part():
    probabilities = dict(zip(NAMES, TREE.predicted(np.array([0.5, 0.5]), np.array([0.1, 0.3, 0.2, 0.4])), strict=True))
    expected = [0.5, 0.5 * 0.1 / 0.4, 0.5 * 0.3 / 0.4, 0.5, 0.5, 0.5 * 0.2 / 0.6]
    assert probabilities == pytest.approx(dict(zip(NAMES, expected, strict=True)))


def test_agreement_is_the_mean_over_the_levels_of_a_listings_path_and_nothing_without_one():
    agreement = TREE.agreement(np.array([0.6, 0.4, 0.2, 0.4, 0.3, 0.1]), np.arange(6))
    np.testing.assert_allclose(agreement, [0.5, 0.5, 0.4, 0.8 / 3, 0.35, np.nan])


def test_a_listings_own_path_agrees_wholly_with_itself_and_in_part_with_a_neighbour():
    np.testing.assert_allclose(TREE.agreement(TREE.own_levels(3), np.array([3, 4, 0])), [1, 1, 0])
    np.testing.assert_allclose(TREE.agreement(TREE.own_levels(0), np.array([1, 2])), [1, 0.5])


def test_labels_of_two_levels_leave_the_first_level_out():
    tree = CategoryTree(CODES[:5], NAMES, ["Home / Beds", "Home / Lamps", "Music / Guitars"], PATHS)
    predicted = tree.predicted(np.array([0.2, 0.3, 0.5]))
    np.testing.assert_allclose(tree.agreement(predicted, np.array([0, 2, 4])), [0.2, 0.3, 0.5])


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=2), st.lists(st.floats(0.01, 1), min_size=4, max_size=4))
def test_no_level_is_more_probable_than_the_one_above(labels, paths):
    labels, paths = np.array(labels) / sum(labels), np.array(paths) / sum(paths)
    for predicted in (TREE.predicted(labels), TREE.predicted(labels, paths)):
        found = dict(zip(NAMES, predicted, strict=True))
        assert all(found[name] <= found[name.rpartition(" / ")[0]] + 1e-9 for name in NAMES if " / " in name)
        assert (predicted >= 0).all() and (predicted <= 1 + 1e-9).all()


def test_the_likeliest_ends_are_those_of_some_listing_and_a_path_that_goes_on_counts_without_what_is_below_it():
    probabilities = np.array([0.6, 0.4, 0.2, 0.4, 0.4, 0.3])
    assert [(NAMES[code], pytest.approx(share)) for code, share in TREE.likeliest(probabilities, 3)] == [
        ("Home / Beds", 0.4),
        ("Music / Guitars / Basses", 0.3),
        ("Home / Lamps", 0.2),
    ]
    assert sum(share for _, share in TREE.likeliest(probabilities, 9)) == pytest.approx(1)


def test_the_settled_category_is_the_deepest_that_is_more_likely_right_than_not():
    assert NAMES[TREE.settled(np.array([0.7, 0.5, 0.2, 0.3, 0.3, 0.1]))] == "Home"
    assert NAMES[TREE.settled(np.array([0.1, 0.1, 0, 0.9, 0.9, 0.6]))] == "Music / Guitars / Basses"
    assert TREE.settled(np.array([0.5, 0.5, 0, 0.5, 0.5, 0.5])) is None
