import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, ndcg_score

from marketplace import metrics


def marketplace(seed: int, photos: int = 60, dimension: int = 5):
    """Random unit vectors, and codes: some photos of one listing, some listings of one cluster, some equal pixels.

    No two vectors are equal, so that there are no ties between categories.
    """
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(photos, dimension)).astype(np.float32)
    listings = generator.integers(photos // 2, size=photos)
    clusters, labels = listings // 2, listings % 3
    pixels = np.arange(photos)
    copies = generator.choice(photos, 8, replace=False)
    pixels[copies[:4]] = pixels[copies[4:]]
    vectors[copies[:4]] = vectors[copies[4:]] + generator.normal(scale=1e-3, size=(4, dimension))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels, listings, clusters, pixels


def naive(vectors, query, labels, listings, clusters, pixels) -> dict[str, float]:
    """The figures of one query, as their definitions say them."""
    others = [row for row in range(len(vectors)) if clusters[row] != clusters[query]]
    others.sort(key=lambda row: -float(vectors[row] @ vectors[query]))
    relevant = [labels[row] == labels[query] for row in others]
    r = sum(relevant)
    gained = sum(np.mean(relevant[: i + 1]) for i in range(r) if relevant[i])
    rivals = [row for row in range(len(vectors)) if pixels[row] != pixels[query]]
    rivals.sort(key=lambda row: (-float(vectors[row] @ vectors[query]), listings[row] == listings[query]))
    same = [listings[row] == listings[query] for row in rivals]
    return {
        "category_p_at_1": np.mean(relevant[:1]),
        "category_p_at_10": np.mean(relevant[:10]),
        "map_at_r": gained / r if r else np.nan,
        "same_listing_hit_at_1": float(any(same[:1])) if any(same) else np.nan,
        "same_listing_hit_at_10": float(any(same[:10])) if any(same) else np.nan,
    }


@pytest.mark.parametrize("chunk_scores", [1, 500, 1 << 23])
@pytest.mark.parametrize("seed", range(3))
def test_retrieval_is_what_a_loop_over_the_definitions_gives_whatever_the_chunks(seed, chunk_scores, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_SCORES", chunk_scores)
    made = marketplace(seed)
    queries = np.random.default_rng(seed).choice(len(made[0]), 25, replace=False)
    found = metrics.retrieval(made[0], queries, *made[1:])
    for position, query in enumerate(queries):
        expected = naive(made[0], query, *made[1:])
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][position], value, atol=1e-9, err_msg=name)


def test_the_nearest_learned_photo_is_the_nearest_of_those_alone_outside_the_cluster():
    vectors, labels, listings, clusters, pixels = marketplace(3)
    learned = np.random.default_rng(3).random(len(vectors)) < 0.5
    queries = np.arange(len(vectors))
    found = metrics.retrieval(vectors, queries, labels, listings, clusters, pixels, learned)["category_p_at_1_learned"]
    for query in queries:
        others = [row for row in queries if learned[row] and clusters[row] != clusters[query]]
        best = max(others, key=lambda row: float(vectors[row] @ vectors[query]))
        assert found[query] == (labels[best] == labels[query])
    none = metrics.retrieval(vectors, queries, labels, listings, clusters, pixels, np.zeros(len(vectors), bool))
    assert np.isnan(none["category_p_at_1_learned"]).all()


@pytest.mark.parametrize(("right", "expected"), [([], 0), ([0, 0], 0), ([1, 1], 1), ([0, 0, 1], 1 / 3), ([0] * 10 + [1], 0)])
def test_the_reciprocal_rank_is_that_of_the_first_right_answer_of_ten(right, expected):
    assert metrics.reciprocal_rank(np.array(right, bool), 10) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "available", "expected"),
    [([1, 0, 1], 2, 1), ([1, 0, 1], 40, 0.2), ([1] * 12, 12, 1), ([], 3, 0), ([0, 0], 0, np.nan)],
)
def test_precision_is_of_as_many_as_can_be_right(right, available, expected):
    np.testing.assert_equal(metrics.precision(np.array(right, bool), available, 10), expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60))
