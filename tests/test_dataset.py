"""dataset.py: tables and photos in, clusters and splits out, and the photos for training."""

import csv
import io
import itertools
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from marketplace.cleaning import photos
from marketplace.files import atomic, reading, stages
from tests.cleaning.clean_rows import NAMES, photo, product


def colour_jpeg(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 37 % 256, number * 91 % 256, number * 53 % 256)).save(out, "JPEG")
    return out.getvalue()


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_inputs(data: Path, products: list[dict], pictures: list[dict]) -> None:
    """What the two stages before would have left below `data`."""
    owners = [
        {"label": 0} | {key: value for key, value in row.items() if key not in RESULTS} for row in pictures if row["product_id"]
    ]
    write_table(data / "tabular" / "products.csv", products)
    write_table(data / "tabular" / "images.csv", owners or [{"image_id": "", "product_id": "", "label": ""}])
    write_table(data / "images" / "photos.csv", [{key: row[key] for key in ("image_id", *RESULTS)} for row in pictures])
    decoder = {str(label): name for label, name in enumerate(NAMES)}
    atomic.write_json(data / "tabular" / "labels.json", {"depth": 1, "encoder": {}, "decoder": decoder})
    for number, row in enumerate(pictures):
        atomic.write_bytes(data / "images" / f"{row['image_id']}.jpg", colour_jpeg(number))
    finish_inputs(data)


def finish_inputs(data: Path) -> None:
    """Say that the tables are as the two stages before wrote them."""
    stages.Stage(data, "tabular", {}, {}).finish({}, ["products.csv", "images.csv", "labels.json"])
    stages.Stage(data, "images", {}, {}).finish({}, ["photos.csv"])


RESULTS = ("status", "reason", "width", "height", "sha256", "phash", "colours")  # columns of photos.csv beside image_id


def marketplace(count: int, first: int = 0) -> tuple[list[dict], list[dict]]:
    """`count` unrelated listings with a photo each."""
    numbers = range(first, first + count)
    return [product(number) for number in numbers], [photo(number) for number in numbers]


def read_splits(data: Path) -> dict[str, str]:
    table = reading.read_csv(data / "dataset" / "listings.csv")
    return dict(zip(table["product_id"], table["split"], strict=True))


def outputs(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (data / "dataset").iterdir() if path.name != "manifest.json"}


def succeeds(data: Path, *flags: str) -> None:
    assert dataset.main(["--data", str(data), *flags]) == 0


