"""Objects on S3: read, written, listed, and whole local copies of them; the only importer of boto3.

Credentials and endpoint (AWS_ENDPOINT_URL) come from boto3's usual chain."""

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from marketplace.files import atomic, locks
from marketplace.files.stages import StageError

S3_BODY_ATTEMPTS = 5  # attempts to read an object's bytes; boto3 makes as many to send a request
UNREADABLE = {"404", "NoSuchKey", "403", "AccessDenied", "InvalidObjectState"}  # the last: archived, on Glacier
MISSING = {"404", "NoSuchKey"}
OVERTAKEN = {"412", "PreconditionFailed", "ConditionalRequestConflict"}  # the last: another conditional write was under way
CONNECTIONS = 32  # of one process, and as many transfers at once: each waits for the network most of the time
CONNECT_TIMEOUT_S = 5  # boto3's 60 s, times five attempts, would hold a photo's request for minutes
CONTENT_TYPE = "application/octet-stream"
IN_PARTS_BYTES = 8 * 2**20  # from here on a file is sent in parts; each smaller one is in memory meanwhile
DELETED_AT_ONCE = 1000  # of S3


class ObjectUnreadable(OSError):
    """One object cannot be read, and others may be: it was archived or deleted since, or is forbidden."""


class Unchanged(Exception):
    """The object is still the one that is known."""


class Overtaken(Exception):
    """Another writer has changed the object since it was read."""


@dataclass(frozen=True)
class S3Object:
    uri: str
    size: int  # bytes
    etag: str
    modified: datetime


@dataclass(frozen=True)
class _Access:
    """What is done with objects, in the words of the sentences about its failure, and the permission it takes."""

    verb: str
    fails: str
    permissions: str


_READ = _Access("read", "cannot be read for", "s3:GetObject and s3:ListBucket")
_WRITE = _Access("write", "cannot be written for", "s3:PutObject")
_DELETE = _Access("delete", "cannot delete", "s3:DeleteObject")


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
    from botocore.config import Config

    # Signed addresses of buckets encrypted by a key of one's own, and of newer regions, need version 4.
    config = Config(max_pool_connections=CONNECTIONS, connect_timeout=CONNECT_TIMEOUT_S, signature_version="s3v4")
    try:
        return boto3.client("s3", config=config)
    except ValueError as error:  # an endpoint without http://
        raise StageError(f"S3 cannot be used ({error}): check AWS_ENDPOINT_URL and the region") from None


@contextlib.contextmanager
def _s3_errors(uri: str, access: _Access = _READ) -> Iterator[None]:
    """Turn what boto3 raises into one sentence about `uri`."""
    from boto3.exceptions import Boto3Error  # s3transfer's failures, which are no BotoCoreErrors
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        raise StageError(
            f"no AWS credentials to {access.verb} {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, "
            "or an instance role"
        ) from None
    except exceptions.ClientError as error:
        code = error.response["Error"]["Code"]
        bucket = _split_s3(uri)[0]
        if code == "NoSuchBucket":
            raise StageError(f"there is no bucket {bucket} for {uri}: check its name") from None
        if code in MISSING:
            raise StageError(f"there is no object {uri}: check the bucket and the key") from None
        if code in ("403", "AccessDenied"):
            raise StageError(f"access to {uri} is denied: allow {access.permissions} on {bucket}") from None
        raise StageError(f"S3 refused {uri} ({code}): check the credentials, and the bucket's region and policy") from None
    except exceptions.ParamValidationError:
        raise StageError(f"{uri} is no valid S3 URI: write s3://bucket/key") from None
    except (exceptions.BotoCoreError, Boto3Error, HTTPError) as error:
        reason = type(error).__name__
        raise StageError(f"S3 {access.fails} {uri} ({reason}): check the network, AWS_ENDPOINT_URL and AWS_PROFILE") from None


def list_objects(uri: str) -> list[S3Object]:
    """Every object whose key starts with the key of `uri`, in the order of the keys, over all pages."""
    return list(iterate_objects(uri))


