import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.files import atomic
from marketplace.files.stages import StageError
from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.filters import Passing


def unit_rows(rows: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_top_k(vectors: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(vectors @ query), kind="stable")[:k]


def clustered_rows(clusters: int, rows_each: int, spread: float, seed: int) -> np.ndarray:
    centres = np.repeat(unit_rows(clusters, seed=seed), rows_each, axis=0)
    vectors = centres + spread * unit_rows(len(centres), seed=seed + 1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def recall_of(searched: vector_search.VectorIndex) -> float:
    return vector_search.measure(searched, searched.vectors)["recall_at_10"]


FILES = vector_search.FILES["photos"]
VECTORS = unit_rows(500)
INDEX = vector_search.VectorIndex(vector_search.build(VECTORS), VECTORS)
IVF = vector_search.VectorIndex(vector_search.build(VECTORS, "ivf"), VECTORS)
CLUSTERED = clustered_rows(60, 100, 0.4, seed=2)
CLUSTERED_IVF = vector_search.VectorIndex(vector_search.build(CLUSTERED, "ivf"), CLUSTERED)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Indexes this small take longer on several threads, which wait for each other."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def test_the_nearest_rows_and_cosines_are_those_of_a_matrix_product():
    query = unit_rows(1, seed=1)[0]
    rows, cosines = INDEX.nearest(7 * query, k=10)
    assert rows.tolist() == exact_top_k(VECTORS, query, 10).tolist()
    np.testing.assert_allclose(cosines, VECTORS[rows] @ query, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 30), st.sampled_from(["flat", "ivf"]))
def test_filtered_search_finds_every_match_that_exact_search_finds(seed, share, k, kind):
    allowed = np.random.default_rng(seed).random(len(VECTORS)) < share
    query = unit_rows(1, seed=seed)[0]
    rows, cosines = {"flat": INDEX, "ivf": IVF}[kind].nearest(query, k, Passing(allowed))
    matching = np.flatnonzero(allowed)
    assert rows.tolist() == matching[exact_top_k(VECTORS[matching], query, k)].tolist()
    np.testing.assert_allclose(cosines, VECTORS[rows] @ query, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 500), st.booleans())
def test_a_filter_that_leaves_more_rows_than_are_scored_still_fills_k_and_keeps_to_the_filter(seed, share, k, far):
    query = unit_rows(1, seed=seed)[0]
    allowed = np.random.default_rng(seed).random(len(VECTORS)) < share
    if far:  # none of the rows that pass lies in a list near the query
        allowed &= VECTORS @ query < 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_search, "SCORED_ROWS", 20)
        rows, cosines = IVF.nearest(query, k, Passing(allowed))
    assert len(set(rows.tolist())) == min(k, np.count_nonzero(allowed)) and allowed[rows].all()
    np.testing.assert_allclose(cosines, VECTORS[rows] @ query, atol=1e-6)
    assert (np.diff(cosines) <= 0).all()


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_filter_of_many_rows_keeps_the_recall(share, monkeypatch):
    monkeypatch.setattr(vector_search, "SCORED_ROWS", 600)
    generator = np.random.default_rng(7)
    allowed = generator.random(len(CLUSTERED)) < share
    matching = np.flatnonzero(allowed)
    recalls = []
    for query in CLUSTERED[generator.integers(len(CLUSTERED), size=50)]:
        expected = matching[exact_top_k(CLUSTERED[matching], query, 10)]
        recalls.append(len(set(CLUSTERED_IVF.nearest(query, 10, Passing(allowed))[0].tolist()) & set(expected.tolist())) / 10)
    assert np.mean(recalls) >= 0.95


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 80))
def test_grouping_never_gives_fewer_groups_than_exist(seed, k, n_groups):
    generator = np.random.default_rng(seed)
    groups = generator.integers(n_groups, size=len(VECTORS))
    query = unit_rows(1, seed=seed)[0]
    expected = list(dict.fromkeys(groups[exact_top_k(VECTORS, query, len(VECTORS))].tolist()))[:k]
    assert INDEX.nearest_groups(query, k, groups).tolist() == expected
    found = IVF.nearest_groups(query, k, groups).tolist()
    assert len(set(found)) == len(found) == len(expected)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 100),
    st.sampled_from([INDEX, IVF, CLUSTERED_IVF]),
    st.sampled_from([vector_search.ROUNDING, 2.0]),  # by the second all are in doubt
)
def test_a_search_in_lists_found_for_many_queries_is_the_search_for_one(seed, k, searched, rounding):
    queries = unit_rows(25, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_search, "ROUNDING", rounding)
        lists = searched.probed(queries)
    for query, own in zip(queries, lists, strict=True):
        for one, other in zip(searched.nearest(query, k), searched.nearest(query, k, lists=own), strict=True):
            np.testing.assert_array_equal(one, other)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
