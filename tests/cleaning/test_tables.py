"""cleaning/tables.py: the records of a shop's table, from files of every kind."""

import csv
import dataclasses
import datetime
import io
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.cleaning import tables
from marketplace.cleaning.schema import Schema
from marketplace.files.stages import StageError

SHOP = Schema(id="sku", name="title", category="path", price="price", decimal=",", separator=" > ", extra="all")
HEADER = ["sku", "title", "path", "price"]
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def read(data: str | bytes, tmp_path, name: str = "shop.csv", **changes) -> list[dict[str, str] | None]:
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    schema = Schema(**SHOP.as_dict() | changes)
    return [record.fields for record in tables.open_table(path, schema, tmp_path / "shop.toml").records]


def as_csv(rows: list[list[str]], delimiter: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([HEADER, *rows])
    return file.getvalue()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(CELLS, min_size=4, max_size=4), max_size=6), delimiter=st.sampled_from([",", ";", "\t", "|"]))
def test_what_a_csv_writer_wrote_is_read_back(rows, delimiter, tmp_path):
    found = read(as_csv(rows, delimiter), tmp_path, delimiter=delimiter)
    assert found == [dict(zip(HEADER, row, strict=True)) for row in rows if delimiter.join(row).strip() or len(row) > 1]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text('",\n\rab', max_size=60))
def test_any_text_below_a_header_is_records_or_one_sentence(text, tmp_path):
    try:
        found = read(",".join(HEADER) + "\n" + text, tmp_path)
    except StageError as error:
        assert str(error).startswith(f"{tmp_path / 'shop.csv'}: the quotes that open in line ")
    else:
        assert all(fields is None or list(fields)[::-1] == HEADER for fields in found)


def test_a_record_of_another_length_or_with_broken_quotes_is_bad_and_costs_no_other(tmp_path):
    found = read("\n".join([",".join(HEADER), "1,a,b,2", "2,a,b", '3,"a"x,b,2', "", "4,a,b,2", "5,a,b,2,3"]), tmp_path)
    assert [fields and fields["sku"] for fields in found] == ["1", None, None, "4", None]


def test_a_bad_record_keeps_its_text(tmp_path):
    path = tmp_path / "shop.csv"
    path.write_text(",".join(HEADER) + '\n1,"a\nb",c\n2,a,b,3\n', encoding="utf-8")
    records = list(tables.open_table(path, SHOP).records)
    assert [(record.fields is None, record.text) for record in records] == [(True, '1,"a\nb",c'), (False, "2,a,b,3")]


def test_quotes_that_do_not_close_are_one_sentence_with_their_line(tmp_path):
    with pytest.raises(StageError) as caught:
        read(",".join(HEADER) + '\n1,a,b,2\n2,"a,b,2\n3,a,b,2\n', tmp_path)
    assert str(caught.value) == f"{tmp_path / 'shop.csv'}: the quotes that open in line 3 do not close: correct that line"


@pytest.mark.parametrize("name", ["shop.json", "shop.xlsx", "shop.csv.gz"])
def test_a_file_that_is_no_table_by_its_name_is_one_sentence_unless_the_schema_says_what_it_is(name, tmp_path):
    path = tmp_path / name
    path.write_text(json.dumps(dict.fromkeys(HEADER, "1")) + "\n")
    with pytest.raises(StageError) as caught:
        tables.open_table(path, SHOP)
    assert str(caught.value) == (
        f"{path} is read neither as {path.suffix} nor unpacked: save it as CSV, JSON Lines or Parquet, or say with format in "
        "--schema which of these it is"
    )
    assert tables.open_table(path, dataclasses.replace(SHOP, format="jsonl")).columns == HEADER


def test_one_list_of_objects_is_no_json_lines(tmp_path):
    path = tmp_path / "shop.jsonl"
    path.write_text(json.dumps([dict.fromkeys(HEADER, "1")], indent=1))
    with pytest.raises(StageError) as caught:
        tables.open_table(path, SHOP)
    assert str(caught.value) == f"{path} has no line that is a JSON object: write each listing as one, on a line of its own"


