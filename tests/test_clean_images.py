"""clean_images.py: every photo of the source ends as a square or as a row with a reason; a rerun does only what is missing."""

import contextlib
import errno
import io
import json
import os
import shutil
import sqlite3
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clean_images
from marketplace.cleaning import decoders, photo_records, photos, pool, sources
from marketplace.cleaning.photo_records import Records
from marketplace.files import atomic, photo_store, reading, stages
from marketplace.files.photo_store import Stored
from tests.cleaning.test_decoders import slow_photo


def photo_bytes(number: int, kind: str = "JPEG", size: tuple[int, int] = (48, 32)) -> bytes:
    colours = np.random.default_rng(number).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize(size).save(file, kind)
    return file.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def good_photos(count: int = 6) -> dict[str, bytes]:
    return {f"photo-{number}.jpg": photo_bytes(number) for number in range(count)}


@pytest.fixture
def clean(tmp_path, capsys):
    """Runs the script below tmp_path/data: (exit code, summary or None, sentence on stderr without progress bars).

    all_photos: whether to clean photos that no listing has too, and to need no table.
    """

    def run(*flags, data=tmp_path / "data", workers=1, all_photos=True):
        own = ["--all-photos"] if all_photos else []
        code = clean_images.main(["--data", str(data), "--size", "32", "--workers", str(workers), *own, *map(str, flags)])
        out, err = capsys.readouterr()
        sentences = [line for line in err.splitlines() if line.startswith("error: ")]
        return code, json.loads(out) if out else None, "\n".join(sentences)

    return run


def rows(data: Path) -> list[dict]:
    return reading.read_csv(data / "images" / "photos.csv").to_dict("records")


def statuses(data: Path) -> dict[str, str]:
    return {row["source"]: row["reason"] or row["status"] for row in rows(data)}


def records_of(data: Path) -> list[tuple]:
    """All that is kept of the photos, but for the times of their JPEGs."""
    with contextlib.closing(sqlite3.connect(data / "images" / photo_records.FILE)) as database:
        columns = ", ".join(name for name in photo_records.COLUMNS if name != "jpegs")
        return database.execute(f"SELECT {columns} FROM records ORDER BY id, turn").fetchall()


def files_of(data: Path) -> dict[str, bytes | list]:
    """Everything a stage leaves, hidden files too, but for what tells times."""
    folder, left_out = data / "images", (stages.MANIFEST, photo_records.FILE)
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in left_out)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files} | {".records": records_of(data)}


def outputs(data: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(data).items() if not name.startswith(".")}


def written_at(data: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (data / "images").glob("*.jpg")}


def age(data: Path) -> None:
    """Give every photo's file a time long past, so that one written now differs, whatever the clock's grain."""
    for path in (data / "images").glob("*.jpg"):
        os.utime(path, ns=(10**18, 10**18))


# A run


def test_every_photo_becomes_what_photos_clean_makes_of_it(tmp_path, clean):
    files = good_photos()
    write_folder(tmp_path / "data" / "raw" / "images", files)
    code, summary, _ = clean()
    assert code == 0
    assert {
        key: summary[key]
        for key in ("stage", "seen", "kept", "rejected", "skipped", "reasons", "ignored", "cleaned", "reused", "removed")
    } == {
        "stage": "images",
        "seen": 6,
        "kept": 6,
        "rejected": 0,
        "skipped": 0,
        "reasons": {},
        "ignored": 0,
        "cleaned": 6,
        "reused": 0,
        "removed": 0,
    }
    for row in rows(tmp_path / "data"):
        expected = photos.clean(files[f"{row['image_id']}.jpg"], photos.CleanSettings(size=32))
        assert (tmp_path / "data" / "images" / f"{row['image_id']}.jpg").read_bytes() == expected.jpeg
        assert row == {
            "image_id": row["image_id"],
            "status": "ok",
            "reason": "",
            "width": "48",
            "height": "32",
            "sha256": expected.sha256,
            "phash": expected.phash,
            "colours": expected.colours,
            "source": f"{row['image_id']}.jpg",
        }


def test_the_manifest_holds_the_settings_that_clean_an_upload_alike(tmp_path, clean):
    write_folder(tmp_path / "data" / "raw" / "images", good_photos(2))
    assert clean("--fit", "crop", "--max-pixels", 5000)[0] == 0
    arguments = stages.read_manifest(tmp_path / "data" / "images")["arguments"]
    assert photos.CleanSettings.from_dict(arguments) == photos.CleanSettings(size=32, fit="crop", max_pixels=5000)
    assert arguments == photos.CleanSettings.from_dict(arguments).as_dict() | {"display": True}


# Copies to look at


def without_display(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith(("display", "card", "."))}


def display_rows(data: Path) -> dict[str, tuple[str, str]]:
    table = reading.read_csv(data / "images" / "display.csv").to_dict("records")
    return {row["image_id"]: (row["width"], row["height"]) for row in table}


def test_a_copy_to_look_at_is_kept_whole_and_never_enlarged(tmp_path, clean):
    sizes = {"wide": (1600, 900), "tall": (900, 1600), "small": (48, 32), "line": (3000, 1)}
    files = {f"{name}.jpg": photo_bytes(number, size=size) for number, (name, size) in enumerate(sizes.items())}
    write_folder(tmp_path / "data" / "raw" / "images", files | {"broken.jpg": b"no photo"})
    assert clean()[0] == 0
    shown = {"wide": ("800", "450"), "tall": ("450", "800"), "small": ("48", "32"), "line": ("800", "1")}
    assert display_rows(tmp_path / "data") == shown
    for name, size in shown.items():
        display = photos.clean(files[f"{name}.jpg"], with_display=True).display
        path = tmp_path / "data" / "images" / "display" / f"{name}.jpg"
        assert path.read_bytes() == display.jpeg
        assert size == (str(display.width), str(display.height)) == tuple(map(str, Image.open(path).size))
        card = Image.open(tmp_path / "data" / "images" / "card" / f"{name}.jpg")
        scale = min(1, 400 / max(map(int, size)))
        assert card.size == tuple(max(1, round(scale * int(side))) for side in size)


def test_without_copies_to_look_at_all_else_is_the_same_and_they_come_and_go_with_the_flag(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos() | {"broken.jpg": b"no photo"})
    clean("--photos", source)
    with_copies = files_of(tmp_path / "data")
    age(tmp_path / "data")
    summary = clean("--photos", source, "--no-display")[1]
    assert (summary["cleaned"], summary["reused"]) == (0, 7)
    assert set(written_at(tmp_path / "data").values()) == {10**18}
    assert without_display(files_of(tmp_path / "data")) == without_display(with_copies)
    assert not [name for name in files_of(tmp_path / "data") if name.startswith(("display", "card"))]
    clean("--photos", source, "--no-display", data=tmp_path / "afresh")
    assert files_of(tmp_path / "data") == files_of(tmp_path / "afresh")
    assert clean("--photos", source)[1]["cleaned"] == 6
    assert files_of(tmp_path / "data") == with_copies


