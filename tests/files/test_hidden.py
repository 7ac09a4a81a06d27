import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.files import atomic, hidden
from marketplace.files.stages import StageError

ROOT = Path(__file__).resolve().parents[2]


def find(ids):
    """A catalogue that has the ids a to f."""
    return {one for one in ids if one in "abcdef"}


@given(st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from("abcdef"), min_size=1))))
def test_what_is_hidden_is_what_was_hidden_and_not_shown_again(tmp_path_factory, changes):
    folder, expected = tmp_path_factory.mktemp("index"), set()
    for hide, ids in changes:
        expected = expected | ids if hide else expected - ids
        assert hidden.change(folder, sorted(ids), hide, find) == expected == hidden.read(folder)


def test_an_unknown_id_is_named_and_nothing_is_changed(tmp_path):
    hidden.change(tmp_path, ["a"], True, find)
    with pytest.raises(hidden.UnknownIds) as error:
        hidden.change(tmp_path, ["b", "x", "y"], True, find)
    assert str(error.value) == "no listing has the ids x, y" and hidden.read(tmp_path) == {"a"}


def test_a_hidden_listing_that_is_gone_can_be_shown_again_and_is_forgotten_with_the_next_build(tmp_path):
    hidden.change(tmp_path, ["a", "b", "c"], True, find)
    assert hidden.change(tmp_path, ["a"], False, lambda ids: set()) == {"b", "c"}
    hidden.forget_gone(tmp_path, lambda ids: {one for one in ids if one != "c"})
    assert hidden.read(tmp_path) == {"b"}


def test_a_change_of_nothing_writes_nothing(tmp_path):
    hidden.change(tmp_path, ["a"], False, find)
    assert hidden.signature(tmp_path) is None
    hidden.change(tmp_path, ["a"], True, find)
    before = hidden.signature(tmp_path)
    hidden.change(tmp_path, ["a"], True, find)
    hidden.forget_gone(tmp_path, find)
    assert hidden.signature(tmp_path) == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"hidden": "a"}', '{"hidden": [1]}', "\xff"])
def test_a_damaged_file_is_told(tmp_path, content):
    (tmp_path / "hidden.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(StageError) as error:
        hidden.read(tmp_path)
    path = tmp_path / "hidden.json"
    assert str(error.value) == f"{path} is damaged: put a whole one back, or delete it to show every listing again"


def test_writers_at_once_lose_nothing_of_each_other_whatever_a_build_clears_away(tmp_path):
    code = (
        "import sys; from marketplace.files import hidden\n"
        "for number in range(20): hidden.change(sys.argv[1], [f'{sys.argv[2]}{number}'], True, set)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT) for name in "abc"]
    while any(writer.poll() is None for writer in writers):
        atomic.remove_leftovers(tmp_path)
    assert [writer.returncode for writer in writers] == [0] * 3
    assert hidden.read(tmp_path) == {f"{name}{number}" for name in "abc" for number in range(20)}


def test_a_writer_killed_before_the_end_leaves_the_file_as_it_was_and_the_next_one_goes_on(tmp_path):
    hidden.change(tmp_path, ["a"], True, find)
    code = (
        "import os, signal, sys; from marketplace.files import hidden\n"
        "hidden.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "hidden.change(sys.argv[1], ['b'], True, set)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == -9
    assert hidden.read(tmp_path) == {"a"}
    assert hidden.change(tmp_path, ["c"], True, find) == {"a", "c"}
    assert json.loads((tmp_path / "hidden.json").read_text()) == {"hidden": ["a", "c"]}
