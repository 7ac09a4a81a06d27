"""Local and s3:// paths, atomic writes, manifests and generations; the only importer of boto3."""

import contextlib
import csv
import datetime
import functools
import hashlib
import json
import mmap
import os
import shutil
import threading
import time
import tokenize
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from marketplace.errors import StageError

SCHEMA_VERSION = 5  # of every manifest; raised when a stage's files change their meaning
MANIFEST = "manifest.json"
TEMPORARY_SUFFIX = ".tmp"
SETTLED_NS = 20_000_000  # older than this, a file's time tells a later change apart: clocks of file systems tick every 1 to 10 ms
GENERATIONS_KEPT = 2  # the one being served, and the one before it for readers that still have it open
S3_BODY_ATTEMPTS = 5  # attempts to read an object's bytes; boto3 makes as many to send a request

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


# Writing: a file appears whole or not at all.


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on leaving without an error it is flushed and renamed to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
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
        if b"\r" in temporary.read_bytes():  # pandas leaves a bare one unquoted, and reads it as the end of a row
            write(temporary, quoting=csv.QUOTE_NONNUMERIC)


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


def read_array(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped; StageError when it is missing or damaged."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {_remedy(Path(path).parent)}") from None
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError):  # numpy parses the header as Python
        raise StageError(f"{path} is damaged: delete it and {_remedy(Path(path).parent)}") from None


def release(array: np.ndarray) -> None:
    """Let go of the pages that were read of an array from read_array(): the system may keep them, this process does not."""
    if isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)


def read_csv(path: Path, **options) -> pd.DataFrame:
    """Read a stage's CSV as text columns: "NA", "null" and "None" are words people type, not missing values."""
    try:
        return pd.read_csv(path, **{"dtype": str, "keep_default_na": False, "encoding": "utf-8"} | options)
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {_remedy(Path(path).parent)}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise StageError(f"{path} is damaged: delete it and {_remedy(Path(path).parent)}") from None


def read_json(path: Path) -> dict:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {_remedy(Path(path).parent)}") from None
    except ValueError:
        raise StageError(f"{path} is not valid JSON: delete it and {_remedy(Path(path).parent)}") from None


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
            raise StageError(f"{path} is missing: {_remedy(Path(path).parent)}") from None
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


