import argparse
import errno
import json

import pytest

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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_full_disk_or_a_missing_permission_is_a_sentence_not_a_traceback(code, capsys):
    reason = OSError(code, "No room", "data/images/a.jpg")
    assert exit_code(failing(reason), ARGS) == 1
    expected = "error: No room (data/images/a.jpg): make room or give the permission, and run it again\n"
    assert capsys.readouterr() == ("", expected)


def test_a_full_disk_that_names_no_file_is_a_sentence_too(capsys):
    assert exit_code(failing(OSError(errno.ENOSPC, "No space left on device")), ARGS) == 1
    expected = "error: No space left on device (the data folder): make room or give the permission, and run it again\n"
    assert capsys.readouterr() == ("", expected)


@pytest.mark.parametrize("bug", [KeyError("price"), ValueError("bad"), FileNotFoundError(errno.ENOENT, "gone"), AssertionError()])
def test_a_bug_keeps_its_traceback(bug, capsys):
    with pytest.raises(type(bug)) as caught:
        exit_code(failing(bug), ARGS)
    assert caught.value is bug
    assert capsys.readouterr() == ("", "")


def test_a_summary_that_is_not_json_is_a_bug():
    with pytest.raises(TypeError):
        exit_code(lambda args: {"folder": ARGS}, ARGS)
