"""The stages and the API over photos in shards, beside the same photos in a file each."""

import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import api
import clean_images
import evaluate
from marketplace.files import photo_store, reading
from marketplace.service.settings import Settings
from tests.conftest import run_stages
from tests.service.test_routes import check_that_it_is_sent_once


@pytest.fixture(scope="module")
def sharded_dir(demo_dir, tmp_path_factory) -> Path:
    """A copy of the demo's folder whose photos are in shards, and whose later stages read them there."""
    data_dir = tmp_path_factory.mktemp("sharded") / "data"
    shutil.copytree(demo_dir, data_dir)
    assert clean_images.main(["--data", str(data_dir), "--shards", "--workers", "1"]) == 0
    assert not list((data_dir / "images").rglob("*.jpg"))
    for name in ("dataset", "embeddings"):
        shutil.rmtree(data_dir / name)
    run_stages(data_dir, ("dataset", "embeddings", "index"))
    return data_dir


def test_every_stage_makes_the_same_of_photos_in_shards(demo_dir, sharded_dir):
    names = ["dataset/training_data.csv", "dataset/preview.png", "embeddings/vectors.npy", "embeddings/probabilities.npy"]
    assert {name for name in names if (demo_dir / name).read_bytes() != (sharded_dir / name).read_bytes()} == set()
    assert evaluate.main(["--data", str(sharded_dir)]) == 0
    assert (sharded_dir / "evaluation" / "gallery.png").stat().st_size > 1000


def test_the_api_answers_with_the_photos_in_shards(demo_dir, sharded_dir):
    image_id = reading.read_csv(demo_dir / "dataset" / "training_data.csv")["image_id"][3]
    with (
        TestClient(api.create_app(Settings(demo_dir))) as files,
        TestClient(api.create_app(Settings(sharded_dir))) as shards,
    ):
        for url in (f"/images/{image_id}.jpg", f"/images/{image_id}/display", f"/images/{image_id}/card"):
            expected, answer = files.get(url), shards.get(url)
            assert (answer.status_code, answer.content) == (200, expected.content)
            assert answer.headers["Content-Type"] == expected.headers["Content-Type"] == "image/jpeg"
            check_that_it_is_sent_once(shards, url)
        unknown = f"/images/{image_id}x/card"
        assert shards.get(unknown).json() == files.get(unknown).json()


def test_the_api_says_that_a_photo_cannot_be_had_while_the_index_of_the_shards_cannot_be_read(sharded_dir, tmp_path, caplog):
    data_dir = tmp_path / "data"
    shutil.copytree(sharded_dir, data_dir)
    path = data_dir / "images" / photo_store.INDEX
    path.write_bytes(b"no database" * 100)
    image_id = reading.read_csv(data_dir / "dataset" / "training_data.csv")["image_id"][0]
    with TestClient(api.create_app(Settings(data_dir))) as client:
        answer = client.get(f"/images/{image_id}/card")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the photo cannot be had now: try again")
    assert f"{path} is damaged (file is not a database): delete it and run python clean_images.py again" in caplog.messages
