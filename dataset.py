"""Join listings and photos, cluster what belongs together, and split the clusters into train, validation and test.

Reads   data/tabular/ (products.csv, images.csv, labels.json), data/images/ (photos.csv, <image_id>.jpg)
Writes  data/dataset/ (listings.csv, training_data.csv, with hashes of their ids as .npy; preview.png, report.json, settings.json)
Run     python dataset.py
"""

import argparse
import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from marketplace.cleaning import duplicates, photos, pictures
from marketplace.cleaning.listings import read_classes
from marketplace.files import atomic, changes, cli, reading, stages
from marketplace.files.stages import StageError

SHARES = {"train": 70, "test": 15, "validation": 15}  # percent of the listings of each label; an even choice goes to the first


SPLITS = ("train", "validation", "test")


SPLIT_WORDS = {"val": "validation", "valid": "validation"} | {split: split for split in SPLITS}


PREVIEW_TILES, PREVIEW_COLUMNS, PREVIEW_TILE_PX = 48, 8, 128


READ_LATER = ("settings.json", "listings.csv", "listings.npy", "training_data.csv", "training_data.npy")  # by other stages


FRAMES = {"train": "#4c78a8", "validation": "#f2a541", "test": "#54a24b"}


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
        columns = reading.read_csv(tabular_dir / name, nrows=0).columns
        if column in columns:
            table = reading.read_csv(tabular_dir / name, usecols=list({"product_id", column}))
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
    table = reading.read_csv(path, usecols=[key, *columns])
    if "status" in columns:
        table = table[table["status"] == "ok"]
    twice = table.loc[table[key].duplicated(), key]
    if len(twice):
        raise StageError(f"{path} holds {key} {twice.iloc[0]} twice: run python {stages.SCRIPTS[path.parent.name]} again")
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
    pictures.contact_sheet(tiles, PREVIEW_COLUMNS, PREVIEW_TILE_PX).save(sheet, "PNG")
    return sheet.getvalue()


def _previous_splits(folder: Path, settings: dict) -> pd.DataFrame | None:
    """The listings of an earlier run with the same settings; with others they are taken away and None is returned.

    settings.json always speaks of the listings.csv beside it, wherever a run was killed: old listings go before other settings
    are written, and settings are written before new listings.
    """
    settings_path, listings_path = folder / "settings.json", folder / "listings.csv"
    if settings_path.exists() and reading.read_json(settings_path) == settings:
        return reading.read_csv(listings_path) if listings_path.exists() else None
    listings_path.unlink(missing_ok=True)
    atomic.write_json(settings_path, settings)
    return None


def run(args: argparse.Namespace) -> dict:
    tabular_dir, images_dir, folder = args.data / "tabular", args.data / "images", args.data / "dataset"
    stages.read_manifest(tabular_dir)
    stages.read_manifest(images_dir)
    settings = {"seed": args.seed, "group_column": args.group_column, "split_column": args.split_column}
    read = [tabular_dir / "products.csv", tabular_dir / "images.csv", images_dir / "photos.csv"]
    names = ("tabular/products.csv", "tabular/images.csv", "tabular/labels.json", "images/photos.csv")
    stage = stages.Stage(folder, settings, stages.digests(args.data, *names))
    if done := stage.finished():
        print_split_table(reading.read_json(folder / "report.json")["splits"])
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
    listings["duplicates"] = duplicates.find_clusters(listings, used, groups[:0])
    listings["cluster"] = duplicates.find_clusters(listings, used, groups) if len(groups) else listings["duplicates"]
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
    atomic.write_csv(folder / "listings.csv", listings)
    atomic.write_csv(folder / "training_data.csv", training)
    atomic.write_array(folder / "listings.npy", changes.hashed(listings, ["product_id", "duplicates", "split"]))
    atomic.write_array(folder / "training_data.npy", changes.hashed(training, ["image_id", "product_id"]))
    atomic.write_bytes(folder / "preview.png", draw_preview(training, classes, images_dir, args.seed))
    atomic.write_json(folder / "report.json", report)
    print_split_table(splits)
    return stage.finish(counts, [*READ_LATER, "preview.png", "report.json"], READ_LATER)


# For training.


def photo_tensor(jpeg: bytes) -> torch.Tensor:
    """A cleaned photo as (3, H, W) uint8 RGB."""
    return torch.from_numpy(photos.pixels(jpeg)).permute(2, 0, 1).contiguous()


class ListingPhotos(torch.utils.data.Dataset):
    """The photos of one split (of all when None), in the order of training_data.csv.

    Item i is (transform(JPEG bytes), label, i); the default transform is photo_tensor, and photos.model_input is the one for
    evaluation. table: image_id, product_id, cluster, label (int), split of each item; classes: the name of each label.
    Raises StageError when the dataset is not finished, its inputs have changed since, or a photo is gone or damaged.
    """

    def __init__(self, data_dir: Path, split: str | None = None, transform: Callable[[bytes], torch.Tensor] | None = None):
        self.images_dir = Path(data_dir) / "images"
        stages.check_inputs(Path(data_dir), "dataset")
        table = reading.read_csv(Path(data_dir) / "dataset" / "training_data.csv").astype({"label": int})
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
    parser.add_argument("--seed", default=0, type=cli.not_negative, help="of the split (default: %(default)s)")
    parser.add_argument(
        "--group-column", help="column of products.csv or images.csv: rows with one value are never split (default: none)"
    )
    parser.add_argument("--split-column", help="column of products.csv or images.csv: train, validation or test (default: none)")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
