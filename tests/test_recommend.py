"""The script that writes what is like every listing, against what the API answers."""

import functools
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

import api
import build_index
import recommend
from marketplace.cleaning import listings
from marketplace.files import atomic, generations, hidden, locks, reading
from marketplace.files.stages import StageError
from marketplace.retrieval import catalogue, open_index
from marketplace.retrieval.filters import Filters
from marketplace.service.settings import Settings
from tests.conftest import stamp


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(recommend, "BLOCK", 8)


@pytest.fixture
def data_dir(demo_dir, tmp_path) -> Path:
    shutil.copytree(demo_dir / "index", tmp_path / "index")
    return tmp_path


@pytest.fixture(scope="module")
def products(demo_dir):
    return listings.read_products(demo_dir / "tabular").set_index("product_id")


def write(data_dir: Path, *flags: str) -> dict[str, list[dict]]:
    """Run the script with one process; id -> what is like it, in order."""
    assert recommend.main(["--data", str(data_dir), "--workers", "1", *flags]) == 0
    found: dict[str, list[dict]] = {}
    for line in (data_dir / "recommendations" / "similar.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert list(record) == ["id", "rank", "similar_id", "score", "parts"]
        own = found.setdefault(record.pop("id"), [])
        own.append(record)
        assert record["rank"] == len(own)
    return found


def ids_file(path: Path, ids) -> str:
    path.write_text("".join(f"{one}\n" for one in ids))
    return str(path)


def hide(data_dir: Path, *ids: str) -> None:
    index_dir = data_dir / "index"
    find = functools.partial(catalogue.find_ids, generations.current_generation(index_dir))
    hidden.change(index_dir, ids, True, find)


@pytest.mark.parametrize("asked", ["plain", "filtered", "scored", "hidden"])
def test_every_listing_has_the_answers_that_the_api_gives(data_dir, products, asked):
    params = {
        "plain": {"k": 10},
        "filtered": {"k": 4, "category": products["main_category"].mode()[0], "min_price": 5, "max_price": 200},
        "scored": {"k": 30, "min_score": 0.5},
        "hidden": {"k": 20, "location": products["county"].mode()[0]},
    }[asked]
    gone = list(products.index[5:9]) if asked == "hidden" else []
    if gone:
        hide(data_dir, *gone)
    flags = [str(word) for name, value in params.items() for word in (f"--{name.replace('_', '-')}", value)]
    written = write(data_dir, *flags)
    shown = [one for one in products.index if one not in gone]
    with TestClient(api.create_app(Settings(data_dir))) as client:
        for one in shown:
            served = client.get(f"/products/{one}/similar", params=params).json()["results"]
            expected = [
                {"rank": rank, "similar_id": hit["product_id"], "score": hit["score"], "parts": hit["parts"]}
                for rank, hit in enumerate(served, 1)
            ]
            assert written.get(one, []) == expected
    assert set(written) <= set(shown) and sum(map(len, written.values())) > 20


def test_some_listings_are_answered_for_and_some_are_no_answer(data_dir, products, tmp_path):
    asked, left_out = list(products.index[[7, 3, 20]]), list(products.index[[7, 9, 11]])
    flags = ["--ids", ids_file(tmp_path / "ids.txt", [asked[0].upper(), *asked[1:], "", asked[1]])]
    plain = write(data_dir, *flags, "--k", "60")
    assert list(plain) == asked
    fewer = write(data_dir, *flags, "--k", "60", "--exclude", ids_file(tmp_path / "out.txt", left_out))
    for one in asked:
        kept = [(hit["similar_id"], hit["score"]) for hit in plain[one] if hit["similar_id"] not in left_out]
        got = [(hit["similar_id"], hit["score"]) for hit in fewer[one]]
        assert set(kept) <= set(got) and not set(left_out) & {similar_id for similar_id, _ in got}


def test_a_sellers_other_listings_are_left_out_where_they_are_not_wanted(demo_dir, tmp_path, capsys, monkeypatch):
    shutil.copytree(demo_dir, tmp_path, ignore=shutil.ignore_patterns("raw", "features", "tensorboard"), dirs_exist_ok=True)
    table = tmp_path / "tabular" / "products.csv"
    products = reading.read_csv(table)
    copies = reading.read_csv(tmp_path / "dataset" / "listings.csv").set_index("product_id")["duplicates"]
    groups = pd.factorize(copies[products["product_id"]])[0]  # one offer is of one seller, who is not always told
    products["seller"] = np.where(groups % 4 == 3, "", [f"{group % 4:032x}" for group in groups])
    sentence = "error: no listing says who sells it: name the column in --schema and run the stages, or leave out --same-seller"
    assert told(capsys, tmp_path, "--same-seller", "no") == sentence
    atomic.write_csv(table, products)
    stamp(tmp_path, "tabular", "dataset", "embeddings")
    assert build_index.main(["--data", str(tmp_path)]) == 0
    seller = products.set_index("product_id")["seller"]
    others = {
        one: [(hit["similar_id"], hit["score"]) for hit in hits if not seller[one] or seller[hit["similar_id"]] != seller[one]]
        for one, hits in write(tmp_path, "--k", "60").items()
    }
    found = write(tmp_path, "--k", "60", "--same-seller", "no")
    assert {one: [(hit["similar_id"], hit["score"]) for hit in hits] for one, hits in found.items()} == others
    monkeypatch.setattr(open_index, "MANY_EXCLUDED", 2)  # so many that a filter leaves them out
    generation = generations.current_generation(tmp_path / "index")
    asked = recommend.Asked(generation, 60, Filters(), 0.0, (), False)
    records = map(json.loads, recommend.lines(open_index.OpenIndex(generation), asked, list(others)))
    assert [(one["id"], one["similar_id"]) for one in records] == [(one, hit) for one, hits in others.items() for hit, _ in hits]


def test_several_processes_write_the_same_bytes_as_one(data_dir):
    path = data_dir / "recommendations" / "similar.jsonl"
    write(data_dir)
    alone = path.read_bytes()
    path.unlink()
    assert recommend.main(["--data", str(data_dir), "--workers", "2"]) == 0
    assert path.read_bytes() == alone and not list(path.parent.glob("parts-*"))


def test_a_run_that_was_stopped_is_gone_on_with(data_dir, monkeypatch):
    path = data_dir / "recommendations" / "similar.jsonl"
    write(data_dir)
    whole = path.read_bytes()
    path.unlink()
    write_parts = recommend.write_parts

    def stop_early(parts, asked, ids, workers):
        write_parts(parts, asked, ids[:24], workers)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recommend, "write_parts", stop_early)
        with pytest.raises(KeyboardInterrupt):
            recommend.main(["--data", str(data_dir), "--workers", "1"])
    assert not path.exists() and not (path.parent / "report.json").exists()
    parts = {part: part.stat().st_ino for part in path.parent.glob("parts-*/*.jsonl")}
    assert len(parts) == 3
    join, kept = recommend.join, {}

    def note_and_join(parts, output):
        kept.update((part, part.stat().st_ino) for part in parts.glob("*.jsonl"))
        return join(parts, output)

    monkeypatch.setattr(recommend, "join", note_and_join)
    write(data_dir)
    assert path.read_bytes() == whole and len(kept) == 8 and kept.items() >= parts.items()


