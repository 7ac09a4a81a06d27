import csv
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from marketplace.files import atomic, reading, stages
from tests.files.asked import files_below, killed_before_change

ODD_TEXTS = ["NA", "null", "None", "nan", "", '"', "\r", "\n", '",\r\n"']
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(ODD_TEXTS)


def test_a_file_appears_whole_under_its_name_and_makes_its_folder(tmp_path):
    path = tmp_path / "deep" / "er" / "a.bin"
    with atomic.atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".a.bin.") and temporary.name.endswith(".tmp")
        temporary.write_bytes(b"half")
        assert not path.exists()
        temporary.write_bytes(b"whole")
    assert files_below(tmp_path) == {"deep/er/a.bin": b"whole"}


def test_an_error_while_writing_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic.atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the new")
        raise KeyError("bug")
    assert files_below(tmp_path) == {"a.bin": b"old"}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: atomic.write_json(path, {"price": float("nan")}),
        lambda path: atomic.write_json(path, {"folder": Path()}),
        lambda path: atomic.write_array(path, np.array([{}], dtype=object)),
    ],
    ids=["nan", "not json", "pickle"],
)
def test_what_cannot_be_written_safely_is_refused_and_the_old_file_stays(write, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises((ValueError, TypeError)):
        write(path)
    assert files_below(tmp_path) == {"a": b"old"}


def test_a_write_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "a.json"
    for number in itertools.count(1):
        atomic.write_json(path, "old")
        killed = killed_before_change(number, lambda: atomic.write_json(path, "new"))
        assert reading.read_json(path) in ("old", "new")
        if not killed:
            break
    assert reading.read_json(path) == "new" and number > 2


def test_json_keeps_unicode_readable_and_ends_in_a_newline(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"name": "Pâté £5"})
    atomic.write_json(tmp_path / "b.json", {"name": "Pâté £5"}, indent=None)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "name": "Pâté £5"\n}\n'
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '{"name": "Pâté £5"}\n'
    assert reading.read_json(tmp_path / "a.json") == reading.read_json(tmp_path / "b.json") == {"name": "Pâté £5"}


@given(st.lists(st.tuples(TEXTS, TEXTS)))
@example([("a\rb", "x"), ("c", "\r")])
@example([('a\r"b', "x,\ry"), ("\r\n", "")])
@example([("\x00", "\ufeff")])
def test_every_text_survives_a_csv_written_and_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    frame = pd.DataFrame(rows, columns=["name", "description"], dtype=str)
    atomic.write_csv(path, frame)
    again = reading.read_csv(path)
    assert list(again.columns) == ["name", "description"]
    assert [tuple(row) for row in again.to_numpy()] == rows
    with open(path, encoding="utf-8", newline="") as file:  # the standard library's reader is the oracle
        assert [tuple(row) for row in csv.reader(file)][1:] == rows


def test_a_csv_without_carriage_returns_quotes_only_what_needs_it_and_a_missing_value_is_an_empty_text(tmp_path):
    atomic.write_csv(
        tmp_path / "a.csv", pd.DataFrame({"name": ["NA", None, "a,b", "c\nd"], "price": [1.5, 2.0, 0.1 + 0.2, 1e-7]})
    )
    expected = 'name,price\nNA,1.5\n,2.0\n"a,b",0.30000000000000004\n"c\nd",1e-07\n'
    assert (tmp_path / "a.csv").read_bytes() == expected.encode()
    assert reading.read_csv(tmp_path / "a.csv")["name"].tolist() == ["NA", "", "a,b", "c\nd"]


def test_read_csv_passes_options_on(tmp_path):
    atomic.write_csv(tmp_path / "a.csv", pd.DataFrame({"name": ["07"], "price": [1.5]}))
    assert reading.read_csv(tmp_path / "a.csv")["price"].tolist() == ["1.5"]
    assert reading.read_csv(tmp_path / "a.csv", usecols=["price"], dtype={"price": float})["price"].tolist() == [1.5]


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 5), np.float32), np.array(["é"])])
def test_an_array_is_read_back_memory_mapped(array, tmp_path):
    atomic.write_array(tmp_path / "a.npy", array)
    again = reading.read_array(tmp_path / "a.npy")
    assert isinstance(again, np.memmap) and again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


@given(st.binary(max_size=1000) | st.just(b"a" * 3_000_000))
def test_digest_is_the_sha256_of_the_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "digest"
    path.write_bytes(data)
    assert stages.digest(path) == hashlib.sha256(data).hexdigest()