@pytest.mark.parametrize("copies", ["display", "card"])
def test_a_copy_to_look_at_that_was_lost_or_damaged_is_made_again(tmp_path, clean, copies):
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    before, folder = files_of(tmp_path / "data"), tmp_path / "data" / "images" / copies
    (folder / "photo-1.jpg").unlink()
    (folder / "photo-2.jpg").write_bytes(before[f"{copies}/photo-2.jpg"][:-5] + b"12345")
    (folder / ".photo-3.jpg.tmp").write_bytes(b"half")
    assert clean("--photos", source)[1]["cleaned"] == 2
    assert files_of(tmp_path / "data") == before
    shutil.rmtree(folder)
    assert clean("--photos", source)[1]["cleaned"] == 6
    assert files_of(tmp_path / "data") == before


def test_a_copy_to_look_at_goes_with_its_photo(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    (source / "photo-2.jpg").unlink()
    assert clean("--photos", source)[1]["removed"] == 1
    assert "photo-2" not in display_rows(tmp_path / "data")
    assert sorted(name for name in files_of(tmp_path / "data") if "photo-2" in name) == []


def test_odd_files_are_rejected_with_their_reason_and_the_run_goes_on(tmp_path, clean):
    whole = photo_bytes(1, size=(300, 200))
    source = write_folder(
        tmp_path / "source",
        {
            "good.jpg": photo_bytes(1),
            "png-by-content.jpg": photo_bytes(2, "PNG"),
            "no-suffix": photo_bytes(3, "WEBP"),
            "nested/deeper/photo.jpeg": photo_bytes(4),
            "empty.jpg": b"",
            "page.jpg": b"<html>404</html>",
            "half.jpg": whole[: len(whole) // 2],
            "large.jpg": photo_bytes(5, size=(101, 100)),
            "bad name.jpg": photo_bytes(6),
            "é.jpg": photo_bytes(7),
            "good.png": photo_bytes(8, "PNG"),
            "nested/GOOD.jpg": photo_bytes(9),
            ".hidden.jpg": photo_bytes(10),
            "Thumbs.db": b"x",
            "__MACOSX/._good.jpg": b"x",
            "Images.csv": b"id\n",
        },
    )
    code, summary, _ = clean("--photos", source, "--max-pixels", 10_000, "--max-rejected", 0.7)
    # whole is 60,000 pixels: too many before it is too short.
    assert statuses(tmp_path / "data") == {
        "good.jpg": "ok",
        "png-by-content.jpg": "ok",
        "no-suffix": "ok",
        "nested/deeper/photo.jpeg": "ok",
        "empty.jpg": "empty",
        "page.jpg": "not_an_image",
        "half.jpg": "too_many_pixels",
        "large.jpg": "too_many_pixels",
        "bad name.jpg": "bad_name",
        "é.jpg": "bad_name",
        "good.png": "duplicate_id",
        "nested/GOOD.jpg": "duplicate_id",
    }
    assert (code, summary["seen"], summary["kept"], summary["rejected"], summary["ignored"]) == (0, 12, 4, 8, 4)
    assert summary["reasons"] == {"bad_name": 2, "duplicate_id": 2, "empty": 1, "not_an_image": 1, "too_many_pixels": 2}
    assert sorted(path.stem for path in (tmp_path / "data" / "images").glob("*.jpg")) == [
        "good",
        "no-suffix",
        "photo",
        "png-by-content",
    ]
    assert [row["image_id"] for row in rows(tmp_path / "data")] == sorted(row["image_id"] for row in rows(tmp_path / "data"))


PHONE = {  # what lies beside a phone's, a camera's or a scraper's photo, and how it ends
    "a.jpg": ("JPEG", "ok"),
    "a.AAE": (b"<plist/>", None),
    "a.CR2": (b"II*\0", None),
    "a.HEIC": (b"\0\0\0\x18ftypheic", "duplicate_id"),
    "a.MOV": (b"\0\0\0\x14ftypqt  ", None),
    "a.PNG": ("PNG", "duplicate_id"),
    "a.XMP": (b"<x/>", None),
    "a.html": (b"<html>", None),
}


def test_what_lies_beside_a_photo_takes_its_id_from_nobody(tmp_path, clean):
    files = {name: photo_bytes(1, data) if isinstance(data, str) else data for name, (data, _) in PHONE.items()}
    code, summary, _ = clean("--photos", write_folder(tmp_path / "source", files))
    # A duplicate is no loss: they do not count towards --max-rejected.
    assert (code, summary["seen"], summary["kept"], summary["rejected"], summary["ignored"]) == (0, 3, 1, 2, 5)
    assert statuses(tmp_path / "data") == {name: status for name, (_, status) in PHONE.items() if status}


@pytest.mark.parametrize(
    ("files", "kept"),
    [
        ({"a.png": "PNG", "a.jpg": "JPEG"}, "a.jpg"),
        ({"a.gif": "GIF", "b/A.webp": "WEBP", "a.png": "PNG"}, "a.png"),
        ({"a.HEIC": "WEBP", "a.bmp": "BMP", "a.webp": "WEBP"}, "a.webp"),
        ({"a.HEIC": "PNG", "a": "TIFF"}, "a"),
        ({"a.JPEG": "JPEG", "b/a.jpg": "JPEG"}, "a.JPEG"),
        ({"a.MOV": "JPEG", "a.heif": "PNG"}, "a.heif"),
        ({"a.jpg": b"<html>", "a.png": "PNG", "a.webp": "WEBP"}, "a.png"),
        ({"a.jpg": b"", "a.jpeg": b"JFIF", "a.webp": "WEBP"}, "a.webp"),
        ({"a.jpg": b"no", "a.MOV": "JPEG"}, "a.MOV"),
    ],
)
def test_of_files_with_one_id_the_first_that_cleans_is_kept(tmp_path, clean, files, kept):
    contents = {
        name: photo_bytes(number, data) if isinstance(data, str) else data for number, (name, data) in enumerate(files.items())
    }
    source = write_folder(tmp_path / "source", contents)
    code, summary, _ = clean("--photos", source, "--max-rejected", 0.9)
    assert (code, summary["kept"]) == (0, 1)
    assert [name for name, status in statuses(tmp_path / "data").items() if status == "ok"] == [kept]
    (jpeg,) = (tmp_path / "data" / "images").glob("*.jpg")
    assert jpeg.read_bytes() == photos.clean(contents[kept], photos.CleanSettings(size=32)).jpeg
    assert summary["seen"] == summary["kept"] + summary["rejected"] and summary["seen"] + summary["ignored"] == len(files)
    assert clean("--photos", source, "--max-rejected", 0.9)[1]["unchanged"]


def test_a_better_file_of_an_id_takes_the_place_of_a_worse_one_and_gives_it_back(tmp_path, clean):
    source = write_folder(tmp_path / "source", {"a.png": photo_bytes(1, "PNG")} | good_photos())
    jpeg = tmp_path / "data" / "images" / "a.jpg"
    clean("--photos", source)
    worse = jpeg.read_bytes()
    for content, status, cleaned in ((photo_bytes(2), "ok", 1), (b"no picture", "not_an_image", 2)):
        (source / "a.jpg").write_bytes(content)
        assert clean("--photos", source)[1]["cleaned"] == cleaned
        assert statuses(tmp_path / "data")["a.jpg"] == status
        assert (jpeg.read_bytes() == worse) == (status != "ok")
    (source / "a.jpg").unlink()
    assert clean("--photos", source)[0] == 0 and jpeg.read_bytes() == worse
    clean("--photos", source, data=tmp_path / "afresh")
    assert files_of(tmp_path / "data") == files_of(tmp_path / "afresh")


def test_a_file_too_large_to_be_a_photo_is_not_read(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos() | {"huge.jpg": b"x" * 5000})
    monkeypatch.setattr(sources, "MAX_PHOTO_BYTES", 4999)
    assert clean("--photos", source)[0] == 0
    assert statuses(tmp_path / "data")["huge.jpg"] == "too_large"


def test_personal_data_in_a_files_name_is_marked(tmp_path, clean):
    names = {"call 07700 900123.jpg": photo_bytes(7), "joe@example.com/whole.jpg": photo_bytes(8)}
    source = write_folder(tmp_path / "source", good_photos() | names)
    assert clean("--photos", source, "--max-rejected", 0.5)[0] == 0
    found = [row for row in rows(tmp_path / "data") if "[" in row["source"]]
    assert [(row["image_id"], row["source"], row["status"]) for row in found] == [
        ("call [phone]", "call [phone].jpg", "rejected"),
        ("whole", "[email]/whole.jpg", "ok"),
    ]
    assert "900123" not in (tmp_path / "data" / "images" / "photos.csv").read_text()


def test_a_name_with_control_characters_or_no_utf8_survives_the_csv(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos())
    (source / "a\r\nb.jpg").write_bytes(photo_bytes(7))
    Path(os.fsdecode(os.fsencode(source) + b"/\xff.jpg")).write_bytes(photo_bytes(8))
    assert clean("--photos", source, "--max-rejected", 0.5)[0] == 0
    assert {name for name, status in statuses(tmp_path / "data").items() if status == "bad_name"} == {
        r"a\x0d\x0ab.jpg",
        r"\xdcff.jpg",
    }


def test_what_is_no_regular_file_is_ignored_and_a_link_that_leads_nowhere_is_rejected(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos())
    os.mkfifo(source / "pipe.jpg")
    (source / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (source / "circle.jpg").symlink_to("circle.jpg")
    (source / "folder.jpg").mkdir()
    code, summary, _ = clean("--photos", source, "--max-rejected", 0.3)
    assert (code, summary["kept"], summary["reasons"], summary["ignored"]) == (0, 6, {"read_error": 2}, 1)
    shutil.copy(source / "photo-1.jpg", tmp_path / "nowhere.jpg")
    assert clean("--photos", source, "--max-rejected", 0.3)[1]["kept"] == 7


def test_links_to_folders_are_read_and_those_that_lead_in_circles_are_ignored(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(4))
    elsewhere = write_folder(tmp_path / "elsewhere", {"deep/a.jpg": photo_bytes(7), "deep/b.jpg": photo_bytes(8)})
    (source / "linked").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(source)
    (source / "itself").symlink_to(source)
    code, summary, _ = clean("--photos", source)
    assert (code, summary["kept"], summary["ignored"]) == (0, 6, 2)
    assert {"linked/deep/a.jpg", "linked/deep/b.jpg"} < set(statuses(tmp_path / "data"))


def refuse_listing(monkeypatch, folder: Path) -> None:
    """Have the system refuse to list a folder; the tests may run as root, whom permissions do not stop."""
    scandir = os.scandir

    def refusing(path):
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_a_folder_that_cannot_be_listed_ends_the_run_and_deletes_nothing(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos(9) | {"sub/a.jpg": photo_bytes(20)})
    clean("--photos", source)
    before = files_of(tmp_path / "data"), (tmp_path / "data" / "images" / "manifest.json").read_bytes()
    refuse_listing(monkeypatch, source / "sub")
    assert clean("--photos", source) == (
        1,
        None,
        f"error: {source / 'sub'} cannot be read (Permission denied): give the permission, or mount it, and run it again",
    )
    assert (files_of(tmp_path / "data"), (tmp_path / "data" / "images" / "manifest.json").read_bytes()) == before


def test_a_folder_that_is_not_mounted_deletes_nothing(tmp_path, clean):
    files = good_photos(6) | {f"mount/{name}-2.jpg": photo_bytes(20 + name) for name in range(2)}
    source = write_folder(tmp_path / "source", files)
    clean("--photos", source)
    before = files_of(tmp_path / "data"), (tmp_path / "data" / "images" / "manifest.json").read_bytes()
    for path in (source / "mount").iterdir():
        path.unlink()
    sentence = (
        "error: 2 of 8 cleaned photos would be removed, more than --max-removed 0.2: "
        f"see whether {source} is whole, or allow it with --max-removed 1"
    )
    assert clean("--photos", source) == (1, None, sentence)
    assert (files_of(tmp_path / "data"), (tmp_path / "data" / "images" / "manifest.json").read_bytes()) == before
    assert clean("--photos", source, "--max-removed", 0.25)[1]["removed"] == 2  # exactly the share is allowed


def test_photos_that_turn_bad_in_the_source_are_not_deleted_in_a_crowd(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(4))
    clean("--photos", source)
    write_folder(
        source, {f"new-{number}.jpg": photo_bytes(number) for number in range(16)} | {"photo-1.jpg": b"", "photo-2.jpg": b""}
    )
    assert "error: 2 of 4 cleaned photos would be removed, more than --max-removed 0.2: " in clean("--photos", source)[2]
    assert (tmp_path / "data" / "images" / "photo-1.jpg").exists()
    assert not (tmp_path / "data" / "images" / "manifest.json").exists()
    assert clean("--photos", source, "--max-removed", 1)[1]["removed"] == 2


# Photos of listings


def write_tabular(data: Path, *image_ids: str) -> None:
    """A finished stage before, whose images.csv names these photos."""
    (data / "tabular").mkdir(parents=True, exist_ok=True)
    (data / "tabular" / "images.csv").write_text("image_id,product_id\n" + "".join(f"{name},p\n" for name in image_ids))
    stages.Stage(data, "tabular", {}, {}).finish({}, ["images.csv"])


def test_photos_that_no_listing_has_are_skipped_and_counted(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(6) | {"x y.jpg": b"", "photo-0.png": photo_bytes(0, "PNG")})
    write_tabular(tmp_path / "data", "photo-0", "photo-1", "photo-2", "gone")
    code, summary, _ = clean("--photos", source, all_photos=False)
    assert code == 0
    assert [summary[key] for key in ("seen", "kept", "rejected", "skipped", "ignored")] == [8, 3, 1, 4, 0]
    assert statuses(tmp_path / "data") == dict.fromkeys(["photo-0.jpg", "photo-1.jpg", "photo-2.jpg"], "ok") | {
        "photo-0.png": "duplicate_id"
    }
    assert set(stages.read_manifest(tmp_path / "data" / "images")["inputs"]) == {"--photos", "tabular/images.csv"}
    assert clean("--photos", source, all_photos=False)[1]["unchanged"]


def test_ids_in_capitals_are_those_of_the_table(tmp_path, clean):
    image_id = "0af76519-16cd-43dd-8448-eb211c80319c"
    write_tabular(tmp_path / "data", image_id)
    source = write_folder(tmp_path / "source", {f"{image_id.upper()}.JPG": photo_bytes(1)})
    assert clean("--photos", source, all_photos=False)[1]["kept"] == 1
    assert (tmp_path / "data" / "images" / f"{image_id}.jpg").exists()


def test_photos_that_are_listed_no_longer_go_whatever_their_number(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(6))
    assert clean("--photos", source)[1]["kept"] == 6
    write_tabular(tmp_path / "data", "photo-0", "photo-1")
    assert clean("--photos", source, all_photos=False)[1]["removed"] == 4
    (source / "photo-1.jpg").unlink()
    assert clean("--photos", source, all_photos=False)[2].startswith("error: 1 of 2 cleaned photos would be removed")


def test_without_a_table_the_run_says_so_unless_all_photos_are_wanted(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(2))
    sentence = f"error: {tmp_path / 'data' / 'tabular'} is not finished: run python clean_tabular_data.py first"
    assert clean("--photos", source, all_photos=False) == (1, None, sentence)
    assert clean("--photos", source)[1]["kept"] == 2


def test_photos_of_another_export_are_one_sentence(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(2))
    write_tabular(tmp_path / "data", "other")
    sentence = (
        f"error: no listing in {tmp_path / 'data' / 'tabular'} has one of the 2 photos of {source}: take Products.csv, "
        "Images.csv and the photos from one export, or give --all-photos"
    )
    assert clean("--photos", source, all_photos=False) == (1, None, sentence)


# More of the folder


def test_a_cleaned_photo_of_another_size_is_not_read_to_see_that_it_is_another(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    path = tmp_path / "data" / "images" / "photo-1.jpg"
    os.truncate(path, 10**10)  # sparse
    were_read, read = [], Stored.read
    monkeypatch.setattr(Stored, "read", lambda stored: were_read.append(Path(stored.path).name) or read(stored))
    assert clean("--photos", source, "--full")[1]["cleaned"] == 1
    assert "photo-1.jpg" not in were_read and were_read.count("photo-2.jpg") == 3 and path.stat().st_size < 10**5


def test_processes_give_what_one_process_gives(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(40) | {"broken.jpg": b"x"})
    one = clean("--photos", source, data=tmp_path / "one")
    two = clean("--photos", source, data=tmp_path / "two", workers=2)
    assert (one[0], two[0], two[1]["cleaned"]) == (0, 0, 41)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_photos_are_read_no_further_ahead_than_keeps_the_processes_busy(monkeypatch):
    asked = []

    def todo():
        for number in range(1000):
            asked.append(number)
            yield pool.Task(sources.Photo(f"{number}.jpg", f"/{number}.jpg", "", 1), "")

    monkeypatch.setattr(pool, "clean_photo", lambda task, *_: pool.Result(task.photo.name, None))
    with contextlib.closing(pool.clean_all(todo(), None, photos.DEFAULTS, True, workers=2)) as results:
        first = [next(results)[1].content for _ in range(3)]
    assert first == ["0.jpg", "1.jpg", "2.jpg"] and len(asked) <= 2 * pool.AHEAD + 4
    assert list(pool.clean_all([], None, photos.DEFAULTS, True, workers=2)) == []


KILLED_BY = """
import os, sys
sys.path.insert(0, sys.argv[1])
from marketplace.cleaning import decoders, photos
clean = photos.clean
photos.clean = lambda data, *options: os.abort() if b"a killer" in data else clean(data, *options)
decoders.main(sys.argv[2])
"""


def test_a_photo_that_kills_its_process_is_rejected_alone_and_tried_again(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos(40) | {"photo-20.jpg": photo_bytes(20) + b"a killer"})
    clean("--photos", source, data=tmp_path / "undisturbed", workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(decoders, "COMMAND", KILLED_BY)
        code, summary, _ = clean("--photos", source, workers=2)
        assert (code, summary["kept"], summary["reasons"]) == (0, 39, {"crashed": 1})
        assert statuses(tmp_path / "data")["photo-20.jpg"] == "crashed"
        assert clean("--photos", source, workers=2)[1]["cleaned"] == 1
    assert clean("--photos", source, workers=2)[1]["cleaned"] == 1
    assert files_of(tmp_path / "data") == files_of(tmp_path / "undisturbed")


def test_a_photo_that_takes_too_long_is_rejected_alone_and_tried_again(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos(10) | {"photo-5.bmp": slow_photo()})
    (source / "photo-5.jpg").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(decoders, "BATCH_CPU_S", 0.3)
        assert clean("--photos", source)[1]["reasons"] == {"too_slow": 1}
    again = clean("--photos", source)[1]
    assert (again["cleaned"], again["reused"], again["kept"], again["reasons"]) == (1, 9, 10, {})


def test_processes_that_cannot_start_are_one_sentence(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos(20))
    monkeypatch.setattr(decoders, "COMMAND", "raise SystemExit(3)")
    sentence = (
        "error: a process that decodes photos cannot start (it ended with 3): "
        "mend what the lines above say, or give fewer --workers"
    )
    assert clean("--photos", source, workers=2) == (1, None, sentence)


# Sources


def test_a_folder_and_zips_of_it_give_the_same_files(tmp_path, clean):
    files = good_photos() | {"nested/seven.jpg": photo_bytes(7), "empty.jpg": b""}
    folder = write_folder(tmp_path / "source", files)
    flat = write_zip(tmp_path / "flat.zip", files)
    inner = write_zip(tmp_path / "inner.zip", {f"export/images/{name}": data for name, data in reversed(files.items())})
    for name, source in (("a", folder), ("b", flat), ("c", inner)):
        assert clean("--photos", source, data=tmp_path / name)[0] == 0
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b") == outputs(tmp_path / "c")
    assert len(outputs(tmp_path / "a")) == 3 * 7 + 2  # of each photo a square and two copies; two tables


def test_the_default_source_is_the_folder_then_the_zip(tmp_path, clean):
    write_zip(tmp_path / "data" / "raw" / "images_fb.zip", good_photos(2))
    assert clean()[1]["seen"] == 2
    write_folder(tmp_path / "data" / "raw" / "images", good_photos(3))
    assert clean()[1]["seen"] == 3


def test_names_that_lead_outside_a_zip_write_nothing_outside(tmp_path, clean):
    names = ["../../escaped.jpg", "/absolute.jpg", "..\\..\\windows.jpg", "a/../../b.jpg", "C:\\x.jpg", "~root/home.jpg"]
    source = write_zip(tmp_path / "hostile.zip", good_photos() | {name: photo_bytes(9) for name in names})
    before = set(tmp_path.rglob("*"))
    assert clean("--photos", source, "--max-rejected", 0.9)[0] == 0
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "data") for path in new)
    assert {path.name for path in new if path.is_file()} == {
        *good_photos(),
        "absolute.jpg",
        "home.jpg",
        "x.jpg",
        "photos.csv",
        "display.csv",
        "manifest.json",
        ".flags.json",
        ".lock",
        photo_records.FILE,
    }
    assert statuses(tmp_path / "data")["../../escaped.jpg"] == "bad_name"
    # Nor where every name does, so that ".." is a folder they share.
    source = write_zip(tmp_path / "all.zip", {f"../{name}": data for name, data in good_photos().items()})
    assert clean("--photos", source, "--max-rejected", 1, "--max-removed", 1)[1]["reasons"] == {"bad_name": 6}


def test_a_zip_with_backslashes_gives_the_files_of_the_folder(tmp_path, clean):
    files = good_photos(3) | {"nested/seven.jpg": photo_bytes(7)}
    names = {f"export\\{name.replace('/', chr(92))}": data for name, data in files.items()}
    windows = write_zip(tmp_path / "windows.zip", {"export\\": b"", "export\\nested\\": b""} | names)
    assert clean("--photos", windows)[1]["kept"] == 4
    clean("--photos", write_folder(tmp_path / "source", files), data=tmp_path / "folder")
    assert outputs(tmp_path / "data") == outputs(tmp_path / "folder")


def test_a_zip_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path, clean):
    source = write_zip(tmp_path / "bomb.zip", {f"{number}.jpg": b"\0" * 100_000 for number in range(11)})
    assert source.stat().st_size < 5000
    assert clean("--photos", source, "--max-zip-bytes", 1_000_000) == (
        1,
        None,
        f"error: {source} unpacks to 1,100,000 bytes, more than --max-zip-bytes 1000000: raise it if you trust the zip",
    )
    assert not (tmp_path / "data" / "images").exists()


def test_a_zip_member_larger_than_it_says_is_not_unpacked_further(tmp_path, clean):
    source = write_zip(tmp_path / "liar.zip", good_photos() | {"liar.jpg": b"\0" * 50_000})
    data = source.read_bytes()
    assert data.count(struct.pack("<I", 50_000)) == 2  # in the member's header and in the directory
    source.write_bytes(data.replace(struct.pack("<I", 50_000), struct.pack("<I", 10)))
    assert clean("--photos", source, "--max-zip-bytes", 20_000)[0] == 0
    assert statuses(tmp_path / "data")["liar.jpg"] == "read_error"


def test_a_damaged_or_encrypted_zip_member_is_rejected(tmp_path, clean):
    source = write_zip(tmp_path / "damaged.zip", good_photos() | {"torn.jpg": photo_bytes(9), "locked.jpg": photo_bytes(10)})
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        start = archive.getinfo("torn.jpg").header_offset + 30 + len("torn.jpg")
    data[start : start + 60] = b"\xaa" * 60
    entry = data.rindex(b"locked.jpg") - 46
    data[entry + 8] |= 1  # the directory's flag for an encrypted member
    source.write_bytes(data)
    assert clean("--photos", source, "--max-rejected", 0.5)[0] == 0
    assert {name: s for name, s in statuses(tmp_path / "data").items() if s != "ok"} == {
        "torn.jpg": "read_error",
        "locked.jpg": "read_error",
    }


def test_a_zip_that_holds_a_name_twice_keeps_the_first(tmp_path, clean):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.jpg", photo_bytes(1))
        archive.writestr("a.jpg", photo_bytes(2))
    assert clean("--photos", tmp_path / "twice.zip", "--max-rejected", 0.5)[1]["reasons"] == {"duplicate_id": 1}
    expected = photos.clean(photo_bytes(1), photos.CleanSettings(size=32)).jpeg
    assert (tmp_path / "data" / "images" / "a.jpg").read_bytes() == expected


# Failures in one sentence


def test_no_source_at_all_is_one_sentence(tmp_path, clean):
    raw = tmp_path / "data" / "raw"
    sentence = f"error: {raw} holds neither images/ nor images_fb.zip: put the photos there, or name them with --photos"
    assert clean() == (1, None, sentence)


def test_a_source_that_does_not_exist_is_one_sentence(tmp_path, clean):
    sentence = f"error: {tmp_path / 'nix'} does not exist: give the photos' folder, .zip or s3:// URI with --photos"
    assert clean("--photos", tmp_path / "nix") == (1, None, sentence)


def test_a_source_without_photos_is_one_sentence(tmp_path, clean):
    sentence = f"error: {tmp_path / 'none'} holds no photos: give their folder, .zip or s3:// URI with --photos"
    assert clean("--photos", write_folder(tmp_path / "none", {"Images.csv": b"id\n"})) == (1, None, sentence)
    assert clean("--photos", write_zip(tmp_path / "none.zip", {}))[2] == sentence.replace("none holds", "none.zip holds")


def test_a_file_that_is_no_zip_is_one_sentence(tmp_path, clean):
    source = tmp_path / "photo.zip"
    source.write_bytes(photo_bytes(1))
    sentence = f"error: {source} is neither a folder nor a readable .zip: give the photos' folder, .zip or s3:// URI"
    assert clean("--photos", source) == (1, None, sentence)


def test_the_output_folder_is_not_taken_for_the_source(tmp_path, clean):
    write_folder(tmp_path / "data" / "raw" / "images", good_photos())
    clean()
    before = files_of(tmp_path / "data")
    images = tmp_path / "data" / "images"
    sentence = f"error: {images} is where the cleaned photos go: give the folder of the raw ones with --photos"
    assert clean("--photos", images) == (1, None, sentence)
    assert files_of(tmp_path / "data") == before


def test_too_many_rejects_end_the_run_with_files_and_no_manifest(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(6) | {"x.jpg": b"", "y.jpg": b"no"})
    csv = tmp_path / "data" / "images" / "photos.csv"
    sentence = f"error: 2 of 8 photos were rejected, more than --max-rejected 0.2: see the reasons in {csv}"
    assert clean("--photos", source) == (1, None, sentence)
    assert len(rows(tmp_path / "data")) == 8 and len(written_at(tmp_path / "data")) == 6
    assert not (tmp_path / "data" / "images" / "manifest.json").exists()
    assert clean("--photos", source) == (1, None, sentence)
    # Exactly the share is allowed; nothing is cleaned twice; and a stricter run does not accept what a laxer one finished.
    assert clean("--photos", source, "--max-rejected", 0.25)[1]["reused"] == 8
    assert clean("--photos", source)[0] == 1
    assert not (tmp_path / "data" / "images" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--size", "4"], "size must be from 8 to 4096 pixels, not 4"),
        (["--fit", "squash"], "argument --fit: invalid choice: 'squash'"),
        (["--max-pixels", "0"], "max_pixels must be from 1 to 178956970, not 0"),
        (["--max-rejected", "2"], "argument --max-rejected: must be from 0 to 1, not 2.0"),
        (["--max-removed", "20"], "argument --max-removed: must be from 0 to 1, not 20.0"),
        (["--workers", "0"], "argument --workers: must be at least 1, not 0"),
    ],
)
def test_bad_flags_are_a_usage_error(flags, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        clean_images.main(flags)
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


# Reruns


def test_a_rerun_without_changes_writes_nothing(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "images").iterdir()}
    code, summary, _ = clean("--photos", source)
    assert (code, summary["unchanged"]) == (0, True)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "images").iterdir()}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_rerun_touches_only_what_is_new_or_changed_and_removes_what_is_gone(tmp_path, clean, kind):
    def write(files):
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        return write_folder(tmp_path / "source", files) if kind == "folder" else write_zip(tmp_path / "source.zip", files)

    files = good_photos(6) | {"broken.jpg": b"no photo", "breaks.jpg": photo_bytes(20)}
    clean("--photos", write(files))
    age(tmp_path / "data")
    before = written_at(tmp_path / "data")

    changed = bytearray(files["photo-1.jpg"])
    changed[-20] ^= 1  # the same size
    files |= {"photo-1.jpg": bytes(changed), "photo-9.jpg": photo_bytes(9), "breaks.jpg": b"", "broken.jpg": photo_bytes(21)}
    del files["photo-2.jpg"]
    source = write(files)
    if kind == "folder":
        os.utime(source / "photo-1.jpg", ns=(10**18, 10**18))
    code, summary, _ = clean("--photos", source, "--max-removed", 0.3)
    assert (code, summary["cleaned"], summary["reused"], summary["removed"]) == (0, 4, 4, 2)
    after = written_at(tmp_path / "data")
    assert {name for name in after if after[name] != before.get(name)} == {"photo-1", "photo-9", "broken"}
    assert "photo-2" not in after and "breaks" not in after

    clean("--photos", source, data=tmp_path / "afresh")
    assert files_of(tmp_path / "data") == files_of(tmp_path / "afresh")


