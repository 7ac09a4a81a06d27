"""The script that takes listings down."""

import json
import shutil

import pytest

import build_index
import hide
from marketplace.cleaning import listings
from marketplace.files import generations, hidden
from tests.test_build_index import change_listings


@pytest.fixture
def data_dir(demo_dir, tmp_path):
    shutil.copytree(demo_dir / "index", tmp_path / "index")
    return tmp_path


@pytest.fixture
def ids(demo_dir) -> list[str]:
    return listings.read_products(demo_dir / "tabular")["product_id"].tolist()


def test_listings_are_hidden_listed_and_shown_again(data_dir, ids, capsys):
    assert hide.main(["--data", str(data_dir), ids[1], ids[0].upper()]) == 0
    assert json.loads(capsys.readouterr().out) == {"hidden": 2}
    assert hide.main(["--data", str(data_dir), "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == sorted(ids[:2])
    assert hide.main(["--data", str(data_dir), "--unhide", ids[1]]) == 0
    assert json.loads(capsys.readouterr().out) == {"hidden": 1}
    assert hidden.read(data_dir / "index") == {ids[0]}


def test_unknown_ids_are_told_and_nothing_is_changed(data_dir, ids, capsys):
    assert hide.main(["--data", str(data_dir), ids[0], "nobody"]) == 1
    assert capsys.readouterr().err == "error: no listing has the id nobody: nothing was changed\n"
    assert hidden.read(data_dir / "index") == frozenset()


@pytest.mark.parametrize("asked", ["x", "--list"])
def test_without_an_index_it_says_what_to_run(tmp_path, capsys, asked):
    assert hide.main(["--data", str(tmp_path), asked]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'index'} holds no published index: run python build_index.py first\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give at least one id, or --list"),
        (["--list", "x"], "argument --list: goes with neither ids nor --unhide"),
        (["--list", "--unhide"], "argument --list: goes with neither ids nor --unhide"),
    ],
)
def test_flags_that_do_not_go_together_are_told(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        hide.main(flags)
    assert stopped.value.code == 2 and capsys.readouterr().err.endswith(f"error: {message}\n")


def test_a_listing_stays_hidden_through_a_build_and_is_forgotten_once_it_is_gone(demo_dir, tmp_path, ids):
    data_dir = tmp_path / "data"
    shutil.copytree(demo_dir, data_dir)
    index_dir, doomed = data_dir / "index", ids[:2]
    assert hide.main(["--data", str(data_dir), *doomed]) == 0

    before = generations.current_generation(index_dir)
    change_listings(data_dir, doomed[:1], [], copies=0)
    assert build_index.main(["--data", str(data_dir)]) == 0
    assert generations.current_generation(index_dir) != before
    assert hidden.read(index_dir) == set(doomed)  # a worker may serve the generation before for a moment
    for name in ("tabular", "dataset", "embeddings"):  # as they were: it comes back
        shutil.copytree(demo_dir / name, data_dir / name, dirs_exist_ok=True)
    assert build_index.main(["--data", str(data_dir)]) == 0
    assert hidden.read(index_dir) == {doomed[1]}
