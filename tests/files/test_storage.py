import csv
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from marketplace.files import atomic, reading, stages
from marketplace.files import generations as generation_files
from marketplace.files import s3 as s3_files
from marketplace.files.stages import Stage, StageError
from tests import s3_server

s3, s3_service = s3_server.s3, s3_server.s3_service

ARGUMENTS = {"size": 256, "sides": (1, 2)}
INPUTS = {"products": "d1"}
ODD_TEXTS = ["NA", "null", "None", "nan", "", '"', "\r", "\n", '",\r\n"']
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(ODD_TEXTS)


def files_below(folder: Path) -> dict[str, bytes]:
    """Name -> content of every file, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sentence_of(function, *arguments) -> str:
    with pytest.raises(StageError) as caught:
        function(*arguments)
    return str(caught.value)


def killed_before_change(number: int, work) -> bool:
    """Run work() in a process of its own, SIGKILLed before its `number`-th change of the file system; False if it ended first."""
    child = os.fork()
    if child == 0:
        try:
            changes = itertools.count(1)

            def deadly(change):
                def call(*arguments, **options):
                    if next(changes) == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return change(*arguments, **options)

                return call

            for name in ("replace", "fsync", "unlink", "mkdir", "rmdir"):
                setattr(os, name, deadly(getattr(os, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


# Writing


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


# Reading what is not there, or damaged

READERS = [reading.read_json, reading.read_csv, reading.read_array, stages.digest]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize(
    ("folder", "remedy"),
    [
        *((name, f"run python {script} first") for name, script in stages.SCRIPTS.items()),
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


# Stages


def run_stage(folder: Path, arguments: dict = ARGUMENTS, inputs: dict = INPUTS) -> dict:
    stage = Stage(folder, arguments, inputs)
    if done := stage.finished():
        return done
    stage.begin()
    atomic.write_bytes(folder / "a.bin", b"1234")
    atomic.write_bytes(folder / "b.bin", b"")
    return stage.finish({"rows": 2}, ["a.bin", "b.bin"])


def test_a_stage_that_is_run_again_is_finished_and_repeats_its_counts(tmp_path):
    folder = tmp_path / "tabular"
    first = run_stage(folder)
    assert first == {"stage": "tabular", "rows": 2, "seconds": first["seconds"]} and first["seconds"] >= 0
    before = files_below(folder)
    assert run_stage(folder) == {"stage": "tabular", "rows": 2, "unchanged": True}
    assert files_below(folder) == before


def test_a_manifest_tells_what_was_done(tmp_path):
    run_stage(tmp_path / "tabular")
    manifest = stages.read_manifest(tmp_path / "tabular")
    assert manifest == json.loads((tmp_path / "tabular" / "manifest.json").read_text())
    assert manifest.pop("seconds") >= 0 and manifest.pop("started").endswith("+00:00")
    assert manifest == {
        "stage": "tabular",
        "schema": stages.SCHEMA_VERSION,
        "arguments": {"size": 256, "sides": [1, 2]},
        "inputs": INPUTS,
        "outputs": {"a.bin": 4, "b.bin": 0},
        "digests": {},
        "counts": {"rows": 2},
    }


def run_digested(folder: Path) -> dict:
    stage = Stage(folder, ARGUMENTS, INPUTS)
    stage.begin()
    atomic.write_bytes(folder / "a.bin", b"1234")
    return stage.finish({}, ["a.bin"], ["a.bin"])


def settle(folder: Path) -> None:
    """As if the file had been written a second before the manifest."""
    before_ns = (folder / "manifest.json").stat().st_mtime_ns - 10**9
    os.utime(folder / "a.bin", ns=(before_ns, before_ns))
    manifest = reading.read_json(folder / "manifest.json")
    manifest["digests"]["a.bin"][3] = before_ns
    status = (folder / "manifest.json").stat()
    atomic.write_json(folder / "manifest.json", manifest)
    os.utime(folder / "manifest.json", ns=(status.st_mtime_ns, status.st_mtime_ns))


def forbid_reading(monkeypatch) -> None:
    def fail(*_):
        raise AssertionError("the file was read")

    stages._digest.cache_clear()
    monkeypatch.setattr(hashlib, "file_digest", fail)


def test_a_recorded_digest_is_taken_for_a_file_that_nobody_has_written_since(tmp_path, monkeypatch):
    folder = tmp_path / "tabular"
    run_digested(folder)
    settle(folder)
    expected = hashlib.sha256(b"1234").hexdigest()
    forbid_reading(monkeypatch)
    assert stages.digest(folder / "a.bin") == expected
    assert Stage(folder, ARGUMENTS, INPUTS).finished()


def test_a_recorded_digest_is_not_taken_where_the_clock_is_too_coarse_to_tell(tmp_path, monkeypatch):
    folder = tmp_path / "tabular"
    run_digested(folder)
    forbid_reading(monkeypatch)
    with pytest.raises(AssertionError, match="^the file was read$"):
        stages.digest(folder / "a.bin")


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_changed_since_has_its_own_digest_and_its_stage_is_not_finished(in_place, tmp_path):
    folder = tmp_path / "tabular"
    run_digested(folder)
    settle(folder)
    modified_ns = (folder / "a.bin").stat().st_mtime_ns
    if in_place:
        (folder / "a.bin").write_bytes(b"4321")
    else:  # with the old file's time
        atomic.write_bytes(folder / "a.bin", b"4321")
        os.utime(folder / "a.bin", ns=(modified_ns, modified_ns))
    stages._digest.cache_clear()
    assert stages.digest(folder / "a.bin") == hashlib.sha256(b"4321").hexdigest()
    assert Stage(folder, ARGUMENTS, INPUTS).finished() is None
    expected = f"{folder / 'a.bin'} has been changed: run python clean_tabular_data.py again"
    assert sentence_of(stages.check_outputs, tmp_path, "tabular", "a.bin") == expected


def test_a_copy_of_a_finished_stage_is_finished(tmp_path):
    run_digested(tmp_path / "a" / "tabular")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert Stage(tmp_path / "b" / "tabular", ARGUMENTS, INPUTS).finished()
    stages.check_outputs(tmp_path / "b", "tabular", "a.bin")


def test_a_file_that_cannot_be_linked_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    (tmp_path / "a").write_bytes(b"1")
    generation_files.link(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(os, "link", refuse)
    generation_files.link(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "b").samefile(tmp_path / "a") and not (tmp_path / "c").samefile(tmp_path / "a")
    assert (tmp_path / "c").read_bytes() == b"1"


def test_an_array_whose_pages_were_let_go_reads_as_before(tmp_path):
    atomic.write_array(tmp_path / "vectors.npy", np.arange(100_000))
    array = reading.read_array(tmp_path / "vectors.npy")
    assert array.sum() == 4_999_950_000
    reading.release(array)
    reading.release(np.arange(3))
    np.testing.assert_array_equal(array, np.arange(100_000))


SPOILED = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "output gone": lambda folder: (folder / "a.bin").unlink(),
    "output shorter": lambda folder: (folder / "a.bin").write_bytes(b"123"),
    "output longer": lambda folder: (folder / "b.bin").write_bytes(b"1"),
    "output a folder": lambda folder: ((folder / "a.bin").unlink(), (folder / "a.bin").mkdir()),
    "folder gone": shutil.rmtree,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_stage_whose_files_are_not_as_it_left_them_is_not_finished(spoil, tmp_path):
    folder = tmp_path / "tabular"
    run_stage(folder)
    spoil(folder)
    assert Stage(folder, ARGUMENTS, INPUTS).finished() is None


@pytest.mark.parametrize(
    ("arguments", "inputs"),
    [(ARGUMENTS | {"size": 128}, INPUTS), (ARGUMENTS | {"seed": 0}, INPUTS), (ARGUMENTS, {"products": "d2"}), (ARGUMENTS, {})],
)
def test_a_stage_with_other_arguments_or_inputs_is_not_finished(arguments, inputs, tmp_path):
    run_stage(tmp_path / "tabular")
    assert Stage(tmp_path / "tabular", arguments, inputs).finished() is None


def test_an_output_in_a_folder_is_looked_for_too(tmp_path):
    folder = tmp_path / "index"
    atomic.write_bytes(folder / "aa" / "index.faiss", b"12")
    Stage(folder, {}, {}).finish({}, ["aa/index.faiss"])
    assert Stage(folder, {}, {}).finished() == {"stage": "index", "unchanged": True}
    shutil.rmtree(folder / "aa")
    assert Stage(folder, {}, {}).finished() is None


def test_a_stage_of_another_schema_is_not_finished_and_its_reader_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "tabular"
    run_stage(folder)
    monkeypatch.setattr(stages, "SCHEMA_VERSION", stages.SCHEMA_VERSION + 1)
    assert Stage(folder, ARGUMENTS, INPUTS).finished() is None
    expected = f"{folder} was written by another version of this program: run python clean_tabular_data.py again"
    assert sentence_of(stages.read_manifest, folder) == expected


def damaged_manifests() -> list[bytes]:
    whole = {"schema": stages.SCHEMA_VERSION, "arguments": {}, "inputs": {}, "outputs": {}, "digests": {}, "counts": {}}
    lacking = [{key: value for key, value in whole.items() if key != gone} for gone in whole]
    odd = [whole | {key: None} for key in whole] + [[], "text", None, 3]
    return [json.dumps(value).encode() for value in lacking + odd] + [b"", b"{", b"\xff", json.dumps(whole).encode()[:-1]]


@pytest.mark.parametrize("manifest", damaged_manifests())
def test_a_damaged_manifest_means_not_finished_never_a_traceback(manifest, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest)
    assert Stage(folder, {}, {}).finished() is None
    assert sentence_of(stages.read_manifest, folder) == f"{folder} is not finished: run python clean_images.py first"


@pytest.mark.parametrize("name", stages.SCRIPTS)
def test_a_stage_without_manifest_is_not_finished_and_the_sentence_names_its_script(name, tmp_path):
    expected = f"{tmp_path / name} is not finished: run python {stages.SCRIPTS[name]} first"
    assert sentence_of(stages.read_manifest, tmp_path / name) == expected


def test_begin_takes_the_manifest_and_the_leftovers_of_a_kill_away_and_nothing_else(tmp_path):
    folder = tmp_path / "images"
    run_stage(folder)
    (folder / ".a.bin.77.tmp").write_bytes(b"half")
    (folder / ".0a1b.tmp").mkdir()
    (folder / ".0a1b.tmp" / "index.faiss").write_bytes(b"half")
    (folder / ".progress.jsonl").write_bytes(b"{}\n")
    (folder / "notes.tmp").write_bytes(b"a user's")
    Stage(folder, ARGUMENTS, INPUTS).begin()
    assert files_below(folder) == {"a.bin": b"1234", "b.bin": b"", ".progress.jsonl": b"{}\n", "notes.tmp": b"a user's"}
    assert not (folder / ".0a1b.tmp").exists()


def test_a_stage_killed_at_any_moment_is_unfinished_or_whole_and_ends_the_same_when_run_again(tmp_path):
    folder = tmp_path / "tabular"
    for number in itertools.count(1):
        run_stage(folder, {"size": 1})  # there is always an older state to spoil
        killed = killed_before_change(number, lambda: run_stage(folder))
        if finished := Stage(folder, ARGUMENTS, INPUTS).finished():
            assert finished == {"stage": "tabular", "rows": 2, "unchanged": True}
        run_stage(folder)
        assert stages.read_manifest(folder)["arguments"] == {"size": 256, "sides": [1, 2]}
        files = files_below(folder)
        del files["manifest.json"]
        assert files == {"a.bin": b"1234", "b.bin": b""}
        if not killed:
            break
    assert number > 5


# Generations


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


# S3

READ_FAILED = "S3 cannot be read for {uri} ({reason}): check the network, AWS_ENDPOINT_URL and AWS_PROFILE"
ODD_KEYS = [
    *("plain.jpg", "a b.jpg", "a  b .jpg", "a?b=c.jpg", "a#b.jpg", "100%.jpg", "a%20b.jpg", "a%2Fb.jpg", "a+b.jpg", "a&b.jpg"),
    *(
        "é.jpg",
        "e\u0301.jpg",
        "日本/写真.jpg",
        "😀.jpg",
        "a//b.jpg",
        "a=b;c,d.jpg",
        "quo'te\".jpg",
        "<tag>.jpg",
        "back\\slash.jpg",
    ),
]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("s3://b/k", True), ("s3:/b/k", False), ("data/s3://b", False), (Path("data/raw"), False), ("http://b/k", False)],
)
def test_only_uris_that_begin_with_s3_are_s3(uri, expected):
    assert s3_files.is_s3(uri) is expected


def test_a_local_path_is_its_own_local_file(tmp_path):
    path = tmp_path / "Products.csv"
    path.write_bytes(b"1")
    assert s3_files.local_file(path, tmp_path / "cache") == path
    assert s3_files.local_file(str(path), tmp_path / "cache") == path
    assert not (tmp_path / "cache").exists()


def test_a_local_path_that_is_no_file_is_a_sentence(tmp_path):
    for path in (tmp_path / "gone.csv", tmp_path):
        expected = f"{path} does not exist: give its path or s3:// URI"
        assert sentence_of(s3_files.local_file, path, tmp_path / "cache") == expected


@pytest.mark.parametrize("size", [0, 10, 9_000_000], ids=["empty", "small", "in several parts"])
def test_an_s3_object_is_copied_whole(size, s3, tmp_path):
    data = np.random.default_rng(0).bytes(size)
    s3.put_object(Bucket="market", Key="raw/Products.csv", Body=data)
    copy = s3_files.local_file("s3://market/raw/Products.csv", tmp_path)
    assert copy.name == "Products.csv" and copy.read_bytes() == data
    assert [path for path in tmp_path.rglob("*.tmp*")] == []


def test_a_copy_is_reused_until_the_object_changes(s3, tmp_path):
    uri = "s3://market/Products.csv"
    s3.put_object(Bucket="market", Key="Products.csv", Body=b"old")
    copy = s3_files.local_file(uri, tmp_path)
    made = copy.stat().st_ino, copy.stat().st_mtime_ns
    assert s3_files.local_file(uri, tmp_path) == copy
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == made
    s3.put_object(Bucket="market", Key="Products.csv", Body=b"new")  # as long as the old one
    assert s3_files.local_file(uri, tmp_path).read_bytes() == b"new"


def test_a_copy_without_its_etag_is_made_again_and_takes_the_leftovers_of_a_killed_one_away(s3, tmp_path):
    s3.put_object(Bucket="market", Key="a.zip", Body=b"whole")
    copy = s3_files.local_file("s3://market/a.zip", tmp_path)
    copy.with_name("a.zip.etag").unlink()
    copy.write_bytes(b"stale")
    copy.with_name(".a.zip.77.tmp.1b2C3d4E").write_bytes(b"half")  # s3transfer's own temporary name
    assert s3_files.local_file("s3://market/a.zip", tmp_path).read_bytes() == b"whole"
    assert sorted(path.name for path in copy.parent.iterdir()) == ["a.zip", "a.zip.etag"]


def test_objects_of_one_name_in_different_places_have_copies_of_their_own(s3, tmp_path):
    for key in ("a/Products.csv", "b/Products.csv"):
        s3.put_object(Bucket="market", Key=key, Body=key.encode())
    copies = [s3_files.local_file(f"s3://market/{key}", tmp_path) for key in ("a/Products.csv", "b/Products.csv")]
    assert [copy.read_bytes() for copy in copies] == [b"a/Products.csv", b"b/Products.csv"]


def test_a_key_of_any_spelling_can_be_copied(s3, tmp_path):
    for key in [*ODD_KEYS, "写" * 300 + ".zip", "a/..", "folder/", ".hidden"]:
        s3.put_object(Bucket="market", Key=key, Body=key.encode())
        copy = s3_files.local_file(f"s3://market/{key}", tmp_path / "cache")
        assert copy.read_bytes() == key.encode()
        assert copy.parent.parent == tmp_path / "cache"


def test_objects_are_listed_in_the_order_of_their_keys_and_each_can_be_read(s3):
    for key in ODD_KEYS:
        s3.put_object(Bucket="market", Key=f"photos/{key}", Body=key.encode())
    s3.put_object(Bucket="market", Key="other/a.jpg", Body=b"1")
    listed = s3_files.list_objects("s3://market/photos/")
    assert [entry.uri for entry in listed] == [f"s3://market/photos/{key}" for key in sorted(ODD_KEYS)]
    for entry in listed:
        data = entry.uri.removeprefix("s3://market/photos/").encode()
        assert s3_files.read_object(entry.uri) == data
        assert (entry.size, entry.etag) == (len(data), hashlib.md5(data).hexdigest())


def test_a_prefix_that_looks_like_an_url_with_a_query_is_taken_as_it_stands(s3):
    for key in ("a?x/1.jpg", "a/2.jpg", "/b/3.jpg", "#/4.jpg"):
        s3.put_object(Bucket="market", Key=key, Body=b"1")
    for prefix, key in (("a?x/", "a?x/1.jpg"), ("a/", "a/2.jpg"), ("/b/", "/b/3.jpg"), ("#/", "#/4.jpg")):
        assert [entry.uri for entry in s3_files.list_objects(f"s3://market/{prefix}")] == [f"s3://market/{key}"]
    assert len(s3_files.list_objects("s3://market")) == len(s3_files.list_objects("s3://market/")) == 4


def test_a_listing_goes_over_all_pages(s3):
    keys = [f"photos/{number:04}.jpg" for number in range(1001)]  # a page holds 1000
    for key in keys:  # past HTTP, which would take seconds
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("market", key, b"1")
    assert s3.list_objects_v2(Bucket="market")["IsTruncated"]
    assert [entry.uri for entry in s3_files.list_objects("s3://market/photos/")] == [f"s3://market/{key}" for key in keys]


def test_an_empty_prefix_is_an_empty_list(s3):
    assert s3_files.list_objects("s3://market/none/") == []


def test_a_region_is_not_needed_and_not_in_the_way(s3, monkeypatch, tmp_path):
    s3.put_object(Bucket="market", Key="a", Body=b"1")
    assert s3_files.read_object("s3://market/a") == b"1"  # none is set
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    s3_server.forget_clients(monkeypatch)
    assert s3_files.read_object("s3://market/a") == b"1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "not a region")
    s3_server.forget_clients(monkeypatch)
    assert sentence_of(s3_files.read_object, "s3://market/a").startswith("S3 cannot be used (")


def readers(uri: str, tmp_path: Path):
    return [(s3_files.read_object, uri), (s3_files.local_file, uri, tmp_path / "cache"), (s3_files.list_objects, uri)]


def test_a_missing_object_is_a_sentence(s3, tmp_path):
    uri = "s3://market/raw/gone.csv"
    for read in readers(uri, tmp_path)[:2]:
        assert sentence_of(*read) == f"there is no object {uri}: check the bucket and the key"
    assert files_below(tmp_path) == {}


def test_a_missing_bucket_is_a_sentence(s3, tmp_path):
    uri = "s3://nowhere/a.csv"
    read_object, local_file, list_objects = readers(uri, tmp_path)
    for read in (read_object, list_objects):
        assert sentence_of(*read) == f"there is no bucket nowhere for {uri}: check its name"
    assert sentence_of(*local_file) == f"there is no object {uri}: check the bucket and the key"  # HEAD tells no more


@pytest.mark.parametrize("uri", ["s3://", "s3:///Products.csv"])
def test_an_uri_without_a_bucket_is_a_sentence(uri, s3, tmp_path):
    for read in readers(uri, tmp_path):
        assert sentence_of(*read) == f"{uri} names no bucket: write s3://bucket/key"


@pytest.mark.parametrize("uri", ["s3://market", "s3://market/", "s3://My Bucket/key", "s3://[/key", "s3://market?x/key"])
def test_an_uri_that_names_no_object_or_no_possible_bucket_is_a_sentence(uri, s3, tmp_path):
    for read in readers(uri, tmp_path)[:2]:
        assert sentence_of(*read) == f"{uri} is no valid S3 URI: write s3://bucket/key"


@pytest.mark.parametrize("missing", [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY",)])
def test_no_credentials_is_a_sentence(missing, s3, monkeypatch, tmp_path):
    for name in missing:
        monkeypatch.delenv(name)
    s3_server.forget_clients(monkeypatch)
    for read in readers("s3://market/a", tmp_path):
        assert sentence_of(*read) == (
            "no AWS credentials to read s3://market/a: "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"
        )


def test_a_profile_that_does_not_exist_is_a_sentence(s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_PROFILE", "gone")
    s3_server.forget_clients(monkeypatch)
    for read in readers("s3://market/a", tmp_path):
        assert sentence_of(*read) == READ_FAILED.format(uri="s3://market/a", reason="ProfileNotFound")


def test_an_endpoint_that_nobody_listens_at_is_a_sentence(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    s3_server.use_s3(monkeypatch, f"http://127.0.0.1:{port}")
    for read in readers("s3://market/a", tmp_path):
        assert sentence_of(*read) == READ_FAILED.format(uri="s3://market/a", reason="EndpointConnectionError")


def test_an_endpoint_without_http_is_a_sentence(monkeypatch, tmp_path):
    s3_server.use_s3(monkeypatch, "127.0.0.1:9000")
    for read in readers("s3://market/a", tmp_path):
        assert sentence_of(*read) == "S3 cannot be used (Invalid endpoint: 127.0.0.1:9000): check AWS_ENDPOINT_URL and the region"


def refuse(status: int, code: str):
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>".encode()

    def respond(request) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    return respond


def test_an_access_that_is_denied_is_a_sentence(monkeypatch, tmp_path):
    with s3_server.odd_server(refuse(403, "AccessDenied")) as url:
        s3_server.use_s3(monkeypatch, url)
        for read in readers("s3://market/a", tmp_path):
            assert sentence_of(*read) == "access to s3://market/a is denied: allow s3:GetObject and s3:ListBucket on market"


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (503, "SlowDown")])
def test_any_other_refusal_is_a_sentence_with_its_code(status, code, monkeypatch, tmp_path):
    with s3_server.odd_server(refuse(status, code)) as url:
        s3_server.use_s3(monkeypatch, url)
        assert sentence_of(s3_files.read_object, "s3://market/a") == (
            f"S3 refused s3://market/a ({code}): check the credentials, and the bucket's region and policy"
        )


class CutServer:
    """Answers with an object of 1000 bytes, and hangs up in the middle of the first `cuts` bodies."""

    body = bytes(range(250)) * 4

    def __init__(self, cuts: float):
        self.cuts = cuts
        self.bodies = 0

    def __call__(self, request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.body)))
        request.send_header("ETag", '"e1"')
        request.end_headers()
        if request.command != "HEAD":
            self.bodies += 1
            request.wfile.write(self.body[: 10 if self.bodies <= self.cuts else None])


def test_a_connection_cut_in_the_middle_of_an_object_is_tried_again(monkeypatch, tmp_path):
    uri = "s3://market/a"
    for read in (lambda: s3_files.read_object(uri), lambda: s3_files.local_file(uri, tmp_path).read_bytes()):
        server = CutServer(cuts=2)
        with s3_server.odd_server(server) as url:
            s3_server.use_s3(monkeypatch, url)
            assert read() == server.body
        assert server.bodies == 3


def test_a_connection_that_is_always_cut_is_a_sentence_and_leaves_no_file(monkeypatch, tmp_path):
    server = CutServer(cuts=float("inf"))
    with s3_server.odd_server(server) as url:
        s3_server.use_s3(monkeypatch, url)
        read_object, local_file, _ = readers("s3://market/a", tmp_path)
        for read, reason in ((read_object, "ResponseStreamingError"), (local_file, "RetriesExceededError")):
            assert sentence_of(*read) == READ_FAILED.format(uri="s3://market/a", reason=reason)
    assert server.bodies == 2 * s3_files.S3_BODY_ATTEMPTS
    assert files_below(tmp_path) == {}


def test_an_interrupted_copy_leaves_no_file_and_the_next_one_is_whole(s3, monkeypatch, tmp_path):
    s3.put_object(Bucket="market", Key="a.zip", Body=b"whole")
    download = type(s3).download_file

    def interrupted(client, bucket, key, path, **options):
        download(client, bucket, key, path, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(s3_files._client()), "download_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            s3_files.local_file("s3://market/a.zip", tmp_path)
    assert files_below(tmp_path) == {}
    assert s3_files.local_file("s3://market/a.zip", tmp_path).read_bytes() == b"whole"


def test_an_object_that_changes_while_it_is_copied_is_a_sentence(s3, monkeypatch, tmp_path):
    s3.put_object(Bucket="market", Key="a.zip", Body=b"old")
    client = s3_files._client()
    head_object = client.head_object

    def then_change(**names):
        head = head_object(**names)
        s3.put_object(Bucket="market", Key="a.zip", Body=b"longer")
        return head

    monkeypatch.setattr(client, "head_object", then_change, raising=False)
    expected = "s3://market/a.zip changed while it was being copied: run the command again"
    assert sentence_of(s3_files.local_file, "s3://market/a.zip", tmp_path) == expected
    assert files_below(tmp_path) == {}


def test_many_threads_of_a_new_process_share_one_client(s3, monkeypatch):
    s3.put_object(Bucket="market", Key="a", Body=b"1")
    s3_server.forget_clients(monkeypatch)
    made = []
    make = boto3.client
    monkeypatch.setattr(boto3, "client", lambda *names: made.append(names) or make(*names))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(s3_files.read_object, ["s3://market/a"] * 32)) == [b"1"] * 32
    assert made == [("s3",)]
