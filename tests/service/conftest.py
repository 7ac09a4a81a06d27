"""What the tests of the service share: a client, the tables of what it is answered from, and indexes to publish in."""

import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import api
from marketplace.cleaning import listings
from marketplace.files import atomic, generations, reading, stages
from marketplace.service.settings import Settings

KEY = "a-key-of-twenty-four-chr"
TIMEOUT_S = 60


def publish(index_dir: Path, name: str) -> None:
    atomic.write_json(index_dir / "current.json", {"generation": name}, indent=None)


def add_generation(index_dir: Path, name: str, prefix: str) -> Path:
    """A copy of the published generation in which every listing's name begins with `prefix`; not yet published."""
    folder = index_dir / name
    shutil.copytree(generations.current_generation(index_dir), folder)
    with sqlite3.connect(folder / "catalogue.sqlite") as connection:
        connection.execute("UPDATE products SET name = ? || name", (prefix,))
    connection.close()
    report = reading.read_json(folder / "report.json")
    report["files"]["catalogue.sqlite"] = stages.digest(folder / "catalogue.sqlite")
    atomic.write_json(folder / "report.json", report)
    return folder


def spoil(folder: Path) -> None:
    path = folder / "vectors.npy"
    atomic.write_bytes(path, path.read_bytes()[:-4])  # the file itself is read-only


@pytest.fixture(scope="module")
def client(demo_dir):
    with TestClient(api.create_app(Settings(demo_dir))) as client:
        yield client


@pytest.fixture(scope="module")
def photos_table(demo_dir):
    return reading.read_csv(demo_dir / "dataset" / "training_data.csv")


@pytest.fixture(scope="module")
def products(demo_dir):
    return listings.read_products(demo_dir / "tabular").set_index("product_id")


@pytest.fixture
def data_dir(demo_dir, tmp_path) -> Path:
    """A data folder with an index of its own, to publish in."""
    shutil.copytree(demo_dir / "index", tmp_path / "index")
    (tmp_path / "images").symlink_to(demo_dir / "images")
    return tmp_path


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
