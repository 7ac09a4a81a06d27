import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marketplace.files import atomic, locks, stages
from marketplace.files.stages import STAGES, Contract, Reads
from tests.files.asked import files_below, killed_before_change, sentence_of

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = {"size": 256, "sides": (1, 2)}
RAW = {"--source": "d1"}


@pytest.fixture(autouse=True)
def three_stages(monkeypatch):
    """a.py writes first/, b.py reads it and writes second/, c.py reads both."""
    contracts = {
        "first": Contract("a.py", "", {"--source": "anything"}, (), ("a.bin", "b.bin"), schema=6),
        "second": Contract("b.py", "", {}, (Reads("first", ("a.bin",)),), ("c.bin",), schema=6),
        "third": Contract("c.py", "", {}, (Reads("first", ("b.bin",)), Reads("second", ("c.bin",))), ("d.bin",), schema=6),
    }
    monkeypatch.setattr(stages, "STAGES", contracts)
    return contracts


def run_stage(data_dir: Path, name: str = "first", arguments: dict = ARGUMENTS, raw: dict | None = None) -> dict:
    with stages.open_stage(data_dir, name, arguments, (RAW if raw is None else raw) if name == "first" else None) as stage:
        if stage.is_done():
            return stage.summary()
        stage.begin()
        for file_name in stages.STAGES[name].writes:
            atomic.write_bytes(stage.folder / file_name, file_name.encode() + str(arguments.get("size")).encode())
        return stage.finish({"rows": 2})


def is_done(data_dir: Path, arguments: dict = ARGUMENTS, raw: dict = RAW) -> bool:
    with stages.open_stage(data_dir, "first", arguments, raw) as stage:
        return stage.is_done()


def test_a_stage_that_is_run_again_is_done_and_repeats_its_counts(tmp_path):
    first = run_stage(tmp_path)
    assert first == {"stage": "first", "rows": 2, "seconds": first["seconds"]} and first["seconds"] >= 0
    before = files_below(tmp_path)
    assert run_stage(tmp_path) == {"stage": "first", "rows": 2, "unchanged": True}
    assert files_below(tmp_path) == before


def test_a_manifest_tells_what_was_done(tmp_path):
    run_stage(tmp_path)
    run_stage(tmp_path, "second")
    manifest = stages.read_manifest(tmp_path / "second")
    assert manifest == json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert manifest.pop("seconds") >= 0 and manifest.pop("started").endswith("+00:00")
    assert manifest == {
        "stage": "second",
        "schema": 6,
        "arguments": {"size": 256, "sides": [1, 2]},
        "inputs": {"first/a.bin": hashlib.sha256(b"a.bin256").hexdigest()},
        "outputs": {"c.bin": hashlib.sha256(b"c.bin256").hexdigest()},
        "counts": {"rows": 2},
    }
    assert stages.read_manifest(tmp_path / "first")["inputs"] == RAW


