"""Join listings and photos, cluster what belongs together, and split the clusters into train, validation and test.

Reads   data/tabular/ (products.csv, images.csv, labels.json), data/images/ (photos.csv, <image_id>.jpg)
Writes  data/dataset/ (listings.csv, training_data.csv, settings.json, preview.png, report.json)
Run     python dataset.py
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from marketplace.cleaning import duplicates, folds, photos, pictures
from marketplace.cleaning.listings import read_classes, read_products
from marketplace.cleaning.splits import SHARES, assign_splits, seeded_order
from marketplace.files import atomic, cli, reading, stages
from marketplace.files.stages import StageError

if TYPE_CHECKING:
    import torch  # only training pays for the import, not the split

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {"val": "validation", "valid": "validation"} | {split: split for split in SPLITS}

PREVIEW_TILES, PREVIEW_COLUMNS, PREVIEW_TILE_PX = 48, 8, 128
FRAMES = {"train": "#4c78a8", "validation": "#f2a541", "test": "#54a24b"}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=cli.not_negative, help="of the split (default: %(default)s)")
    parser.add_argument(
        "--group-column", help="column of products.csv or images.csv: rows with one value are never split (default: none)"
    )
    parser.add_argument("--split-column", help="column of products.csv or images.csv: train, validation or test (default: none)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict:
    tabular_dir, images_dir, folder = args.data / "tabular", args.data / "images", args.data / "dataset"
    settings = {"seed": args.seed, "group_column": args.group_column, "split_column": args.split_column}
    with stages.open_stage(args.data, "dataset", settings, flags=cli.flags_of(args)) as stage:
        if stage.is_done():
            print_split_table(reading.read_json(folder / "report.json")["splits"])
            return stage.summary()
        groups, _ = read_values(tabular_dir, args.group_column, "--group-column")
        given = read_given(tabular_dir, args.split_column)
        classes = read_classes(tabular_dir)
        listings = read_keyed(tabular_dir / "products.csv", "product_id", ["name", "description", "price", "label"]).astype(
            {"label": int}
        )
        claimed = claim_photos(tabular_dir, images_dir, listings)

        stage.begin()
        listings = find_clusters(listings, claimed.used, groups)
        if args.group_column and len(listings) > 1 and listings["cluster"].nunique() == 1:
            raise StageError(
                f"--group-column {args.group_column} joins all {len(listings)} listings, so none is left to measure with: "
                "leave it out, or give a column that tells more of them apart"
            )
        previous = previous_splits(folder, settings)
        listings["split"], moved = assign_splits(listings, args.seed, given, previous)
        assert (listings.groupby("cluster")["split"].nunique() == 1).all(), "a cluster is in two splits"
        if moved["joined"]:
            # Not in the report: after a kill the rerun finds them in train already.
            print(f"clusters that joined two splits and went to train: {moved['joined']}", file=sys.stderr)
        training = label_photos(claimed.used, listings)
        report = make_report(listings, training, claimed, classes, moved["spanning"], settings)

        write_tables(folder, listings, training)
        atomic.write_bytes(folder / "preview.png", draw_preview(training, classes, images_dir, args.seed))
        atomic.write_json(folder / "report.json", report)
        print_split_table(report["splits"])
        counts = {name: value for name, value in report.items() if isinstance(value, int)}
        return stage.finish(counts)


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
        raise StageError(f"{path} holds {key} {twice.iloc[0]} twice: run python {stages.STAGES[path.parent.name].script} again")
    return table.sort_values(key, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class ClaimedPhotos:
    """used: the kept photos that belong to a listing (image_id, product_id, sha256, phash, colours), in the listings' order,
    those of one listing by their ids; unclaimed: image ids of the other kept photos; lost: rows of images.csv without a kept
    photo.
    """

    used: pd.DataFrame
    unclaimed: list[str]
    lost: int


def claim_photos(tabular_dir: Path, images_dir: Path, listings: pd.DataFrame) -> ClaimedPhotos:
    """Join photos and listings; StageError when nothing joins."""
    owners = read_keyed(tabular_dir / "images.csv", "image_id", ["product_id"])
    kept = read_keyed(images_dir / "photos.csv", "image_id", ["status", "sha256", "phash", "colours"])
    joined = kept.merge(owners, on="image_id", how="left")
    listing_rows = pd.Index(listings["product_id"]).get_indexer(joined["product_id"])
    if not (listing_rows >= 0).any():
        raise StageError(f"none of the {len(kept)} kept photos in {images_dir} belongs to a listing in {tabular_dir}: "
                         "take Products.csv, Images.csv and the photos from one export")  # fmt: skip
    order = np.argsort(listing_rows, kind="stable")  # photos.csv is sorted by id already, and numbers sort faster than ids
    used = joined.iloc[order[listing_rows[order] >= 0]].reset_index(drop=True)
    lost = int((~owners["image_id"].isin(kept["image_id"])).sum())
    return ClaimedPhotos(used, joined.loc[listing_rows < 0, "image_id"].tolist(), lost)


def find_clusters(listings: pd.DataFrame, used: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """product_id, cluster (what stays in one split), duplicates (the same thing offered twice) and label of each listing."""
    shown = duplicates.Photos.of(listings, used)
    same = folds.fold_ids(listings, shown)
    together = duplicates.find_clusters(listings, shown, same, groups)
    return pd.DataFrame(
        {"product_id": listings["product_id"], "cluster": together, "duplicates": same, "label": listings["label"]}
    )


def label_photos(used: pd.DataFrame, listings: pd.DataFrame) -> pd.DataFrame:
    """image_id, product_id, cluster, label and split of each photo."""
    owners = listings.drop(columns="duplicates")
    training = used[["image_id", "product_id"]].merge(owners, on="product_id", how="left", validate="many_to_one")
    assert len(training) == len(used), "photos were lost"
    return training


def make_report(
    listings: pd.DataFrame, training: pd.DataFrame, claimed: ClaimedPhotos, classes: list[str], spanning: int, settings: dict
) -> dict:
    """Counts, which are the stage's summary too, and what they are made of."""
    sizes = listings["cluster"].value_counts()
    without_photo = listings.loc[~listings["product_id"].isin(training["product_id"]), "product_id"].tolist()
    splits = split_table(listings, training, classes)
    return {
        "listings": len(listings),
        "photos": len(training),
        "clusters": len(sizes),
        "largest_cluster": int(sizes.max()),
        "clusters_spanning_given_splits": spanning,
        "photos_without_listing": len(claimed.unclaimed),
        "photos_without_file": claimed.lost,
        "listings_without_photo": len(without_photo),
        **{split: splits["all"][split]["listings"] for split in SPLITS},
        "settings": settings,
        "shares_percent": SHARES,
        "splits": splits,
        "photo_ids_without_listing": claimed.unclaimed,
        "product_ids_without_photo": without_photo,
    }


