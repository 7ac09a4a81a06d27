"""What every engine for vectors must do, whatever holds them: one suite, whose expectations are NumPy's."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pytest

from marketplace.retrieval import catalogue, words
from marketplace.retrieval.catalogue import Catalogue
from marketplace.retrieval.filters import Filters, Passing
from marketplace.retrieval.keys import keys
from marketplace.retrieval.vectors import Vectors

LISTINGS, CLUSTERS, DIMENSION, SPREAD = 6000, 1500, 48, 0.8
MAIN = ["Home", "Sports", "Music", "Garden", "Toys"]
PATHS = [f"{main} / {kind} {number}" for main in MAIN for number, kind in enumerate(["Old", "New", "Spare"])]
RARE = "Music / Theremins"  # of 20 listings
TOWNS = [("Hove", "East Sussex"), ("Bath", "Somerset"), ("Durham", "County Durham"), ("Frome", "Somerset")]
K, QUERIES, RECALL = 10, 60, 0.95
FILTERS = {
    "none": Filters(),
    "half": Filters(min_price=7.4, max_price=55.0),
    "a hundredth": Filters(category="Sports / New 1", max_price=5.0),
    "rare": Filters(category=RARE),
    "place": Filters(location="Somerset", min_price=20.0),
}


@dataclass(frozen=True)
class Shop:
    """Listings, and the vectors of their photos: (N, D) unit rows but for one of zeros, whose keys are (N,)."""

    folder: Path
    listings: Catalogue
    vectors: np.ndarray
    keys: np.ndarray

    def passing(self, filters: Filters) -> Passing | None:
        of_listings = self.listings.passing(self.listings.allowed(filters), filters)
        return None if of_listings is None else of_listings.of(self.listings.listing_of_photo)

    def nearest(self, query: np.ndarray, k: int, passing: Passing | None = None) -> np.ndarray:
        rows = np.arange(len(self.keys)) if passing is None else np.flatnonzero(passing.rows)
        return rows[np.argsort(-(self.vectors[rows] @ query), kind="stable")[:k]]


class Engine(Protocol):
    def build(self, shop: Shop) -> Vectors:
        """The photos' index."""

    def update(self, before: Shop, after: Shop) -> Vectors:
        """The photos' index of a shop, made when that of the shop before is there, and is served on."""


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def open_shop(folder: Path, numbers: np.ndarray) -> Shop:
    """A shop of the listings of some numbers, each the same in every shop; every second one has two photos."""
    generator = np.random.default_rng(1)
    prices = np.exp(generator.normal(3, 1.5, 2 * LISTINGS)).round(2)
    prices[::50] = np.nan
    at = generator.integers(len(PATHS), size=2 * LISTINGS)
    paths = np.array([*PATHS, RARE])[np.where(np.arange(2 * LISTINGS) % (LISTINGS // 20) == 7, len(PATHS), at)]
    centres = unit(generator.normal(size=(CLUSTERS, DIMENSION)))
    photos = centres[generator.integers(CLUSTERS, size=4 * LISTINGS)]
    photos = unit(photos + SPREAD * unit(generator.normal(size=photos.shape)))
    photos[0] = 0  # a text without a known word is no direction
    towns, counties = zip(*TOWNS, strict=True)
    table = pd.DataFrame({"product_id": [f"p{number}" for number in numbers], "name": "A thing", "description": ""})
    table = table.assign(category=paths[numbers], price=prices[numbers], price_plausible=True, posted_on="")
    table = table.assign(town=np.array(towns)[numbers % len(TOWNS)], county=np.array(counties)[numbers % len(TOWNS)])
    folder.mkdir()
    owners = np.repeat(np.arange(len(numbers)), 1 + numbers % 2)
    second = np.append(False, owners[1:] == owners[:-1])
    image_ids = [f"i{numbers[owner]}-{int(is_second)}" for owner, is_second in zip(owners, second, strict=True)]
    catalogue.write(folder, [table], image_ids, owners)
    np.save(folder / catalogue.LISTING_KEYS, keys(table["product_id"].tolist()))
    words.write(folder, catalogue.read_listings(folder), [np.load(folder / catalogue.LISTING_KEYS)])
    return Shop(folder, Catalogue(folder), photos[2 * numbers[owners] + second], keys(image_ids))


class VectorContract:
    """A subclass gives the fixture `engine`, of its class's scope."""

    @pytest.fixture(scope="class")
    @classmethod
    def shop(cls, tmp_path_factory) -> Shop:
        return open_shop(tmp_path_factory.mktemp("shop") / "generation", np.arange(LISTINGS))

    @pytest.fixture(scope="class")
    @classmethod
    def index(cls, engine: Engine, shop: Shop) -> Vectors:
        return engine.build(shop)

    @pytest.fixture(scope="class")
    @classmethod
    def queries(cls, shop: Shop) -> np.ndarray:
        near = shop.vectors[np.linspace(1, len(shop.vectors) - 1, QUERIES).astype(int)]
        return unit(near + 0.3 * unit(np.random.default_rng(3).normal(size=near.shape)))

    def test_it_knows_its_size(self, index, shop):
        assert (index.rows, index.dimension) == shop.vectors.shape and index.describe()["kind"]

    @pytest.mark.parametrize("name", FILTERS)
    def test_it_finds_what_exact_search_finds_among_what_passes(self, index, shop, queries, name):
        passing, found, expected = shop.passing(FILTERS[name]), 0, 0
        for query in queries:
            rows, cosines = index.nearest(3 * query, K, passing)
            assert passing is None or passing.rows[rows].all()
            assert len(set(rows.tolist())) == len(rows) and (np.diff(cosines) <= 0).all()
            np.testing.assert_allclose(cosines, shop.vectors[rows] @ query, atol=1e-5)
            wanted = shop.nearest(query, K, passing)
            found, expected = found + len(set(rows.tolist()) & set(wanted.tolist())), expected + len(wanted)
        assert expected == K * len(queries) and found >= RECALL * expected

    @pytest.mark.parametrize("share", [0.8, 0.03, 0.001])
    def test_it_finds_what_passes_by_no_condition_of_columns(self, index, shop, queries, share):
        passing = Passing(np.random.default_rng(5).random(index.rows) < share)
        wanted = [set(shop.nearest(query, K, passing).tolist()) for query in queries]
        found = [set(index.nearest(query, K, passing)[0].tolist()) for query in queries]
        assert sum(len(one & other) for one, other in zip(found, wanted, strict=True)) >= RECALL * sum(map(len, wanted))
        assert [len(one) for one in found] == [len(one) for one in wanted]

    def test_fewer_are_found_only_where_there_are_fewer(self, index, shop, queries):
        passing = shop.passing(FILTERS["a hundredth"])
        assert 20 < passing.rows.sum() < 0.02 * index.rows
        for k in (passing.rows.sum() - 1, passing.rows.sum(), 1000):
            rows, _ = index.nearest(queries[0], k, passing)
            assert len(rows) == min(k, passing.rows.sum()) and passing.rows[rows].all()
        assert sorted(index.nearest(queries[0], 10 * index.rows)[0].tolist()) == list(range(index.rows))
        assert [len(found) for found in index.nearest(queries[0], K, Passing(np.zeros(index.rows, bool)))] == [0, 0]

    @pytest.mark.parametrize("name", ["none", "half", "rare"])
    def test_its_groups_are_those_of_the_nearest_photos(self, index, shop, queries, name):
        passing, listing_of_photo, found = shop.passing(FILTERS[name]), shop.listings.listing_of_photo, 0
        for query in queries:
            listings = index.nearest_groups(query, K, listing_of_photo, passing)
            nearest = listing_of_photo[shop.nearest(query, 3 * K, passing)]
            wanted = nearest[np.sort(np.unique(nearest, return_index=True)[1])][:K]
            assert len(set(listings.tolist())) == len(listings) == len(wanted) == K
            found += len(set(listings.tolist()) & set(wanted.tolist()))
        assert found >= RECALL * K * len(queries)

    def test_its_vectors_are_those_that_were_put_in(self, index, shop, queries):
        rows = np.random.default_rng(4).choice(index.rows, 400, replace=False)
        rows = np.concatenate([[0], rows, rows[:3]])
        np.testing.assert_array_equal(index.vectors_of(rows), shop.vectors[rows])
        np.testing.assert_allclose(index.cosines(queries[0], rows), shop.vectors[rows] @ queries[0], atol=1e-5)
        none = np.empty(0, np.int64)
        assert index.vectors_of(none).shape == (0, DIMENSION) and index.cosines(queries[0], none).shape == (0,)

    def test_many_queries_are_answered_as_one_by_one_and_from_many_threads(self, index, queries):
        one_by_one = [index.nearest(query, K)[0].tolist() for query in queries]
        with ThreadPoolExecutor(4) as pool:
            together = pool.map(lambda one: index.nearest(*one)[0].tolist(), [(query, K) for query in queries])
            assert list(together) == one_by_one
        probed = index.probed(queries)
        assert [index.nearest(query, K, None, own)[0].tolist() for query, own in zip(queries, probed, strict=True)] == one_by_one

    @pytest.mark.parametrize("told", [500, 3])
    @pytest.mark.parametrize("name", ["none", "half"])
    def test_nothing_hidden_is_found(self, index, shop, queries, monkeypatch, name, told):
        """told: how many hidden listings an engine is told of at most; more are hidden in one case."""
        monkeypatch.setattr(catalogue, "TOLD_HIDDEN", told)
        listing_of_photo = shop.listings.listing_of_photo
        nearest = listing_of_photo[shop.nearest(queries[0], 15, shop.passing(FILTERS[name]))]
        hidden = [listing["product_id"] for listing in shop.listings.products(np.unique(nearest), ["product_id"])]
        view = replace(shop, listings=shop.listings.hiding(hidden))
        passing, is_hidden = view.passing(FILTERS[name]), np.isin(listing_of_photo, nearest)
        found = view.listings.first_shown(lambda k: index.nearest_groups(queries[0], k, listing_of_photo, passing), K)
        shown = Passing(~is_hidden if passing is None else ~is_hidden & passing.rows)
        assert len(found) == K and not np.isin(found, nearest).any()
        assert len(set(found.tolist()) & set(listing_of_photo[shop.nearest(queries[0], 2 * K, shown)].tolist())) >= K - 1

    def test_an_update_finds_what_is_there_now_and_leaves_what_was_served(self, engine, index, shop, queries, tmp_path):
        answers = [index.nearest(query, K)[0].tolist() for query in queries]
        after = open_shop(tmp_path / "after", np.concatenate([np.arange(40, LISTINGS), np.arange(LISTINGS, LISTINGS + 60)]))
        updated = engine.update(shop, after)
        came = np.flatnonzero(~np.isin(after.keys, shop.keys))
        assert updated.rows == len(after.keys) and len(came) == 90
        for row in (*came[:10], 0, 100):
            assert updated.nearest(after.vectors[row], 1)[0].tolist() == [row]
        gone = np.flatnonzero(~np.isin(shop.keys, after.keys))
        for row in gone[1:10]:
            rows, cosines = updated.nearest(shop.vectors[row], 1)
            assert cosines[0] < 0.999 and rows[0] < len(after.keys)
        np.testing.assert_array_equal(updated.vectors_of(np.arange(50)), after.vectors[:50])
        assert [index.nearest(query, K)[0].tolist() for query in queries] == answers

    @pytest.mark.parametrize("query", [np.zeros(DIMENSION), np.full(DIMENSION, np.nan)])
    def test_a_query_of_no_direction_is_refused(self, index, query):
        with pytest.raises(ValueError, match="^the query is zero or not finite$"):
            index.nearest(query, K)

    def test_a_query_or_a_filter_of_another_shape_is_refused(self, index, queries):
        with pytest.raises(ValueError, match=rf"^the query has shape \(3,\), the index holds vectors of {DIMENSION}$"):
            index.nearest(np.ones(3), K)
        with pytest.raises(ValueError, match=rf"^what may be found has shape \(9,\), the index holds {index.rows} rows$"):
            index.nearest(queries[0], K, Passing(np.ones(9, bool)))