def damage_in_place(path: Path) -> None:
    """Other bytes under the same inode, size and times."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns) == (
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
    )


SPOILED = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "output gone": lambda folder: (folder / "a.bin").unlink(),
    "output shorter": lambda folder: (folder / "a.bin").write_bytes(b"123"),
    "output longer": lambda folder: (folder / "b.bin").write_bytes(b"b.bin256 "),
    "output damaged in place": lambda folder: damage_in_place(folder / "a.bin"),
    "output a folder": lambda folder: ((folder / "a.bin").unlink(), (folder / "a.bin").mkdir()),
    "folder gone": shutil.rmtree,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_stage_whose_files_are_not_as_it_left_them_is_not_done(spoil, tmp_path):
    run_stage(tmp_path)
    spoil(tmp_path / "first")
    assert not is_done(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "raw"),
    [(ARGUMENTS | {"size": 128}, RAW), (ARGUMENTS | {"seed": 0}, RAW), (ARGUMENTS, {"--source": "d2"}), (ARGUMENTS, {})],
)
def test_a_stage_with_other_arguments_or_inputs_is_not_done(arguments, raw, tmp_path):
    run_stage(tmp_path)
    assert not is_done(tmp_path, arguments, raw)


def test_a_copy_of_a_finished_stage_is_done(tmp_path):
    run_stage(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert is_done(tmp_path / "b")
    assert run_stage(tmp_path / "b", "second")["rows"] == 2


def test_a_stage_takes_only_what_the_one_before_wrote(tmp_path):
    run_stage(tmp_path)
    damage_in_place(tmp_path / "first" / "a.bin")
    expected = f"{tmp_path / 'first' / 'a.bin'} has been changed: run python a.py again"
    assert sentence_of(run_stage, tmp_path, "second") == expected
    (tmp_path / "first" / "a.bin").unlink()
    assert sentence_of(run_stage, tmp_path, "second").startswith(f"{tmp_path / 'first' / 'a.bin'} is missing: ")


def test_a_stage_refuses_a_stage_that_was_made_from_other_files_than_there_are_now(tmp_path, three_stages, monkeypatch):
    for name in ("first", "second"):
        run_stage(tmp_path, name)
    run_stage(tmp_path, "first", ARGUMENTS | {"size": 1})
    expected = f"{tmp_path / 'second'} was made from another first/a.bin: run python b.py again"
    assert sentence_of(run_stage, tmp_path, "third") == expected
    assert sentence_of(stages.check, tmp_path, "second") == expected
    stages.check(tmp_path, "second", ["first/b.bin"])
    lenient = Contract("c.py", "", {}, (Reads("second", ("c.bin",), made_from=()),), ("d.bin",), schema=6)
    monkeypatch.setitem(three_stages, "third", lenient)
    assert run_stage(tmp_path, "third")["rows"] == 2
    assert list(stages.read_manifest(tmp_path / "third")["inputs"]) == ["second/c.bin"]


def test_raising_a_schema_redoes_that_stage_and_later_ones_only_where_its_files_changed(tmp_path, three_stages, monkeypatch):
    for name in three_stages:
        run_stage(tmp_path, name)
    monkeypatch.setitem(three_stages, "first", Contract("a.py", "", {}, (), ("a.bin", "b.bin"), schema=7))
    expected = f"{tmp_path / 'first'} was written by another version of this program: run python a.py again"
    assert sentence_of(run_stage, tmp_path, "second") == expected
    assert "unchanged" not in run_stage(tmp_path)
    assert run_stage(tmp_path, "second")["unchanged"] and run_stage(tmp_path, "third")["unchanged"]


def damaged_manifests() -> list[bytes]:
    whole = {"schema": 6, "arguments": {}, "inputs": {}, "outputs": {}, "counts": {}}
    lacking = [{key: value for key, value in whole.items() if key != gone} for gone in whole]
    odd = [whole | {key: None} for key in whole] + [[], "text", None, 3]
    return [json.dumps(value).encode() for value in lacking + odd] + [b"", b"{", b"\xff", json.dumps(whole).encode()[:-1]]


@pytest.mark.parametrize("manifest", damaged_manifests())
def test_a_damaged_manifest_means_not_finished_never_a_traceback(manifest, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "manifest.json").write_bytes(manifest)
    assert not is_done(tmp_path)
    assert sentence_of(run_stage, tmp_path, "second") == f"{tmp_path / 'first'} is not finished: run python a.py first"


def test_a_stage_without_manifest_is_not_finished_and_the_sentence_names_its_script(tmp_path):
    assert sentence_of(run_stage, tmp_path, "second") == f"{tmp_path / 'first'} is not finished: run python a.py first"


def test_begin_takes_the_manifest_and_the_leftovers_of_a_kill_away_and_nothing_else(tmp_path):
    run_stage(tmp_path)
    folder = tmp_path / "first"
    (folder / ".a.bin.77.tmp").write_bytes(b"half")
    (folder / ".0a1b.tmp").mkdir()
    (folder / ".0a1b.tmp" / "index.faiss").write_bytes(b"half")
    (folder / ".progress.jsonl").write_bytes(b"{}\n")
    (folder / "notes.tmp").write_bytes(b"a user's")
    with stages.open_stage(tmp_path, "first", ARGUMENTS, RAW) as stage:
        stage.begin()
    kept = {"a.bin": b"a.bin256", "b.bin": b"b.bin256", ".progress.jsonl": b"{}\n", "notes.tmp": b"a user's"}
    assert files_below(folder) == kept
    assert not (folder / ".0a1b.tmp").exists()


def test_a_stage_killed_at_any_moment_is_unfinished_or_whole_and_ends_the_same_when_run_again(tmp_path):
    for number in itertools.count(1):
        run_stage(tmp_path, arguments={"size": 1})  # there is always an older state to spoil
        killed = killed_before_change(number, lambda: run_stage(tmp_path))
        if is_done(tmp_path):
            assert run_stage(tmp_path) == {"stage": "first", "rows": 2, "unchanged": True}
        run_stage(tmp_path)
        assert stages.read_manifest(tmp_path / "first")["arguments"] == {"size": 256, "sides": [1, 2]}
        files = files_below(tmp_path / "first")
        del files["manifest.json"]
        assert files == {"a.bin": b"a.bin256", "b.bin": b"b.bin256"}
        if not killed:
            break
    assert number > 5


# One run at a time


def test_a_second_run_at_once_is_one_sentence_and_changes_nothing(tmp_path):
    run_stage(tmp_path)
    before = files_below(tmp_path)
    with locks.hold(tmp_path / "first", exclusive=True):
        expected = f"another run is at work in {tmp_path / 'first'}: wait for its end, then run python a.py again"
        assert sentence_of(run_stage, tmp_path, "first", {"size": 1}) == expected
    assert files_below(tmp_path) == before


def test_a_folder_is_not_written_while_it_is_read_nor_read_while_it_is_written(tmp_path):
    run_stage(tmp_path)
    with stages.open_stage(tmp_path, "second", {}):
        expected = f"another run is at work in {tmp_path / 'first'}: wait for its end, then run python a.py again"
        assert sentence_of(run_stage, tmp_path) == expected
    with stages.open_stage(tmp_path, "first", {"size": 1}, RAW) as stage:
        stage.begin()  # which takes the manifest away
        expected = f"python a.py is writing {tmp_path / 'first'}: wait for its end, then run python b.py again"
        assert sentence_of(run_stage, tmp_path, "second") == expected


def test_a_process_whose_sibling_holds_the_locks_takes_none(tmp_path):
    run_stage(tmp_path)
    with (
        stages.open_stage(tmp_path, "first", ARGUMENTS, RAW),
        stages.open_stage(tmp_path, "first", ARGUMENTS, RAW, locked=False) as sibling,
    ):
        assert sibling.is_done()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "first").write_bytes(b"")
    assert sentence_of(run_stage, tmp_path) == f"the folder {tmp_path / 'first'} cannot be made: give another --data"


# The real table


@pytest.mark.parametrize("name", STAGES)
def test_the_table_hangs_together(name):
    contract = STAGES[name]
    names = list(STAGES)
    assert (ROOT / contract.script).is_file()
    for reads in contract.reads:
        assert names.index(reads.stage) < names.index(name)
        assert set(reads.files) <= set(STAGES[reads.stage].writes)
        made_from = {f"{read.stage}/{file}" for read in STAGES[reads.stage].reads for file in read.files}
        assert set(reads.made_from or ()) <= made_from


@pytest.mark.parametrize("name", STAGES)
def test_a_script_says_what_the_table_says(name):
    contract = STAGES[name]
    docstring = importlib.import_module(contract.script.removesuffix(".py")).__doc__
    reads, writes = re.search(r"\nReads   (.*?)\nWrites  (.*?)\nRun     ", docstring, re.DOTALL).groups()
    written = set(re.findall(r"data/(\w+)/", writes))
    assert name in written
    others = {reads.stage for reads in contract.reads} - written
    assert others <= set(re.findall(r"data/(\w+)/", reads))
    for file_name in contract.writes:
        assert file_name.rstrip("/") in writes, file_name


def test_a_second_clean_images_at_once_is_refused(tmp_path):
    """Else two runs of different --size fill one folder, and both end well."""
    (tmp_path / "images").mkdir()
    (tmp_path / "raw" / "images").mkdir(parents=True)
    (tmp_path / "raw" / "images" / "a.jpg").write_bytes(b"")
    with locks.hold(tmp_path / "images", exclusive=True):
        command = [sys.executable, "clean_images.py", "--data", str(tmp_path), "--size", "64", "--all-photos"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stdout == ""
    expected = f"another run is at work in {tmp_path / 'images'}: wait for its end, then run python clean_images.py again"
    assert ended.stderr.splitlines()[-1] == f"error: {expected}"