def write_tables(folder: Path, listings: pd.DataFrame, training: pd.DataFrame) -> None:
    atomic.write_csv(folder / "listings.csv", listings)
    atomic.write_csv(folder / "training_data.csv", training)


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
    drawn = training.assign(order=[seeded_order(image_id, seed) for image_id in training["image_id"]]).sort_values("order")
    drawn["turn"] = drawn.groupby("label").cumcount()
    drawn = drawn.sort_values(["turn", "label"]).head(PREVIEW_TILES).sort_values(["label", "turn"])
    tiles = [(photos.load(images_dir, row.image_id, bytes), classes[row.label], FRAMES[row.split]) for row in drawn.itertuples()]
    return pictures.contact_sheet(tiles, PREVIEW_COLUMNS, PREVIEW_TILE_PX)


def previous_splits(folder: Path, settings: dict) -> pd.DataFrame | None:
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


# For training.


def photo_tensor(jpeg: bytes) -> "torch.Tensor":
    """A cleaned photo as (3, H, W) uint8 RGB."""
    import torch

    return torch.from_numpy(photos.pixels(jpeg)).permute(2, 0, 1).contiguous()


def listings_with_splits(data_dir: Path) -> pd.DataFrame:
    """read_products() with the cluster and the split of each listing, whatever columns of that name it had."""
    table = read_products(data_dir / "tabular")
    splits = reading.read_csv(data_dir / "dataset" / "listings.csv").set_index("product_id")
    table[["cluster", "split"]] = splits.loc[table["product_id"], ["cluster", "split"]].to_numpy()
    return table


class ListingPhotos:
    """The photos of one split (of all when None), in the order of training_data.csv: a map-style Dataset for torch's DataLoader.

    Item i is (transform(JPEG bytes), label, i); the default transform is photo_tensor, and photos.model_input is the one for
    evaluation. table: image_id, product_id, cluster, label (int), split of each item; classes: the name of each label.
    Raises StageError when the dataset is not finished, its inputs have changed since, or a photo is gone or damaged.
    """

    def __init__(self, data_dir: Path, split: str | None = None, transform: Callable[[bytes], "torch.Tensor"] | None = None):
        self.images_dir = Path(data_dir) / "images"
        stages.check(Path(data_dir), "dataset")
        table = reading.read_csv(Path(data_dir) / "dataset" / "training_data.csv").astype({"label": int})
        self.table = table if split is None else table[table["split"] == split].reset_index(drop=True)
        self.classes = read_classes(Path(data_dir) / "tabular")
        self.transform = transform or photo_tensor
        self._items = list(zip(self.table["image_id"], self.table["label"].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> "tuple[torch.Tensor, int, int]":
        image_id, label = self._items[index]
        return photos.load(self.images_dir, image_id, self.transform), label, index


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
