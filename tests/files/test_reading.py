import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.files import atomic, reading, stages
from marketplace.files.stages import StageError
from tests.files.asked import sentence_of

READERS = [reading.read_json, reading.read_csv, reading.read_array, stages.digest]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize(
    ("folder", "remedy"),
    [
        *(
            (name, f"run python {script} first")
            for name, script in ((name, contract.script) for name, contract in stages.STAGES.items())
        ),
        ("index/0a1b", "run python build_index.py first"),
        ("elsewhere", "check the path"),
    ],
)
def test_a_missing_file_names_the_script_that_writes_it(read, folder, remedy, tmp_path):
    path = tmp_path / folder / "a"
    assert sentence_of(read, path) == f"{path} is missing: {remedy}"


@pytest.mark.parametrize(
    ("read", "content", "what"),
    [
        (reading.read_json, b'{"a": 1', "is not valid JSON"),
        (reading.read_json, b"", "is not valid JSON"),
        (reading.read_json, b'"\xff"', "is not valid JSON"),
        (reading.read_csv, b"", "is damaged"),
        (reading.read_csv, b"a,b\n1,2\n3,4,5\n", "is damaged"),
        (reading.read_csv, b'a,b\n1,"2\n', "is damaged"),
        (reading.read_csv, b"a\n\xff\n", "is damaged"),
        (reading.read_array, b"", "is damaged"),
        (reading.read_array, b"\x93NUMPY", "is damaged"),
        (reading.read_array, b"not an array", "is damaged"),
        (reading.read_array, b"\x80\x04K\x01.", "is damaged"),  # a pickle of 1
    ],
)
def test_a_damaged_file_is_a_sentence(read, content, what, tmp_path):
    path = tmp_path / "model" / "a"
    path.parent.mkdir()
    path.write_bytes(content)
    assert sentence_of(read, path) == f"{path} {what}: delete it and run python train.py first"


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@given(st.data())
def test_an_array_cut_or_with_a_changed_header_is_read_or_a_sentence_never_a_traceback(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    atomic.write_array(path, np.arange(20, dtype=np.float32).reshape(4, 5))
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    changed = bytes([data.draw(st.integers(0, 255) | st.sampled_from(b"0123456789(){}',:<fO"))])
    path.write_bytes(whole[:position] if cut else whole[:position] + changed + whole[position + 1 :])
    try:
        array = reading.read_array(path)
    except StageError as error:
        assert str(error) == f"{path} is damaged: delete it and check the path"
    else:
        assert not cut and array.nbytes <= len(whole)


def test_an_array_whose_pages_were_let_go_reads_as_before(tmp_path):
    atomic.write_array(tmp_path / "vectors.npy", np.arange(100_000))
    array = reading.read_array(tmp_path / "vectors.npy")
    assert array.sum() == 4_999_950_000
    reading.release(array)
    reading.release(np.arange(3))
    np.testing.assert_array_equal(array, np.arange(100_000))
