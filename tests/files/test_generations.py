import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from marketplace.files import atomic, reading
from marketplace.files import generations as generation_files
from tests.files.asked import files_below, killed_before_change, sentence_of


def publish(index_dir: Path, name: str, content: bytes | None = None) -> None:
    with generation_files.new_generation(index_dir, generation_files.free_name(index_dir, name)) as folder:
        for file_name in ("index.faiss", "vectors.npy"):
            atomic.write_bytes(folder / file_name, content or name.encode())


def generations(index_dir: Path) -> list[str]:
    return sorted(path.name for path in index_dir.iterdir() if path.is_dir())


def test_a_new_generation_is_unseen_until_it_is_whole_and_then_the_current_one(tmp_path):
    with generation_files.new_generation(tmp_path, "aa") as folder:
        (folder / "index.faiss").write_bytes(b"1")
        assert folder.name == ".aa.tmp"
        assert sentence_of(generation_files.current_generation, tmp_path) == (
            f"{tmp_path} holds no published index: run python build_index.py first"
        )
    assert generation_files.current_generation(tmp_path) == tmp_path / "aa"
    assert files_below(tmp_path) == {"aa/index.faiss": b"1", "current.json": b'{"generation": "aa"}\n'}


def test_a_failure_inside_leaves_the_current_generation_and_no_half_one(tmp_path):
    publish(tmp_path, "aa")
    before = files_below(tmp_path)
    with pytest.raises(KeyError), generation_files.new_generation(tmp_path, "bb") as folder:
        (folder / "index.faiss").write_bytes(b"half")
        raise KeyError("bug")
    assert files_below(tmp_path) == before
    assert generations(tmp_path) == ["aa"]


def test_the_newest_two_generations_are_kept(tmp_path):
    kept = []
    for name in ("aa", "bb", "cc", "bb", "dd"):
        publish(tmp_path, name)
        kept.append(generations(tmp_path))
    assert kept == [["aa"], ["aa", "bb"], ["bb", "cc"], ["bb-2", "cc"], ["bb-2", "dd"]]
    assert generation_files.current_generation(tmp_path).name == "dd"


def test_the_generation_served_until_now_is_the_other_one_kept_even_when_it_is_not_the_newest(tmp_path):
    publish(tmp_path, "aa")
    publish(tmp_path, "bb")
    atomic.write_json(tmp_path / "current.json", {"generation": "aa"})  # rolled back by hand
    publish(tmp_path, "cc")
    assert generations(tmp_path) == ["aa", "cc"]


def test_publishing_the_current_generation_again_keeps_the_one_before_it_and_its_files(tmp_path):
    for name in ("aa", "bb"):
        publish(tmp_path, name)
    before = files_below(tmp_path)
    generation_files.publish(tmp_path, "bb")
    assert files_below(tmp_path) == before
    generation_files.publish(tmp_path, "aa")  # one that is there, whole
    assert generation_files.current_generation(tmp_path).name == "aa"
    assert generations(tmp_path) == ["aa", "bb"]


def test_a_name_that_is_taken_gets_the_first_number_that_is_not(tmp_path):
    assert generation_files.free_name(tmp_path, "aa") == "aa"
    for taken, free in (("aa", "aa-2"), ("aa-2", "aa-3"), ("aa-4", "aa-3")):
        (tmp_path / taken).mkdir()
        assert generation_files.free_name(tmp_path, "aa") == free


def test_a_generation_that_is_there_is_never_written_to(tmp_path):
    publish(tmp_path, "aa")
    (tmp_path / "aa" / "index.faiss").unlink()
    before = files_below(tmp_path / "aa")
    with pytest.raises(OSError, match="not empty"), generation_files.new_generation(tmp_path, "aa") as folder:
        (folder / "index.faiss").write_bytes(b"new")
    assert files_below(tmp_path / "aa") == before and generations(tmp_path) == ["aa"]


def test_a_generation_may_hold_folders_whose_files_are_flushed_and_linked_too(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic, "flush", lambda path: flushed.append(path.name))
    with generation_files.new_generation(tmp_path, "aa") as folder:
        (folder / "words" / "more").mkdir(parents=True)
        (folder / "words" / "more" / "segment").write_bytes(b"1")
        (folder / "vectors.npy").write_bytes(b"2")
    assert flushed[:2] == ["vectors.npy", "segment"]
    assert generation_files.files_of(tmp_path / "aa") == ["vectors.npy", "words/more/segment"]
    with generation_files.new_generation(tmp_path, "bb") as folder:
        generation_files.link(tmp_path / "aa" / "words", folder / "words")
    linked = tmp_path / "bb" / "words" / "more" / "segment"
    assert linked.samefile(tmp_path / "aa" / "words" / "more" / "segment")
    for name in ("cc", "dd"):
        publish(tmp_path, name)
    assert generations(tmp_path) == ["cc", "dd"]


