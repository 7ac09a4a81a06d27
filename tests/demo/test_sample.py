"""The synthetic marketplace: its counts against an independent count of its files, and its drawings."""

import hashlib
import io
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from demo import drawings, sample, wording

LISTINGS = 60
HEADER = ["", "id", "product_name", "category", "product_description", "price", "location"]
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
PRICE = re.compile(r"£\d{1,3}(,\d{3})*\.\d\d")
KIND_NAMES = [kind.name for kind in wording.ALL_KINDS]


class Market:
    """What stands in the files, read without the code that wrote them."""

    def __init__(self, folder: Path, counts: dict):
        self.folder, self.counts = folder, counts
        self.header, *self.records = read_records(folder / "Products.csv")
        self.images_header, *self.images = read_records(folder / "Images.csv")
        self.kept, self.rejected, seen = [], Counter(), set()
        for record in self.records:
            reason = (
                "null_price" if record[5] == "" else "bad_price" if not PRICE.fullmatch(record[5])
                else "bad_id" if not UUID.fullmatch(record[1]) else "duplicate_id" if record[1] in seen else None
            )  # fmt: skip
            if reason:
                self.rejected[reason] += 1
            else:
                seen.add(record[1])
                self.kept.append(record)
        self.files = {image_id: (folder / "images" / f"{image_id}.jpg").read_bytes() for _, image_id, _ in self.images}
        self.pictures = {image_id: picture for image_id, data in self.files.items() if (picture := decoded(data))}


def read_records(path: Path) -> list[list[str]]:
    """Records end at a newline; a quoted field ends at a quote that is not doubled."""
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    fields = re.compile(r'("(?:[^"]|"")*"|[^,]*)(?:,|$)')
    records = []
    for line in text[:-1].split("\n"):
        raw = fields.findall(line)[: line_fields(line)]
        for field in raw:
            assert field.startswith('"') == bool(re.search('[,"]', field.strip('"'))), field
        records.append([field[1:-1].replace('""', '"') if field.startswith('"') else field for field in raw])
    return records


def line_fields(line: str) -> int:
    return re.sub(r'"[^"]*"', "", line).count(",") + 1


def decoded(data: bytes) -> Image.Image | None:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except OSError:
        return None
    return image


def title_of(record: list[str]) -> str:
    tail = f" | in {record[6]} | Gumtree"
    assert record[2].endswith(tail)
    return record[2].removesuffix(tail)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Market:
    folder = tmp_path_factory.mktemp("market")
    return Market(folder, sample.write(folder, LISTINGS, seed=3))


def test_the_same_arguments_give_the_same_bytes_also_over_what_a_killed_run_left(market, tmp_path):
    (tmp_path / "images").mkdir()
    for path in sorted((market.folder / "images").iterdir())[::2]:
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
    (tmp_path / ".sample.tmp").write_bytes(b"half a ph")
    sample.write(tmp_path, LISTINGS, seed=3)
    assert folder_bytes(tmp_path) == folder_bytes(market.folder)


def test_another_seed_gives_another_marketplace(market, tmp_path):
    sample.write(tmp_path, 5, seed=4)
    assert not {record[1] for record in read_records(tmp_path / "Products.csv")[1:]} & {record[1] for record in market.records}


def test_the_files_have_the_exports_schema(market):
    assert market.header == HEADER
    assert market.images_header == ["", "id", "product_id"]
    assert all(len(record) == len(HEADER) for record in market.records)
    for table in (market.records, market.images):
        numbers = [int(record[0]) for record in table]
        assert numbers == sorted(set(numbers)) and numbers[-1] > len(numbers) - 1
    assert len(market.files) == len(market.images)
    assert {f"{image_id}.jpg" for image_id in market.files} == {path.name for path in (market.folder / "images").iterdir()}
    assert all(UUID.fullmatch(image_id) for image_id in market.files)


def test_every_record_is_kept_or_rejected_for_the_reason_that_the_counts_give(market):
    assert len(market.kept) == market.counts["listings"] == LISTINGS
    assert dict(market.rejected) == market.counts["rejected"] == dict.fromkeys(sample.REJECT_REASONS, 1)
    assert len(market.records) == market.counts["records"]


def test_the_counts_of_the_photos_are_those_of_the_files(market):
    counts, kept_ids = market.counts, {record[1] for record in market.kept}
    assert counts["photos"] == len(market.files)
    assert counts["broken_files"] == len(market.files) - len(market.pictures) >= 3
    assert counts["broken_files"] / counts["photos"] < 0.2
    unlisted = [product_id for _, _, product_id in market.images if product_id not in kept_ids]
    of_rejected = {record[1] for record in market.records} - kept_ids
    assert counts["photos_without_listing"] == len(unlisted)
    assert counts["photos_of_rejected_records"] == sum(product_id in of_rejected for product_id in unlisted) >= 1
    photos_each = Counter(product_id for _, _, product_id in market.images)
    assert counts["listings_without_photo"] == sum(product_id not in photos_each for product_id in kept_ids) >= 1
    assert set(photos_each.values()) == {1, 2}


