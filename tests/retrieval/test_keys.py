import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.files.stages import StageError
from marketplace.retrieval import keys


@given(st.lists(st.text(), max_size=20))
def test_a_key_is_the_first_63_bits_of_the_id_s_blake2b(ids):
    expected = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") % 2**63 for name in ids]
    found = keys.keys(ids)
    assert found.dtype == np.int64 and found.tolist() == expected and (found >= 0).all()


def test_ids_with_the_same_key_are_refused_and_others_not():
    ids = ["a", "b", "c"]
    keys.check_distinct(ids, keys.keys(ids))
    keys.check_distinct([], keys.keys([]))
    with pytest.raises(StageError, match="^the ids b and c have the same key: give one of them another id in the export$"):
        keys.check_distinct(ids, np.array([5, 2, 2]))


@given(st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=20), st.lists(st.integers(0, 2**63 - 1), max_size=5))
def test_rows_are_found_by_their_keys(row_keys, others):
    rows = keys.RowsByKey(np.array(row_keys, np.int64))
    wanted = [*row_keys[::-1], *others]
    expected = [row_keys.index(key) if key in row_keys else -1 for key in wanted]
    assert rows.rows(np.array(wanted, np.int64)).tolist() == expected
