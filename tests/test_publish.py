"""Publishing to a bucket and going back to the generation before, by the commands."""

import json
import shutil

import pytest

import build_index
import evaluate
import hide
from marketplace.cleaning import listings
from marketplace.files import bucket, generations, hidden, stages
from tests import s3_server
from tests.test_build_index import change_listings

s3, s3_service = s3_server.s3, s3_server.s3_service

URI = "s3://market/index"
PUBLISH = ["--publish", f"{URI}/"]


@pytest.fixture
def data_dir(demo_dir, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(demo_dir, data_dir, ignore=shutil.ignore_patterns("raw", "tensorboard"))
    return data_dir


def run(data_dir, capsys, *flags: str) -> dict:
    capsys.readouterr()
    assert build_index.main(["--data", str(data_dir), *flags]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def current(data_dir) -> str:
    return generations.current_generation(data_dir / "index").name


def rebuild(data_dir, capsys, *flags: str) -> dict:
    """Build after a listing has gone."""
    gone = listings.read_products(data_dir / "tabular")["product_id"][0]
    change_listings(data_dir, [gone], [], copies=0)
    return run(data_dir, capsys, *flags) | {"gone": gone}


def test_an_unchanged_index_is_published_once(data_dir, s3, capsys):
    hidden_id = listings.read_products(data_dir / "tabular")["product_id"][0]
    assert hide.main(["--data", str(data_dir), hidden_id]) == 0
    summary = run(data_dir, capsys, *PUBLISH)
    assert summary["unchanged"] and summary["published"] == URI and summary["served"] == summary["generation"]
    n_photos = len(list((data_dir / "images").glob("*.jpg")))
    assert summary["uploaded"] > n_photos and summary["photos_not_published"] == 0
    assert bucket.read_hidden(URI)[0] == {hidden_id}
    again = run(data_dir, capsys, *stages.last_flags(data_dir, "index"))  # as update.py does
    assert (again["published"], again["uploaded"], again["deleted"]) == (URI, 0, 0)


def test_going_back_is_not_undone_by_unchanged_builds_but_by_the_next_one_that_changes(data_dir, s3, capsys):
    first = current(data_dir)
    run(data_dir, capsys, *PUBLISH)
    second = rebuild(data_dir, capsys, *PUBLISH)["generation"]
    summary = run(data_dir, capsys, "--serve", first, *PUBLISH)
    assert (summary["generation"], summary["served"], summary["uploaded"]) == (first, first, 0)
    assert current(data_dir) == first == bucket.read(URI)[0].generation

    assert build_index.main(["--data", str(data_dir), *PUBLISH]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert summary["unchanged"] and summary["generation"] == summary["served"] == first
    sentence = f"{first} goes on being served, as --serve said; python build_index.py --serve {second} ends it"
    assert sentence in said.err.splitlines()
    assert current(data_dir) == first == bucket.read(URI)[0].generation

    assert evaluate.main(["--data", str(data_dir)]) == 1
    folder = data_dir / "index" / first
    expected = (
        f"error: {folder} is served, and was not built from the present data: run python build_index.py --serve {second} first"
    )
    assert capsys.readouterr().err.splitlines()[-1] == expected

    third = rebuild(data_dir, capsys, *PUBLISH)
    assert third["served"] == third["generation"] == current(data_dir) not in (first, second)
    assert third["updated"] == first


def test_an_unchanged_build_elsewhere_leaves_the_bucket_as_it_is(data_dir, s3, capsys, tmp_path):
    first = current(data_dir)
    run(data_dir, capsys, *PUBLISH)
    second = rebuild(data_dir, capsys, *PUBLISH)["generation"]
    shutil.copytree(data_dir, tmp_path / "other")
    run(tmp_path / "other", capsys, "--serve", first, *PUBLISH)
    assert build_index.main(["--data", str(data_dir), *PUBLISH]) == 0
    command = f"python build_index.py --serve {second} --publish {URI}"
    assert f"{URI} goes on serving {first}, as --serve said; {command} ends it" in capsys.readouterr().err.splitlines()
    assert run(data_dir, capsys, "--serve", second, *PUBLISH)["served"] == second == bucket.read(URI)[0].generation


def test_a_purge_reaches_the_bucket_and_hidden_listings_that_are_gone_are_forgotten(data_dir, s3, capsys):
    run(data_dir, capsys, *PUBLISH)
    products = listings.read_products(data_dir / "tabular")["product_id"]
    doomed, other = products[0], products[1]
    assert hide.main(["--data", URI, doomed.upper(), other]) == 0
    summary = rebuild(data_dir, capsys, "--purge", *PUBLISH)
    assert summary["gone"] == doomed and summary["deleted"] > 0
    assert list(bucket.read(URI)[0].generations) == [summary["generation"]]
    rebuild(data_dir, capsys, *PUBLISH)
    assert bucket.read_hidden(URI)[0] == {other}


def test_a_listing_that_comes_back_with_the_generation_before_stays_hidden(data_dir, s3, capsys):
    first = current(data_dir)
    run(data_dir, capsys, *PUBLISH)
    gone = listings.read_products(data_dir / "tabular")["product_id"][0]
    assert hide.main(["--data", URI, gone]) == 0
    assert rebuild(data_dir, capsys, *PUBLISH)["gone"] == gone
    run(data_dir, capsys, "--serve", first, *PUBLISH)
    assert bucket.read_hidden(URI)[0] == {gone}


def test_listings_in_a_bucket_are_hidden_listed_and_shown_again(data_dir, s3, capsys):
    ids = listings.read_products(data_dir / "tabular")["product_id"].tolist()
    assert hide.main(["--data", URI, ids[0]]) == 1
    assert capsys.readouterr().err == f"error: {URI} holds no published index: run python build_index.py --publish {URI} first\n"
    run(data_dir, capsys, *PUBLISH)
    assert hide.main(["--data", f"{URI}/", ids[1], ids[0]]) == 0
    assert json.loads(capsys.readouterr().out) == {"hidden": 2}
    assert hide.main(["--data", URI, "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == sorted(ids[:2])
    assert hide.main(["--data", URI, ids[0], "nobody"]) == 1
    assert capsys.readouterr().err == "error: no listing has the id nobody: nothing was changed\n"
    assert hide.main(["--data", URI, "--unhide", ids[1]]) == 0
    assert bucket.read_hidden(URI)[0] == {ids[0]} and hidden.read(data_dir / "index") == frozenset()


def test_a_generation_that_is_not_there_or_not_whole_is_not_served(data_dir, capsys):
    index_dir, first = data_dir / "index", current(data_dir)
    there = ", ".join(sorted(path.name for path in index_dir.iterdir() if path.is_dir()))
    for name in ("nowhere", "", ".."):
        assert build_index.main(["--data", str(data_dir), "--serve", name]) == 1
        assert capsys.readouterr().err == f"error: {index_dir} holds no whole generation {name}: give one of {there}\n"
    vectors = index_dir / first / "price.npy"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    assert build_index.main(["--data", str(data_dir), "--serve", first]) == 1
    assert build_index.main(["--data", str(data_dir / "nowhere"), "--serve", first]) == 1
    sentence = f"{data_dir / 'nowhere' / 'index'} holds no published index: run python build_index.py first"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {sentence}" and not (data_dir / "nowhere").exists()


def test_what_is_served_again_is_not_published_as_purged(data_dir, s3, capsys):
    first = current(data_dir)
    second = rebuild(data_dir, capsys, "--purge")["generation"]
    run(data_dir, capsys, "--serve", first)
    assert build_index.main(["--data", str(data_dir), "--purge", *PUBLISH]) == 1
    sentence = f"{first} is served, as --serve said, and was not purged: run python build_index.py --serve {second} first"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {sentence}" and bucket.read(URI)[0].generation is None


@pytest.mark.parametrize("flags", [["--purge"], ["--full"], ["--embeddings", "x.json"], ["--vectors", "milvus://a"]])
def test_going_back_builds_nothing(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_index.main(["--serve", "one", *flags])
    assert stopped.value.code == 2
    expected = "error: argument --serve: builds nothing, and goes with none of --purge, --full, --embeddings and --vectors\n"
    assert capsys.readouterr().err.endswith(expected)


def test_a_uri_that_is_none_is_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        build_index.main(["--publish", "bucket/prefix"])
    assert stopped.value.code == 2
    expected = "error: argument --publish: bucket/prefix is not of the form s3://bucket/prefix\n"
    assert capsys.readouterr().err.endswith(expected)