def error_of(capsys, data: Path, *flags: str) -> str:
    capsys.readouterr()
    assert dataset.main(["--data", str(data), *flags]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err


# The stage.


def test_the_stage_writes_the_split_of_every_photo_and_listing(tmp_path, capsys):
    products, pictures = marketplace(30)
    products.append(product(90, label=1))
    pictures += [photo(60, "p0000"), photo(61, ""), photo(62, "p0777"), photo(63, "p0001", status="rejected", reason="truncated")]
    pictures += [photo(60, "", status="rejected", reason="not_an_image")]
    write_inputs(tmp_path, products, pictures)
    succeeds(tmp_path)
    out, err = capsys.readouterr()

    listings = reading.read_csv(tmp_path / "dataset" / "listings.csv")
    assert list(listings) == ["product_id", "cluster", "duplicates", "label", "split"]
    assert listings["product_id"].tolist() == sorted(row["product_id"] for row in products)
    assert listings["label"].tolist() == [str(row["label"]) for row in products]
    training = reading.read_csv(tmp_path / "dataset" / "training_data.csv")
    assert list(training) == ["image_id", "product_id", "cluster", "label", "split"]
    expected = sorted([(f"p{number:04d}", f"i{number:04d}") for number in range(30)] + [("p0000", "i0060")])
    assert list(zip(training["product_id"], training["image_id"], strict=True)) == expected
    merged = training.merge(listings, on="product_id", suffixes=("", "_of_listing"))
    assert (merged[["cluster", "label", "split"]].to_numpy() == merged.filter(like="_of_listing").to_numpy()).all()

    report = json.loads((tmp_path / "dataset" / "report.json").read_text())
    assert report["photo_ids_without_listing"] == ["i0061", "i0062"]
    assert report["product_ids_without_photo"] == ["p0090"]
    assert report["clusters"] == 31 and report["largest_cluster"] == 1
    assert report["settings"] == {"seed": 0, "group_column": None, "split_column": None}
    for label, name in enumerate(NAMES):
        for split in ("train", "validation", "test"):
            rows = [table[(table["label"] == str(label)) & (table["split"] == split)] for table in (listings, training)]
            assert report["splits"][name][split] == {"listings": len(rows[0]), "photos": len(rows[1])}
    assert sum(cell["photos"] for cell in report["splits"]["all"].values()) == 31

    summary = json.loads(out)
    assert summary.pop("seconds") >= 0
    sizes = listings["split"].value_counts()
    assert summary == {
        "stage": "dataset",
        "listings": 31,
        "photos": 31,
        "clusters": 31,
        "largest_cluster": 1,
        "clusters_spanning_given_splits": 0,
        "photos_without_listing": 2,
        "photos_without_file": 1,
        "listings_without_photo": 1,
        **{split: int(sizes[split]) for split in ("train", "validation", "test")},
    }
    row = report["splits"]["Appliances"]
    cells = [f"{row[split]['listings']} ({row[split]['photos']})" for split in ("train", "validation", "test")]
    assert f"{'Appliances':17}" + "".join(f"{cell:>20}" for cell in cells) + "\n" in err


def test_the_preview_is_a_png_of_the_photos(tmp_path):
    write_inputs(tmp_path, *marketplace(12))
    succeeds(tmp_path)
    with Image.open(tmp_path / "dataset" / "preview.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG"
        assert len({colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}) > 12


def test_a_rerun_writes_nothing_and_prints_the_table_again(tmp_path, capsys):
    write_inputs(tmp_path, *marketplace(12))
    succeeds(tmp_path)
    table = capsys.readouterr().err.partition("listings (photos)")[2]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").iterdir()}
    succeeds(tmp_path)
    out, err = capsys.readouterr()
    assert json.loads(out)["unchanged"] is True
    assert err.partition("listings (photos)")[2] == table != ""
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "dataset").iterdir()} == before


def test_the_order_of_the_rows_changes_no_byte(tmp_path):
    products, pictures = marketplace(40)
    write_inputs(tmp_path / "a", products, pictures)
    write_inputs(tmp_path / "b", products[::-1], pictures)
    photo_rows = pictures[20:] + pictures[:20]
    write_table(
        tmp_path / "b" / "images" / "photos.csv", [{key: row[key] for key in ("image_id", *RESULTS)} for row in photo_rows]
    )
    finish_inputs(tmp_path / "b")
    succeeds(tmp_path / "a")
    succeeds(tmp_path / "b")
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")


def test_a_rerun_with_more_listings_keeps_every_split_and_another_seed_makes_them_afresh(tmp_path):
    write_inputs(tmp_path, *marketplace(60))
    succeeds(tmp_path)
    before = read_splits(tmp_path)
    write_inputs(tmp_path, *marketplace(90))
    succeeds(tmp_path)
    grown = read_splits(tmp_path)
    assert len(grown) == 90
    assert {product_id: grown[product_id] for product_id in before} == before
    succeeds(tmp_path, "--seed", "1")
    fresh = tmp_path / "fresh"
    write_inputs(fresh, *marketplace(90))
    succeeds(fresh, "--seed", "1")
    assert read_splits(tmp_path) == read_splits(fresh) != grown