def test_the_counts_of_the_duplicates_are_those_of_the_files(market):
    listing_of = {image_id: product_id for _, image_id, product_id in market.images}
    groups: dict[str, list[str]] = {}
    for image_id in market.pictures:
        groups.setdefault(hashlib.sha256(market.files[image_id]).hexdigest(), []).append(image_id)
    groups = {key: ids for key, ids in groups.items() if len(ids) > 1}
    assert len(groups) == market.counts["duplicate_groups"]
    assert sum(len(ids) for ids in groups.values()) == market.counts["duplicate_photos"]
    listings_each = {len({listing_of[image_id] for image_id in ids}) for ids in groups.values()}
    assert 1 in listings_each and max(listings_each) > 1
    hashes = {image_id: imagehash.phash(picture.convert("RGB")) for image_id, picture in market.pictures.items()}
    alike = sum(
        hashes[one] - hashes[other] <= 6 and market.files[one] != market.files[other] and listing_of[one] != listing_of[other]
        for one, other in itertools.combinations(hashes, 2)
    )
    assert alike >= market.counts["near_duplicate_photos"] >= 1


def test_the_counts_of_the_texts_traps_are_those_of_the_table(market):
    counts, texts = market.counts, [f"{title_of(record)}\n{record[4]}" for record in market.kept]

    def holding(pattern: str) -> int:
        return sum(bool(re.search(pattern, text)) for text in texts)

    assert counts["carriage_returns"] == sum(record[4].count("\r") for record in market.kept) > LISTINGS
    assert counts["posted_by"] == holding(r"Posted by .+ in .+ in .+\. \d{1,2} \w+ 202\d") >= 1
    assert counts["names_with_pipes"] == sum(" | " in title_of(record) for record in market.kept) >= 1
    assert counts["listings_with_email"] == holding(r"\S@example\.com") >= 1
    assert counts["listings_with_postcode"] == holding(r"(?i)\bzz\d\d? ?\d[a-z]{2}\b") >= 1
    assert counts["listings_with_phone"] == holding(r"(?:0|44)[\s().-]*(?:\d[\s().-]*){9,10}") >= 1
    pounds = [float(record[5][1:].replace(",", "")) for record in market.kept]
    assert counts["implausible_prices"] == sum(price == 0 or price > 100_000 for price in pounds) >= 1
    repeated = Counter(texts)
    assert counts["same_text_listings"] == sum(repeated.values()) - len(repeated) >= 1
    assert all(len(text.split()) >= 8 for text, times in repeated.items() if times > 1)


def test_every_phone_number_is_one_that_belongs_to_nobody(market):
    for record in market.records:
        for number in re.findall(r"(?:\+|0)(?:[\s().-]*\d){9,13}", f"{record[2]} {record[4]}"):
            digits = re.sub(r"^(0044|44)0?", "0", re.sub(r"\D", "", number))
            assert re.fullmatch(r"07700900\d{3}|02079460\d{3}|01614960\d{3}|01632960\d{3}", digits), number


def test_a_default_read_makes_more_rows_of_the_table_than_there_are_listings(market):
    assert len(pd.read_csv(market.folder / "Products.csv", on_bad_lines="skip")) > len(market.records)


def test_the_odd_files_are_readable_and_counted_by_form(market):
    forms = market.counts["forms"]
    pictures = market.pictures.values()
    assert forms["png"] == sum(picture.format == "PNG" for picture in pictures) >= 1
    assert forms["cmyk"] == sum(picture.mode == "CMYK" for picture in pictures) >= 1
    assert forms["grayscale"] == sum(picture.mode == "L" for picture in pictures) >= 1
    assert forms["oriented"] == sum(picture.getexif().get(0x0112, 1) != 1 for picture in pictures) >= 1
    broken = [data for image_id, data in market.files.items() if image_id not in market.pictures]
    assert forms["empty"] == broken.count(b"")
    assert forms["truncated"] == sum(data.startswith(b"\xff\xd8\xff") for data in broken)
    assert forms["text"] == sum(data.isascii() and data != b"" for data in broken)
    assert min(max(picture.size) for picture in pictures if picture.format == "PNG" or picture.mode == "CMYK") >= 300
    assert max(max(picture.size) for picture in pictures) <= 640


@pytest.mark.parametrize("number", range(6))
def test_a_photo_turned_by_its_exif_orientation_is_upright_for_who_obeys_it(number):
    upright, turned = (
        sample.encode(sample.Photo(f"photo {number}", "listing", "kettle", "seed", 0, form)) for form in ("jpeg", "oriented")
    )
    obeyed = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
    upright = Image.open(io.BytesIO(upright))
    assert abs(obeyed.width / obeyed.height - upright.width / upright.height) < 0.01
    assert imagehash.phash(obeyed) - imagehash.phash(upright) <= 6


