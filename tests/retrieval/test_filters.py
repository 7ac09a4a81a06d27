import numpy as np
import pytest

from marketplace.retrieval.filters import Places, category_names, comparable_price, place_name, place_names

TOWNS, COUNTIES = ["London", "Hanley, Stoke-on-Trent", "Londonderry", "Stafford", ""], ["Greater London", "Staffordshire", ""]
ROWS = [(0, 0), (1, 1), (2, 2), (3, 1), (4, 1), (0, 2), (4, 2), (-1, -1)]  # codes; the last one is no more


@pytest.mark.parametrize(
    ("location", "rows"),
    [
        ("Hanley, Stoke-on-Trent, Staffordshire", [1]), ("hanley,stoke-on-trent ,  STAFFORDSHIRE", [1]), ("Hanley", [1]),
        ("Stoke-on-Trent", [1]), ("Hanley, Stoke-on-Trent", [1]), ("Hanley, Staffordshire", [1]), ("Staffordshire", [1, 3, 4]),
        ("Stafford", [3]), ("Staff", [1, 3, 4]), ("London", [0, 5]), ("Lond", [0, 2, 5]), ("london, greater", [0]),
        ("ondon", []), ("Leeds", []), ("", []), (" , ", []), ("\ud800", []),
    ],
)  # fmt: skip
def test_a_place_is_found_by_all_its_names_and_their_beginnings(location, rows):
    towns, counties = np.array(ROWS, np.int32).T
    assert np.flatnonzero(Places(towns, counties, TOWNS, COUNTIES).within(location)).tolist() == rows


def test_names_of_places_and_categories_are_those_that_filters_may_give():
    assert place_names("Hanley, Stoke", "Kent") == {
        "hanley, stoke", "hanley", "stoke", "hanley, stoke, kent", "hanley, kent", "stoke, kent", "kent",
    }  # fmt: skip
    assert place_names("", "") == frozenset() and place_names("Leeds", "") == {"leeds"} and place_names("", "Kent") == {"kent"}
    assert category_names("A / B/C / D") == {"a", "b/c", "d", "a / b/c", "a / b/c / d"} and not category_names("")
    assert place_name("x" * 9_000) == place_name("x" * 9_001)


def test_prices_compare_as_float32_does():
    assert comparable_price(0.1) == float(np.float32(0.1)) and np.isfinite(np.float32(comparable_price(1e300)))