def test_a_duplicate_photo_that_joins_two_splits_moves_both_listings_to_train(tmp_path, capsys):
    products, pictures = marketplace(60)
    write_inputs(tmp_path, products, pictures)
    succeeds(tmp_path)
    splits = read_splits(tmp_path)
    tested, validated = (next(key for key, split in splits.items() if split == wanted) for wanted in ("test", "validation"))
    write_inputs(tmp_path, products, [*pictures, photo(100, tested), photo(101, validated, sha256=photo(100)["sha256"])])
    capsys.readouterr()
    succeeds(tmp_path)
    assert read_splits(tmp_path) == splits | {tested: "train", validated: "train"}
    assert "clusters that joined two splits and went to train: 1\n" in capsys.readouterr().err


def test_splits_given_by_the_user_are_kept_and_empty_ones_are_assigned(tmp_path, capsys):
    products, pictures = marketplace(40)
    words = ["train", "Val", " valid", "validation", "TEST", ""]
    products = [row | {"fold": words[number % 6]} for number, row in enumerate(products)]
    pictures[4]["sha256"] = pictures[1]["sha256"]  # joins a test and a validation listing
    write_inputs(tmp_path, products, pictures)
    succeeds(tmp_path, "--split-column", "fold")
    splits = read_splits(tmp_path)
    meaning = dict(zip(words, ["train", "validation", "validation", "validation", "test", None], strict=True))
    for number, row in enumerate(products):
        expected = "train" if number in (1, 4) else meaning[row["fold"]]
        assert expected in (None, splits[row["product_id"]])
    assert json.loads(capsys.readouterr().out)["clusters_spanning_given_splits"] == 1


def test_splits_can_be_given_photo_by_photo(tmp_path):
    products, pictures = marketplace(9)
    pictures = [row | {"fold": ["train", "val", "test"][number % 3]} for number, row in enumerate(pictures)]
    pictures.append(photo(20, "p0002", fold="val"))  # the other photo of p0002 is in test
    write_inputs(tmp_path, products, pictures)
    succeeds(tmp_path, "--split-column", "fold")
    expected = ["train", "validation", "train", "train", "validation", "test", "train", "validation", "test"]
    assert list(read_splits(tmp_path).values()) == expected


class Killed(BaseException):
    """What no handler of the stage catches, as no handler catches SIGKILL."""