def test_where_the_lists_probed_hold_few_rows_all_of_them_are_compared_exactly(seed, k):
    query = unit_rows(1, seed=seed)[0]
    list_of_row = CLUSTERED_IVF.index.quantizer.search(CLUSTERED, 1)[1][:, 0]
    held = np.flatnonzero(np.isin(list_of_row, CLUSTERED_IVF.probed(query[None])[0]))
    if k <= len(held) <= vector_search.RERANKED * k:
        assert CLUSTERED_IVF.nearest(query, k)[0].tolist() == held[exact_top_k(CLUSTERED[held], query, k)].tolist()


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


def test_auto_scans_a_small_catalogue_and_has_lists_for_a_large_one(monkeypatch):
    assert vector_search.describe(vector_search.build(VECTORS, "auto")) == {"kind": "Flat", "nprobe": None}
    monkeypatch.setattr(vector_search, "FLAT_ROWS", 499)
    assert vector_search.describe(vector_search.build(VECTORS, "auto"))["kind"] == "IVF12,SQ8"


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_the_same_vectors_give_the_same_bytes(kind):
    built = [faiss.serialize_index(vector_search.build(VECTORS, kind)).tobytes() for _ in range(2)]
    assert built[0] == built[1]


def test_ivf_is_tuned_to_the_asked_recall():
    index = vector_search.build(CLUSTERED, "ivf", recall=0.99)
    found = [vector_search.VectorIndex(index, CLUSTERED).nearest(query, 11)[0] for query in CLUSTERED[::60]]
    exact = [exact_top_k(CLUSTERED, query, 11) for query in CLUSTERED[::60]]
    recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / 11 for a, b in zip(found, exact, strict=True)])
    assert recall >= 0.98
    searched = vector_search.VectorIndex(index, CLUSTERED)
    assert recall_of(searched) == pytest.approx(recall, abs=0.02) and index.nprobe < index.nlist
    index.nprobe = 1
    assert recall_of(searched) < 0.9


@pytest.mark.parametrize(
    ("max_memory_bytes", "kind"),
    [(None, "Flat"), (36_000, "Flat"), (35_999, "IVF12,SQ8"), (12_768, "IVF12,SQ8"), (12_767, "IVF12,SQ4"), (8_768, "IVF12,SQ4")],
)
def test_an_index_takes_no_more_memory_than_it_may(max_memory_bytes, kind):
    assert vector_search.describe(vector_search.build(VECTORS, "auto", max_memory_bytes=max_memory_bytes))["kind"] == kind


def test_an_index_that_cannot_fit_is_refused():
    message = "an index of 500 vectors of 16 does not fit into 8767 bytes: give --max-memory at least 8768"
    with pytest.raises(StageError, match=f"^{message}$"):
        vector_search.build(VECTORS, "auto", max_memory_bytes=8_767)


def test_four_bits_a_dimension_are_ranked_by_exact_cosines():
    index = vector_search.VectorIndex(vector_search.build(CLUSTERED, "ivf", max_memory_bytes=120_000), CLUSTERED)
    assert vector_search.describe(index.index)["kind"].endswith("SQ4")
    rows, cosines = index.nearest(CLUSTERED[7], 5)
    assert rows[0] == 7
    np.testing.assert_allclose(cosines, CLUSTERED[rows] @ CLUSTERED[7], atol=1e-6)


