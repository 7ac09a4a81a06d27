"""The generations of data/index/: folders of files, and of folders, never changed once current.json names them."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from marketplace.files import atomic, disk
from marketplace.files.stages import StageError

GENERATIONS_KEPT = 2  # the one being served, and the one before it for readers that still have it open


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or all files of a folder; copy where the file system cannot."""
    source, target = Path(source), Path(target)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def files_of(folder: Path) -> list[str]:
    """The files of a generation, by their paths in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def current_generation(index_dir: Path) -> Path:
    """The folder of the generation that is published now; StageError when there is none."""
    index_dir = Path(index_dir)
    try:
        name = json.loads((index_dir / "current.json").read_text(encoding="utf-8"))["generation"]
        folder = index_dir / name
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise StageError(f"{index_dir} holds no published index: run python build_index.py first") from None
    if not name or not folder.is_dir():
        raise StageError(f"{index_dir / 'current.json'} names {name}, which is missing: run python build_index.py again")
    return folder


@contextlib.contextmanager
def new_generation(index_dir: Path, name: str) -> Iterator[Path]:
    """A temporary folder to fill; on leaving without an error it is published as generation `name`, and old ones go.

    name: of no generation that is there, from free_name().
    """
    index_dir = Path(index_dir)
    temporary = index_dir / f".{name}{atomic.TEMPORARY_SUFFIX}"
    atomic.remove_leftovers(index_dir)
    temporary.mkdir(parents=True)
    try:
        with disk.writing(temporary):
            yield temporary
            for path in files_of(temporary):
                atomic.flush(temporary / path)
            os.replace(temporary, index_dir / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    publish(index_dir, name)


def free_name(index_dir: Path, name: str) -> str:
    """The name, or where a generation has it, damaged, that with the first number that none has: one may be served by now, so
    nothing in it is ever replaced."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(free for free in itertools.chain([name], numbered) if not (Path(index_dir) / free).exists())


def publish(index_dir: Path, name: str) -> None:
    """Make a whole generation the current one; it and the one that was current until now stay."""
    atomic.remove_leftovers(index_dir)
    previous = None
    with contextlib.suppress(StageError):
        previous = current_generation(index_dir).name
    atomic.write_json(index_dir / "current.json", {"generation": name}, indent=None)
    _remove_old_generations(index_dir, {name, previous} - {None})


def _remove_old_generations(index_dir: Path, kept: set[str]) -> None:
    others = _others(index_dir, kept)
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[GENERATIONS_KEPT - len(kept) :]:
        remove(path)


def keep_only(index_dir: Path, names: Collection[str]) -> None:
    """Remove the generations that are none of some; who has them open goes on reading."""
    for path in _others(index_dir, names):
        remove(path)


def _others(index_dir: Path, names: Collection[str]) -> list[Path]:
    return [path for path in index_dir.iterdir() if path.is_dir() and path.name not in names]


def remove(folder: Path) -> None:
    doomed = folder.with_name(f".{folder.name}{atomic.TEMPORARY_SUFFIX}")  # a kill must not leave half a generation
    os.replace(folder, doomed)
    shutil.rmtree(doomed)
