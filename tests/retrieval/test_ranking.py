import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from marketplace.retrieval import ranker_fit, ranking

KINDS = ("photo", "text", "words")
WEIGHTS, MISSING = {"photo": 1.0, "text": 0.5, "words": 0.5}, {"photo": 0.2, "text": 0.0, "words": 0.0}
RANKER = ranking.Ranker({"photo": WEIGHTS, "words": WEIGHTS}, {"photo": MISSING, "words": MISSING}, {"photo": 0.4, "text": 0.1})
PRESENT = st.floats(0, 1)
EVIDENCE = st.dictionaries(st.sampled_from(KINDS), arrays(float, 12, elements=st.one_of(PRESENT, st.just(np.nan))), min_size=1)


@given(EVIDENCE)
def test_contributions_add_up_to_the_score_and_scores_stay_between_0_and_1(evidence):
    order, scores, parts = RANKER.rank(evidence)
    assert sorted(order) == list(range(12))
    np.testing.assert_allclose(sum(parts.values()), scores, atol=1e-12)
    assert (scores >= 0).all() and (scores <= 1 + 1e-12).all()
    assert (np.diff(scores[order]) <= 0).all()


@given(EVIDENCE, st.integers(0, 11), st.sampled_from(KINDS))
def test_more_evidence_never_ranks_a_listing_lower(evidence, row, kind):
    before = list(RANKER.rank(evidence)[0]).index(row)
    if kind in evidence:
        evidence[kind] = evidence[kind].copy()
        evidence[kind][row] = 1.0
    assert list(RANKER.rank(evidence)[0]).index(row) <= before


def test_a_candidate_without_a_photo_counts_as_one_with_the_evidence_that_stands_in():
    _, scores, parts = RANKER.rank({"photo": np.array([np.nan, 0.2]), "text": np.array([0.5, 0.5])})
    assert scores[0] == scores[1] and parts["photo"][0] == parts["photo"][1] > 0


def test_kinds_that_count_nothing_are_left_out():
    ranker = ranking.Ranker({"photo": {"photo": 1.0, "place": 0.0}}, {"photo": {"photo": 0.0, "place": 0.0}}, {"photo": 0.0})
    assert list(ranker.rank({"photo": np.ones(2), "place": np.ones(2)})[2]) == ["photo"]


def made_queries(n: int, seed: int) -> list[ranker_fit.JudgedQuery]:
    """Photo evidence tells the relevance, words less of it, place is noise; candidates without a photo are not relevant."""
    generator = np.random.default_rng(seed)
    queries = []
    for row in range(n):
        relevance = generator.choice([0, 1, 2], size=40, p=[0.7, 0.2, 0.1])
        photo = np.clip(0.3 * relevance + generator.normal(0.2, 0.1, 40), 0, 1)
        photo[(relevance == 0) & (generator.random(40) < 0.3)] = np.nan
        words = np.clip(0.3 * relevance + generator.normal(0.2, 0.4, 40), 0, 1)
        queries.append(ranker_fit.JudgedQuery({"photo": photo, "words": words, "place": generator.random(40)}, relevance, row))
    return queries


def test_the_fit_finds_what_tells_relevance_and_answers_new_queries_better_than_the_weights_set_by_hand():
    ranker, chosen = ranker_fit.fit(made_queries(60, seed=0), {"photo": 0.0, "text": 0.0})
    weights = ranker.weights["words"]
    assert weights["photo"] > weights["words"] > 5 * weights["place"]
    assert ranker.missing["words"]["photo"] < 0.2
    by_hand = ranking.Ranker.by_hand({"photo": 0.0, "text": 0.0})
    new = made_queries(60, seed=1)
    fitted, unfitted = (np.mean([ranker_fit._ndcg(each, query) for query in new]) for each in (ranker, by_hand))
    assert fitted > unfitted
    assert chosen["queries"] == 60 and chosen["chosen"] in chosen["ndcg_at_10"]
    assert ranker_fit.fit(made_queries(60, seed=0), {"photo": 0.0, "text": 0.0})[0] == ranker


