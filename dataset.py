"""Join listings and photos, cluster what belongs together, and split the clusters into train, validation and test.

Reads   data/tabular/ (products.csv, images.csv, labels.json), data/images/ (photos.csv, <image_id>.jpg)
Writes  data/dataset/ (listings.csv, training_data.csv, with hashes of their ids as .npy; preview.png, report.json, settings.json)
Run     python dataset.py
"""

import argparse
import hashlib
import io
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from marketplace import changes, errors, flags, photos, storage
from marketplace.errors import StageError
from marketplace.listings import read_classes, read_products

SHARES = {"train": 70, "test": 15, "validation": 15}  # percent of the listings of each label; an even choice goes to the first
SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {"val": "validation", "valid": "validation"} | {split: split for split in SPLITS}
NEAR_BITS = 6  # perceptual hashes (64 bits) at most this far apart show the same photo; at 10 they chain (DESIGN.md)
BANDS = 9  # of 7 or 8 bits: two hashes that differ in 6 bits are equal in at least 3 bands
LONG_RUN = 256  # hashes with one key; shorter runs are compared shift by shift, longer ones as a block
BLOCK_PAIRS = 1 << 22  # hashes compared at a time in a long run: 32 MB
WORD = re.compile(r"[^\W_]+")
MIN_WORDS = 8  # shorter texts ("Sofa, good condition") are the same by chance
PREVIEW_TILES, PREVIEW_COLUMNS, PREVIEW_TILE_PX = 48, 8, 128
READ_LATER = ("settings.json", "listings.csv", "listings.npy", "training_data.csv", "training_data.npy")  # by other stages
FRAMES = {"train": "#4c78a8", "validation": "#f2a541", "test": "#54a24b"}


# Near duplicates among perceptual hashes.


def _rearrange(words: np.ndarray, parts: list[tuple[int, int, int]]) -> np.ndarray:
    """Move bits of uint64 words: parts are (from, to, width), counted from the lowest bit; together they move every bit once."""
    moved = np.zeros_like(words)
    for source, target, width in parts:
        moved |= ((words >> np.uint64(source)) & np.uint64((1 << width) - 1)) << np.uint64(target)
    return moved