def test_other_settings_clean_everything_again(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    assert clean("--photos", source, "--fit", "stretch")[1]["cleaned"] == 6
    clean("--photos", source, "--fit", "stretch", data=tmp_path / "afresh")
    assert files_of(tmp_path / "data") == files_of(tmp_path / "afresh")


def test_a_cleaned_photo_that_was_lost_or_damaged_is_made_again(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    before = files_of(tmp_path / "data")
    (tmp_path / "data" / "images" / "photo-1.jpg").unlink()
    (tmp_path / "data" / "images" / "photo-2.jpg").write_bytes(b"torn")
    (tmp_path / "data" / "images" / "photo-3.jpg").write_bytes(before["photo-3.jpg"][:-5] + b"12345")
    assert clean("--photos", source)[1]["cleaned"] == 3
    assert files_of(tmp_path / "data") == before


class Killed(BaseException):
    pass


def kill_after(function, calls: int, before: bool):
    """The function, cut short as a kill would: at its nth call, before or after its work."""
    made = iter(range(1, 10**6))

    def wrapped(*args, **kwargs):
        last = next(made) == calls
        if last and before:
            raise Killed
        result = function(*args, **kwargs)
        if last:
            raise Killed
        return result

    return wrapped


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("place", "name", "calls"),
    [
        (photo_store, "_write_file", 1),
        (photo_store, "_write_file", 4),
        (Records, "forget_others", 1),
        (Records, "forget_lost", 1),
        (Records, "keep", 3),
        (Records, "forget_untried", 1),
        (Records, "keep_identities", 1),
        (photo_records, "identity", 4),  # in the midst of a transaction
        (clean_images, "_remove_others", 1),
        (atomic, "write_table", 1),
        (atomic, "write_table", 2),
        (atomic, "write_json", 1),
        (os, "replace", 3),
    ],
)
def test_a_run_that_was_killed_anywhere_and_run_again_ends_with_the_same_files(
    tmp_path, clean, monkeypatch, place, name, calls, before
):
    source = write_folder(tmp_path / "source", good_photos() | {"broken.jpg": b"no photo"})
    clean("--photos", source, data=tmp_path / "undisturbed")
    # Over an earlier run with other settings and another source, whose leftovers must not be taken for results.
    clean("--photos", write_folder(tmp_path / "old", good_photos(8)), "--fit", "stretch")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, kill_after(getattr(place, name), calls, before))
        with pytest.raises(Killed):
            clean("--photos", source, "--max-removed", 1)
    assert not (tmp_path / "data" / "images" / "manifest.json").exists() or name == "write_json"
    assert clean("--photos", source, "--max-removed", 1)[0] == 0
    assert files_of(tmp_path / "data") == files_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    ("place", "name", "calls"),
    [
        (photo_store.ShardsWriter, "write", 1),
        (photo_store.ShardsWriter, "write", 5),
        (photo_store.ShardsWriter, "tell", 2),
        (photo_store.ShardsWriter, "publish", 1),
        (photo_store.ShardsWriter, "_append", 5),
        (photo_store.ShardsWriter, "_execute", 9),
        (photo_store.ShardsWriter, "_write_anew", 1),
        (photo_store.ShardsWriter, "_erase", 1),
        (photo_store.ShardsWriter, "tidy", 1),
        (Records, "keep", 3),
        (Records, "keep_identities", 1),
    ],
)
def test_a_run_into_shards_that_was_killed_anywhere_ends_with_the_same_photos(
    tmp_path, clean, monkeypatch, place, name, calls, before
):
    monkeypatch.setattr(photo_store, "TOGETHER", 2)
    source = write_folder(tmp_path / "source", good_photos() | {"broken.jpg": b"no photo"})
    clean("--photos", source, data=tmp_path / "undisturbed")
    clean("--photos", write_folder(tmp_path / "old", good_photos(8)), "--fit", "stretch", "--shards")
    old = photos_of(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, kill_after(getattr(place, name), calls, before))
        with pytest.raises(Killed):
            clean("--photos", source, "--max-removed", 1, "--shards")
    assert clean("--photos", source, "--max-removed", 1, "--shards")[0] == 0
    expected = photos_of(tmp_path / "undisturbed")
    assert photos_of(tmp_path / "data") == expected
    left = b"".join(path.read_bytes() for path in (tmp_path / "data" / "images" / "shards").iterdir())
    assert not any(jpeg in left for jpeg in old.values() if jpeg not in expected.values())