@pytest.mark.parametrize("filtered", [False, True])
def test_an_ivf_search_probes_on_until_it_has_k_groups(filtered, monkeypatch):
    monkeypatch.setattr(vector_search, "SCORED_ROWS", 0)
    ivf = vector_search.VectorIndex(vector_search.build(CLUSTERED, "ivf", recall=0.5), CLUSTERED)
    ivf.index.nprobe = 1
    passing = Passing(np.arange(len(CLUSTERED)) % 3 == 0) if filtered else None
    assert len(ivf.nearest_groups(CLUSTERED[0], 900, np.arange(len(CLUSTERED)), passing)) == 900


# Updates: vectors that went, came and changed


def written(folder, vectors: np.ndarray, keys: np.ndarray, kind: str) -> vector_search.VectorIndex:
    """An index of the vectors in the folder, opened."""
    folder.mkdir(exist_ok=True)
    faiss.write_index(vector_search.build(vectors, kind, keys=keys), str(folder / FILES.index))
    return opened(folder, vectors, keys)


def opened(folder, vectors: np.ndarray, keys: np.ndarray) -> vector_search.VectorIndex:
    atomic.write_array(folder / FILES.vectors, vectors)
    atomic.write_array(folder / FILES.keys, keys)
    return vector_search.VectorIndex.open(folder, FILES)


def updated(
    folder, before: np.ndarray, keys_before: np.ndarray, gone: np.ndarray, vectors: np.ndarray, keys: np.ndarray, kind: str
):
    """The index of all (N, D) vectors, made of one of `before` without the keys in `gone`."""
    written(folder / "before", before, keys_before, kind)
    (folder / "after").mkdir(exist_ok=True)
    came = ~np.isin(keys, np.setdiff1d(keys_before, gone))
    path = folder / "before" / FILES.index
    vector_search.update(path, folder / "after" / FILES.index, gone, vectors[came], keys[came])
    return opened(folder / "after", vectors, keys)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["flat", "ivf"]), st.floats(0, 0.5), st.floats(0, 0.5), st.booleans())
def test_an_updated_index_finds_what_exact_search_finds_among_the_rows_there_now(seed, kind, gone_share, changed_share, filtered):
    generator = np.random.default_rng(seed)
    keys_before = generator.choice(2**62, 400, replace=False)
    gone, changed = (keys_before[generator.random(400) < share] for share in (gone_share, changed_share))
    kept = np.setdiff1d(keys_before, gone)
    keys = generator.permutation(np.concatenate([kept, generator.choice(2**62, 100)]))
    vectors = unit_rows(len(keys), seed=seed)
    row_before = {key: row for row, key in enumerate(keys_before.tolist())}
    for row, key in enumerate(keys.tolist()):
        if key in row_before and key not in changed:
            vectors[row] = VECTORS[row_before[key]]
    with tempfile.TemporaryDirectory() as folder:
        index = updated(Path(folder), VECTORS[:400], keys_before, np.union1d(gone, changed), vectors, keys, kind)
        query = unit_rows(1, seed=seed)[0]
        passing = Passing(generator.random(len(keys)) < 0.5) if filtered else None
        left = np.flatnonzero(passing.rows) if filtered else np.arange(len(keys))
        found = index.nearest(query, 10, passing)[0]
        if filtered or kind == "flat":
            assert found.tolist() == left[exact_top_k(vectors[left], query, 10)].tolist()
        assert len(found) == 10 and set(found.tolist()) <= set(left.tolist())
        assert sorted(index.nearest(query, 1000, passing)[0].tolist()) == left.tolist()