def test_reliability_counts_every_answer_once_and_in_its_bin(answers):
    scores, right = (np.array([answer[i] for answer in answers], float) for i in (0, 1))
    found = metrics.reliability(scores, right)
    assert sum(each["answers"] for each in found) == len(answers)
    assert sum(each["answers"] * each["right"] for each in found) == pytest.approx(right.sum(), abs=1e-3)
    for each in found:
        assert each["low"] - 1e-6 <= each["score"] <= each["high"] + 1e-6


def test_with_one_relevant_photo_left_map_at_r_is_precision_at_1():
    vectors = np.eye(4, dtype=np.float32) + np.float32(0.1)
    vectors[0] += vectors[1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.array([0, 0, 1, 1])
    found = metrics.retrieval(vectors, np.arange(4), labels, *[np.arange(4)] * 3)
    np.testing.assert_array_equal(found["map_at_r"], found["category_p_at_1"])


def test_map_at_r_is_average_precision_where_every_relevant_photo_comes_within_r():
    vectors, labels, listings, clusters, pixels = marketplace(1)
    vectors[:, :3] += 30 * np.eye(3, dtype=np.float32)[labels]  # photos of one category lie together: all are within R
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = metrics.retrieval(vectors, np.arange(20), labels, listings, clusters, pixels)
    for query in range(20):
        rows = clusters != clusters[query]
        expected = average_precision_score(labels[rows] == labels[query], vectors[rows] @ vectors[query])
        assert found["map_at_r"][query] == pytest.approx(expected) == 1


def test_what_is_not_defined_is_nan():
    vectors = np.eye(3, dtype=np.float32)
    found = metrics.retrieval(vectors, np.arange(3), np.zeros(3, int), np.array([0, 0, 1]), np.zeros(3, int), np.array([0, 0, 1]))
    assert all(np.isnan(found[name]).all() for name in found)  # one cluster; the listing's other photo is the same photo


def test_an_embedding_that_maps_all_photos_to_one_point_finds_no_listing():
    vectors = np.ones((40, 4), np.float32) / 2
    listings = np.arange(40) // 2
    found = metrics.retrieval(vectors, np.arange(40), listings, listings, listings, np.arange(40))
    assert found["same_listing_hit_at_1"].sum() == found["same_listing_hit_at_10"].sum() == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(30)))
def test_the_order_of_the_photos_does_not_matter(seed, order):
    vectors, *codes = marketplace(seed, photos=30)
    order = np.array(order)
    found = metrics.retrieval(vectors, np.arange(30), *codes)
    shuffled = metrics.retrieval(vectors[order], np.argsort(order), *(code[order] for code in codes))
    for name, values in found.items():
        np.testing.assert_allclose(values, shuffled[name], err_msg=name)
        assert ((values[~np.isnan(values)] >= 0) & (values[~np.isnan(values)] <= 1)).all()


def test_by_listing_leaves_out_what_is_not_defined():
    means = metrics.by_listing(np.array([1.0, 0.0, np.nan, 1.0, np.nan]), np.array([7, 7, 7, 3, 5]))
    assert means.index.tolist() == [3, 5, 7]
    np.testing.assert_array_equal(means, [1.0, np.nan, 0.5])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=30).filter(any), st.integers(1, 12))
def test_ndcg_is_that_of_scikit_learn(grades, k):
    gains = 2.0 ** np.array(grades) - 1
    expected = ndcg_score([gains], [-np.arange(len(grades))], k=k)
    assert metrics.ndcg(np.array(grades), np.array(grades)[::-1], k) == pytest.approx(expected)


def test_ndcg_of_a_short_answer_counts_what_was_missed_and_of_nothing_to_find_is_nan():
    assert metrics.ndcg(np.array([2]), np.array([2, 2])) == pytest.approx(3 / (3 + 3 / np.log2(3)))
    assert metrics.ndcg(np.array([], int), np.array([1, 0])) == 0
    assert np.isnan(metrics.ndcg(np.array([0, 0]), np.array([0, 0, 0])))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0.1, 3)), min_size=1, max_size=40),
)
def test_macro_f1_is_that_of_scikit_learn(rows):
    labels, guesses, weights = (np.array(column) for column in zip(*rows, strict=True))
    expected = f1_score(labels, guesses, average="macro", sample_weight=weights, zero_division=0)
    assert metrics.macro_f1(labels, guesses, weights) == pytest.approx(expected)


