"""What several tests of files ask: what stands below a folder, which sentence was said, what a kill leaves."""

import itertools
import os
import signal
from pathlib import Path

import pytest

from marketplace.files import locks
from marketplace.files.stages import StageError


def files_below(folder: Path) -> dict[str, bytes]:
    """Name -> content of every file, hidden ones too; locks, which are empty, left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != locks.LOCK]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


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