def test_photos_and_words_have_weights_of_their_own():
    with_words = made_queries(60, seed=0)
    alone = [  # photos that tell nothing, and places that tell all
        ranker_fit.JudgedQuery({"photo": evidence["place"], "place": evidence["photo"]}, query.relevance, query.listing_row)
        for query in with_words
        for evidence in [query.evidence]
    ]
    ranker, _ = ranker_fit.fit([*with_words, *alone], {"photo": 0.0, "text": 0.0})
    assert ranker.weights["words"]["photo"] > 5 * ranker.weights["words"]["place"]
    assert ranker.weights["photo"]["place"] > 5 * ranker.weights["photo"]["photo"]


def test_a_mix_that_tells_nothing_is_ranked_by_the_weights_set_by_hand():
    generator = np.random.default_rng(4)
    alone = [
        ranker_fit.JudgedQuery({"photo": 1 - query.relevance / 4, "category": np.zeros(40)}, query.relevance, query.listing_row)
        for query in made_queries(20, seed=4)
    ]
    ranker, _ = ranker_fit.fit([*made_queries(60, seed=5), *alone], {"photo": 0.0, "text": 0.0})
    assert ranker.weights["photo"] == ranking.BY_HAND
    _, scores, _ = ranker.rank({"photo": generator.random(5)})
    assert scores.shape == (5,)


def test_kinds_that_a_mix_never_saw_weigh_as_by_hand_beside_what_it_learned():
    ranker, _ = ranker_fit.fit(made_queries(60, seed=0), {"photo": 0.0, "text": 0.0})
    weights = ranker.weights["words"]
    assert weights["price"] == pytest.approx(ranking.BY_HAND["price"] * weights["photo"], rel=1e-4)


def test_weights_set_by_hand_stay_where_nothing_can_be_learned():
    queries = [ranker_fit.JudgedQuery({"photo": np.array([0.1, 0.9])}, np.array([1, 1]), row) for row in range(10)]
    ranker, chosen = ranker_fit.fit(queries, {"photo": 0.0, "text": 0.0})
    assert ranker == ranking.Ranker.by_hand({"photo": 0.0, "text": 0.0}) and chosen["chosen"] == "by_hand"


def test_kinds_of_evidence_are_weighed_as_the_ranker_says():
    _, scores, parts = RANKER.rank({"photo": np.array([1.0, 0.0]), "text": np.array([0.0, 1.0])})
    np.testing.assert_allclose(scores, [2 / 3, 1 / 3])
    np.testing.assert_allclose(parts["photo"], [2 / 3, 0])


def test_the_very_photo_comes_first_whatever_category_it_seems_to_be_of_but_not_beside_words():
    weights = {"photo": 0.3, "category": 0.7, "words": 1.0}
    missing = dict.fromkeys(weights, 0.2)
    ranker = ranking.Ranker(dict.fromkeys(ranking.MIXES, weights), dict.fromkeys(ranking.MIXES, missing), {"photo": 0.0})
    evidence = {"photo": np.array([0.5, 1.0, 0.89, np.nan]), "category": np.array([0.9, 0.0, 0.5, 1.0])}
    assert ranker.rank(evidence)[0].tolist() == [1, 0, 3, 2]
    order, scores, parts = ranker.rank(evidence | {"words": np.array([1.0, 0.0, 0.0, 0.0])})
    assert order[0] == 0
    np.testing.assert_allclose(sum(parts.values()), scores)


def test_equal_scores_keep_the_given_order():
    assert RANKER.rank({"photo": np.full(5, 0.5)})[0].tolist() == [0, 1, 2, 3, 4]


def test_similarity_is_0_at_the_background_and_1_for_the_same():
    np.testing.assert_allclose(RANKER.similarity("photo", np.array([-1, 0.4, 0.7, 1.0])), [0, 0, 0.5, 1], atol=1e-7)


