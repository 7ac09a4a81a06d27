import shutil
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.files.stages import StageError
from marketplace.retrieval import analysis, forward
from tests.retrieval import typed_catalogue

TEXTS = st.lists(st.text("abc é-1\n", max_size=20), min_size=1, max_size=6)


def written(folder, names: list[str], descriptions: list[str]) -> forward.ForwardIndex:
    folder.mkdir(exist_ok=True)
    forward.write(folder, [typed_catalogue.table([(name, text, "") for name, text in zip(names, descriptions, strict=True)])])
    return forward.ForwardIndex(folder)


def codes(text: str) -> list[list[int]]:
    return [[zlib.crc32(word.encode()), zlib.crc32(analysis.stem(word).encode())] for word in analysis.split(text)]


@given(TEXTS)
def test_it_holds_the_words_of_every_listing_in_their_order(tmp_path_factory, names):
    index = written(tmp_path_factory.mktemp("forward"), names, names[::-1])
    for row, (name, description) in enumerate(zip(names, names[::-1], strict=True)):
        found = index.words_of(np.array([row]))
        assert np.stack([found.exact, found.stems], axis=1).tolist() == codes(name) + codes(description)
        assert found.in_name.tolist() == [True] * len(codes(name)) + [False] * len(codes(description))
    together = index.words_of(np.arange(len(names))[::-1])
    assert together.exact.tolist() == [
        code for row in range(len(names))[::-1] for code, _ in codes(names[row]) + codes(names[::-1][row])
    ]


@given(st.lists(st.tuples(st.integers(-1, 4), st.text("abc ", max_size=8)), min_size=1, max_size=8))
def test_an_update_equals_a_full_build_byte_for_byte(tmp_path_factory, changes):
    root = tmp_path_factory.mktemp("forward")
    before = ["red bike", "", "a b c", "pine bed pine", "x"]
    written(root / "before", before, before)
    after = [before[row] if row >= 0 else text for row, text in changes]
    row_before = np.array([row for row, _ in changes])
    (root / "updated").mkdir()
    came = [(text, text, "") for row, text in changes if row < 0]
    forward.update(root / "before", root / "updated", row_before, [typed_catalogue.table(came)] if came else [])
    written(root / "full", after, after)
    for name in (forward.CODES, forward.LENGTHS):
        assert (root / "updated" / name).read_bytes() == (root / "full" / name).read_bytes()


def test_a_listing_of_very_many_words_is_cut(tmp_path):
    index = written(tmp_path, ["bed"], ["word " * 5000])
    assert index.lengths.tolist() == [[1, forward.MAX_WORDS]]


def test_files_that_do_not_belong_together_are_one_sentence(tmp_path):
    written(tmp_path / "a", ["bed"], ["pine"])
    written(tmp_path / "b", ["bed"], ["pine bed"])
    shutil.copy2(tmp_path / "b" / forward.CODES, tmp_path / "a" / forward.CODES)
    with pytest.raises(StageError) as failure:
        forward.ForwardIndex(tmp_path / "a")
    assert str(failure.value) == f"{tmp_path / 'a' / forward.CODES} is missing or damaged: run python build_index.py --full"