@pytest.mark.parametrize("flags", [(), ("--seed", "3")], ids=["more listings", "other settings"])
def test_a_run_killed_between_any_two_writes_and_run_again_ends_with_the_same_bytes(tmp_path, monkeypatch, flags):
    earlier = tmp_path / "earlier"
    products, pictures = marketplace(40)
    write_inputs(earlier, products, pictures)
    succeeds(earlier)
    splits = read_splits(earlier)
    tested, validated = (next(key for key, split in splits.items() if split == wanted) for wanted in ("test", "validation"))
    products, pictures = marketplace(60)
    pictures += [photo(100, tested), photo(101, validated, sha256=photo(100)["sha256"])]
    write_inputs(earlier, products, pictures)
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(earlier, undisturbed)
    succeeds(undisturbed, *flags)

    rename = os.replace
    for writes_done in itertools.count():
        data = tmp_path / f"killed after {writes_done}"
        shutil.copytree(earlier, data)
        left = [writes_done]

        def rename_until_killed(source, target, left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1
            rename(source, target)

        monkeypatch.setattr(os, "replace", rename_until_killed)
        try:
            succeeds(data, *flags)
            finished = True
        except Killed:
            finished = False
        monkeypatch.setattr(os, "replace", rename)
        assert finished or not (data / "dataset" / "manifest.json").exists()
        succeeds(data, *flags)
        assert outputs(data) == outputs(undisturbed)
        if finished:
            break
    assert writes_done >= 5


def test_the_words_na_none_and_null_are_read_as_texts_and_group_values(tmp_path):
    words = {"name": "NA", "description": "null None NA null None NA nan"}
    products, pictures = marketplace(12)
    products = [row | {"seller": "", "town": ""} for row in products]
    products[3] |= words
    products[7] |= words
    products[1]["seller"] = products[8]["seller"] = "None"
    products[2]["seller"] = products[10]["seller"] = "NA"
    write_inputs(tmp_path, products, pictures)
    succeeds(tmp_path, "--group-column", "seller")
    table = reading.read_csv(tmp_path / "dataset" / "listings.csv").set_index("product_id")
    moved = {product_id: cluster for product_id, cluster in table["cluster"].items() if product_id != cluster}
    assert moved == {"p0007": "p0003", "p0008": "p0001", "p0010": "p0002"}
    # One seller's listings are kept together, and those of one text; none of them is another's duplicate, as the photos differ.
    assert (table["duplicates"] == table.index).all()


def test_the_same_thing_offered_twice_is_a_duplicate_and_one_photo_in_common_is_none(tmp_path):
    products, pictures = marketplace(40)
    products[7] |= {key: products[3][key] for key in ("name", "description")}
    same = {key: pictures[3][key] for key in ("sha256", "phash", "colours")}
    pictures[7] |= same
    pictures[9] |= same
    write_inputs(tmp_path, products, pictures)
    succeeds(tmp_path)
    table = reading.read_csv(tmp_path / "dataset" / "listings.csv").set_index("product_id")
    assert {product_id: first for product_id, first in table["duplicates"].items() if product_id != first} == {"p0007": "p0003"}
    clusters = {product_id: first for product_id, first in table["cluster"].items() if product_id != first}
    assert clusters == {"p0007": "p0003", "p0009": "p0003"}


def test_a_logo_puts_no_shop_into_one_split(tmp_path):
    products, pictures = marketplace(60)
    pictures += [photo(100, f"p{number:04d}") | {"image_id": f"logo{number}"} for number in range(50)]
    write_inputs(tmp_path, products, pictures)
    succeeds(tmp_path)
    table = reading.read_csv(tmp_path / "dataset" / "listings.csv")
    assert (table["cluster"] == table["product_id"]).all() and (table["duplicates"] == table["product_id"]).all()
    assert set(table["split"][:50]) == {"train", "validation", "test"}


def test_a_group_column_of_the_photos_joins_all_listings_of_a_sender(tmp_path):
    products, pictures = marketplace(10)
    pictures = [row | {"sender": f"s{number % 2}" if number < 4 else " "} for number, row in enumerate(pictures)]
    write_inputs(tmp_path, products, pictures)
    succeeds(tmp_path, "--group-column", "sender")
    clusters = reading.read_csv(tmp_path / "dataset" / "listings.csv")["cluster"].tolist()
    assert clusters == ["p0000", "p0001", "p0000", "p0001"] + [f"p{number:04d}" for number in range(4, 10)]


# Failures.


def test_a_group_column_that_joins_all_listings_is_refused(tmp_path, capsys):
    products, pictures = marketplace(9)
    write_inputs(tmp_path, [row | {"seller": "one"} for row in products], pictures)
    assert error_of(capsys, tmp_path, "--group-column", "seller").splitlines()[-1] == (
        "error: --group-column seller joins all 9 listings, so none is left to measure with: "
        "leave it out, or give a column that tells more of them apart"
    )


def test_a_stage_that_is_not_finished_is_named_with_its_command(tmp_path, capsys):
    assert (
        error_of(capsys, tmp_path) == f"error: {tmp_path / 'tabular'} is not finished: run python clean_tabular_data.py first\n"
    )
    write_inputs(tmp_path, *marketplace(3))
    (tmp_path / "images" / "manifest.json").unlink()
    assert error_of(capsys, tmp_path) == f"error: {tmp_path / 'images'} is not finished: run python clean_images.py first\n"


@pytest.mark.parametrize("flag", ["--group-column", "--split-column"])
def test_a_column_that_does_not_exist_is_answered_with_those_that_do(tmp_path, capsys, flag):
    products, pictures = marketplace(3)
    write_inputs(tmp_path, products, [row | {"sender": "s"} for row in pictures])
    assert error_of(capsys, tmp_path, flag, "seller") == (
        f"error: {flag} seller is no column of {tmp_path / 'tabular'}: "
        "choose one of product_id, name, description, category, label, price, image_id, sender\n"
    )


def test_a_value_that_is_no_split_is_named(tmp_path, capsys):
    products, pictures = marketplace(3)
    write_inputs(tmp_path, [row | {"fold": "tset"} for row in products], pictures)
    assert error_of(capsys, tmp_path, "--split-column", "fold") == (
        f'error: column fold of {tmp_path / "tabular" / "products.csv"} holds "tset": write train, validation, test or nothing\n'
    )


def test_photos_without_any_listing_are_answered_with_one_sentence(tmp_path, capsys):
    write_inputs(tmp_path, [product(0)], [photo(1, ""), photo(2, "p0777")])
    assert error_of(capsys, tmp_path) == (
        f"error: none of the 2 kept photos in {tmp_path / 'images'} belongs to a listing in {tmp_path / 'tabular'}: "
        "take Products.csv, Images.csv and the photos from one export\n"
    )


def test_a_photo_that_stands_twice_in_the_table_is_named(tmp_path, capsys):
    write_inputs(tmp_path, [product(0), product(1)], [photo(0), photo(0, "p0001")])
    path = tmp_path / "tabular" / "images.csv"
    table = reading.read_csv(path)
    write_table(tmp_path / "images" / "photos.csv", [{key: photo(0)[key] for key in ("image_id", *RESULTS)}])
    assert len(table) == 2
    finish_inputs(tmp_path)
    assert error_of(capsys, tmp_path) == f"error: {path} holds image_id i0000 twice: run python clean_tabular_data.py again\n"


@pytest.mark.parametrize(("flags", "code"), [(["--seed", "x"], 2), (["--help"], 0)])
def test_wrong_usage_exits_with_2_and_help_with_0(flags, code):
    with pytest.raises(SystemExit) as caught:
        dataset.main(flags)
    assert caught.value.code == code


# For training.


@pytest.fixture
def finished(tmp_path) -> Path:
    write_inputs(tmp_path, *marketplace(24))
    succeeds(tmp_path)
    return tmp_path


def test_listing_photos_come_through_a_loader_with_workers(finished):
    photos_of_split = {split: dataset.ListingPhotos(finished, split) for split in ("train", "validation", "test")}
    assert sum(len(part) for part in photos_of_split.values()) == len(dataset.ListingPhotos(finished)) == 24
    part = photos_of_split["train"]
    assert part.classes == NAMES
    assert set(part.table["split"]) == {"train"}
    loader = torch.utils.data.DataLoader(part, batch_size=5, num_workers=2)
    batches = [torch.cat(column) for column in zip(*loader, strict=True)]
    assert batches[0].shape == (len(part), 3, 32, 32) and batches[0].dtype == torch.uint8
    assert batches[1].tolist() == part.table["label"].tolist()
    assert batches[2].tolist() == list(range(len(part)))
    for pixels, image_id in zip(batches[0], part.table["image_id"], strict=True):
        stored = np.asarray(Image.open(finished / "images" / f"{image_id}.jpg").convert("RGB"))
        assert (pixels.permute(1, 2, 0).numpy() == stored).all()


def test_listing_photos_take_the_evaluation_transform(finished):
    transform = partial(photos.model_input, size=16, mean=[0.5] * 3, std=[0.5] * 3)
    part = dataset.ListingPhotos(finished, "test", transform)
    tensor, label, index = part[0]
    assert tensor.shape == (3, 16, 16)
    assert (label, index) == (part.table["label"][0], 0)


def test_listing_photos_refuse_an_unfinished_dataset_and_a_lost_photo(finished):
    part = dataset.ListingPhotos(finished, "train")
    path = finished / "images" / f"{part.table['image_id'][0]}.jpg"
    path.unlink()
    with pytest.raises(dataset.StageError) as caught:
        part[0]
    assert str(caught.value) == f"{path} is missing or damaged: run python clean_images.py again"
    (finished / "dataset" / "manifest.json").unlink()
    with pytest.raises(dataset.StageError) as caught:
        dataset.ListingPhotos(finished)
    assert str(caught.value) == f"{finished / 'dataset'} is not finished: run python dataset.py first"