def _remedy(folder: Path) -> str:
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
        _remove_leftovers(self.folder)

    def finish(self, counts: dict, outputs: Iterable[str], digested: Iterable[str] = ()) -> dict:
        """Write the manifest, which makes the stage finished, and return its summary.

        counts: JSON values to record and print; outputs: names of the files that a reader relies on; digested: of those, the
        ones whose digests are recorded, so that no later stage reads them for that.
        """
        contents = {name: _Content.of(self.folder / name) for name in digested}
        digests = {name: [_digest(of), of.inode, of.size, of.modified_ns] for name, of in contents.items()}
        seconds = round(time.time() - self.started_s, 2)
        write_json(
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


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


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
        raise StageError(f"{folder} is not finished: {_remedy(folder)}")
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


# S3: credentials and endpoint (AWS_ENDPOINT_URL) from boto3's usual chain.


@dataclass(frozen=True)
class S3Object:
    uri: str
    size: int  # bytes
    etag: str


def is_s3(uri: str | Path) -> bool:
    return str(uri).startswith("s3://")


def _split_s3(uri: str) -> tuple[str, str]:
    # No URL parser: "?", "#" and a leading "/" are ordinary characters of an S3 key.
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StageError(f"{uri} names no bucket: write s3://bucket/key")
    return bucket, key


_client_lock = threading.Lock()  # boto3's session cannot make two clients at once


def _client():
    with _client_lock:
        return _client_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _client_of(process_id: int):
    """One client a process: threads may share it, but it must not cross a fork."""
    import boto3  # only users of S3 pay for the import

    try:
        return boto3.client("s3")
    except ValueError as error:  # an endpoint without http://
        raise StageError(f"S3 cannot be used ({error}): check AWS_ENDPOINT_URL and the region") from None


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into one sentence about `uri`."""
    from boto3.exceptions import Boto3Error  # s3transfer's failures, which are no BotoCoreErrors
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise StageError(
            f"no AWS credentials to read {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"
        ) from None
    except exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        bucket = _split_s3(uri)[0]
        if code == "NoSuchBucket":
            raise StageError(f"there is no bucket {bucket} for {uri}: check its name") from None
        if code in ("404", "NoSuchKey"):
            raise StageError(f"there is no object {uri}: check the bucket and the key") from None
        if code in ("403", "AccessDenied"):
            raise StageError(f"access to {uri} is denied: allow s3:GetObject and s3:ListBucket on {bucket}") from None
        raise StageError(f"S3 refused {uri} ({code}): check the credentials, and the bucket's region and policy") from None
    except exceptions.ParamValidationError:
        raise StageError(f"{uri} is no valid S3 URI: write s3://bucket/key") from None
    except (exceptions.BotoCoreError, Boto3Error, HTTPError) as error:
        reason = type(error).__name__
        raise StageError(f"S3 cannot be read for {uri} ({reason}): check the network, AWS_ENDPOINT_URL and AWS_PROFILE") from None


def list_objects(uri: str) -> list[S3Object]:
    """Every object whose key starts with the key of `uri`, in the order of the keys, over all pages."""
    bucket, prefix = _split_s3(uri)
    with _s3_errors(uri):
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [
            S3Object(f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))
            for page in pages
            for entry in page.get("Contents", [])
        ]


def read_object(uri: str) -> bytes:
    """The bytes of one S3 object, whole: a connection that breaks is tried again, then a StageError."""
    from botocore.exceptions import BotoCoreError

    bucket, key = _split_s3(uri)
    with _s3_errors(uri):
        for _ in range(S3_BODY_ATTEMPTS - 1):
            body = _client().get_object(Bucket=bucket, Key=key)["Body"]
            with contextlib.suppress(BotoCoreError):  # boto3 itself tries only the head again
                return body.read()
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()


def local_file(uri: str | Path, cache_dir: Path) -> Path:
    """A local path to the file: `uri` itself, or a whole copy of the S3 object below `cache_dir`.

    A copy is reused while the object's ETag stays the same.
    """
    if not is_s3(uri):
        if not Path(uri).is_file():
            raise StageError(f"{uri} does not exist: give its path or s3:// URI")
        return Path(uri)
    uri = str(uri)
    bucket, key = _split_s3(uri)
    # The key's name for the messages that show the path; short, as a key may be longer than a file's name.
    name = key.rpartition("/")[2].lstrip(".")[-50:] or "object"
    copy = Path(cache_dir) / hashlib.sha256(uri.encode()).hexdigest()[:16] / name
    etag_path = copy.with_name(copy.name + ".etag")
    with _s3_errors(uri):
        head = _client().head_object(Bucket=bucket, Key=key)
        if copy.is_file() and etag_path.is_file() and etag_path.read_text() == head["ETag"]:
            return copy
        shutil.rmtree(copy.parent, ignore_errors=True)  # with what a killed download left there
        with atomic_path(copy) as temporary:
            _client().download_file(bucket, key, str(temporary))
            if temporary.stat().st_size != head["ContentLength"]:
                raise StageError(f"{uri} changed while it was being copied: run the command again")
    write_bytes(etag_path, head["ETag"].encode())
    return copy


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
    temporary = index_dir / f".{name}{TEMPORARY_SUFFIX}"
    _remove_leftovers(index_dir)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _put_in_place(temporary, index_dir / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    previous = None
    with contextlib.suppress(StageError):
        previous = current_generation(index_dir).name
    write_json(index_dir / "current.json", {"generation": name}, indent=None)
    _remove_old_generations(index_dir, {name, previous} - {None})


def _put_in_place(temporary: Path, generation: Path) -> None:
    for path in temporary.iterdir():
        _flush(path)
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
        doomed = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")  # a kill must not leave half a generation
        os.replace(path, doomed)
        shutil.rmtree(doomed)