def test_the_same_again_does_nothing_and_another_question_is_answered_anew(data_dir, products, capsys):
    def summary(*flags: str) -> dict:
        capsys.readouterr()
        write(data_dir, *flags)
        return json.loads(capsys.readouterr().out)

    first = summary("--k", "3")
    name = generations.current_generation(data_dir / "index").name
    assert first == {"generation": name, "listings": 60, "rows": 180, "seconds": first["seconds"]}
    assert summary("--k", "3") == first | {"unchanged": True}
    path = data_dir / "recommendations" / "similar.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert "unchanged" not in summary("--k", "3")
    assert summary("--k", "2")["rows"] == 120
    hide(data_dir, products.index[0])
    assert summary("--k", "2")["listings"] == 59


def told(capsys, data_dir: Path, *flags: str) -> str:
    capsys.readouterr()
    assert recommend.main(["--data", str(data_dir), *flags]) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_done_is_told_in_one_sentence(data_dir, products, tmp_path, capsys, monkeypatch):
    path = tmp_path / "ids.txt"
    flags = ["--ids", ids_file(path, [products.index[0], "nobody", "someone"])]
    assert told(capsys, data_dir, *flags) == f"error: no listing has the ids nobody, someone in {path}: take them out"
    assert told(capsys, data_dir, "--exclude", str(path)).endswith(f"nobody, someone in {path}: take them out")
    hide(data_dir, products.index[3])
    gone = products.index[3]
    flags = ["--ids", ids_file(path, [gone])]
    assert told(capsys, data_dir, *flags) == f"error: hidden listings are not answered for: take {gone} out of {path}"
    assert told(capsys, data_dir, "--ids", str(tmp_path / "no.txt")).startswith(f"error: {tmp_path / 'no.txt'} cannot be read")
    assert told(capsys, data_dir, "--location", "Bxq").startswith('error: no listing has the place "Bxq": ')
    folder = data_dir / "recommendations"
    folder.mkdir()
    with locks.hold(folder, exclusive=True):
        sentence = f"error: another run is at work in {folder}: wait for its end, then run python recommend.py again"
        assert told(capsys, data_dir) == sentence
    assert told(capsys, tmp_path / "empty").endswith("holds no published index: run python build_index.py first")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    sentence = "error: --format parquet needs pyarrow: run pip install pyarrow, or leave the format at jsonl"
    assert told(capsys, data_dir, "--format", "parquet") == sentence


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", "1001"], "argument --k: 1001 is above 1000"),
        (["--min-price", "-1"], "argument --min-price: '-1' is not a price of 0 or more"),
        (["--max-price", "nan"], "argument --max-price: 'nan' is not a price of 0 or more"),
        (["--min-price", "9", "--max-price", "3"], "argument --min-price: 9 is above --max-price 3: swap them"),
        (["--min-score", "2"], "argument --min-score: '2' is not a number from 0 to 1"),
    ],
)
def test_wrong_flags_are_told(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        recommend.main(flags)
    assert stopped.value.code == 2 and capsys.readouterr().err.endswith(f"error: {message}\n")


def test_a_process_that_ends_too_early_is_told(tmp_path, capfd):
    asked = recommend.Asked(tmp_path / "nowhere", 10, Filters(), 0.0, (), True)
    with pytest.raises(StageError) as error:
        recommend.write_parts(tmp_path, asked, ["x"], 1)
    sentence = "a process ended before its work did: run it again, with fewer --workers; what is done stays"
    assert str(error.value) == sentence


def test_parquet_holds_what_json_lines_hold_where_there_is_pyarrow(data_dir, capsys):
    lines = write(data_dir, "--k", "3")
    code = recommend.main(["--data", str(data_dir), "--k", "3", "--workers", "1", "--format", "parquet"])
    if importlib.util.find_spec("pyarrow") is None:
        assert code == 1 and "needs pyarrow" in capsys.readouterr().err
        return
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(data_dir / "recommendations" / "similar.parquet").to_pylist()
    for row in rows:
        row["parts"] = {kind: value for kind, value in row["parts"].items() if value is not None}
    assert rows == [{"id": one} | hit for one, hits in lines.items() for hit in hits]