def test_the_background_is_the_mean_cosine_of_different_rows():
    vectors = np.random.default_rng(0).normal(0.5, 1, size=(400, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    exact = (cosines.sum() - 400) / (400 * 399)
    assert abs(ranker_fit.background_cosine(vectors) - exact) < 0.02
    vectors[::2] = 0
    assert abs(ranker_fit.background_cosine(vectors) - exact) < 0.04
    assert ranker_fit.background_cosine(np.zeros((5, 8), np.float32)) == 0.0
    assert ranker_fit.background_cosine(np.ones((1, 1), np.float32)) == 0.0


def test_the_weights_stay_where_no_query_has_a_relevant_candidate():
    nothing = [ranker_fit.JudgedQuery({"photo": np.array([0.2, 0.9])}, np.zeros(2, int), row) for row in range(30)]
    assert ranker_fit.fit(nothing, {"photo": 0.4}) == (ranking.Ranker.by_hand({"photo": 0.4}), {"chosen": "by_hand"})


def test_a_ranker_reads_back_as_it_was_saved(tmp_path):
    RANKER.save(tmp_path / "ranker.json")
    assert ranking.Ranker.load(tmp_path / "ranker.json") == RANKER


CURVE = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8)


@given(EVIDENCE, CURVE)
def test_a_calibrated_score_keeps_the_order_and_is_the_sum_of_its_parts(evidence, points):
    curve = [sorted({round(raw, 3) for raw, _ in points} | {0.0, 1.0}), sorted(probability for _, probability in points)]
    curve[0] = curve[0][: len(curve[1])]
    curve[1] = curve[1][: len(curve[0])]
    curves = dict.fromkeys(ranking.CURVES, curve)
    order, scores, parts = dataclasses.replace(RANKER, calibration=curves).rank(evidence)
    plain_order, raw, _ = RANKER.rank(evidence)
    assert order.tolist() == plain_order.tolist()
    assert (np.diff(scores[order]) <= 1e-12).all()
    np.testing.assert_allclose(scores, np.where(raw > 1e-9, np.interp(raw, *curve), 0))
    np.testing.assert_allclose(sum(parts.values()), scores, atol=1e-9)


def answered(curve: str, raw: np.ndarray, right: np.ndarray) -> list[ranker_fit.JudgedAnswers]:
    return [ranker_fit.JudgedAnswers(curve, raw, right)]


def test_a_calibrated_score_is_the_share_of_right_answers_that_score_so():
    raw = np.repeat([0.5, 2.0, 4.0], 400)
    right = np.concatenate([np.arange(400) < share * 400 for share in (0.1, 0.4, 0.9)])
    ranker, drawn = ranker_fit.calibrate(RANKER, [], answered("typed", raw, right))
    assert drawn == {"photo": 0, "words": 0, "typed": 1200, "sentence": 0}
    _, scores, parts = ranker.rank_typed({"words": np.array([0.5, 2.0, 3.0, 4.0, 9.0])}, is_sentence=False)
    np.testing.assert_allclose(scores, [0.1, 0.4, 0.65, 0.9, 0.9], atol=1e-6)
    np.testing.assert_allclose(parts["words"], scores)


def test_more_evidence_never_has_a_lower_probability_though_chance_would_say_so():
    raw, right = np.repeat([1.0, 2.0, 3.0], 200), np.repeat([False, True, False], 200)
    ranker, _ = ranker_fit.calibrate(RANKER, [], answered("sentence", raw, right))
    _, scores, _ = ranker.rank_typed({"text": np.array([1.0, 2.0, 3.0])}, is_sentence=True)
    np.testing.assert_allclose(scores, [0, 0.5, 0.5], atol=1e-6)


def test_a_curve_by_too_few_answers_stays_straight():
    few = ranker_fit.LEAST_ANSWERS - 1
    ranker, drawn = ranker_fit.calibrate(RANKER, [], answered("typed", np.ones(few), np.ones(few, bool)))
    assert ranker == RANKER and not any(drawn.values())


def test_the_very_listing_that_is_asked_for_is_close_though_few_others_are_right():
    generator, asked = np.random.default_rng(0), []
    for row in range(60):
        relevance = np.where(generator.random(40) < 0.2, 2, 0)
        own = {"photo": np.array([1.0])}
        asked.append(ranker_fit.JudgedQuery({"photo": generator.uniform(0.2, 0.8, 40)}, relevance, row, own))
    without = [ranker_fit.JudgedQuery(one.evidence, one.relevance, one.listing_row) for one in asked]
    scores = [
        ranker_fit.calibrate(RANKER, queries, [])[0].rank({"photo": np.array([1.0, 0.8])})[1] for queries in (asked, without)
    ]
    assert scores[0][0] == 1 and max(scores[0][1], *scores[1]) < 0.4
