"""Writing: a file appears whole or not at all."""

import contextlib
import csv
import functools
import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from marketplace.files import disk

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving without an error it is flushed and renamed to `path`.

    A full disk is an OSError that names `path`, whatever the library that wrote to it says.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with disk.writing(path):
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame that read_csv() reads back as it was, whatever its text."""
    write = functools.partial(frame.to_csv, index=False, lineterminator="\n", encoding="utf-8")
    with atomic_path(path) as temporary:
        write(temporary)
        if _holds(temporary, b"\r"):  # pandas leaves a bare one unquoted, and reads it as the end of a row
            write(temporary, quoting=csv.QUOTE_NONNUMERIC)


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file that is not empty holds some bytes; no more than some pages of it are in memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped.find(data) >= 0


def write_table(path: Path, columns: list[str], rows: Iterable[Iterable[str]]) -> None:
    """Write what write_csv() writes, of texts without line breaks that come row by row."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_rows(path: Path, rows: int, dtype: np.dtype, chunks: Iterable[np.ndarray]) -> None:
    """Write the .npy file of (rows, *shape) whose rows come in chunks; no more than a chunk is in memory.

    dtype: of one row, with its shape: np.dtype((np.float32, (256,))).
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype.base), "fortran_order": False, "shape": (rows, *dtype.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype.base).data)


def remove_leftovers(folder: Path) -> None:
    leftovers = []
    # One by one: glob() takes memory for a million photos.
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        leftovers = [entry for entry in entries if entry.name.startswith(".") and entry.name.endswith(TEMPORARY_SUFFIX)]
    for leftover in leftovers:
        shutil.rmtree(leftover) if leftover.is_dir() else os.unlink(leftover)