def test_an_updated_index_recalls_as_much_as_one_built_anew(tmp_path):
    order = np.random.default_rng(8).permutation(len(CLUSTERED))
    keys, gone = np.arange(len(CLUSTERED)) * 7 + 3, np.arange(0, 600, 10)
    left = np.setdiff1d(np.arange(len(CLUSTERED)), gone)
    vectors = CLUSTERED[order]
    index = updated(tmp_path, vectors[:5900], keys[:5900], keys[gone], vectors[left], keys[left], "ivf")
    rebuilt = vector_search.VectorIndex(vector_search.build(vectors[left], "ivf"), vectors[left])
    assert recall_of(index) >= recall_of(rebuilt) - 0.02 >= 0.93


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_update_leaves_the_published_index_as_it_is_while_that_is_served(kind, tmp_path):
    keys = np.arange(500) * 11
    served = written(tmp_path / "before", VECTORS, keys, kind)
    octets, answer = (tmp_path / "before" / FILES.index).read_bytes(), served.nearest(VECTORS[3], 20)[0].tolist()
    index = updated(tmp_path, VECTORS, keys, keys[3:5], np.delete(VECTORS, [3, 4], 0), np.delete(keys, [3, 4]), kind)
    assert (tmp_path / "before" / FILES.index).read_bytes() == octets
    assert served.nearest(VECTORS[3], 20)[0].tolist() == answer and answer[0] == 3
    assert index.rows == 498


def test_an_index_that_lacks_what_is_to_go_is_not_updated(tmp_path):
    written(tmp_path, VECTORS, np.arange(500), "ivf")
    path = tmp_path / FILES.index
    message = f"{path} lacks vectors that it was published with: run python build_index.py --full"
    with pytest.raises(StageError, match=f"^{message}$"):
        vector_search.update(path, tmp_path / "new", np.array([500]), VECTORS[:0], np.empty(0, np.int64))


@pytest.mark.parametrize("keys", [np.arange(1, 501), np.append(np.arange(499), 3), np.arange(499)])
def test_an_index_of_other_keys_than_the_vectors_have_is_refused(keys):
    index = vector_search.build(VECTORS[: len(keys)], "flat", keys=keys)
    with pytest.raises(ValueError, match="^the index holds other keys than the vectors have$"):
        vector_search.VectorIndex(index, VECTORS)


@pytest.mark.parametrize(("removed", "added", "due"), [(0, 0, False), (60, 40, False), (61, 40, True), (0, 101, True)])
def test_an_index_is_built_anew_when_a_fifth_of_it_has_changed(removed, added, due):
    index = vector_search.build(unit_rows(500), "ivf")
    assert vector_search.rebuild_is_due(index, rows=500 + added - removed, changed=added + removed, built_rows=500) is due


def test_a_flat_index_that_has_outgrown_its_kind_is_built_anew(monkeypatch):
    index = vector_search.build(VECTORS, "flat")
    assert not vector_search.rebuild_is_due(index, len(VECTORS), 0, len(VECTORS))
    monkeypatch.setattr(vector_search, "FLAT_ROWS", 499)
    assert vector_search.rebuild_is_due(index, len(VECTORS), 0, len(VECTORS))
    assert not vector_search.rebuild_is_due(index, len(VECTORS), 0, len(VECTORS), kind="flat")


# Served from the disk


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_mapped_index_answers_as_the_one_in_memory(kind, tmp_path):
    built = vector_search.build(CLUSTERED, kind)
    mapped = written(tmp_path, CLUSTERED, np.arange(len(CLUSTERED)), kind)
    plain = vector_search.VectorIndex(built, CLUSTERED)
    allowed = Passing(np.arange(len(CLUSTERED)) % 2 == 0)
    for query in unit_rows(10, seed=9):
        for passing in (None, allowed):
            np.testing.assert_array_equal(mapped.nearest(query, 20, passing), plain.nearest(query, 20, passing))


