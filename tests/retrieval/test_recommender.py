import re
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.cleaning import listings
from marketplace.files import atomic, generations, reading
from marketplace.files.stages import StageError
from marketplace.retrieval import answers, catalogue, open_index, ranker_fit
from marketplace.retrieval.catalogue import Filters
from marketplace.retrieval.recommender import Recommender, verdict_on


@pytest.fixture(scope="module")
def recommender(demo_dir):
    return Recommender(generations.current_generation(demo_dir / "index"))


@pytest.fixture(scope="module")
def queries(recommender, demo_dir):
    probabilities = reading.read_array(demo_dir / "embeddings" / "probabilities.npy")
    vector = np.array(recommender.photo_index.vectors[7])
    return {
        "photo": recommender.query(vector, None, probabilities[7]),
        "photo and words": recommender.query(vector, "good condition", probabilities[7]),
        "listing": recommender.query_of(3),
    }


@given(st.sampled_from(["photo", "photo and words", "listing"]), st.integers(0, 70), st.integers(1, 70))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_page_is_a_part_of_the_whole_list_wherever_it_begins(recommender, queries, name, offset, k):
    whole = recommender.recommend(queries[name], 200)
    assert recommender.recommend(queries[name], k, offset=offset) == whole[offset : offset + k]


def test_a_cut_off_leaves_what_is_above_it(recommender, queries):
    whole = recommender.recommend(queries["photo"], 50)
    middle = whole[20]["score"]
    assert recommender.recommend(queries["photo"], 50, min_score=middle) == [hit for hit in whole if hit["score"] >= middle]


@pytest.mark.parametrize("name", ["photo", "photo and words", "listing"])
def test_every_listing_is_found_or_folded_once_and_parts_add_up(recommender, queries, name):
    hits = recommender.recommend(queries[name], 10_000)
    assert all(sum(hit["parts"].values()) == pytest.approx(hit["score"], abs=1e-5) for hit in hits)
    assert [hit["score"] for hit in hits[:50]] == sorted((hit["score"] for hit in hits[:50]), reverse=True)
    asked = 1 if name == "listing" else 0
    assert sum(1 + hit["duplicates"] for hit in hits) == recommender.catalogue.n_products - asked
    groups = recommender.catalogue.columns["duplicates"]
    rows = [recommender.catalogue.product_row(hit["product_id"]) for hit in hits]
    assert len({int(groups[row]) for row in rows}) == len(rows)