def test_a_killed_run_into_shards_cleans_again_only_what_was_not_on_the_disk(tmp_path, clean, monkeypatch):
    monkeypatch.setattr(photo_store, "TOGETHER", 2)
    source = write_folder(tmp_path / "source", good_photos())
    with monkeypatch.context() as patch:
        patch.setattr(photo_store.ShardsWriter, "_append", kill_after(photo_store.ShardsWriter._append, 17, before=True))
        with pytest.raises(Killed):  # in the midst of the sixth photo
            clean("--photos", source, "--shards")
    code, summary, _ = clean("--photos", source, "--shards")
    assert (code, summary["cleaned"], summary["reused"]) == (0, 2, 4)


def photos_of(data: Path) -> dict[str, bytes]:
    store = photo_store.open_store(data / "images")
    return {name: store.read(name) for place in photos.PHOTO_FOLDERS for name in store.names(place)}


def test_shards_hold_the_photos_that_a_folder_does_and_follow_the_source(tmp_path, clean):
    source, data, files = write_folder(tmp_path / "source", good_photos()), tmp_path / "data", tmp_path / "files"

    def clean_both() -> tuple[dict, dict]:
        (code, sharded, _), (_, plain, _) = clean("--photos", source, "--shards"), clean("--photos", source, data=files)
        assert code == 0 and photos_of(data) == photos_of(files)
        for table in ("photos.csv", "display.csv"):
            assert (data / "images" / table).read_bytes() == (files / "images" / table).read_bytes()
        return sharded, plain

    assert clean_both()[0]["cleaned"] == 6
    assert {path.name for path in (data / "images").rglob("*.jpg")} == set()
    (source / "photo-1.jpg").write_bytes(photo_bytes(99))
    (source / "photo-2.jpg").unlink()
    sharded, plain = clean_both()
    told = ("cleaned", "reused", "removed")
    assert [sharded[name] for name in told] == [plain[name] for name in told] == [1, 4, 1]
    before = {path: path.read_bytes() for path in (data / "images").rglob("*") if path.is_file()}
    assert clean("--photos", source, "--shards")[1].get("unchanged")
    assert {path: path.read_bytes() for path in (data / "images").rglob("*") if path.is_file()} == before


