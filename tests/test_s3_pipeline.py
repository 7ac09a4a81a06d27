import json
import shutil
from pathlib import Path

import pytest

import clean_images
import clean_tabular_data
from demo import sample
from marketplace.files import s3 as s3_files
from tests import s3_server

s3, s3_service = s3_server.s3, s3_server.s3_service


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A data folder whose table and photos were cleaned from files on disk."""
    data_dir = tmp_path_factory.mktemp("local")
    sample.write(data_dir / "raw", listings=45)
    assert clean_tabular_data.main(["--data", str(data_dir)]) == 0
    assert clean_images.main(["--data", str(data_dir), "--workers", "1"]) == 0
    return data_dir


@pytest.fixture
def with_table(tmp_path, local) -> Path:
    """A data folder whose table is cleaned."""
    shutil.copytree(local / "tabular", tmp_path / "tabular")
    return tmp_path


@pytest.fixture
def uploaded(local, s3):
    """An S3 that holds the same raw files."""
    for path in sorted((local / "raw").rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), "market", f"raw data/{path.relative_to(local / 'raw').as_posix()}")
    return s3


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file that the next stage may read; the manifest holds times."""
    hidden_or_timed = {"manifest.json"} | {path.name for path in folder.glob(".*")}
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in hidden_or_timed)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def last_line(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_the_table_cleaned_from_s3_is_the_table_cleaned_from_files(local, uploaded, tmp_path, capsys):
    command = ["--data", str(tmp_path), "--products", "s3://market/raw data/Products.csv"]
    command += ["--images-csv", "s3://market/raw data/Images.csv"]
    assert clean_tabular_data.main(command) == 0
    assert outputs(tmp_path / "tabular") == outputs(local / "tabular")
    capsys.readouterr()
    assert clean_tabular_data.main(command) == 0
    assert last_line(capsys.readouterr().out)["unchanged"] is True


@pytest.mark.parametrize(("prefix", "workers"), [("s3://market/raw data/images", "1"), ("s3://market/raw data/images/", "2")])
def test_photos_below_an_s3_prefix_give_the_files_of_the_folder(prefix, workers, local, uploaded, with_table, capsys):
    command = ["--data", str(with_table), "--photos", prefix, "--workers", workers]
    assert clean_images.main(command) == 0
    assert outputs(with_table / "images") == outputs(local / "images")
    capsys.readouterr()
    assert clean_images.main(command) == 0
    assert last_line(capsys.readouterr().out)["unchanged"] is True


def test_photos_in_a_zip_on_s3_give_the_files_of_the_folder(local, uploaded, with_table):
    archive = shutil.make_archive(str(with_table / "images_fb"), "zip", local / "raw", "images")
    uploaded.upload_file(archive, "market", "raw data/images_fb.zip")
    command = ["--data", str(with_table), "--photos", "s3://market/raw data/images_fb.zip", "--workers", "1"]
    assert clean_images.main(command) == 0
    assert outputs(with_table / "images") == outputs(local / "images")


def test_a_photo_that_changes_on_s3_is_cleaned_again_and_only_that_one(local, uploaded, with_table, capsys):
    command = ["--data", str(with_table), "--photos", "s3://market/raw data/images", "--workers", "1"]
    assert clean_images.main(command) == 0
    first, second = sorted((with_table / "images").glob("*.jpg"))[:2]
    uploaded.upload_file(str(second), "market", f"raw data/images/{first.name}")
    capsys.readouterr()
    assert clean_images.main(command) == 0
    summary = last_line(capsys.readouterr().out)
    assert (summary["cleaned"], summary["seen"] - summary["skipped"]) == (1, summary["reused"] + 1)


def test_photos_that_vanish_from_s3_or_are_archived_are_rejected_alone_and_tried_again(
    local, uploaded, with_table, monkeypatch, capsys
):
    gone, archived = (path.name for path in sorted((local / "images").glob("*.jpg"))[:2])
    key = f"raw data/images/{archived}"
    body = uploaded.get_object(Bucket="market", Key=key)["Body"].read()
    uploaded.put_object(Bucket="market", Key=key, Body=body, StorageClass="GLACIER")
    iterate_objects = s3_files.iterate_objects

    def list_then_delete(uri):
        listed = list(iterate_objects(uri))
        uploaded.delete_object(Bucket="market", Key=f"raw data/images/{gone}")
        return listed

    command = ["--data", str(with_table), "--photos", "s3://market/raw data/images", "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(s3_files, "iterate_objects", list_then_delete)
        assert clean_images.main(command) == 0
    summary = last_line(capsys.readouterr().out)
    assert summary["reasons"]["read_error"] == 2
    assert set(outputs(local / "images")) - set(outputs(with_table / "images")) == {
        f"{folder}{name}" for folder in ("", "display/", "card/") for name in (gone, archived)
    }
    uploaded.put_object(Bucket="market", Key=key, Body=body)
    assert clean_images.main(command) == 0
    assert (with_table / "images" / archived).read_bytes() == (local / "images" / archived).read_bytes()


def test_photos_that_may_be_listed_and_not_read_are_one_sentence(s3, tmp_path, capsys):
    for name in "ab":
        s3.put_object(Bucket="market", Key=f"photos/{name}.jpg", Body=b"1", StorageClass="GLACIER")
    assert clean_images.main(["--data", str(tmp_path), "--all-photos", "--photos", "s3://market/photos", "--workers", "1"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: 2 of 2 photos were rejected, more than --max-rejected 0.2: see the reasons in "
        f"{tmp_path / 'images' / 'photos.csv'}, and allow s3:GetObject on s3://market/photos for those of read_error"
    )


NO_OBJECT = "error: there is no object {}: check the bucket and the key"


@pytest.mark.parametrize(
    ("main", "flags", "sentence"),
    [
        (clean_tabular_data.main, ["--products", "s3://nowhere/Products.csv"], NO_OBJECT.format("s3://nowhere/Products.csv")),
        (clean_tabular_data.main, ["--products", "s3://market/gone.csv"], NO_OBJECT.format("s3://market/gone.csv")),
        (
            clean_tabular_data.main,
            ["--products", "s3://market/raw data/Products.csv", "--images-csv", "s3://nowhere/Images.csv"],
            NO_OBJECT.format("s3://nowhere/Images.csv"),
        ),
        (
            clean_images.main,
            ["--photos", "s3://nowhere/photos"],
            "error: there is no bucket nowhere for s3://nowhere/photos/: check its name",
        ),
        (clean_images.main, ["--photos", "s3://nowhere/photos.zip"], NO_OBJECT.format("s3://nowhere/photos.zip")),
        (
            clean_images.main,
            ["--photos", "s3://market/none"],
            "error: s3://market/none holds no photos: give their folder, .zip or s3:// URI with --photos",
        ),
    ],
)
def test_a_missing_bucket_or_key_exits_1_with_one_sentence(main, flags, sentence, s3, tmp_path, capsys):
    s3.put_object(Bucket="market", Key="raw data/Products.csv", Body=b"1")
    assert main(["--data", str(tmp_path), *flags]) == 1
    assert capsys.readouterr() == ("", sentence + "\n")
    assert not list(tmp_path.glob("*/manifest.json"))
