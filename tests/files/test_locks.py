import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from marketplace.files import locks


def holds(folder, exclusive: bool) -> bool:
    """Whether a lock can be had by somebody else than this test."""
    program = (
        "import sys, pathlib; from marketplace.files import locks\n"
        "try:\n    with locks.hold(pathlib.Path(sys.argv[1]), sys.argv[2] == 'True'): pass\n"
        "except locks.Locked: sys.exit(7)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(folder), str(exclusive)]).returncode
    assert ended in (0, 7)
    return ended == 0


@pytest.mark.parametrize(
    ("held", "asked", "had"), [(True, True, False), (True, False, False), (False, True, False), (False, False, True)]
)
def test_only_two_readers_go_together(held, asked, had, tmp_path):
    with locks.hold(tmp_path, exclusive=held):
        assert holds(tmp_path, asked) == had
    assert holds(tmp_path, asked)


def test_a_lock_in_the_same_process_counts_too(tmp_path):
    with locks.hold(tmp_path, exclusive=True), pytest.raises(locks.Locked), locks.hold(tmp_path, exclusive=True):
        pass


def test_a_lock_ends_with_its_process_however_that_ends_and_whatever_children_it_leaves(tmp_path):
    """The child forks a grandchild that outlives it: the lock must be free as soon as the child is killed."""
    ready, go = multiprocessing.get_context("fork").Pipe()
    child = os.fork()
    if child == 0:
        context = locks.hold(tmp_path, exclusive=True)
        context.__enter__()
        grandchild = os.fork()
        if grandchild == 0:
            go.send(os.getpid())
            go.recv()  # until the test is over
            os._exit(0)
        signal.pause()
    grandchild = ready.recv()
    try:
        assert not holds(tmp_path, exclusive=True)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert holds(tmp_path, exclusive=True)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_program_that_is_started_does_not_inherit_the_lock(tmp_path):
    with locks.hold(tmp_path, exclusive=True):
        listed = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False).stdout
    assert locks.LOCK not in listed


def test_a_folder_that_may_only_be_read_is_read_without_a_lock_and_never_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with locks.hold(tmp_path, exclusive=False):
        pass
    with pytest.raises(PermissionError), locks.hold(tmp_path, exclusive=True):
        pass