def test_macro_f1_leaves_out_classes_of_no_weight():
    labels, guesses = np.array([0, 0, 1]), np.array([0, 0, 2])
    assert metrics.macro_f1(labels, guesses, np.array([1.0, 1.0, 0.0])) == 1


def test_calibration_error_is_the_gap_of_each_bin_by_its_weight():
    confidences = np.array([0.9, 0.9, 0.5, 1.0])
    right = np.array([True, False, True, True])
    # Bins of a fifteenth: {0.9, 0.9} is right half the time, {0.5} always, {1.0} always.
    expected = (abs(0.5 - 0.9) * 2 + abs(1 - 0.5) + 0) / 4
    assert metrics.calibration_error(confidences, right, np.ones(4)) == pytest.approx(expected)
    # A weight of 2 is the row twice.
    assert metrics.calibration_error(confidences, right, np.array([1, 1, 2, 1.0])) == pytest.approx(
        metrics.calibration_error(np.append(confidences, 0.5), np.append(right, True), np.ones(5))
    )


def test_the_ratio_to_a_baseline_without_error_is_nan():
    assert metrics.error_ratio(np.array([1.0, 2, 9]), np.array([4.0, 4, 4])) == 0.5
    assert np.isnan(metrics.error_ratio(np.array([1.0]), np.array([0.0])))


def test_r2_is_of_the_logarithms_and_undefined_where_all_prices_are_the_same():
    prices, guesses = np.array([1.0, 10, 1000, 100]), np.array([10.0, 10, 100, 100])
    # In powers of ten: truth 0 1 3 2 (mean 1.5), guesses off by 1 0 1 0.
    assert metrics.log_r2(prices, guesses) == pytest.approx(1 - 2 / 5)
    assert not np.isfinite(metrics.log_r2(np.full(3, 10.0), np.array([10.0, 20, 30])))
    assert not np.isfinite(metrics.log_r2(np.full(3, 10.0), np.full(3, 10.0)))


def test_the_report_of_each_class_is_scikit_learns_and_absent_classes_count_nothing():
    truth, guess = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    report = metrics.category_report(truth, np.eye(3)[guess], ["a", "b", "never"])
    assert report["accuracy"] == pytest.approx(0.6) and report["listings"] == 5
    assert report["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert report["calibration_error"] == pytest.approx(0.4)  # sure of each, right in three of five
    assert report["per_class"]["b"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "listings": 3})
    assert metrics.category_report(truth[:0], np.zeros((0, 3)), ["a", "b", "never"]) == {"listings": 0}


def test_a_row_that_is_drawn_twice_counts_twice():
    truth, guess = np.array([0, 1, 1]), np.array([0, 1, 0])
    statistics = metrics.category_statistics(truth, np.eye(2)[guess])
    drawn = np.array([2, 2, 1, 0])
    assert statistics["accuracy"](drawn) == 0.5
    assert statistics["macro_f1"](drawn) == pytest.approx(f1_score(truth[drawn], guess[drawn], average="macro"))


def test_the_price_is_measured_against_the_median_price_within_the_bounds():
    price = np.array([10.0, 100.0, 1000.0, 0.0, 1e6])
    steps = np.array([[-0.1, 0.0, 0.1], [-0.1, 0.1, 0.2], [0.1, 0.2, 0.3], [0, 0, 0], [0, 0, 0]])
    quantiles = np.log10(np.maximum(price, 1))[:, None] + steps
    measured = metrics.price_report(price, quantiles, median_price=100.0)
    assert measured["listings"] == 3 and measured["interval_coverage"] == pytest.approx(2 / 3)
    assert measured["log_r2"] == pytest.approx(1 - (0.1**2 + 0.2**2) / 2)
    assert measured["median_error"] == pytest.approx(100 * (10**0.1 - 1))
    assert measured["median_error_of_median"] == 90.0
    assert measured["error_over_median_baseline"] == pytest.approx(measured["median_error"] / 90)


def test_a_price_report_of_nothing_is_none():
    nothing = metrics.price_report(np.array([0.0]), np.zeros((1, 3)), median_price=100.0)
    assert nothing["listings"] == 0 and set(nothing.values()) == {0, None}
