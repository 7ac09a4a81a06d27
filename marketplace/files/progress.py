"""How far a long step has come, on stderr: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

LINE_EVERY_S = 10.0

Item = TypeVar("Item")


def progress(items: Iterable[Item], desc: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """The items one by one, while stderr tells how many are done.

    desc: what is done, unit: what an item is called, in the singular; total: how many there are, where len() cannot tell.
    Without a terminal a line says that the step begins, and one at most every LINE_EVERY_S seconds how far it is: tqdm would
    write all its lines into one, with carriage returns.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=desc, unit=unit, total=total, file=sys.stderr)
        return
    told = began = time.monotonic()
    print(f"{desc}: begins" if total is None else f"{desc}: begins, {total:,} in all", file=sys.stderr, flush=True)
    for done, item in enumerate(items):
        if time.monotonic() - told >= LINE_EVERY_S:
            told = time.monotonic()
            print(tqdm.format_meter(done, total, told - began, ncols=0, prefix=desc, unit=unit), file=sys.stderr, flush=True)
        yield item


def begin(what: str) -> None:
    """Say that a long step without parts to count begins."""
    print(f"{what} ...", file=sys.stderr, flush=True)
