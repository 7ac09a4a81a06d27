"""The stages of the pipeline: their folders, manifests and digests; the failures that a user can mend."""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from marketplace.files import atomic

SCHEMA_VERSION = 5  # of every manifest; raised when a stage's files change their meaning


MANIFEST = "manifest.json"


SETTLED_NS = 20_000_000  # older than this, a file's time tells a later change apart: clocks of file systems tick every 1 to 10 ms


SCRIPTS = {  # stage folder -> the script that fills it
    "tabular": "clean_tabular_data.py",
    "images": "clean_images.py",
    "dataset": "dataset.py",
    "features": "train.py",
    "model": "train.py",
    "embeddings": "extract_embeddings.py",
    "index": "build_index.py",
    "evaluation": "evaluate.py",
}


@dataclass(frozen=True)
class _Content:
    """What a file holds, as far as its status tells: the same under another name."""

    path: Path = field(compare=False)
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "_Content":
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise StageError(f"{path} is missing: {remedy(Path(path).parent)}") from None
        return cls(Path(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal; computed once a process while the file stays as it is.

    Not at all when the manifest beside it holds the digest and the file's inode, size and time show that nobody has written it
    since, as git tells changed files by.
    """
    return _digest(_Content.of(path))


@functools.lru_cache(maxsize=256)
def _digest(content: _Content) -> str:
    manifest_path = content.path.with_name(MANIFEST)
    known = (_whole_manifest(content.path.parent) or {"digests": {}})["digests"].get(content.path.name)
    if known and known[1:] == [content.inode, content.size, content.modified_ns]:
        with contextlib.suppress(FileNotFoundError):
            if manifest_path.stat().st_mtime_ns - content.modified_ns > SETTLED_NS:
                return known[0]
    with open(content.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remedy(folder: Path) -> str:
    script = SCRIPTS.get(folder.name) or SCRIPTS.get(folder.parent.name)  # a generation stands below its stage's folder
    return f"run python {script} first" if script else "check the path"


# Manifests: no manifest, not finished.


@dataclass
class Stage:
    """One run of one stage: its folder, and what would make another run of it the same run.

    arguments: JSON values; inputs: name -> digest of what is read.
    """

    folder: Path
    arguments: dict
    inputs: dict[str, str]
    started_s: float = field(default_factory=time.time)

    def finished(self) -> dict | None:
        """The summary of an earlier run with the same inputs and arguments whose files are all still there, else None."""
        manifest = _whole_manifest(self.folder)
        wanted = {"schema": SCHEMA_VERSION, "arguments": self.arguments, "inputs": self.inputs}
        if not manifest or any(manifest[key] != json.loads(json.dumps(value)) for key, value in wanted.items()):
            return None
        for name, size in manifest["outputs"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        if any(digest(self.folder / name) != known[0] for name, known in manifest["digests"].items()):
            return None
        return {"stage": self.folder.name, **manifest["counts"], "unchanged": True}

    def begin(self) -> None:
        """Make the folder, take its manifest away and remove what a killed run left half-written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            raise StageError(f"the folder {self.folder} cannot be made: give another --data") from None
        (self.folder / MANIFEST).unlink(missing_ok=True)
        atomic.remove_leftovers(self.folder)

    def finish(self, counts: dict, outputs: Iterable[str], digested: Iterable[str] = ()) -> dict:
        """Write the manifest, which makes the stage finished, and return its summary.

        counts: JSON values to record and print; outputs: names of the files that a reader relies on; digested: of those, the
        ones whose digests are recorded, so that no later stage reads them for that.
        """
        contents = {name: _Content.of(self.folder / name) for name in digested}
        digests = {name: [_digest(of), of.inode, of.size, of.modified_ns] for name, of in contents.items()}
        seconds = round(time.time() - self.started_s, 2)
        atomic.write_json(
            self.folder / MANIFEST,
            {
                "stage": self.folder.name,
                "schema": SCHEMA_VERSION,
                "arguments": self.arguments,
                "inputs": self.inputs,
                "outputs": {name: (self.folder / name).stat().st_size for name in outputs},
                "digests": digests,
                "counts": counts,
                "started": datetime.datetime.fromtimestamp(self.started_s, datetime.UTC).isoformat(),
                "seconds": seconds,
            },
        )
        return {"stage": self.folder.name, **counts, "seconds": seconds}


def _whole_manifest(folder: Path) -> dict | None:
    """The folder's manifest, None when it is missing, damaged or lacks what finish() writes."""
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())  # that of a million photos names each of them
    except (FileNotFoundError, ValueError):
        return None
    kinds = {"schema": int, "arguments": dict, "inputs": dict, "outputs": dict, "digests": dict, "counts": dict}
    is_whole = isinstance(manifest, dict) and all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())
    return manifest if is_whole else None


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished stage; StageError names the command to run when there is none."""
    folder = Path(folder)
    manifest = _whole_manifest(folder)
    if not manifest:
        raise StageError(f"{folder} is not finished: {remedy(folder)}")
    if manifest["schema"] != SCHEMA_VERSION:
        raise StageError(f"{folder} was written by another version of this program: run python {SCRIPTS[folder.name]} again")
    return manifest


def check_inputs(data_dir: Path, stage: str, names: Iterable[str] | None = None) -> dict:
    """The manifest of a finished stage whose inputs below `data_dir` (all, or those of `names`) are still what it read.

    StageError names the command to run when one of them has changed since. Inputs from elsewhere are named --<flag>.
    """
    manifest = read_manifest(data_dir / stage)
    for name, recorded in manifest["inputs"].items():
        if (name in names if names is not None else not name.startswith("--")) and digest(data_dir / name) != recorded:
            raise StageError(f"{data_dir / stage} was made from another {name}: run python {SCRIPTS[stage]} again")
    return manifest


def check_outputs(data_dir: Path, stage: str, *names: str) -> None:
    """StageError when a file of a finished stage is not what the stage wrote; its digest must have been recorded."""
    recorded = read_manifest(data_dir / stage)["digests"]
    for name in names:
        if digest(data_dir / stage / name) != recorded[name][0]:
            raise StageError(f"{data_dir / stage / name} has been changed: run python {SCRIPTS[stage]} again")


def digests(data_dir: Path, *names: str) -> dict[str, str]:
    """Inputs for a Stage: path below `data_dir` -> digest."""
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        return dict(zip(names, pool.map(lambda name: digest(data_dir / name), names), strict=True))


class StageError(Exception):
    """A failure whose message is one sentence for the user: what, where, and what to do or run."""