def test_another_encoding_is_read_or_asked_for(tmp_path):
    data = (",".join(HEADER) + "\n1,Käse,b,2\n").encode("cp1252")
    assert read(data, tmp_path, encoding="cp1252")[0]["title"] == "Käse"
    with pytest.raises(StageError) as caught:
        read(data, tmp_path)
    assert str(caught.value) == f"{tmp_path / 'shop.csv'} is not utf-8 after line 1: name its encoding in --schema"


def test_json_lines_give_the_texts_that_a_csv_would_hold(tmp_path):
    lines = [
        {"sku": 12345678901234567890, "title": "Bed", "path": ["Home", "Beds"], "price": 12.5, "new": True},
        {"sku": "b", "title": None, "path": "Home", "price": 1e3, "more": {"a": 1}},
        {"sku": 7.0, "title": "x", "path": [], "price": "12,50"},
    ]
    found = read("\n".join(map(json.dumps, lines)) + "\n\nrubbish\n[1]\n", tmp_path, "shop.jsonl")
    assert found[:3] == [
        {"sku": "12345678901234567890", "title": "Bed", "path": "Home > Beds", "price": "12,5", "new": "true", "more": ""},
        {"sku": "b", "title": "", "path": "Home", "price": "1000,0", "new": "", "more": '{"a": 1}'},
        {"sku": "7", "title": "x", "path": "", "price": "12,50", "new": "", "more": ""},
    ]
    assert found[3:] == [None, None]


@pytest.mark.parametrize("number", ["1e999999999", "1e-999999999", "Infinity", "-Infinity", "NaN", "12345678901234567890.5"])
def test_a_number_beyond_measure_is_text_and_costs_nothing(number, tmp_path):
    (found,) = read(f'{{"sku": {number}, "title": "a", "path": "b", "price": {number}}}', tmp_path, "shop.jsonl")
    assert found["sku"] == found["price"].replace(",", ".") and len(found["sku"]) < 30


def test_half_a_pair_of_surrogates_in_json_is_a_bad_record(tmp_path):
    line = json.dumps({"sku": "1", "title": "👍", "path": "a", "price": 1})
    found = read(line + "\n" + line.replace("\\ud83d", "") + "\n", tmp_path, "shop.jsonl")
    assert found[0]["title"] == "👍" and found[1] is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({name: CELLS for name in HEADER}), min_size=1, max_size=5))
def test_texts_in_json_lines_are_read_back(rows, tmp_path):
    assert read("\n".join(map(json.dumps, rows)), tmp_path, "shop.jsonl") == rows


def test_parquet_gives_the_texts_that_a_csv_would_hold(tmp_path, monkeypatch):
    added = [pd.Timestamp("2026-11-27 10:00", tz="UTC"), pd.NaT]
    columns = {"sku": pd.array([7, 8], "Int64"), "title": ["Bed", pd.NA], "path": [np.array(["Home", "Beds"], object), None]}
    frame = pd.DataFrame(columns | {"price": pd.array([12.5, pd.NA], "Float64"), "added": added})
    monkeypatch.setattr(pd, "read_parquet", lambda path, dtype_backend: frame)
    found = read(b"", tmp_path, "shop.parquet", created="added", created_format="%d.%m.%Y")
    assert found == [
        {"sku": "7", "title": "Bed", "path": "Home > Beds", "price": "12,5", "added": "27.11.2026"},
        {"sku": "8", "title": "", "path": "", "price": "", "added": ""},
    ]


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    def read_parquet(path, dtype_backend):
        raise ImportError("Missing optional dependency 'pyarrow'")

    monkeypatch.setattr(pd, "read_parquet", read_parquet)
    with pytest.raises(StageError) as caught:
        read(b"", tmp_path, "shop.parquet")
    path = tmp_path / "shop.parquet"
    assert str(caught.value) == f"{path} is Parquet, which needs pyarrow: pip install pyarrow, or give CSV or JSON Lines"


def test_dates_of_typed_files_are_written_as_the_schema_reads_them():
    noon = datetime.datetime(2025, 11, 27, tzinfo=datetime.UTC)
    assert [tables._time(noon, form) for form in ("iso", "unix", "%d.%m.%Y")] == [
        *("2025-11-27T00:00:00+00:00", "1764201600.0", "27.11.2025"),
    ]