def test_photos_go_into_shards_and_out_of_them_without_being_cleaned_again(tmp_path, clean):
    source, data = write_folder(tmp_path / "source", good_photos()), tmp_path / "data"
    clean("--photos", source)
    expected = files_of(data)
    code, summary, _ = clean("--photos", source, "--shards")
    assert (code, summary["cleaned"], summary["reused"]) == (0, 0, 6)
    assert (data / "images" / "shards" / "000001.tar").exists() and not list((data / "images").rglob("*.jpg"))
    code, summary, _ = clean("--photos", source)
    assert (code, summary["cleaned"], summary["reused"]) == (0, 0, 6)
    assert files_of(data) == expected


@pytest.mark.parametrize("full", [True, False])
def test_a_photo_that_a_bad_disk_changed_in_its_shard_is_found_by_a_full_run(tmp_path, clean, full):
    source, images = write_folder(tmp_path / "source", good_photos()), tmp_path / "data" / "images"
    clean("--photos", source, "--shards")
    expected = photos_of(tmp_path / "data")
    stored = photo_store.open_store(images).find("photo-3.jpg")
    with open(stored.path, "r+b") as file:
        file.seek(stored.offset + 20)
        file.write(b"??")
    assert clean("--photos", source, "--shards", *(["--full"] if full else []))[1].get("cleaned", 0) == int(full)
    assert (photos_of(tmp_path / "data") == expected) is full