@pytest.fixture(scope="module")
def folded(demo_dir):
    """The same index, opened with folds of 1 to 20 listings."""
    recommender = Recommender(generations.current_generation(demo_dir / "index"))
    rows = np.arange(recommender.catalogue.n_products)
    groups = np.where(rows < 20, 0, rows // 3).astype(np.int32)
    recommender.catalogue.columns["duplicates"] = groups
    recommender.catalogue._duplicates = catalogue._Grouped(groups, int(groups.max()) + 1)
    return recommender


def test_folded_listings_are_named_and_counted_among_those_that_pass_the_filters(folded, monkeypatch):
    monkeypatch.setattr(answers, "MOST_DUPLICATE_IDS", 5)
    columns = folded.catalogue.columns
    product_ids = [row["product_id"] for row in folded.catalogue.products(range(folded.catalogue.n_products), ["product_id"])]
    groups, prices, price = columns["duplicates"], columns["price"], float(np.median(columns["price"]))
    for filters, passing in ((Filters(), prices == prices), (Filters(max_price=price), prices <= price)):
        found = folded.recommend(folded.query(text=folded.catalogue.product(30)["name"]), 10_000, filters)
        assert {groups[product_ids.index(hit["product_id"])] for hit in found} == set(groups[passing])
        for hit in found:
            row = product_ids.index(hit["product_id"])
            others = [product_ids[other] for other in np.flatnonzero((groups == groups[row]) & passing) if other != row]
            assert hit["duplicates"] == len(others)
            assert hit["duplicate_ids"] == others[:5]
        assert max(hit["duplicates"] for hit in found) > (5 if filters == Filters() else 1)


def test_a_listing_that_asks_is_no_duplicate_of_what_is_found(folded):
    asked = folded.catalogue.product(31)["product_id"]
    copies = {folded.catalogue.product(row)["product_id"] for row in (30, 32)}
    found = folded.recommend(folded.query_of(31), 10_000)
    hit = next(hit for hit in found if hit["product_id"] in copies)
    assert {hit["product_id"], *hit["duplicate_ids"]} == copies and hit["duplicates"] == 1
    assert not any(asked in (hit["product_id"], *hit["duplicate_ids"]) for hit in found)


def plain_hits(recommender: Recommender, query, count: int, allowed: np.ndarray) -> list[tuple]:
    """Row, photo, score and folded listings of the first `count` hits, one candidate after the other."""
    rows = recommender.candidates(query, allowed, 200)
    if len(rows) < 100:
        others = [row for row in np.flatnonzero(allowed) if row not in rows and row not in query.excluded_rows]
        rows = np.concatenate([rows, others[: 100 - len(rows)]]).astype(int)
    order, scores, _ = recommender.ranker.rank(recommender.evidence(query, rows)[0])
    groups, hits, seen = recommender.catalogue.columns["duplicates"], [], set()
    for place in order:
        if groups[rows[place]] in seen:
            continue
        seen.add(groups[rows[place]])
        photos = recommender.catalogue.photos_of(rows[place])
        photo = photos[0] if len(photos) else None
        if query.photos is not None and len(photos):
            photo = photos[(recommender.photo_index.vectors[photos] @ query.photos.T).max(axis=1).argmax()]
        copies = np.flatnonzero((groups == groups[rows[place]]) & allowed)
        hits.append((rows[place], photo, scores[place], sum(copy not in query.excluded_rows for copy in copies) - 1))
    return hits[:count]


@pytest.mark.parametrize("name", ["photo", "photo and words", "listing"])
@pytest.mark.parametrize("share", [1, 0.5, 0.1])
def test_hits_are_those_found_one_candidate_after_the_other(recommender, queries, name, share):
    query, allowed = queries[name], np.random.default_rng(3).random(recommender.catalogue.n_products) < share
    found = recommender._hits(
        lambda window: recommender._rank_by_evidence(query, window, allowed), 0, 90, allowed, query.excluded_rows
    )
    expected = plain_hits(recommender, query, 90, allowed)
    assert [(hit.row, hit.photo_row, hit.score, len(hit.folded)) for hit in found] == expected
    assert len(expected) >= 5


@pytest.mark.parametrize("name", ["photo", "photo and words", "listing"])
def test_pages_in_further_windows_are_parts_of_the_whole_list(recommender, queries, name, monkeypatch):
    monkeypatch.setattr(open_index, "WINDOW", 3)
    whole = recommender.recommend(queries[name], 200)
    assert len({hit["product_id"] for hit in whole}) == len(whole) > 40
    for offset, k in ((0, 2), (2, 5), (3, 27), (4, 40), (29, 3)):
        assert recommender.recommend(queries[name], k, offset=offset) == whole[offset : offset + k]


def test_an_index_opened_without_models_answers_for_listings_as_the_recommender_does(recommender, demo_dir, tmp_path):
    folder = tmp_path / recommender.generation
    shutil.copytree(generations.current_generation(demo_dir / "index"), folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.onnx")]:
        path.unlink()
    opened = open_index.OpenIndex(folder)
    assert (opened.generation, opened.dimension) == (recommender.generation, recommender.dimension)
    for row in range(0, opened.catalogue.n_products, 7):
        assert opened.recommend(opened.query_of(row), 10) == recommender.recommend(recommender.query_of(row), 10)
    typed = "blue bicycle for sale"
    assert opened.search(opened.typed(typed), 10) == recommender.search(recommender.typed(typed), 10)


def test_a_generation_of_another_version_is_one_sentence(demo_dir, tmp_path):
    published = generations.current_generation(demo_dir / "index")
    shutil.copytree(published, tmp_path / "older")
    report = reading.read_json(published / "report.json")
    atomic.write_json(tmp_path / "older" / "report.json", report | {"schema": report["schema"] - 1})
    expected = f"{tmp_path / 'older'} was built by another version of this program: run python build_index.py"
    with pytest.raises(StageError, match=f"^{re.escape(expected)}$"):
        Recommender(tmp_path / "older")


def test_a_photo_alone_brings_its_own_listing_first(recommender, queries):
    own = recommender.catalogue.product(int(recommender.catalogue.listing_of_photo[7]))
    first = recommender.recommend(queries["photo"], 1)[0]
    assert first["product_id"] == own["product_id"] or first["duplicates"]
    assert set(first["parts"]) == {"photo", "category"}


def test_excluded_listings_and_left_out_evidence(recommender, queries):
    everything = recommender.ranked(queries["photo"], 20, np.empty(0, int))
    without = recommender.ranked(queries["photo"], 20, everything[:5])
    assert not set(everything[:5]) & set(without)
    by_photo = recommender.ranked(queries["photo"], 20, np.empty(0, int), kinds=["photo"])
    best = [
        (recommender.photo_index.vectors[recommender.catalogue.photos_of(row)] @ queries["photo"].photos[0]).max()
        for row in by_photo
    ]
    assert best == sorted(best, reverse=True)


def test_a_listing_is_compared_by_its_own_category_price_and_place(recommender):
    query = recommender.query_of(3)
    evidence, _ = recommender.evidence(query, np.arange(recommender.catalogue.n_products))
    assert evidence["category"][3] == 1 and evidence["price"][3] == 1 and evidence["place"][3] == 1
    product = recommender.catalogue.product(3)
    for row in range(recommender.catalogue.n_products):
        other = recommender.catalogue.product(row)
        prices = sorted([product["price"], other["price"]])
        if prices[0] > 0:
            assert evidence["price"][row] == pytest.approx(prices[0] / prices[1], rel=1e-5)
        else:
            assert np.isnan(evidence["price"][row])
        same = {"town": other["town"] == product["town"], "county": other["county"] == product["county"]}
        assert evidence["place"][row] == (1 if all(same.values()) else 0.5 if same["county"] and product["county"] else 0)


def test_towns_and_counties_without_a_name_are_not_the_same(recommender, monkeypatch):
    codes, names = (recommender.catalogue.columns["county"], recommender.catalogue.names)
    every, code = np.arange(recommender.catalogue.n_products), int(codes[3])
    monkeypatch.setitem(names, "county", ["" if other == code else name for other, name in enumerate(names["county"])])
    query = recommender.query_of(3)
    towns = recommender.catalogue.columns["town"]
    expected = np.where((towns == towns[3]) & (codes == code), 1.0, 0.0)
    np.testing.assert_array_equal(recommender.evidence(query, every)[0]["place"], expected)
    assert (codes == code).sum() > expected.sum()
    monkeypatch.setitem(names, "town", [""] * len(names["town"]))
    assert recommender.query_of(3).place is None


def test_listings_without_photos_answer_a_photo_when_no_other_passes_the_filters(recommender, queries):
    catalogue = recommender.catalogue
    alone = next(
        row for row in range(catalogue.n_products) if not len(catalogue.photos_of(row)) and catalogue.columns["price"][row] > 0
    )
    price = float(catalogue.columns["price"][alone])
    place = catalogue.product(alone)["town"]
    filters = Filters(min_price=price, max_price=price, location=place)
    assert np.flatnonzero(catalogue.allowed(filters)).tolist() == [alone]
    for query in queries.values():
        assert [hit["product_id"] for hit in recommender.recommend(query, 10, filters)] == [
            catalogue.product(alone)["product_id"]
        ]
    assert recommender.recommend(queries["photo"], 10, Filters(location="Nowhere")) == []


def test_the_ranker_is_fitted_on_validation_listings_against_training_ones_only(demo_dir, monkeypatch):
    recommender = Recommender(generations.current_generation(demo_dir / "index"))
    products = listings.read_products(demo_dir / "tabular")
    splits = reading.read_csv(demo_dir / "dataset" / "listings.csv").set_index("product_id")["split"]
    split = products["product_id"].map(splits).to_numpy()
    candidates, seen = recommender.candidates, set()

    def watched(*arguments):
        rows = candidates(*arguments)
        seen.update(rows.tolist())
        return rows

    monkeypatch.setattr(recommender, "candidates", watched)
    probabilities = reading.read_array(demo_dir / "embeddings" / "probabilities.npy")
    judged = ranker_fit.judge(recommender, recommender.table_models, split, probabilities)
    assert {split[query.listing_row] for query in judged} == {"validation"}
    assert {split[row] for row in seen} == {"train"}
    for query in judged:
        assert set(np.unique(query.relevance)) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("price", "is_informative", "verdict"),
    [(9.99, True, "low"), (10, True, "likely"), (50, True, "likely"), (50.01, True, "high"), (5, False, None), (0, True, None)],
)
def test_a_price_is_judged_by_a_range_that_says_something(price, is_informative, verdict):
    price_range = {"low": 10, "median": 20, "high": 50, "is_informative": is_informative}
    assert verdict_on(price, price_range) == verdict
    assert verdict_on(None, price_range) is None
