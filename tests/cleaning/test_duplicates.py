"""cleaning/duplicates.py: near photos, equal texts, and the clusters that they make."""

import itertools

import faiss
import networkx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.cleaning import duplicates
from marketplace.cleaning.folds import fold_ids
from tests.cleaning.clean_rows import UNLIKE, photo, product


def same_partition(left, right) -> bool:
    return len(set(zip(left, right, strict=True))) == len(set(left)) == len(set(right))


# Near duplicates among perceptual hashes.


def groups_by_comparing_all(hashes: list[int]) -> list[int]:
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(hashes)))
    pairs = itertools.combinations(range(len(hashes)), 2)
    graph.add_edges_from((left, right) for left, right in pairs if (hashes[left] ^ hashes[right]).bit_count() <= 6)
    number = {row: group for group, rows in enumerate(networkx.connected_components(graph)) for row in rows}
    return [number[row] for row in range(len(hashes))]


@st.composite
def hash_lists(draw) -> list[int]:
    """Hashes around a few centres, 0 to 8 bits away: many are exactly at the border of 6."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
    bits = st.sets(st.integers(0, 63), max_size=8)
    moved = draw(st.lists(st.tuples(st.sampled_from(centres), bits), max_size=30))
    return [centre ^ sum(1 << bit for bit in flipped) for centre, flipped in moved]


@settings(max_examples=40, deadline=None)
@given(hash_lists())
def test_near_duplicate_groups_are_those_of_comparing_all_pairs(hashes):
    found = duplicates.near_duplicate_groups(np.array(hashes, dtype=np.uint64))
    assert same_partition(found.tolist(), groups_by_comparing_all(hashes))


def groups_by_faiss(hashes: np.ndarray) -> np.ndarray:
    index = faiss.IndexBinaryFlat(64)
    codes = hashes.view(np.uint8).reshape(-1, 8)
    index.add(codes)
    limits, _, near = index.range_search(codes, 7)  # below 7 bits
    rows = np.repeat(np.arange(len(hashes)), np.diff(limits).astype(int))
    graph = scipy.sparse.csr_array((np.ones(len(rows), bool), (rows, near)), shape=(len(hashes), len(hashes)))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1]


def test_near_duplicate_groups_of_many_hashes_are_those_of_faiss():
    generator = np.random.default_rng(11)
    hashes = generator.integers(0, 2**64, 20_000, dtype=np.uint64)
    hashes[10_000:] = hashes[:10_000]
    for _ in range(8):  # one half ends 0 to 8 bits away from the other
        hashes[10_000:] ^= np.uint64(1) << generator.integers(0, 64, 10_000, dtype=np.uint64)
    found = duplicates.near_duplicate_groups(hashes)
    assert 10_000 < len(set(found.tolist())) < 20_000
    assert same_partition(found.tolist(), groups_by_faiss(hashes).tolist())


def skewed_hashes(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    random = rng.integers(0, 2**64, count, dtype=np.uint64)
    if kind == "alike in 44 bits":
        return random & np.uint64(0xFFFFF)
    if kind == "alike in 32 bits":
        return random & np.uint64(0xFF00FF00FF00FF)
    if kind == "bits mostly set":
        return random | rng.integers(0, 2**64, count, dtype=np.uint64) | rng.integers(0, 2**64, count, dtype=np.uint64)
    blob = np.full(count // 2, random[0])
    for _ in range(7):
        blob ^= np.uint64(1) << rng.integers(0, 64, len(blob), dtype=np.uint64)
    return np.concatenate([random[: count - len(blob)], blob])


@pytest.mark.parametrize("long_run", [2, 256])
@pytest.mark.parametrize("kind", ["alike in 44 bits", "alike in 32 bits", "bits mostly set", "a crowd among strangers"])
def test_hashes_that_crowd_together_are_grouped_as_by_comparing_all_pairs(monkeypatch, kind, long_run):
    monkeypatch.setattr(duplicates, "LONG_RUN", long_run)
    monkeypatch.setattr(duplicates, "BLOCK_PAIRS", 5_000)
    hashes = skewed_hashes(kind, 500)
    assert same_partition(duplicates.near_duplicate_groups(hashes).tolist(), groups_by_comparing_all(hashes.tolist()))


def test_hashes_6_bits_apart_are_near_and_7_bits_apart_are_not():
    flips = np.array([sum(1 << bit for bit in range(0, 60, 10)), sum(1 << bit for bit in range(1, 64, 9))], dtype=np.uint64)
    six, seven = (duplicates.near_duplicate_groups(np.array([UNLIKE[0], UNLIKE[0] ^ flip])) for flip in flips)
    assert six[0] == six[1]
    assert seven[0] != seven[1]


def test_no_hashes_make_no_groups():
    assert len(duplicates.near_duplicate_groups(np.zeros(0, dtype=np.uint64))) == 0


# Clusters.


def clusters_of(products: list[dict], pictures: list[dict], groups: list[tuple[str, str]] = ()) -> list[str]:
    values = pd.DataFrame(list(groups), columns=["product_id", "value"])
    listings = pd.DataFrame(products)
    photos = duplicates.Photos.of(listings, pd.DataFrame(pictures))
    return duplicates.find_clusters(listings, photos, fold_ids(listings, photos), values).tolist()


def test_listings_are_joined_by_equal_pixels_near_hashes_equal_texts_and_groups_and_by_nothing_else():
    products = [product(number) for number in range(8)]
    words = "A lovely oak table, seats six; collection only!"
    products[4] |= {"name": "Table", "description": words}
    products[5] |= {"name": "TABLE:", "description": words.upper().replace(" ", " \n ")}
    pictures = [photo(number) for number in range(8)]
    pictures[1]["sha256"] = pictures[0]["sha256"]
    pictures[3]["phash"] = f"{int(pictures[2]['phash'], 16) ^ 0b111111:016x}"
    found = clusters_of(products, pictures, [("p0006", "seller 1"), ("p0007", "seller 1")])
    assert found == ["p0000", "p0000", "p0002", "p0002", "p0004", "p0004", "p0006", "p0006"]


@pytest.mark.parametrize(("words", "joined"), [(7, False), (8, True)])
def test_equal_texts_join_from_8_words_on(words, joined):
    text = {"name": "Sofa", "description": " ".join(["good"] * (words - 1))}
    assert (clusters_of([product(0, **text), product(1, **text)], [photo(0)]) == ["p0000", "p0000"]) == joined


def test_texts_that_only_start_alike_do_not_join():
    text = "one two three four five six seven eight nine "
    products = [product(0, name=text, description="ten"), product(1, name=text, description="eleven")]
    assert clusters_of(products, [photo(0)]) == ["p0000", "p0001"]


# A photo that many show.

LOGO = {key: photo(100)[key] for key in ("sha256", "phash", "colours")}


@pytest.mark.parametrize(("offers", "joined"), [(5, True), (6, False)])
def test_a_photo_joins_up_to_5_different_offers_and_nobody_where_more_show_it(offers, joined):
    found = clusters_of([product(number) for number in range(offers)], [photo(number) | LOGO for number in range(offers)])
    assert found == (["p0000"] * offers if joined else [f"p{number:04d}" for number in range(offers)])


def test_one_offer_listed_many_times_is_one_of_those_that_show_a_photo():
    text = {key: product(0)[key] for key in ("name", "description")}
    products = [product(number, **text) for number in range(10)] + [product(10)]
    found = clusters_of(products, [photo(number) | LOGO for number in range(11)])
    assert found == ["p0000"] * 11


def test_a_logo_saved_anew_for_each_listing_joins_nobody():
    pictures = [
        photo(number) | {"phash": f"{int(LOGO['phash'], 16) ^ 1 << number:016x}", "colours": LOGO["colours"]}
        for number in range(8)
    ]
    assert len(set(clusters_of([product(number) for number in range(8)], pictures))) == 8


def test_listings_that_share_another_photo_beside_a_logo_are_joined_by_that():
    pictures = [photo(number) for number in range(8)]
    pictures[5]["phash"] = pictures[4]["phash"]
    pictures += [photo(20 + number, f"p{number:04d}") | LOGO for number in range(8)]
    found = clusters_of([product(number) for number in range(8)], pictures)
    assert found == ["p0000", "p0001", "p0002", "p0003", "p0004", "p0004", "p0006", "p0007"]


def test_unlike_photos_in_a_chain_of_near_hashes_are_no_photo_that_many_show():
    bits = np.cumsum([0, *(0b111111 << 6 * step for step in range(8))]).tolist()
    pictures = [photo(number) | {"phash": f"{bits[number]:016x}"} for number in range(9)]
    assert set(clusters_of([product(number) for number in range(9)], pictures)) == {"p0000"}


looks = st.tuples(st.sampled_from([0, 0b1, 0b111111, 0b1111111, 2**63]), st.sampled_from([0, 16, 17, 33]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), looks), min_size=1, max_size=40))
def test_photos_shown_by_many_are_those_found_by_comparing_all_pairs(shown):
    folds = np.array([f"p{number // 2:04d}" for number in range(13)])
    rows, hashes, levels = (np.array(column) for column in zip(*((row, *look) for row, look in shown), strict=True))
    pixels = np.array([f"{look}" for _, look in shown])
    colours = np.repeat(levels[:, None], 48, axis=1).astype(np.int16)
    photos = duplicates.Photos(rows, pixels, hashes.astype(np.uint64), colours)
    expected = []
    for _, (one, level) in shown:
        near = {row // 2 for row, (other, its) in shown if (one ^ other).bit_count() <= 6 and abs(level - its) <= 16}
        expected.append(len(near) > 5)
    assert duplicates.shown_by_many(photos, folds).tolist() == expected