def test_from_forty_listings_on_every_trap_is_there(tmp_path):
    counts = sample.write(tmp_path, sample.TRAPS_FROM, seed=0)
    assert set(sample.BROKEN) | set(sample.ODD) | {"same", "near"} <= set(counts["forms"])
    assert set(counts["rejected"]) == set(sample.REJECT_REASONS)
    zeros = [key for key, value in counts.items() if value == 0]
    assert zeros == []


@pytest.mark.parametrize("listings, per_category", [(1, {1}), (13, {1}), (20, {1, 2}), (26, {2})])
def test_few_listings_are_spread_evenly_over_the_categories(tmp_path, listings, per_category):
    counts = sample.write(tmp_path, listings)
    assert sum(counts["categories"].values()) == counts["listings"] == counts["records"] == listings
    assert set(counts["categories"].values()) == per_category and len(counts["categories"]) == min(listings, 13)
    assert counts["kinds"] == listings


def test_every_kind_is_there_from_26_listings_on(market):
    assert market.counts["kinds"] == len({record[3] for record in market.kept}) == len(KIND_NAMES)


def test_thirteen_categories_of_two_to_five_levels_hold_two_kinds_each():
    paths = [kind.category for kind in wording.ALL_KINDS]
    mains = Counter(path.split(" / ")[0] for path in paths)
    assert len(mains) == 13 and set(mains.values()) == {2}
    assert {len(path.split(" / ")) for path in paths} == {2, 3, 4, 5}
    assert any(re.search(r"\S/\S", path) for path in paths)
    assert len(set(paths)) == len(set(KIND_NAMES)) == 26


def test_every_kind_that_is_listed_is_drawn_and_no_other():
    assert sorted(drawings.SHAPES) == sorted(KIND_NAMES)
    assert set(drawings.TURNED_DEG) <= set(KIND_NAMES)


def small(kind: str, seed: object, view: int = 0) -> np.ndarray:
    return np.asarray(drawings.draw(kind, random.Random(seed), view, (96, 96)), np.float32)


def test_every_kind_is_drawn_unlike_every_other_kind():
    pictures = {kind: small(kind, "one palette, one background") for kind in KIND_NAMES}
    alike = {
        (one, other): gap
        for one, other in itertools.combinations(KIND_NAMES, 2)
        if (gap := float(np.abs(pictures[one] - pictures[other]).mean())) < 6
    }
    assert alike == {}


@pytest.mark.parametrize("kind", KIND_NAMES[::4])
def test_two_views_show_one_object_otherwise_and_another_seed_shows_another(kind):
    first = small(kind, 1)
    assert np.array_equal(first, small(kind, 1))
    assert np.abs(first - small(kind, 1, view=1)).mean() > 8
    assert np.abs(first - small(kind, 2)).mean() > 8


def test_a_picture_has_the_size_asked_for():
    picture = drawings.draw("kettle", random.Random(0), 0, (120, 90))
    assert (picture.size, picture.mode) == ((120, 90), "RGB")
    with pytest.raises(KeyError, match="teapot"):
        drawings.draw("teapot", random.Random(0), 0, (120, 90))


def test_colours_do_not_give_the_category_away():
    shown = [(kind.category.split(" / ")[0], kind.name, seed) for kind in wording.ALL_KINDS for seed in range(5)]
    labels = np.array([label for label, _, _ in shown])
    levels = [(small(name, f"{name} {seed}").reshape(-1, 3) // 32).astype(int) @ (64, 8, 1) for _, name, seed in shown]
    histograms = np.stack([np.bincount(level, minlength=512) for level in levels])
    gaps = np.abs(histograms[:, None] - histograms[None]).sum(2)
    np.fill_diagonal(gaps, gaps.max() + 1)
    assert (labels[gaps.argmin(1)] == labels).mean() < 0.3


def test_the_command_prints_the_counts_as_one_json_line(tmp_path, capsys):
    assert sample.main(["--out", str(tmp_path / "raw"), "--listings", "4", "--seed", "9"]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert json.loads(output)["listings"] == 4
    assert (tmp_path / "raw" / "Products.csv").is_file()


def test_a_folder_with_other_data_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_bytes(b"my photo")
    assert sample.main(["--out", str(tmp_path), "--listings", "2"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'images'} holds 1 other files: give an empty folder with --out\n"
    (tmp_path / "Products.csv").write_text("my listings")
    assert sample.main(["--out", str(tmp_path), "--listings", "2"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'Products.csv'} holds other data: give an empty folder with --out\n"
    assert folder_bytes(tmp_path) == {"Products.csv": b"my listings", "images/mine.jpg": b"my photo"}


def test_no_listings_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit_info:
        sample.main(["--listings", "0"])
    assert exit_info.value.code == 2
    assert "--listings must be at least 1" in capsys.readouterr().err
