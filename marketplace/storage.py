"""Local and s3:// paths, atomic writes, manifests and generations; the only importer of boto3."""

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd

from marketplace.errors import StageError

SCHEMA_VERSION = 1  # of every manifest; raised when a stage's files change their meaning
MANIFEST = "manifest.json"
TEMPORARY_SUFFIX = ".tmp"
GENERATIONS_KEPT = 2  # the one being served, and the one before it for readers that still have it open

SCRIPTS = {  # stage folder -> the script that fills it
    "tabular": "clean_tabular_data.py",
    "images": "clean_images.py",
    "dataset": "dataset.py",
    "model": "train.py",
    "embeddings": "extract_embeddings.py",
    "index": "build_index.py",
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
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame that read_csv() reads back; text must hold no bare carriage return, which pandas leaves unquoted."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


def read_csv(path: Path, **options) -> pd.DataFrame:
    """Read a stage's CSV as text columns: "NA", "null" and "None" are words people type, not missing values."""
    try:
        return pd.read_csv(path, **{"dtype": str, "keep_default_na": False, "encoding": "utf-8"} | options)
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {_remedy(Path(path).parent)}") from None


def read_json(path: Path) -> dict:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {_remedy(Path(path).parent)}") from None
    except ValueError:
        raise StageError(f"{path} is not valid JSON: delete it and {_remedy(Path(path).parent)}") from None


def digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise StageError(f"{path} is missing: {_remedy(Path(path).parent)}") from None


def _remedy(folder: Path) -> str:
    script = SCRIPTS.get(folder.name)
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
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        wanted = {"schema": SCHEMA_VERSION, "arguments": self.arguments, "inputs": self.inputs}
        if any(manifest.get(key) != json.loads(json.dumps(value)) for key, value in wanted.items()):
            return None
        for name, size in manifest["outputs"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        return {"stage": self.folder.name, **manifest["counts"], "unchanged": True}

    def begin(self) -> None:
        """Make the folder, take its manifest away and remove what a killed run left half-written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for leftover in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def finish(self, counts: dict, outputs: Iterable[str]) -> dict:
        """Write the manifest, which makes the stage finished, and return its summary.

        counts: JSON values to record and print; outputs: names of the files that a reader relies on.
        """
        seconds = round(time.time() - self.started_s, 2)
        write_json(
            self.folder / MANIFEST,
            {
                "stage": self.folder.name,
                "schema": SCHEMA_VERSION,
                "arguments": self.arguments,
                "inputs": self.inputs,
                "outputs": {name: (self.folder / name).stat().st_size for name in outputs},
                "counts": counts,
                "started": datetime.datetime.fromtimestamp(self.started_s, datetime.timezone.utc).isoformat(),
                "seconds": seconds,
            },
        )
        return {"stage": self.folder.name, **counts, "seconds": seconds}


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished stage; StageError names the command to run when there is none."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise StageError(f"{folder} is not finished: {_remedy(folder)}") from None
    if manifest.get("schema") != SCHEMA_VERSION:
        raise StageError(f"{folder} was written by another version of this program: run python {SCRIPTS[folder.name]} again")
    return manifest


# S3: credentials and endpoint (AWS_ENDPOINT_URL) from boto3's usual chain.


@dataclass(frozen=True)
class S3Object:
    uri: str
    size: int  # bytes
    etag: str


def is_s3(uri: str | Path) -> bool:
    return str(uri).startswith("s3://")


def _split_s3(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri, allow_fragments=False)
    if not parts.netloc:
        raise StageError(f"{uri} names no bucket: write s3://bucket/key")
    # A "?" is an ordinary character of an S3 key, not the start of a query.
    return parts.netloc, uri.removeprefix(f"s3://{parts.netloc}").lstrip("/")


_clients: dict[int, object] = {}  # process id -> client: a client must not cross a fork


def _client():
    import boto3  # only users of S3 pay for the import

    if os.getpid() not in _clients:
        _clients[os.getpid()] = boto3.client("s3")
    return _clients[os.getpid()]


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises into one sentence about `uri`."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise StageError(
            f"no AWS credentials to read {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"
        ) from None
    except ClientError as error:
        code = error.response["Error"]["Code"]
        bucket = _split_s3(uri)[0]
        if code == "NoSuchBucket":
            raise StageError(f"there is no bucket {bucket} for {uri}: check its name") from None
        if code in ("404", "NoSuchKey"):
            raise StageError(f"there is no object {uri}: check the bucket and the key") from None
        if code in ("403", "AccessDenied"):
            raise StageError(f"access to {uri} is denied: allow s3:GetObject and s3:ListBucket on {bucket}") from None
        raise StageError(f"S3 refused {uri} ({code}): try again, or check the bucket's region and policy") from None
    except BotoCoreError as error:
        raise StageError(f"S3 cannot be reached for {uri} ({type(error).__name__}): check the network and AWS_ENDPOINT_URL") from None


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
    """The bytes of one S3 object, whole: a connection that breaks is retried by boto3, then a StageError."""
    bucket, key = _split_s3(uri)
    with _s3_errors(uri):
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
    copy = Path(cache_dir) / hashlib.sha256(uri.encode()).hexdigest()[:16] / (Path(key).name or "object")
    etag_path = copy.with_name(copy.name + ".etag")
    with _s3_errors(uri):
        head = _client().head_object(Bucket=bucket, Key=key)
        if copy.is_file() and etag_path.is_file() and etag_path.read_text() == head["ETag"]:
            return copy
        etag_path.unlink(missing_ok=True)
        with atomic_path(copy) as temporary:
            _client().download_file(bucket, key, str(temporary))
            if temporary.stat().st_size != head["ContentLength"]:
                raise StageError(f"{uri} changed while it was being copied: run the command again")
    write_bytes(etag_path, head["ETag"].encode())
    return copy


# Generations of data/index/: never changed once named by current.json.


def current_generation(index_dir: Path) -> Path:
    """The folder of the generation that is published now; StageError when there is none."""
    index_dir = Path(index_dir)
    try:
        name = json.loads((index_dir / "current.json").read_text(encoding="utf-8"))["generation"]
    except (FileNotFoundError, ValueError, KeyError):
        raise StageError(f"{index_dir} holds no published index: run python build_index.py first") from None
    if not (index_dir / name).is_dir():
        raise StageError(f"{index_dir / 'current.json'} names {name}, which is missing: run python build_index.py again")
    return index_dir / name


@contextlib.contextmanager
def new_generation(index_dir: Path, name: str) -> Iterator[Path]:
    """A temporary folder to fill; on leaving without an error it becomes generation `name`, is published and old ones go.

    name: decided by the content's inputs, so that a killed and repeated build ends in the same folder.
    """
    index_dir = Path(index_dir)
    temporary = index_dir / f".{name}{TEMPORARY_SUFFIX}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    if (index_dir / name).exists():  # left by a run that was killed before it could publish, or an older twin
        shutil.rmtree(index_dir / name)
    os.replace(temporary, index_dir / name)
    previous = None
    with contextlib.suppress(StageError):
        previous = current_generation(index_dir).name
    write_json(index_dir / "current.json", {"generation": name}, indent=None)
    kept = {name, previous}
    others = sorted(
        (path for path in index_dir.iterdir() if path.is_dir() and path.name not in kept),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    spare = GENERATIONS_KEPT - len(kept - {None})
    for path in others[max(spare, 0) :]:
        shutil.rmtree(path)
