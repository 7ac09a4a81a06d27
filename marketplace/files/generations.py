"""The generations of data/index/: never changed once current.json names them.

What a full build wrote is linked from one to the next; what was added since stands in files beside it."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from marketplace.files import atomic
from marketplace.files.stages import StageError

GENERATIONS_KEPT = 2  # the one being served, and the one before it for readers that still have it open


# Generations of data/index/: never changed once named by current.json. What a full build wrote is linked from one to the next;
# what was added since stands in files beside it.


def added(name: str) -> str:
    """The name of the file that goes on where the file of that name, of the last full build, ends."""
    return f"added_{name}"


def parts(path: Path) -> list[Path]:
    """The file of the last full build, and the one with what was added since, where there is one."""
    return [path, *(part for part in [path.with_name(added(path.name))] if part.exists())]


def link(source: Path, target: Path) -> None:
    """Hard-link, or copy where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


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
    """A temporary folder to fill with files; on leaving without an error it is published as generation `name`, and old ones go.

    name: decided by the content's inputs, so that a killed and repeated build ends in the same folder.
    """
    index_dir = Path(index_dir)
    temporary = index_dir / f".{name}{atomic.TEMPORARY_SUFFIX}"
    atomic.remove_leftovers(index_dir)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _put_in_place(temporary, index_dir / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    previous = None
    with contextlib.suppress(StageError):
        previous = current_generation(index_dir).name
    atomic.write_json(index_dir / "current.json", {"generation": name}, indent=None)
    _remove_old_generations(index_dir, {name, previous} - {None})


def _put_in_place(temporary: Path, generation: Path) -> None:
    for path in temporary.iterdir():
        atomic.flush(path)
    if not generation.exists():
        os.replace(temporary, generation)
        return
    # Left by a run that was killed before it could publish or finish. It may be served by now: so file by file, the same
    # bytes under the same names, and no reader ever finds one missing.
    for path in temporary.iterdir():
        os.replace(path, generation / path.name)


def _remove_old_generations(index_dir: Path, kept: set[str]) -> None:
    others = [path for path in index_dir.iterdir() if path.is_dir() and path.name not in kept]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[GENERATIONS_KEPT - len(kept) :]:
        doomed = path.with_name(f".{path.name}{atomic.TEMPORARY_SUFFIX}")  # a kill must not leave half a generation
        os.replace(path, doomed)
        shutil.rmtree(doomed)
