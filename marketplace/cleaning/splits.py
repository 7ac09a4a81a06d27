"""Which listings are trained on, validated on and tested on: whole clusters, at fixed shares of every label."""

import hashlib

import numpy as np
import pandas as pd

SHARES = {"train": 70, "test": 15, "validation": 15}  # percent of the listings of each label; an even choice goes to the first
NONE = -1  # no split yet; the others are positions in SHARES


def assign_splits(
    listings: pd.DataFrame, seed: int, given: pd.DataFrame | None = None, previous: pd.DataFrame | None = None
) -> tuple[pd.Series, dict[str, int]]:
    """The split of each listing, the same for a whole cluster, whatever the order of the rows.

    listings: product_id, cluster, label; given: product_id, split, the user's own; previous: the same of an earlier run.
    A cluster takes the split given, else its earlier one, train when there are two. The others are new: largest first, then in
    an order drawn from the seed, each goes where _Balance.place() says.
    Returns the splits, and how many clusters were "spanning" two given splits and how many "joined" two earlier ones.
    With its own result as `previous` it gives that result again.
    """
    clusters, names = pd.factorize(listings["cluster"])
    rows = pd.Index(listings["product_id"])
    splits, spanning = _named_splits(clusters, rows, given)
    earlier, joined = _named_splits(clusters, rows, previous)
    splits = np.where(splits == NONE, earlier, splits)

    new = np.flatnonzero(splits == NONE)
    drawn = np.array([seeded_order(name, seed) for name in names[new]], dtype=np.uint64)
    new = new[np.lexsort((drawn, -np.bincount(clusters)[new]))]
    balance = _Balance(clusters, listings["label"], splits)
    for cluster in new.tolist():
        splits[cluster] = balance.place(cluster)
    return pd.Series(np.array(list(SHARES))[splits[clusters]], index=listings.index), {"spanning": spanning, "joined": joined}


def seeded_order(name: str, seed: int) -> int:
    """A number drawn for a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())


def _named_splits(clusters: np.ndarray, rows: pd.Index, votes: pd.DataFrame | None) -> tuple[np.ndarray, int]:
    """The split that votes (product_id, split) name for each cluster, and how many clusters had two: these are in train.

    clusters: (P,) cluster of each listing, 0 to C - 1; rows: product_id of each listing. Returns (C,) positions in SHARES.
    """
    splits = np.full(clusters.max(initial=-1) + 1, NONE)
    if votes is None:
        return splits, 0
    voters = rows.get_indexer(votes["product_id"])
    named = votes["split"].map(list(SHARES).index).to_numpy(dtype=int)
    ballots = np.stack([clusters[voters[voters >= 0]], named[voters >= 0]])
    voted, split = np.unique(ballots, axis=1)
    torn = np.unique(voted[1:][voted[1:] == voted[:-1]])
    splits[voted] = split
    splits[torn] = list(SHARES).index("train")
    return splits, len(torn)


class _Balance:
    """How far each split is below its share of the listings of each label, while new clusters are placed.

    clusters: (P,) cluster of each listing, 0 to C - 1; labels: (P,); splits: (C,) positions in SHARES, or NONE for a new cluster.
    """

    def __init__(self, clusters: np.ndarray, labels: pd.Series, splits: np.ndarray):
        codes, distinct = pd.factorize(labels, sort=True)
        # One part for each label within a cluster, the parts of a cluster side by side.
        parts, sizes = np.unique(clusters * len(distinct) + codes, return_counts=True)
        part_clusters, part_labels = np.divmod(parts, max(len(distinct), 1))
        starts = np.searchsorted(part_clusters, np.arange(len(splits) + 1))
        self._parts = list(zip(part_labels.tolist(), sizes.tolist(), strict=True))
        self._starts = starts.tolist()

        by_size = np.lexsort((part_labels, -sizes, part_clusters))
        main_labels = part_labels[by_size[starts[:-1]]]
        self._main_label = main_labels.tolist()
        self._clusters_left = np.bincount(main_labels[splits == NONE], minlength=len(distinct)).tolist()  # by main label

        held = np.zeros((len(distinct), len(SHARES)), dtype=int)
        assigned = splits[part_clusters] != NONE
        np.add.at(held, (part_labels[assigned], splits[part_clusters[assigned]]), sizes[assigned])
        totals = np.bincount(part_labels, sizes, minlength=len(distinct)).astype(int)
        # (labels, splits), in hundredths of a listing, so that whole numbers are compared.
        self._missing = (np.outer(totals, list(SHARES.values())) - 100 * held).tolist()
        self._empty = [np.flatnonzero(row == 0).tolist() for row in held]

    def place(self, cluster: int) -> int:
        """The split for a new cluster: the one that is furthest below its share of the cluster's label.

        That is its commonest label, then the smallest. When no more clusters of a label are left than splits without it, each
        goes to such a split, so that a rare label is trained on first, then tested, then validated.
        """
        label = self._main_label[cluster]
        empty = self._empty[label]
        candidates = empty if self._clusters_left[label] <= len(empty) else range(len(SHARES))
        split = max(candidates, key=self._missing[label].__getitem__)
        self._clusters_left[label] -= 1
        for part_label, size in self._parts[self._starts[cluster] : self._starts[cluster + 1]]:
            self._missing[part_label][split] -= 100 * size
            if split in self._empty[part_label]:
                self._empty[part_label].remove(split)
        return split
