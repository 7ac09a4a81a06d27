"""models/sample_sizes.py: which figures of a small data set mean nothing."""

import pandas as pd
import pytest
from scipy.stats import binom

from marketplace.models import sample_sizes


def listings_of(**counts: int) -> pd.DataFrame:
    """As many training and validation listings of each label as counts say: a=3 are three of label 0 in training."""
    rows = [
        {"split": split, "label": label, "price_plausible": True}
        for label, name in enumerate("abcdefg")
        for split, key in (("train", name), ("validation", f"{name}_validation"))
        for _ in range(counts.get(key, 0))
    ]
    return pd.DataFrame(rows, columns=["split", "label", "price_plausible"])


def test_a_data_set_that_is_large_enough_needs_no_sentence():
    large = listings_of(a=100, b=60, a_validation=60, b_validation=40)
    assert sample_sizes.of_training(large, ["Beds", "Lamps"]) == []
    assert sample_sizes.of_evaluation(pd.Series([0, 1] * 50), ["Beds", "Lamps"]) == []
    assert sample_sizes.of_ranking(20, 20) == []


def test_a_tiny_data_set_is_told_what_its_figures_cannot_tell():
    assert sample_sizes.of_training(listings_of(a=12, b=3, a_validation=3), ["Beds", "Lamps", "Toys"]) == [
        "2 of 3 categories have fewer than 10 training listings (Toys 0, Lamps 3): what is said of them is little better than a "
        "guess; give more such listings, or join categories",
        "only 3 validation listings: a share of them may be off by 57 points, so the figures below, and what is chosen by them, "
        "mean little",
        "only 15 training listings with a plausible price: the price model says little more than their median",
        "only 3 validation listings with a plausible price, of 4 that are needed: the price range is not calibrated, and holds "
        "fewer than 80% of prices",
    ]
    assert sample_sizes.of_evaluation(pd.Series([0]), ["Beds", "Lamps"]) == [
        "only 1 test listing: a share of them may be off by 98 points, whatever its interval says",
        "1 of 2 categories have no test listing (Lamps): macro-F1 leaves them out",
    ]
    assert sample_sizes.of_ranking(4, 20) == [
        "only 4 validation listings, of 20 that are needed: the ranking keeps the weights set by hand, and its scores are no "
        "probabilities"
    ]


def test_one_category_and_many_small_ones_are_told():
    one = sample_sizes.of_training(listings_of(a=200, a_validation=100), ["Other"])
    assert one == [
        "there is one category only, Other: figures of categories mean nothing; where its levels below differ, "
        "clean_tabular_data.py --category-depth 2 tells these apart"
    ]
    many = sample_sizes.of_training(listings_of(a=200, a_validation=100), list("ABCDEFGH"))
    assert "(B 0, C 0, D 0, E 0, F 0 and 2 more)" in many[0]


@pytest.mark.parametrize("n", [30, 100, 1000])
def test_the_margin_holds_95_of_100_draws_of_a_fair_coin(n):
    points = sample_sizes.margin_points(n)
    middle, width = n / 2, n * (points + 0.5) / 100
    assert binom.cdf(middle + width, n, 0.5) - binom.cdf(middle - width - 1e-9, n, 0.5) >= 0.94
    assert sample_sizes.margin_points(0) == 100
