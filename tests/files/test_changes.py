import csv
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.files import atomic, changes, reading

TEXT = st.text(st.sampled_from('ab,"\n\r é€'), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), st.integers(1, 7), st.data())
def test_any_records_of_a_table_are_read_as_the_whole_table_is(fields, block_bytes, data):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "BLOCK_BYTES", block_bytes)
        path = Path(folder) / "products.csv"
        table = pd.DataFrame(
            {"id": [f"p{row}" for row in range(len(fields))], 'a "name"\n': "x", "text": [of[0] for of in fields]}
        )
        atomic.write_csv(path, table.assign(more=[of[1] for of in fields]))
        changes.write_records(Path(folder) / "records.npy", path, table["id"])
        records = reading.read_array(Path(folder) / "records.npy")
        rows = np.array(data.draw(st.lists(st.integers(0, len(fields) - 1), min_size=1)))
        expected = reading.read_csv(path).iloc[rows].reset_index(drop=True)
        pd.testing.assert_frame_equal(changes.read_records(path, records, rows), expected)
        text = path.read_bytes()
        own = [text[start:end].decode() for start, end in zip(records["start"], records["end"], strict=True)]
        assert [next(csv.reader(io.StringIO(record, newline="")))[0] for record in own] == table["id"].tolist()
        assert len(set(records["content"].tolist())) == len(set(own))


def test_a_record_whose_content_changed_has_another_hash_and_the_others_keep_theirs(tmp_path):
    table = pd.DataFrame({"id": [f"p{row}" for row in range(50)], "text": [f"words {row}" for row in range(50)]})
    found = []
    for edited in (table, table.assign(text=table["text"].replace("words 7", "words seven"))):
        atomic.write_csv(tmp_path / "products.csv", edited)
        changes.write_records(tmp_path / "records.npy", tmp_path / "products.csv", edited["id"])
        found.append(np.array(reading.read_array(tmp_path / "records.npy")))
    assert np.flatnonzero(found[0]["content"] != found[1]["content"]).tolist() == [7]
    np.testing.assert_array_equal(found[0]["id"], found[1]["id"])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_vectors_have_equal_hashes_when_their_bits_are_equal(dimension, seed):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(2_000, dimension)).astype(np.float32)
    vectors[1_500:] = vectors[:500]
    hashes = changes.vector_hashes(vectors)
    np.testing.assert_array_equal(hashes[1_500:], hashes[:500])
    assert len(np.unique(hashes)) == len(np.unique(vectors, axis=0))


def test_vectors_that_differ_in_signs_or_order_have_different_hashes():
    vector = np.random.default_rng(0).normal(size=8).astype(np.float32)
    others = [vector * np.where(np.arange(8) & mask, -1, 1) for mask in range(8)]
    signs = [vector * (1 - 2 * (code >> np.arange(8) & 1)) for code in range(256)]
    orders = [np.roll(vector, shift) for shift in range(1, 8)]
    distinct = np.unique(np.array([*others, *signs, *orders], np.float32), axis=0)
    assert len(np.unique(changes.vector_hashes(distinct))) == len(distinct) >= 263


@given(st.data())
def test_rows_are_appended_and_never_moved(data):
    before = np.empty(0, np.uint64)
    keys: list[int] = []
    for _ in range(data.draw(st.integers(1, 4))):
        keys = data.draw(st.lists(st.integers(1, 30), unique=True))
        rows = changes.Rows.plan(np.array(keys, np.uint64), before)
        by_row = rows.spread(np.array(keys, np.uint64), 0)
        earlier = before.tolist()
        assert by_row[rows.entry_rows].tolist() == keys and rows.total == len(by_row) == len(earlier) + len(rows.added)
        for row, key in enumerate(earlier):
            assert by_row[row] in (key, 0) and (by_row[row] == key) == (key in keys and key != 0 or key == 0)
        assert rows.removed.tolist() == [row for row, key in enumerate(earlier) if key and key not in keys]
        assert [keys[entry] for entry in rows.added] == [key for key in keys if key not in earlier]
        assert rows.live().tolist() == [key != 0 for key in by_row]
        before = by_row


def test_every_row_of_a_full_build_is_new():
    rows, planned = changes.Rows.all_new(4), changes.Rows.plan(np.arange(1, 5, dtype=np.uint64), np.empty(0, np.uint64))
    for name in ("entry_rows", "added", "removed", "total", "before"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(planned, name))
    assert rows.before == 0 and rows.live().all()