def iterate_objects(uri: str) -> Iterator[S3Object]:
    """list_objects() one by one: no more than a page is in memory."""
    bucket, prefix = _split_s3(uri)
    with _s3_errors(uri):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                yield S3Object(f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'), entry["LastModified"])


def read_object(uri: str) -> bytes:
    """The bytes of one S3 object, whole; ObjectUnreadable where it is the object that cannot be read.

    A connection that breaks is tried again, then it is a StageError.
    """
    from botocore.exceptions import ClientError

    with _s3_errors(uri):
        try:
            return _get(uri)[0]
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in UNREADABLE:
                raise ObjectUnreadable(f"{uri} cannot be read ({code})") from None
            raise


def read_version(uri: str, seen: str | None = None) -> tuple[bytes, str] | tuple[None, None]:
    """The bytes and the ETag of a small object, None where there is no such object; Unchanged while its ETag is the one seen."""
    from botocore.exceptions import ClientError

    with _s3_errors(uri):
        try:
            return _get(uri, **({} if seen is None else {"IfNoneMatch": seen}))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "304":
                raise Unchanged(uri) from None
            if code in MISSING:
                return None, None
            raise


def _get(uri: str, **condition: str) -> tuple[bytes, str]:
    from botocore.exceptions import BotoCoreError

    bucket, key = _split_s3(uri)
    for _ in range(S3_BODY_ATTEMPTS - 1):
        answer = _client().get_object(Bucket=bucket, Key=key, **condition)
        with contextlib.suppress(BotoCoreError):  # boto3 itself tries only the head again
            return answer["Body"].read(), answer["ETag"]
    answer = _client().get_object(Bucket=bucket, Key=key, **condition)
    return answer["Body"].read(), answer["ETag"]


def write_version(uri: str, data: bytes, seen: str | None) -> str:
    """Write a small object in the place of the one whose ETag was seen, None for none at all; its ETag, or Overtaken."""
    from botocore.exceptions import ClientError

    bucket, key = _split_s3(uri)
    condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen}
    with _s3_errors(uri, _WRITE):
        try:
            return _client().put_object(Bucket=bucket, Key=key, Body=data, ContentType="application/json", **condition)["ETag"]
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in OVERTAKEN or seen is not None and code in MISSING:
                raise Overtaken(uri) from None
            raise


def upload(path: Path, uri: str) -> None:
    if path.stat().st_size < IN_PARTS_BYTES:  # without the threads that boto3 starts for each file
        write(uri, path.read_bytes())
        return
    bucket, key = _split_s3(uri)
    with _s3_errors(uri, _WRITE):
        _client().upload_file(str(path), bucket, key, ExtraArgs={"ContentType": CONTENT_TYPE})


def write(uri: str, data: bytes, content_type: str = CONTENT_TYPE) -> None:
    bucket, key = _split_s3(uri)
    with _s3_errors(uri, _WRITE):
        _client().put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)


def download(uri: str, path: Path) -> None:
    bucket, key = _split_s3(uri)
    with _s3_errors(uri):
        _client().download_file(bucket, key, str(path))


def delete(uris: Sequence[str]) -> None:
    """Delete objects of one bucket; those that are not there are no failure."""
    from botocore.exceptions import ClientError

    for start in range(0, len(uris), DELETED_AT_ONCE):
        some = [_split_s3(uri) for uri in uris[start : start + DELETED_AT_ONCE]]
        bucket, keys = some[0][0], [{"Key": key} for _, key in some]
        with _s3_errors(uris[start], _DELETE):
            refused = _client().delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True}).get("Errors", [])
        for error in refused:  # S3 answers 200 whatever it says of each
            with _s3_errors(f"s3://{bucket}/{error['Key']}", _DELETE):
                raise ClientError({"Error": error}, "DeleteObjects")


def sign(uri: str, valid_s: int) -> str:
    """An address by which anybody may read the object for some seconds; nothing is asked of S3."""
    bucket, key = _split_s3(uri)
    with _s3_errors(uri):
        return _client().generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=valid_s)


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
    copy.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.hold(copy.parent, exclusive=True))
        except locks.Locked:
            raise StageError(f"another run is copying {uri}: wait for its end, then run the command again") from None
        stack.enter_context(_s3_errors(uri))
        head = _client().head_object(Bucket=bucket, Key=key)
        if copy.is_file() and etag_path.is_file() and etag_path.read_text() == head["ETag"]:
            return copy
        for path in copy.parent.iterdir():  # the old copy, and what a killed download left
            if path.name != locks.LOCK:
                path.unlink()
        with atomic.atomic_path(copy) as temporary:
            _client().download_file(bucket, key, str(temporary))
            if temporary.stat().st_size != head["ContentLength"]:
                raise StageError(f"{uri} changed while it was being copied: run the command again")
        atomic.write_bytes(etag_path, head["ETag"].encode())
    return copy
