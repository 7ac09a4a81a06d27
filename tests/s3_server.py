"""An S3 over HTTP on loopback (moto), and servers in its place that misbehave, for the tests of s3:// paths.

A test file takes the fixtures by name: `s3, s3_service = s3_server.s3, s3_server.s3_service`.
"""

import contextlib
import functools
import http.server
import threading
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import boto3
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from marketplace.files import s3 as s3_files

BUCKET = "market"


@pytest.fixture(scope="session")
def s3_service() -> Iterator[SimpleNamespace]:
    """The server's url, a boto3 client of it, and the cache of storage.py's own client, which takes long to make."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        use_s3(patch, url)
        yield SimpleNamespace(url=url, client=boto3.client("s3"), client_of=s3_files._client_of)
    server.stop()


@pytest.fixture
def s3(s3_service, monkeypatch):
    """A boto3 client of an S3 that holds one empty bucket, `market`; the environment leads storage.py there too."""
    urllib.request.urlopen(urllib.request.Request(f"{s3_service.url}/moto-api/reset", method="POST")).close()
    use_s3(monkeypatch, s3_service.url)
    monkeypatch.setattr(s3_files, "_client_of", s3_service.client_of)
    s3_service.client.create_bucket(Bucket=BUCKET)
    return s3_service.client


def use_s3(monkeypatch, url: str) -> None:
    """Lead boto3 to `url`: credentials, no region, no retries, and nothing of this machine's own AWS configuration."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    forget_clients(monkeypatch)


def forget_clients(monkeypatch) -> None:
    """Make boto3 and storage.py read the environment again, until the test ends."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setattr(s3_files, "_client_of", functools.lru_cache(maxsize=1)(s3_files._client_of.__wrapped__))


@contextlib.contextmanager
def odd_server(respond: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The URL of a server that answers every request with respond(request)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            respond(self)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