def test_a_reader_of_an_old_generation_goes_on_while_newer_ones_are_published(tmp_path):
    with generation_files.new_generation(tmp_path, "aa") as folder:
        atomic.write_array(folder / "vectors.npy", np.arange(50_000))
    vectors = reading.read_array(generation_files.current_generation(tmp_path) / "vectors.npy")
    publish(tmp_path, "bb")
    assert (tmp_path / "aa" / "vectors.npy").exists()
    publish(tmp_path, "cc")
    assert not (tmp_path / "aa").exists()
    assert vectors.sum() == 49_999 * 25_000


def test_what_a_kill_left_half_built_is_neither_kept_nor_counted_as_a_generation(tmp_path):
    publish(tmp_path, "aa")
    (tmp_path / ".zz.tmp").mkdir()
    (tmp_path / ".zz.tmp" / "index.faiss").write_bytes(b"half")
    (tmp_path / ".bb.tmp").mkdir()
    (tmp_path / ".bb.tmp" / "stale").write_bytes(b"half")
    publish(tmp_path, "bb")
    assert generations(tmp_path) == ["aa", "bb"]
    assert sorted(files_below(tmp_path / "bb")) == ["index.faiss", "vectors.npy"]


def test_a_build_killed_at_any_moment_leaves_a_whole_current_generation_and_ends_the_same_when_run_again(tmp_path):
    def history(index_dir: Path) -> None:
        for name in ("aa", "bb"):
            publish(index_dir, name)

    history(tmp_path / "undisturbed")
    publish(tmp_path / "undisturbed", "cc")
    for number in itertools.count(1):
        index_dir = tmp_path / str(number)
        history(index_dir)
        killed = killed_before_change(number, lambda index_dir=index_dir: publish(index_dir, "cc"))
        current = generation_files.current_generation(index_dir)
        assert current.name in ("bb", "cc")
        assert files_below(current) == dict.fromkeys(("index.faiss", "vectors.npy"), current.name.encode())
        if (index_dir / "cc").exists():  # whole, as what has this name always is
            generation_files.publish(index_dir, "cc")
        else:
            publish(index_dir, "cc")
        assert generation_files.current_generation(index_dir).name == "cc"
        kept = generations(index_dir)
        assert len(kept) == generation_files.GENERATIONS_KEPT
        whole = {f"{name}/{file_name}": name.encode() for name in kept for file_name in ("index.faiss", "vectors.npy")}
        assert files_below(index_dir) == whole | {"current.json": b'{"generation": "cc"}\n'}
        if not killed:
            break
    assert files_below(index_dir) == files_below(tmp_path / "undisturbed")
    assert number > 10


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '"aa"', "{}", '{"generation": 3}', '{"generation": null}'])
def test_a_damaged_current_json_is_a_sentence_and_the_next_build_mends_it(content, tmp_path):
    publish(tmp_path, "aa")
    (tmp_path / "current.json").write_text(content)
    expected = f"{tmp_path} holds no published index: run python build_index.py first"
    assert sentence_of(generation_files.current_generation, tmp_path) == expected
    publish(tmp_path, "bb")
    assert generation_files.current_generation(tmp_path).name == "bb"
    assert generations(tmp_path) == ["aa", "bb"]


@pytest.mark.parametrize("name", ["gone", ""])
def test_a_current_json_that_names_a_missing_folder_is_a_sentence(name, tmp_path):
    publish(tmp_path, "aa")
    (tmp_path / "current.json").write_text(json.dumps({"generation": name}))
    expected = f"{tmp_path / 'current.json'} names {name}, which is missing: run python build_index.py again"
    assert sentence_of(generation_files.current_generation, tmp_path) == expected


def test_a_file_that_cannot_be_linked_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    (tmp_path / "a").write_bytes(b"1")
    generation_files.link(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(os, "link", refuse)
    generation_files.link(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "b").samefile(tmp_path / "a") and not (tmp_path / "c").samefile(tmp_path / "a")
    assert (tmp_path / "c").read_bytes() == b"1"