def test_without_copies_to_look_at_shards_hold_none(tmp_path, clean):
    source, data = write_folder(tmp_path / "source", good_photos()), tmp_path / "data"
    clean("--photos", source, "--shards")
    squares = {name: jpeg for name, jpeg in photos_of(data).items() if "/" not in name}
    assert clean("--photos", source, "--shards", "--no-display")[1]["cleaned"] == 0
    assert photos_of(data) == squares and not (data / "images" / "display.csv").exists()


def test_a_run_killed_under_other_settings_leaves_nothing_that_passes_for_the_first_ones(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    first = files_of(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(photo_store, "_write_file", kill_after(photo_store._write_file, 3, before=False))
        with pytest.raises(Killed):
            clean("--photos", source, "--fit", "stretch")
    assert files_of(tmp_path / "data") != first
    assert clean("--photos", source)[0] == 0
    assert files_of(tmp_path / "data") == first


def test_a_killed_run_is_resumed_not_repeated(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos())
    with monkeypatch.context() as patch:
        # Four photos are done, each with its square and two copies.
        patch.setattr(photo_store, "_write_file", kill_after(photo_store._write_file, 13, before=True))
        with pytest.raises(Killed):
            clean("--photos", source)
    (tmp_path / "data" / "images" / ".photo-5.jpg.tmp").write_bytes(b"half")
    age(tmp_path / "data")
    assert (summary := clean("--photos", source)[1]) and (summary["cleaned"], summary["reused"]) == (2, 4)
    assert sum(time == 10**18 for time in written_at(tmp_path / "data").values()) == 4
    assert not list((tmp_path / "data" / "images").glob(".*.tmp"))


def test_a_photo_that_could_not_be_read_is_tried_again(tmp_path, clean, monkeypatch):
    source = write_folder(tmp_path / "source", good_photos())

    def fail(photo, zip_path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "read", fail)
        assert clean("--photos", source)[0] == 1
    assert set(statuses(tmp_path / "data").values()) == {"read_error"}
    assert clean("--photos", source)[1]["cleaned"] == 6


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", bytes(5000), b"SQLite format 3\0" + bytes(5000)])
def test_damaged_records_cost_time_not_the_run(tmp_path, clean, content):
    source = write_folder(tmp_path / "source", good_photos())
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / photo_records.FILE).write_bytes(content)
    assert clean("--photos", source)[1]["cleaned"] == 6
    assert clean("--photos", source)[1]["unchanged"]


def test_records_that_are_damaged_in_their_midst_are_one_sentence(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos(30))
    clean("--photos", source)
    path = tmp_path / "data" / "images" / photo_records.FILE
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    sentence = f"error: {path} is damaged: delete it and run python clean_images.py again"
    assert clean("--photos", source) == (1, None, sentence)
    path.unlink()
    assert clean("--photos", source)[1]["cleaned"] == 30


def as_kept_before(data: Path) -> None:
    """Have the records as versions before SQLite kept them."""
    folder, digests = data / "images", ("sha256", "bytes", "width", "height")
    with contextlib.closing(sqlite3.connect(folder / photo_records.FILE)) as database:
        database.row_factory = sqlite3.Row
        records = list(map(dict, database.execute("SELECT * FROM records")))
    lines = []
    for record in records:
        names = ("image_id", "turn", "settings", "identity", "content", "jpeg", "jpeg_bytes")
        old = {name: record[name] for name in names} | {"display": None}
        if record["display"]:
            old["display"] = dict(
                zip(digests, [record["display"], *(record[f"display_{name}"] for name in digests[1:])], strict=True)
            )
            old["display"] |= {"card_sha256": record["card"], "card_bytes": record["card_bytes"]}
        row = {name: record[name] for name in photo_records.ROW if record[name] is not None}
        lines.append(json.dumps(old | {"row": row}) + "\n")
    (folder / ".progress.jsonl").write_text("".join(lines))
    (folder / ".identities.json").write_text(json.dumps({record["image_id"]: record["jpegs"] for record in records}))
    (folder / photo_records.FILE).unlink()


def test_the_write_ahead_log_of_the_records_stays_small(tmp_path, clean, monkeypatch):
    """It only grows while a row of a query is still to be read: a run of a million photos would write gigabytes."""
    source = write_folder(tmp_path / "source", good_photos(40))
    keep, sizes = Records.keep, []

    def keep_and_look(records, *args):
        keep(records, *args)
        sizes.append((tmp_path / "data" / "images" / f"{photo_records.FILE}-wal").stat().st_size)

    monkeypatch.setattr(Records, "keep", keep_and_look)
    monkeypatch.setattr(photo_records, "TOGETHER", 3)
    attach = photo_records._attach

    def attach_with_short_log(database, folder):
        attach(database, folder)
        database.execute("PRAGMA kept.wal_autocheckpoint = 5")

    monkeypatch.setattr(photo_records, "_attach", attach_with_short_log)
    assert clean("--photos", source)[1]["cleaned"] == 40
    assert len(sizes) == 40 and max(sizes) < 20 * 4096


def test_the_records_of_an_older_version_are_taken_over_once(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos() | {"broken.jpg": b"no photo"})
    clean("--photos", source)
    before = files_of(tmp_path / "data")
    as_kept_before(tmp_path / "data")
    assert clean("--photos", source)[1]["unchanged"]
    assert files_of(tmp_path / "data") == before  # the older files are gone
    as_kept_before(tmp_path / "data")
    (tmp_path / "data" / "images" / ".identities.json").unlink()
    age(tmp_path / "data")
    (source / "photo-7.jpg").write_bytes(photo_bytes(7))
    summary = clean("--photos", source)[1]
    assert (summary["cleaned"], summary["reused"]) == (1, 7)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]\n{}\nnull\n1\n", b'{"image_id": "photo-1"}\n', b'{"image_id": []}\n'])
