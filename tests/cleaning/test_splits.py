"""cleaning/splits.py: whole clusters, at fixed shares of every label, that stay where they are."""

import hashlib

import networkx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.cleaning import duplicates
from marketplace.cleaning.splits import assign_splits


def listings_frame(clusters: list[str], labels: list[int]) -> pd.DataFrame:
    ids = [f"p{row:06d}" for row in range(len(clusters))]
    return pd.DataFrame({"product_id": ids, "cluster": clusters, "label": labels})


def singles(count: int, label: int = 0, first: int = 0) -> pd.DataFrame:
    ids = [f"p{label}-{row:06d}" for row in range(first, first + count)]
    return pd.DataFrame({"product_id": ids, "cluster": ids, "label": label})


def split_of(frame: pd.DataFrame, **options) -> pd.DataFrame:
    return frame.assign(split=assign_splits(frame, **{"seed": 0} | options)[0])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_split_shares_a_cluster_whatever_links_the_listings_and_in_whatever_order(data):
    count = data.draw(st.integers(1, 25))
    ids = data.draw(st.permutations([f"p{number:02d}" for number in range(count)]))
    key_lists = [data.draw(st.lists(st.integers(0, count), min_size=count, max_size=count)) for _ in range(2)]
    links = [(np.arange(count), np.array(keys)) for keys in key_lists]
    frame = pd.DataFrame({"product_id": ids, "cluster": duplicates.cluster_ids(pd.Series(ids), links)})
    frame["label"] = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))

    graph = networkx.Graph()
    for row in range(count):
        graph.add_edges_from([(("listing", row), (which, keys[row])) for which, keys in enumerate(key_lists)])
    together = [sorted(row for kind, row in nodes if kind == "listing") for nodes in networkx.connected_components(graph)]
    expected = {row: min(ids[other] for other in rows) for rows in together for row in rows}
    assert frame["cluster"].tolist() == [expected[row] for row in range(count)]

    frame = split_of(frame)
    assert (frame.groupby("cluster")["split"].nunique() == 1).all()
    assert set(frame["split"]) <= {"train", "validation", "test"}
    shuffled = split_of(frame.drop(columns="split").iloc[data.draw(st.permutations(range(count)))])
    assert shuffled["split"].sort_index().tolist() == frame["split"].tolist()
    again = split_of(frame.drop(columns="split"), previous=frame[["product_id", "split"]])
    assert again["split"].tolist() == frame["split"].tolist()


def test_shares_are_70_15_15_of_the_listings_of_every_label():
    rng = np.random.default_rng(5)
    labels = rng.choice(4, 5000, p=[0.6, 0.3, 0.08, 0.02])
    clusters = [f"c{number:04d}" for number in rng.integers(0, 4000, 5000)]  # of one to six listings, labels mixed
    frame = split_of(listings_frame(clusters, labels.tolist()))
    shares = pd.crosstab(frame["label"], frame["split"], normalize="index")
    assert np.abs(shares[["train", "validation", "test"]] - [0.7, 0.15, 0.15]).max().max() < 0.02


@pytest.mark.parametrize(
    ("clusters", "expected"),
    [
        (1, {"train": 1}),
        (2, {"train": 1, "test": 1}),
        (3, {"train": 1, "validation": 1, "test": 1}),
        (4, {"train": 2, "validation": 1, "test": 1}),
        (10, {"train": 7, "validation": 1, "test": 2}),
        (20, {"train": 14, "validation": 3, "test": 3}),
        (100, {"train": 70, "validation": 15, "test": 15}),
    ],
)
def test_a_rare_label_is_trained_on_first_then_tested_then_validated(clusters, expected):
    assert split_of(singles(clusters))["split"].value_counts().to_dict() == expected


def test_the_seed_decides_who_goes_where():
    frame = singles(200)
    first, again, other = (split_of(frame, seed=seed)["split"].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_new_clusters_are_taken_in_an_order_drawn_from_the_seed_and_their_names():
    frame = singles(8)
    drawn = sorted(frame["cluster"], key=lambda cluster: hashlib.blake2b(f"5:{cluster}".encode(), digest_size=8).digest())
    turns = ["train"] * 5 + ["test", "validation", "train"]  # 8 listings: 5.6, 1.2 and 1.2 wanted
    assert split_of(frame, seed=5).set_index("cluster")["split"].to_dict() == dict(zip(drawn, turns, strict=True))


def test_growth_keeps_every_split_and_fills_the_shortest():
    before = split_of(singles(100))
    grown = split_of(pd.concat([singles(150), singles(20, label=1)]), previous=before[["product_id", "split"]])
    assert grown["split"].tolist()[:100] == before["split"].tolist()
    for label, count in ((0, 150), (1, 20)):
        sizes = grown.loc[grown["label"] == label, "split"].value_counts()
        assert sizes["train"] == pytest.approx(0.7 * count, abs=1)
        assert sizes["test"] == pytest.approx(0.15 * count, abs=1)


def test_a_new_cluster_goes_to_the_split_that_is_furthest_below_its_share():
    previous = singles(85).assign(split=["train"] * 70 + ["test"] * 15)
    frame = split_of(singles(100), previous=previous)
    assert frame["split"].tolist()[85:] == ["validation"] * 15


def test_a_cluster_that_joins_two_splits_goes_to_train():
    previous = pd.DataFrame({"product_id": ["p000000", "p000001", "p000002"], "split": ["validation", "test", "test"]})
    splits, moved = assign_splits(listings_frame(["a", "a", "b"], [0, 0, 0]), 0, previous=previous)
    assert splits.tolist() == ["train", "train", "test"]
    assert moved == {"spanning": 0, "joined": 1}


def test_a_deleted_listing_vanishes_and_moves_nobody():
    before = split_of(singles(50))
    after = split_of(singles(50).drop(index=[3, 17]), previous=before[["product_id", "split"]])
    assert after["split"].equals(before["split"].drop(index=[3, 17]))


def test_a_given_split_wins_over_an_earlier_one():
    frame = listings_frame(["a", "b", "c"], [0, 0, 0])
    given_splits = pd.DataFrame({"product_id": ["p000000"], "split": ["test"]})
    previous = pd.DataFrame({"product_id": ["p000000", "p000001", "p000002"], "split": ["train", "train", "validation"]})
    assert split_of(frame, given=given_splits, previous=previous)["split"].tolist() == ["test", "train", "validation"]
