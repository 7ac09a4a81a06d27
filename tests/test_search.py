import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace import search, storage
from marketplace.errors import StageError


def unit_rows(rows: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_top_k(vectors: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(vectors @ query), kind="stable")[:k]


VECTORS = unit_rows(500)
INDEX = search.VectorIndex(search.build(VECTORS), VECTORS)


def test_the_nearest_rows_and_cosines_are_those_of_a_matrix_product():
    query = unit_rows(1, seed=1)[0]
    rows, cosines = INDEX.nearest(7 * query, k=10)
    assert rows.tolist() == exact_top_k(VECTORS, query, 10).tolist()
    np.testing.assert_allclose(cosines, VECTORS[rows] @ query, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 30), st.sampled_from([0, search.EXACT_ROWS]))
def test_filtered_search_finds_every_match_that_exact_search_finds(seed, share, k, exact_rows):
    allowed = np.random.default_rng(seed).random(len(VECTORS)) < share
    query = unit_rows(1, seed=seed)[0]
    with pytest.MonkeyPatch.context() as patch:  # 0 sends every filter through the bitmap, the default none
        patch.setattr(search, "EXACT_ROWS", exact_rows)
        rows, _ = INDEX.nearest(query, k, allowed)
    matching = np.flatnonzero(allowed)
    assert rows.tolist() == matching[exact_top_k(VECTORS[matching], query, k)].tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 80))
def test_grouping_never_gives_fewer_groups_than_exist(seed, k, n_groups):
    generator = np.random.default_rng(seed)
    groups = generator.integers(n_groups, size=len(VECTORS))
    query = unit_rows(1, seed=seed)[0]
    expected = list(dict.fromkeys(groups[exact_top_k(VECTORS, query, len(VECTORS))].tolist()))[:k]
    assert INDEX.nearest_groups(query, k, groups).tolist() == expected


def test_one_product_with_many_photos_does_not_fill_the_page():
    query = VECTORS[0]
    groups = np.arange(len(VECTORS))
    groups[exact_top_k(VECTORS, query, 400)] = 10_000
    assert len(set(INDEX.nearest_groups(query, 50, groups).tolist())) == 50


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.zeros(16), "the query is zero or not finite"),
        (np.full(16, np.nan), "the query is zero or not finite"),
        (np.ones(8), r"the query has shape \(8,\), the index holds vectors of 16"),
    ],
)
def test_a_query_that_is_no_direction_is_refused(query, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        INDEX.nearest(query, 5)


def test_more_results_than_rows_gives_every_row_once():
    rows, _ = INDEX.nearest(VECTORS[3], k=10_000)
    assert sorted(rows) == list(range(len(VECTORS)))


def test_auto_scans_a_small_catalogue_and_ivf_is_tuned_to_the_asked_recall():
    centres = unit_rows(60, seed=2)
    vectors = np.repeat(centres, 100, axis=0) + 0.1 * unit_rows(6000, seed=3)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert isinstance(search.build(vectors, "auto"), faiss.IndexFlatIP)
    index = search.build(vectors, "ivf", recall=0.9)
    assert isinstance(index, faiss.IndexIVF)
    found, exact = index.search(vectors[::60], 11)[1], np.argsort(-(vectors[::60] @ vectors.T), axis=1)[:, :11]
    assert np.mean([len(set(a) & set(b)) / 11 for a, b in zip(found, exact, strict=True)]) >= 0.85


def test_a_filtered_ivf_search_keeps_to_the_filter():
    vectors = unit_rows(3000, seed=4)
    ivf = search.VectorIndex(search.build(vectors, "ivf", recall=1.0), vectors)
    allowed = np.arange(3000) % 2 == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "EXACT_ROWS", 0)
        rows, _ = ivf.nearest(vectors[0], 50, allowed)
    assert len(rows) == 50 and allowed[rows].all()


@pytest.mark.parametrize("filtered", [False, True])
def test_an_ivf_search_probes_on_until_it_has_k_groups(filtered):
    vectors = np.repeat(unit_rows(80, seed=5), 50, axis=0) + 0.02 * unit_rows(4000, seed=6)
    ivf = search.VectorIndex(search.build(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "ivf", recall=0.5), vectors)
    ivf.index.nprobe = 1
    allowed = np.arange(4000) % 3 == 0 if filtered else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "EXACT_ROWS", 0)
        assert len(ivf.nearest_groups(vectors[0], 900, np.arange(4000), allowed)) == 900


def test_an_exact_index_has_recall_one():
    assert search.measure_recall(search.build(VECTORS, "flat"), VECTORS) == 1.0


def test_an_index_and_vectors_that_do_not_belong_together_are_refused(tmp_path):
    faiss.write_index(search.build(VECTORS), str(tmp_path / "index.faiss"))
    storage.write_array(tmp_path / "vectors.npy", VECTORS[:-1])
    with pytest.raises(StageError, match="do not belong together: run python build_index.py again$"):
        search.VectorIndex.open(tmp_path / "index.faiss", tmp_path / "vectors.npy")
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(StageError, match="index.faiss is missing or damaged: run python build_index.py again$"):
        search.VectorIndex.open(tmp_path / "index.faiss", tmp_path / "vectors.npy")
