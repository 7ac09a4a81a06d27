import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from marketplace import ranking

KINDS = ("photo", "text", "words")
RANKER = ranking.Ranker({"photo": 1.0, "text": 0.5, "words": 0.5}, {"photo": 0.4, "text": 0.1, "words": 0.0})
EVIDENCE = st.dictionaries(st.sampled_from(KINDS), arrays(float, 12, elements=st.floats(0, 1)), min_size=1)


@given(EVIDENCE)
def test_contributions_add_up_to_the_score_and_scores_stay_between_0_and_1(evidence):
    order, scores, parts = RANKER.rank(evidence)
    assert sorted(order) == list(range(12))
    np.testing.assert_allclose(sum(parts.values()), scores)
    assert (scores >= 0).all() and (scores <= 1 + 1e-12).all()
    assert (np.diff(scores[order]) <= 0).all()


@given(EVIDENCE, st.integers(0, 11), st.sampled_from(KINDS))
def test_more_evidence_never_ranks_a_listing_lower(evidence, row, kind):
    before = list(RANKER.rank(evidence)[0]).index(row)
    if kind in evidence:
        evidence[kind] = evidence[kind].copy()
        evidence[kind][row] = 1.0
    assert list(RANKER.rank(evidence)[0]).index(row) <= before


def test_kinds_of_evidence_are_weighed_as_the_ranker_says():
    _, scores, parts = RANKER.rank({"photo": np.array([1.0, 0.0]), "text": np.array([0.0, 1.0])})
    np.testing.assert_allclose(scores, [2 / 3, 1 / 3])
    np.testing.assert_allclose(parts["photo"], [2 / 3, 0])


def test_equal_scores_keep_the_given_order():
    assert RANKER.rank({"photo": np.full(5, 0.5)})[0].tolist() == [0, 1, 2, 3, 4]


def test_similarity_is_0_at_the_background_and_1_for_the_same():
    np.testing.assert_allclose(RANKER.similarity("photo", np.array([-1, 0.4, 0.7, 1.0])), [0, 0, 0.5, 1], atol=1e-7)


def test_the_background_is_the_mean_cosine_of_different_rows():
    vectors = np.random.default_rng(0).normal(0.5, 1, size=(400, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    exact = (cosines.sum() - 400) / (400 * 399)
    assert abs(ranking.background_cosine(vectors) - exact) < 0.02
    vectors[::2] = 0
    assert abs(ranking.background_cosine(vectors) - exact) < 0.04
    assert ranking.background_cosine(np.zeros((5, 8), np.float32)) == 0.0
    assert ranking.background_cosine(np.ones((1, 1), np.float32)) == 0.0


def test_a_ranker_reads_back_as_it_was_saved(tmp_path):
    RANKER.save(tmp_path / "ranker.json")
    assert ranking.Ranker.load(tmp_path / "ranker.json") == RANKER
