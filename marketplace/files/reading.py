"""Reading what a stage wrote; a missing or damaged file names the command that makes it again."""

import json
import mmap
import tokenize
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from marketplace.files import stages
from marketplace.files.stages import StageError

# Where pyarrow is installed pandas would keep texts as Arrow's, which take no lone surrogates: the same with it and without.
pd.set_option("mode.string_storage", "python")

Record = TypeVar("Record")


def read_array(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped; StageError when it is missing or damaged."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {stages.remedy(Path(path).parent)}") from None
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError):  # numpy parses the header as Python
        raise StageError(f"{path} is damaged: delete it and {stages.remedy(Path(path).parent)}") from None


def release(array: np.ndarray) -> None:
    """Let go of the pages that were read of an array from read_array(), or of a view of one: the system may keep them, this
    process does not."""
    owner = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)


def read_csv(path: Path, **options) -> pd.DataFrame:
    """Read a stage's CSV as text columns: "NA", "null" and "None" are words people type, not missing values."""
    try:
        return pd.read_csv(path, **{"dtype": str, "keep_default_na": False, "encoding": "utf-8"} | options)
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {stages.remedy(Path(path).parent)}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise StageError(f"{path} is damaged: delete it and {stages.remedy(Path(path).parent)}") from None


def read_json(path: Path) -> dict:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {stages.remedy(Path(path).parent)}") from None
    except ValueError:
        raise StageError(f"{path} is not valid JSON: delete it and {stages.remedy(Path(path).parent)}") from None


def read_record(path: Path, kind: type[Record], script: str) -> Record:
    """A dataclass that was written as JSON, field by field.

    script: the one that wrote it. Raises StageError when it is missing, damaged, or has other fields than this version's.
    """
    try:
        return kind(**read_json(path))
    except TypeError:
        raise StageError(f"{path} was written by another version of this program: run python {script} again") from None