def _merge(group: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The groups (N,) after joining rows left[i] and right[i]; a group is named by its smallest row."""
    ends = np.stack([group[left], group[right]])
    ends = ends[:, ends[0] != ends[1]]
    if not ends.size:
        return group
    names, ends = np.unique(ends, return_inverse=True)
    ends = ends.reshape(2, -1)
    graph = csr_array((np.ones(ends.shape[1], dtype=bool), tuple(ends)), shape=(len(names), len(names)))
    component = connected_components(graph, directed=False)[1]
    smallest = np.unique(component, return_index=True)[1]
    renamed = np.arange(len(group))
    renamed[names] = names[smallest[component]]
    return renamed[group]


def _merge_long_run(words: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The groups (n,) of n words after joining every two at most NEAR_BITS apart.

    Members of the largest group need no comparing: two words that were never compared both belong to it at the end.
    Where very many hashes are near one another that group takes them in after a few blocks.
    """
    group = np.unique(group, return_index=True, return_inverse=True)[1:]
    group = group[0][group[1]]  # named by rows of this run
    waiting = np.arange(len(words))
    while True:
        waiting = waiting[group[waiting] != np.bincount(group).argmax()]
        if not waiting.size:
            return group
        size = max(1, BLOCK_PAIRS // len(words))
        block, waiting = waiting[:size], waiting[size:]
        left, right = np.nonzero(np.bitwise_count(words[block][:, None] ^ words) <= NEAR_BITS)
        group = _merge(group, block[left], right)


def near_duplicate_groups(hashes: np.ndarray) -> np.ndarray:
    """Groups of perceptual hashes: two are in one group exactly when steps of at most NEAR_BITS bits lead from one to the other.

    hashes: (N,) uint64. Returns (N,) int, the same number for the same group.
    By the pigeonhole principle two hashes within 6 bits are equal in 3 of 9 bands, so for each of the 84 choices of 3 bands
    the words are sorted with those bands on top and compared with their neighbours only. Measured on 1,750,000 random hashes,
    3 of 9 bands compare 51 million pairs and 2 of 8 bands 654 million, and the whole takes 8 s; as many drawn with the
    correlations between the bits of real hashes take 13 to 27 s. Bits are dealt to the bands by how even they are, so that
    bits which hardly vary do not make one band useless. Source: Manku et al., "Detecting near-duplicates for web
    crawling", WWW 2007, section 3.
    """
    values, inverse = np.unique(np.asarray(hashes, dtype=np.uint64), return_inverse=True)
    ones = np.array([np.count_nonzero(values >> np.uint64(bit) & np.uint64(1)) for bit in range(64)])
    by_evenness = np.argsort(np.abs(2 * ones - len(values)), kind="stable")
    bands = [by_evenness[first::BANDS] for first in range(BANDS)]
    offsets = np.cumsum([0] + [len(band) for band in bands])
    words = _rearrange(values, [(int(bit), target, 1) for target, bit in enumerate(np.concatenate(bands))])
    order = np.argsort(words)
    words = words[order]  # distances stay what they are under any order of the bits
    group = np.arange(len(words))
    keys = list(itertools.combinations(range(BANDS), BANDS - NEAR_BITS))
    for chosen in tqdm(keys, desc="near duplicates", file=sys.stderr, disable=None):
        others = [band for band in range(BANDS) if band not in chosen]
        moves, target, found_before = [], 0, []
        for band in [*others, *chosen]:
            moves.append((int(offsets[band]), target, len(bands[band])))
            if band in others and band < chosen[-1]:
                found_before.append(np.uint64(((1 << len(bands[band])) - 1) << target))
            target += len(bands[band])
        back = [(target, source, width) for source, target, width in moves]
        keyed = np.sort(_rearrange(words, moves))
        key = keyed >> np.uint64(64 - sum(len(bands[band]) for band in chosen))
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, dtype=int)
        lengths = np.diff(np.append(starts, len(key)))
        end = np.repeat(starts + lengths, lengths)

        def rows_of(positions: np.ndarray, keyed=keyed, back=back) -> np.ndarray:
            return np.searchsorted(words, _rearrange(keyed[positions], back))

        left = np.flatnonzero(np.repeat(lengths, lengths) <= LONG_RUN)
        for shift in range(1, LONG_RUN):
            left = left[left + shift < end[left]]
            differing = keyed[left] ^ keyed[left + shift]
            near = np.bitwise_count(differing) <= NEAR_BITS
            near, differing = left[near], differing[near]
            for band_mask in found_before:  # where such a band is equal too, an earlier choice has joined the two
                near, differing = near[differing & band_mask != 0], differing[differing & band_mask != 0]
            group = _merge(group, rows_of(near), rows_of(near + shift))
            if not left.size:
                break
        for run in np.flatnonzero(lengths > LONG_RUN):
            positions = np.arange(starts[run], starts[run] + lengths[run])
            rows = rows_of(positions)
            if (group[rows] != group[rows[0]]).any():
                group = _merge(group, rows, rows[_merge_long_run(keyed[positions], group[rows])])
    by_value = np.empty_like(group)
    by_value[order] = group
    return by_value[inverse.reshape(-1)]


# Clusters.


def equal_texts(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `texts`, and a key for each that is equal for texts that differ in case, spacing and punctuation only.

    Texts of fewer than MIN_WORDS words, and texts that start like no other, are left out.
    """
    openings = np.array([_words(text, MIN_WORDS) for text in texts], dtype=object)
    rows = np.flatnonzero(pd.Series(openings).duplicated(keep=False).to_numpy() & (openings != ""))
    return rows, np.array([_words(texts[row]) for row in rows], dtype=object)


def _words(text: str, count: int | None = None) -> str:
    """The words of a text, or its first `count` and nothing when it has fewer."""
    words = [match[0] for match in itertools.islice(WORD.finditer(text), count)]
    return " ".join(words).casefold() if count is None or len(words) == count else ""


def cluster_ids(product_ids: pd.Series, links: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The cluster of each listing: the smallest product_id that links lead to, so that it stays when others join.

    product_ids: (P,), distinct. links: pairs of arrays (rows of listings, keys of any type); listings with the same key are
    joined, but only within one pair of arrays. Returns (P,) product ids.
    """
    nodes, ends = len(product_ids), []
    for rows, keys in links:
        codes, distinct = pd.factorize(keys)
        ends.append(np.stack([rows, nodes + codes]))
        nodes += len(distinct)
    rows, keys = np.concatenate(ends, axis=1) if ends else np.zeros((2, 0), dtype=int)
    graph = csr_array((np.ones(len(rows), dtype=bool), (rows, keys)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][: len(product_ids)]
    by_id = pd.DataFrame({"component": component, "product_id": product_ids.to_numpy()}).sort_values("product_id", kind="stable")
    return by_id.drop_duplicates("component").set_index("component")["product_id"].reindex(component).to_numpy()


def find_clusters(listings: pd.DataFrame, kept: pd.DataFrame, groups: pd.DataFrame) -> np.ndarray:
    """The cluster of each listing: joined by equal pixels, near perceptual hashes, equal texts or an equal group.

    listings: product_id, name, description; kept: the photos of listings, with product_id, sha256, phash (16 hex digits);
    groups: product_id, value. Returns (P,) product ids.
    """
    index = pd.Index(listings["product_id"])
    photo_rows = index.get_indexer(kept["product_id"])
    hashes = np.frombuffer(bytes.fromhex("".join(kept["phash"])), dtype=">u8").astype(np.uint64)
    return cluster_ids(
        listings["product_id"],
        [
            (photo_rows, kept["sha256"].to_numpy()),
            (photo_rows, near_duplicate_groups(hashes)),
            equal_texts((listings["name"] + " " + listings["description"]).tolist()),
            (index.get_indexer(groups["product_id"]), groups["value"].to_numpy()),
        ],
    )


# Splits.


def _splits_of_clusters(clusters: np.ndarray, rows: pd.Index, votes: pd.DataFrame | None) -> tuple[np.ndarray, int]:
    """The split (position in SHARES) that votes (product_id, split) name for each cluster, -1 for none, and how many had two.

    clusters: (P,) cluster of each listing, 0 to C - 1; rows: product_id of each listing. A cluster that has two is in train.
    """
    splits = np.full(clusters.max(initial=-1) + 1, -1)
    if votes is None:
        return splits, 0
    at = rows.get_indexer(votes["product_id"])
    named = np.stack([clusters[at[at >= 0]], votes["split"].map(list(SHARES).index).to_numpy(dtype=int)[at >= 0]])
    of, split = np.unique(named, axis=1)
    torn = np.unique(of[1:][of[1:] == of[:-1]])
    splits[of] = split
    splits[torn] = list(SHARES).index("train")
    return splits, len(torn)


def _seeded_order(name: str, seed: int) -> int:
    """A number drawn for a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())


def assign_splits(
    listings: pd.DataFrame, seed: int, given: pd.DataFrame | None = None, previous: pd.DataFrame | None = None
) -> tuple[pd.Series, dict[str, int]]:
    """The split of each listing, the same for a whole cluster, whatever the order of the rows.

    listings: product_id, cluster, label; given: product_id, split, the user's own; previous: the same of an earlier run.
    A cluster takes the split given, else its earlier one, train when there are two. The others are new: largest first, then in
    an order drawn from the seed, each goes to the split that is furthest below its share of the listings of the cluster's label
    (its commonest, then the smallest). When no more clusters of a label are left than splits without it, each goes to such a
    split, so that a rare label is trained on first, then tested, then validated.
    Returns the splits, and how many clusters were "spanning" two given splits and how many "joined" two earlier ones.
    With its own result as `previous` it gives that result again.
    """
    clusters, names = pd.factorize(listings["cluster"])
    labels, distinct_labels = pd.factorize(listings["label"], sort=True)
    rows = pd.Index(listings["product_id"])
    splits, spanning = _splits_of_clusters(clusters, rows, given)
    earlier, joined = _splits_of_clusters(clusters, rows, previous)
    splits = np.where(splits < 0, earlier, splits)

    # One part for each label within a cluster, the parts of a cluster side by side.
    parts, sizes = np.unique(clusters * len(distinct_labels) + labels, return_counts=True)
    part_clusters, part_labels = np.divmod(parts, max(len(distinct_labels), 1))
    starts = np.searchsorted(part_clusters, np.arange(len(names) + 1)).tolist()
    by_size = np.lexsort((part_labels, -sizes, part_clusters))
    main_labels = part_labels[by_size[starts[:-1]]]

    held = np.zeros((len(distinct_labels), len(SHARES)), dtype=int)
    assigned = splits[part_clusters] >= 0
    np.add.at(held, (part_labels[assigned], splits[part_clusters[assigned]]), sizes[assigned])
    totals = np.bincount(part_labels, sizes, minlength=len(distinct_labels)).astype(int)
    missing = (np.outer(totals, list(SHARES.values())) - 100 * held).tolist()  # (labels, splits), hundredths of a listing
    empty = [np.flatnonzero(row == 0).tolist() for row in held]

    new = np.flatnonzero(splits < 0)
    drawn = np.array([_seeded_order(name, seed) for name in names[new]], dtype=np.uint64)
    new = new[np.lexsort((drawn, -np.bincount(clusters)[new]))]
    left = np.bincount(main_labels[new], minlength=len(distinct_labels)).tolist()
    part_labels, sizes = part_labels.tolist(), sizes.tolist()
    for cluster, label in zip(new.tolist(), main_labels[new].tolist(), strict=True):
        candidates = empty[label] if left[label] <= len(empty[label]) else range(len(SHARES))
        split = max(candidates, key=missing[label].__getitem__)
        splits[cluster] = split
        left[label] -= 1
        for part in range(starts[cluster], starts[cluster + 1]):
            missing[part_labels[part]][split] -= 100 * sizes[part]
            if split in empty[part_labels[part]]:
                empty[part_labels[part]].remove(split)
    return pd.Series(np.array(list(SHARES))[splits[clusters]], index=listings.index), {"spanning": spanning, "joined": joined}


# The stage.


def read_values(tabular_dir: Path, column: str | None, flag: str) -> tuple[pd.DataFrame, str]:
    """The values that listings have in a column of products.csv, else of images.csv, and the name of that file.

    Returns product_id and value, a row for each value that is not empty; no rows when column is None.
    Raises StageError when neither file has the column.
    """
    if column is None:
        return pd.DataFrame({"product_id": [], "value": []}, dtype=str), ""
    available = []
    for name in ("products.csv", "images.csv"):
        columns = storage.read_csv(tabular_dir / name, nrows=0).columns
        if column in columns:
            table = storage.read_csv(tabular_dir / name, usecols=list({"product_id", column}))
            values = pd.DataFrame({"product_id": table["product_id"], "value": table[column].str.strip()})
            return values[values["value"] != ""].drop_duplicates(), name
        available += [other for other in columns if other not in available]
    raise StageError(f"{flag} {column} is no column of {tabular_dir}: choose one of {', '.join(available)}")


def read_given(tabular_dir: Path, column: str | None) -> pd.DataFrame:
    """The splits (product_id, split) that the user gives in a column; StageError names a value that is no split."""
    values, name = read_values(tabular_dir, column, "--split-column")
    splits = values["value"].str.lower().map(SPLIT_WORDS)
    if splits.isna().any():
        value = values.loc[splits.isna(), "value"].iloc[0]
        raise StageError(f'column {column} of {tabular_dir / name} holds "{value}": write train, validation, test or nothing')
    return pd.DataFrame({"product_id": values["product_id"], "split": splits})


def read_keyed(path: Path, key: str, columns: list[str]) -> pd.DataFrame:
    """Columns of a CSV, `key` first, its rows sorted by `key`; for photos.csv the photos that were kept."""
    table = storage.read_csv(path, usecols=[key, *columns])
    if "status" in columns:
        table = table[table["status"] == "ok"]
    twice = table.loc[table[key].duplicated(), key]
    if len(twice):
        raise StageError(f"{path} holds {key} {twice.iloc[0]} twice: run python {storage.SCRIPTS[path.parent.name]} again")
    return table.sort_values(key, kind="stable", ignore_index=True)


def split_table(listings: pd.DataFrame, training: pd.DataFrame, classes: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    """Label name -> split -> {"listings": n, "photos": n}, and the same for "all" labels together."""
    counted = {what: table.groupby(["label", "split"]).size() for what, table in (("listings", listings), ("photos", training))}
    table = {
        name: {split: {what: int(sizes.get((label, split), 0)) for what, sizes in counted.items()} for split in SPLITS}
        for label, name in enumerate(classes)
    }
    whole = {"listings": listings["split"].value_counts(), "photos": training["split"].value_counts()}
    return {**table, "all": {split: {what: int(sizes.get(split, 0)) for what, sizes in whole.items()} for split in SPLITS}}


def print_split_table(table: dict[str, dict[str, dict[str, int]]]) -> None:
    """Print listings (and photos) of each label in each split on stderr."""
    heading = "listings (photos)"
    width = max(len(name) for name in [heading, *table])
    print(f"{heading:{width}}" + "".join(f"{split:>20}" for split in SPLITS), file=sys.stderr)
    for name, row in table.items():
        cells = [f"{row[split]['listings']:,} ({row[split]['photos']:,})" for split in SPLITS]
        print(f"{name:{width}}" + "".join(f"{cell:>20}" for cell in cells), file=sys.stderr)


def draw_preview(training: pd.DataFrame, classes: list[str], images_dir: Path, seed: int) -> bytes:
    """A contact sheet (PNG) of photos of every label in turn, the label below and the split as the frame's colour."""
    drawn = training.assign(order=[_seeded_order(image_id, seed) for image_id in training["image_id"]]).sort_values("order")
    drawn["turn"] = drawn.groupby("label").cumcount()
    drawn = drawn.sort_values(["turn", "label"]).head(PREVIEW_TILES).sort_values(["label", "turn"])
    tiles = [(photos.load(images_dir, row.image_id, bytes), classes[row.label], FRAMES[row.split]) for row in drawn.itertuples()]
    sheet = io.BytesIO()
    photos.contact_sheet(tiles, PREVIEW_COLUMNS, PREVIEW_TILE_PX).save(sheet, "PNG")
    return sheet.getvalue()


def _previous_splits(folder: Path, settings: dict) -> pd.DataFrame | None:
    """The listings of an earlier run with the same settings; with others they are taken away and None is returned.

    settings.json always speaks of the listings.csv beside it, wherever a run was killed: old listings go before other settings
    are written, and settings are written before new listings.
    """
    settings_path, listings_path = folder / "settings.json", folder / "listings.csv"
    if settings_path.exists() and storage.read_json(settings_path) == settings:
        return storage.read_csv(listings_path) if listings_path.exists() else None
    listings_path.unlink(missing_ok=True)
    storage.write_json(settings_path, settings)
    return None


def run(args: argparse.Namespace) -> dict:
    tabular_dir, images_dir, folder = args.data / "tabular", args.data / "images", args.data / "dataset"
    storage.read_manifest(tabular_dir)
    storage.read_manifest(images_dir)
    settings = {"seed": args.seed, "group_column": args.group_column, "split_column": args.split_column}
    read = [tabular_dir / "products.csv", tabular_dir / "images.csv", images_dir / "photos.csv"]
    names = ("tabular/products.csv", "tabular/images.csv", "tabular/labels.json", "images/photos.csv")
    stage = storage.Stage(folder, settings, storage.digests(args.data, *names))
    if done := stage.finished():
        print_split_table(storage.read_json(folder / "report.json")["splits"])
        return done

    groups, _ = read_values(tabular_dir, args.group_column, "--group-column")
    given = read_given(tabular_dir, args.split_column)
    listings = read_keyed(read[0], "product_id", ["name", "description", "label"]).astype({"label": int})
    kept = read_keyed(read[2], "image_id", ["status", "sha256", "phash"])
    owners = read_keyed(read[1], "image_id", ["product_id"])
    joined = kept.merge(owners, on="image_id", how="left")
    owned = joined["product_id"].isin(listings["product_id"])
    used = joined[owned].reset_index(drop=True)
    if used.empty:
        raise StageError(f"none of the {len(kept)} kept photos in {images_dir} belongs to a listing in {tabular_dir}: "
                         "take Products.csv, Images.csv and the photos from one export")  # fmt: skip

    # In the table's order, photos of one listing by their ids: photos.csv is sorted by them, and numbers sort faster than ids.
    row_of_photo = pd.Index(listings["product_id"]).get_indexer(used["product_id"])
    used = used.iloc[np.argsort(row_of_photo, kind="stable")].reset_index(drop=True)

    stage.begin()
    # What shows or says the same thing is one thing offered twice; the values of --group-column make no duplicates.
    listings["duplicates"] = find_clusters(listings, used, groups[:0])
    listings["cluster"] = find_clusters(listings, used, groups) if len(groups) else listings["duplicates"]
    previous = _previous_splits(folder, settings)
    listings["split"], moved = assign_splits(listings, args.seed, given, previous)
    assert (listings.groupby("cluster")["split"].nunique() == 1).all(), "a cluster is in two splits"
    listings = listings[["product_id", "cluster", "duplicates", "label", "split"]]
    owners_of = listings.drop(columns="duplicates")
    training = used[["image_id", "product_id"]].merge(owners_of, on="product_id", how="left", validate="many_to_one")
    assert len(training) + (~owned).sum() == len(kept), "photos were lost"
    if moved["joined"]:
        # Not in the report: after a kill the rerun finds them in train already.
        print(f"clusters that joined two splits and went to train: {moved['joined']}", file=sys.stderr)

    classes = read_classes(tabular_dir)
    splits = split_table(listings, training, classes)
    counts = {
        "listings": len(listings),
        "photos": len(training),
        "clusters": int(listings["cluster"].nunique()),
        "largest_cluster": int(listings["cluster"].value_counts().max()),
        "clusters_spanning_given_splits": moved["spanning"],
        "photos_without_listing": int((~owned).sum()),
        "photos_without_file": int((~owners["image_id"].isin(kept["image_id"])).sum()),
        "listings_without_photo": int((~listings["product_id"].isin(training["product_id"])).sum()),
        **{split: splits["all"][split]["listings"] for split in SPLITS},
    }
    report = {
        **counts,
        "settings": settings,
        "shares_percent": SHARES,
        "splits": splits,
        "photo_ids_without_listing": joined.loc[~owned, "image_id"].tolist(),
        "product_ids_without_photo": listings.loc[~listings["product_id"].isin(training["product_id"]), "product_id"].tolist(),
    }
    storage.write_csv(folder / "listings.csv", listings)
    storage.write_csv(folder / "training_data.csv", training)
    storage.write_array(folder / "listings.npy", changes.hashed(listings, ["product_id", "duplicates", "split"]))
    storage.write_array(folder / "training_data.npy", changes.hashed(training, ["image_id", "product_id"]))
    storage.write_bytes(folder / "preview.png", draw_preview(training, classes, images_dir, args.seed))
    storage.write_json(folder / "report.json", report)
    print_split_table(splits)
    return stage.finish(counts, [*READ_LATER, "preview.png", "report.json"], READ_LATER)


# For training.


def photo_tensor(jpeg: bytes) -> torch.Tensor:
    """A cleaned photo as (3, H, W) uint8 RGB."""
    return torch.from_numpy(photos.pixels(jpeg)).permute(2, 0, 1).contiguous()


def listings_with_splits(data_dir: Path) -> pd.DataFrame:
    """read_products() with the cluster and the split of each listing, whatever columns of that name it had."""
    table = read_products(data_dir / "tabular")
    splits = storage.read_csv(data_dir / "dataset" / "listings.csv").set_index("product_id")
    table[["cluster", "split"]] = splits.loc[table["product_id"], ["cluster", "split"]].to_numpy()
    return table


class ListingPhotos(torch.utils.data.Dataset):
    """The photos of one split (of all when None), in the order of training_data.csv.

    Item i is (transform(JPEG bytes), label, i); the default transform is photo_tensor, and photos.model_input is the one for
    evaluation. table: image_id, product_id, cluster, label (int), split of each item; classes: the name of each label.
    Raises StageError when the dataset is not finished, its inputs have changed since, or a photo is gone or damaged.
    """

    def __init__(self, data_dir: Path, split: str | None = None, transform: Callable[[bytes], torch.Tensor] | None = None):
        self.images_dir = Path(data_dir) / "images"
        storage.check_inputs(Path(data_dir), "dataset")
        table = storage.read_csv(Path(data_dir) / "dataset" / "training_data.csv").astype({"label": int})
        self.table = table if split is None else table[table["split"] == split].reset_index(drop=True)
        self.classes = read_classes(Path(data_dir) / "tabular")
        self.transform = transform or photo_tensor
        self._items = list(zip(self.table["image_id"], self.table["label"].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        image_id, label = self._items[index]
        return photos.load(self.images_dir, image_id, self.transform), label, index


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=flags.not_negative, help="of the split (default: %(default)s)")
    parser.add_argument(
        "--group-column", help="column of products.csv or images.csv: rows with one value are never split (default: none)"
    )
    parser.add_argument("--split-column", help="column of products.csv or images.csv: train, validation or test (default: none)")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    return errors.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
