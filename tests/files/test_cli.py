import argparse
import errno
import json
import subprocess
import sys

import pytest

from marketplace.files import disk
from marketplace.files.cli import exit_code
from marketplace.files.stages import StageError

ARGS = argparse.Namespace(size=3)


def failing(error: Exception):
    def run(args):
        raise error

    return run


def test_a_stage_that_succeeds_exits_0_and_prints_its_summary_as_one_json_line(capsys):
    assert exit_code(lambda args: {"stage": "images", "name": "Pâté\n", "size": args.size}, ARGS) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"stage": "images", "name": "Pâté\n", "size": 3}
    assert out.count("\n") == 1 and out.endswith("\n")
    assert err == ""


def test_a_stage_error_exits_1_with_its_sentence_on_stderr_and_nothing_on_stdout(capsys):
    sentence = "data/tabular is not finished: run python clean_tabular_data.py first"
    assert exit_code(failing(StageError(sentence)), ARGS) == 1
    assert capsys.readouterr() == ("", f"error: {sentence}\n")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_missing_permission_is_a_sentence_not_a_traceback(code, capsys):
    reason = OSError(code, "Not allowed", "data/images/a.jpg")
    assert exit_code(failing(reason), ARGS) == 1
    expected = "error: Not allowed (data/images/a.jpg): give the permission, and run it again\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("database or disk is full")])
def test_a_full_disk_is_a_sentence_that_names_the_disk_of_the_data(error, tmp_path, capsys):
    args = argparse.Namespace(data=tmp_path / "data" / "images")
    assert exit_code(failing(error), args) == 1
    place = disk.mount_of(tmp_path)
    assert capsys.readouterr() == ("", f"error: the disk at {place} is full ({args.data}): make room on it, and run it again\n")


def test_a_summary_that_goes_to_a_full_disk_is_a_sentence(tmp_path):
    program = "import sys; from marketplace.files.cli import exit_code; sys.exit(exit_code(lambda args: {'rows': 1}, None))"
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    sentence = "error: the summary cannot be printed (No space left on device): see where standard output goes\n"
    assert (ended.returncode, ended.stderr) == (1, sentence)


@pytest.mark.parametrize("bug", [KeyError("price"), ValueError("bad"), FileNotFoundError(errno.ENOENT, "gone"), AssertionError()])
def test_a_bug_keeps_its_traceback(bug, capsys):
    with pytest.raises(type(bug)) as caught:
        exit_code(failing(bug), ARGS)
    assert caught.value is bug
    assert capsys.readouterr() == ("", "")


def test_a_summary_that_is_not_json_is_a_bug():
    with pytest.raises(TypeError):
        exit_code(lambda args: {"folder": ARGS}, ARGS)
