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
    with generation_files.new_generation(index_dir, name) as folder:
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
    assert kept == [["aa"], ["aa", "bb"], ["bb", "cc"], ["bb", "cc"], ["bb", "dd"]]
    assert generation_files.current_generation(tmp_path).name == "dd"


def test_the_generation_served_until_now_is_the_other_one_kept_even_when_it_is_not_the_newest(tmp_path):
    publish(tmp_path, "aa")
    publish(tmp_path, "bb")
    atomic.write_json(tmp_path / "current.json", {"generation": "aa"})  # rolled back by hand
    publish(tmp_path, "cc")
    assert generations(tmp_path) == ["aa", "cc"]


def test_publishing_the_current_generation_again_keeps_the_one_before_it(tmp_path):
    for name in ("aa", "bb", "bb"):
        publish(tmp_path, name)
    assert generations(tmp_path) == ["aa", "bb"]


def test_a_generation_being_served_is_never_away_while_it_is_built_again(tmp_path, monkeypatch):
    publish(tmp_path, "aa")
    seen = []

    def watch(module, name):
        change = getattr(module, name)

        def call(*arguments, **options):
            result = change(*arguments, **options)
            seen.append({path.name: path.read_bytes() for path in generation_files.current_generation(tmp_path).iterdir()})
            return result

        monkeypatch.setattr(module, name, call)

    for name in ("replace", "unlink", "rmdir"):
        watch(os, name)
    publish(tmp_path, "aa")
    assert len(seen) > 4
    assert all(files == {"index.faiss": b"aa", "vectors.npy": b"aa"} for files in seen)


def test_building_a_generation_again_mends_its_missing_and_cut_files(tmp_path):
    publish(tmp_path, "aa")
    (tmp_path / "aa" / "index.faiss").unlink()
    (tmp_path / "aa" / "vectors.npy").write_bytes(b"a")
    publish(tmp_path, "aa")
    assert files_below(tmp_path / "aa") == {"index.faiss": b"aa", "vectors.npy": b"aa"}


def test_hard_linked_files_of_a_generation_built_again_leave_nothing_behind(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    for _ in range(2):
        with generation_files.new_generation(tmp_path / "index", "aa") as folder:
            os.link(model, folder / "model.onnx")
    assert files_below(tmp_path / "index") == {"aa/model.onnx": b"weights", "current.json": b'{"generation": "aa"}\n'}
    assert generations(tmp_path / "index") == ["aa"]


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


def test_a_build_killed_between_its_rename_and_publishing_ends_the_same_when_run_again(tmp_path):
    publish(tmp_path, "aa")
    publish(tmp_path, "bb")
    atomic.write_json(tmp_path / "current.json", {"generation": "aa"}, indent=None)
    publish(tmp_path, "bb")
    assert generation_files.current_generation(tmp_path).name == "bb"
    assert generations(tmp_path) == ["aa", "bb"]


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