def mapped_bytes(path) -> int:
    """Bytes of a file in this process's address space."""
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(str(path))]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_opened_index_and_its_vectors_are_mapped_not_loaded(kind, tmp_path):
    paths = tmp_path / FILES.index, tmp_path / FILES.vectors
    index = written(tmp_path, CLUSTERED, np.arange(len(CLUSTERED)), kind)
    assert [mapped_bytes(path) >= path.stat().st_size for path in paths] == [True, True]
    assert len(index.nearest(CLUSTERED[0], 5)[0]) == 5
    assert mapped_bytes(paths[0]) and vector_search.read(paths[0]).ntotal == len(CLUSTERED)


def test_a_search_leaves_the_threads_of_its_caller_as_they_were():
    def threads_after_a_search() -> int:
        faiss.omp_set_num_threads(3)
        INDEX.nearest(VECTORS[0], 5)
        return faiss.omp_get_max_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(threads_after_a_search).result() == 3


def test_searches_from_many_threads_answer_as_one_after_another_does():
    queries = unit_rows(200, seed=11)
    allowed = Passing(np.arange(len(CLUSTERED)) % 2 == 0)
    expected = [CLUSTERED_IVF.nearest(query, 10, allowed)[0].tolist() for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: CLUSTERED_IVF.nearest(query, 10, allowed)[0].tolist(), queries)) == expected


def test_a_filter_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"^what may be found has shape \(499,\), the index holds 500 rows$"):
        INDEX.nearest(VECTORS[0], 5, Passing(np.ones(499, bool)))


def test_a_report_tells_kind_recall_and_times():
    index = vector_search.build(VECTORS, "ivf", recall=1.0)
    searched = vector_search.VectorIndex(index, VECTORS)
    report = vector_search.measure(searched, VECTORS, queries=50)
    assert 0 < report.pop("p50_ms") <= report.pop("p99_ms")
    assert report == {"kind": "IVF12,SQ8", "nprobe": index.nprobe, "rows": 500, "recall_at_10": 1.0, "recall_queries": 50}


def test_rows_of_zeros_are_no_queries_when_recall_is_measured():
    vectors = VECTORS.copy()
    vectors[::2] = 0
    assert recall_of(vector_search.VectorIndex(vector_search.build(vectors, "flat"), vectors)) == 1.0
    nothing = np.zeros((3, 4), np.float32)
    report = vector_search.measure(vector_search.VectorIndex(vector_search.build(nothing), nothing), nothing)
    assert (report["recall_at_10"], report["recall_queries"]) == (None, 0)


def test_one_row_alone_has_no_recall_and_a_few_are_queries_each():
    alone, few = (
        vector_search.measure(vector_search.VectorIndex(vector_search.build(rows), rows), rows)
        for rows in (VECTORS[:1], VECTORS[:7])
    )
    assert (alone["recall_at_10"], alone["recall_queries"]) == (None, 0)
    assert (few["recall_at_10"], few["recall_queries"]) == (1.0, 7)


def test_a_single_row_is_found():
    index = vector_search.VectorIndex(vector_search.build(VECTORS[:1], "ivf"), VECTORS[:1])
    assert index.nearest(VECTORS[0], 5)[0].tolist() == [0]


def test_an_exact_index_has_recall_one():
    assert recall_of(INDEX) == 1.0


@pytest.mark.parametrize("name", [FILES.vectors, FILES.keys])
def test_an_index_and_vectors_that_do_not_belong_together_are_refused(name, tmp_path):
    written(tmp_path, VECTORS, np.arange(500), "flat")
    atomic.write_array(tmp_path / name, np.load(tmp_path / name)[:-1])
    with pytest.raises(StageError, match="do not belong together: run python build_index.py again$"):
        vector_search.VectorIndex.open(tmp_path, FILES)
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(StageError, match="index.faiss is missing or damaged: run python build_index.py again$"):
        vector_search.VectorIndex.open(tmp_path, FILES)


def test_an_index_whose_last_bytes_have_no_room_is_an_error():
    """FAISS' own writer closes the file, and says nothing."""
    with pytest.raises(OSError, match="No space left on device"):
        vector_search.write(faiss.IndexFlatIP(4), Path("/dev/full"))