def test_damaged_records_of_an_older_version_cost_time_not_the_run(tmp_path, clean, content):
    source = write_folder(tmp_path / "source", good_photos())
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / ".progress.jsonl").write_bytes(content)
    assert clean("--photos", source)[1]["cleaned"] == 6


def test_the_manifests_input_digest_follows_names_and_contents(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos())

    def digest():
        assert clean("--photos", source)[0] == 0
        return stages.read_manifest(tmp_path / "data" / "images")["inputs"]["--photos"]

    seen = [digest()]
    assert digest() == seen[0]
    (source / "photo-1.jpg").write_bytes(photo_bytes(50))
    seen.append(digest())
    (source / "photo-1.jpg").rename(source / "photo-7.jpg")
    seen.append(digest())
    assert len(set(seen)) == 3


def test_a_photo_rewritten_in_place_with_its_old_size_and_time_is_noticed(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    path = source / "photo-1.jpg"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) == (before.st_ino, len(data), before.st_mtime_ns)
    code, summary, _ = clean("--photos", source)
    assert (code, summary["cleaned"], summary["reused"]) == (0, 1, 5)


def test_a_copied_folder_is_read_but_not_cleaned_again(tmp_path, clean):
    source = write_folder(tmp_path / "source", good_photos() | {"broken.jpg": b"no photo"})
    clean("--photos", source)
    age(tmp_path / "data")
    before = written_at(tmp_path / "data")
    shutil.copytree(source, tmp_path / "copied")
    code, summary, _ = clean("--photos", tmp_path / "copied")
    assert (code, summary["cleaned"], summary["reused"]) == (0, 0, 7)
    assert written_at(tmp_path / "data") == before
    assert clean("--photos", tmp_path / "copied")[1]["unchanged"]


def test_full_believes_no_identity_and_reads_every_photo(tmp_path, clean):
    """A record that claims the identity of another photo stands for a file system that hides a change."""
    source = write_folder(tmp_path / "source", good_photos())
    clean("--photos", source)
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "images" / photo_records.FILE)) as database, database:
        database.execute("UPDATE records SET content = 'of other bytes' WHERE id = 'photo-2'")
    assert clean("--photos", source)[1]["unchanged"]
    code, summary, _ = clean("--photos", source, "--full")
    assert (code, summary["cleaned"], summary["reused"]) == (0, 1, 5)
    assert clean("--photos", source)[1]["unchanged"]
