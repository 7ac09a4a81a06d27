"""A full disk: whatever a library makes of it is recognised, and the disk is named."""

import errno
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from marketplace.files import atomic, disk


def raised_by(work) -> Exception:
    with pytest.raises(Exception) as caught:
        work()
    return caught.value


def write_to_full_disk(data: bytes) -> None:
    with open("/dev/full", "wb") as file:
        file.write(data)


def write_array() -> None:
    with open("/dev/full", "wb") as file:
        np.save(file, np.zeros(10_000))


@pytest.mark.parametrize("work", [lambda: write_to_full_disk(bytes(9)), write_array])
def test_what_libraries_raise_on_a_full_disk_is_recognised(work):
    assert disk.is_full(raised_by(work))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("80000 requested and 4096 written"),  # NumPy's tofile(), without an errno
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("Error in FileIOWriter: write error in /d/index.faiss: 0 != 512 (No space left on device)"),
        ValueError("An IO error occurred: 'No space left on device (os error 28)'"),  # tantivy
    ],
)
def test_every_way_of_saying_so_is_recognised_also_behind_another_error(error):
    assert disk.is_full(error)

    def fail():
        try:
            raise error
        finally:
            raise KeyError("while cleaning up")

    assert disk.is_full(raised_by(fail))


def fail_without_context():
    try:
        raise OSError(errno.ENOSPC, "full")
    except OSError:
        raise ValueError("mended, and then this") from None


@pytest.mark.parametrize(
    "work", [lambda: 1 / 0, lambda: os.stat("/nowhere/file"), lambda: os.listdir("/dev/null"), fail_without_context]
)
def test_other_errors_are_not(work):
    error = raised_by(work)
    assert not disk.is_full(error)
    with pytest.raises(type(error)) as caught, disk.writing(Path("/tmp")):
        raise error
    assert caught.value is error


def test_errors_that_lead_back_to_themselves_are_each_looked_at_once():
    first, second, full = ValueError("first"), ValueError("second"), OSError(errno.ENOSPC, "full")
    first.__cause__ = first  # as `raise error from error` does
    assert not disk.is_full(first)
    first.__cause__, second.__cause__ = second, first
    assert not disk.is_full(first)
    first.__cause__, second.__cause__, full.__cause__ = second, full, first
    assert disk.is_full(first)


def test_the_file_that_was_written_is_named(tmp_path):
    def save():
        with atomic.atomic_path(tmp_path / "a.npy") as temporary:
            temporary.write_bytes(b"half")
            raise OSError("80000 requested and 4096 written")

    error = raised_by(save)
    assert (error.errno, error.filename) == (errno.ENOSPC, str(tmp_path / "a.npy"))
    assert list(tmp_path.iterdir()) == []


def test_of_a_copy_it_is_the_one_that_is_written_that_is_named(tmp_path):
    def copy():
        with disk.writing(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device", "source", None, "target")  # as shutil.copyfile() does

    assert raised_by(copy).filename == "target"


def test_a_temporary_folder_without_room_is_named_in_place_of_what_was_written(tmp_path, monkeypatch):
    temporary, data = tmp_path / "temporary", tmp_path / "data"
    monkeypatch.setattr(disk.tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.setattr(disk, "_free_bytes", lambda place: 0 if place == temporary else 10**9)

    def fail():
        with disk.writing(data):
            raise RuntimeError("No space left on device")

    assert raised_by(fail).filename == str(temporary)


def test_a_disk_is_called_by_where_it_is_mounted(tmp_path):
    assert disk.mount_of("/proc/self/status") == Path("/proc")
    assert disk.mount_of(tmp_path / "not" / "there").is_mount()
