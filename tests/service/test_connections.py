"""What a connection may do before and beside its requests, against a small application of our own."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from marketplace.service import connections, workers
from marketplace.service.connections import Connection
from tests.service.conftest import TIMEOUT_S

POST = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope, receive, send) -> None:
    """Answers /body with how many bytes came, and everything else at once."""
    size, more = 0, scope["path"] == "/body"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = json.dumps(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


servers: dict[int, uvicorn.Server] = {}  # port -> the server


@contextlib.contextmanager
def serving(**options) -> Iterator[int]:
    """The port of a server as workers.SERVING sets it up."""
    config = uvicorn.Config(echo, log_config=None, **workers.SERVING | {"lifespan": "off"} | options)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        port = listening.getsockname()[1]
        servers[port] = server
        yield port
        server.should_exit = True
        thread.join(timeout=TIMEOUT_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connections, "HEADERS_S", 0.05)


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    connection.sendall(data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def answer(connection: socket.socket) -> bytes:
    """One answer, on a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(65536)
        assert data, f"closed after {received!r}"
        received += data
    return received


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_that_asks_nothing_is_closed(impatient, begun):
    with serving() as port, connect(port, begun) as connection:
        assert read_all(connection) == b""


def test_a_connection_is_closed_when_the_rest_of_an_answered_body_does_not_come(impatient):
    with serving() as port, connect(port, POST.replace(b"/body", b"/no") + b"half") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_comes_late_is_waited_for(impatient):
    # The middleware says for how long.
    with serving() as port, connect(port, POST) as connection, connect(port) as other:
        assert read_all(other) == b""
        connection.sendall(bytes(1000))
        assert answer(connection).endswith(b"\r\n\r\n1000")


def test_requests_one_after_the_other_and_at_once_are_answered_on_one_connection(port):
    with connect(port, GET + GET) as connection:
        received = b""
        while received.count(b"HTTP/1.1 200 ") < 2:
            received += answer(connection)
        connection.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_half_open_connections_lock_nobody_out():
    with serving(limit_concurrency=20) as port, contextlib.ExitStack() as stack:
        busy = stack.enter_context(connect(port, POST))
        kept = [stack.enter_context(connect(port, b"GET / HTTP/1.1\r\nHost:")) for _ in range(60)]
        with connect(port, GET) as connection:
            assert answer(connection).startswith(b"HTTP/1.1 200 ")
        assert read_all(kept[0]) == b""  # the one that waited longest
        busy.sendall(bytes(1000))
        assert answer(busy).endswith(b"\r\n\r\n1000")


def test_more_requests_at_once_than_there_may_be_are_told_so():
    with serving(limit_concurrency=3) as port, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(port, POST + b"1")) for _ in range(2)]
        refused = stack.enter_context(connect(port, GET))
        assert read_all(refused).startswith(b"HTTP/1.1 503 ")
        for connection in busy:
            connection.sendall(bytes(999))
            assert answer(connection).endswith(b"\r\n\r\n1000")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA b: 1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000,
        b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_is_refused_in_json(port, request_bytes):
    with connect(port, request_bytes) as connection:
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and b"\r\nContent-Type: application/json\r\n" in head
    assert json.loads(body) == {"detail": "this is not an HTTP request that can be understood: check its first lines and headers"}


def test_a_body_whose_end_is_in_doubt_closes_the_connection(port):
    headers = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(port, headers + b"5\r\nhello\r\n0\r\n\r\n" + GET) as connection:
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 ") == 1 and b"\r\nconnection: close\r\n" in received and received.endswith(b"5")


@pytest.mark.parametrize("comes", [True, False])
def test_a_body_under_way_when_the_service_is_told_to_stop_is_waited_for_and_not_for_ever(monkeypatch, comes):
    monkeypatch.setattr(connections, "LAST_BODY_S", TIMEOUT_S if comes else 0.05)
    with serving(timeout_graceful_shutdown=None) as port, connect(port, POST + b"1") as late, connect(port, GET) as idle:
        assert answer(idle)
        servers[port].should_exit = True
        assert read_all(idle) == b""  # it is being stopped
        if comes:
            late.sendall(bytes(999))
        assert read_all(late).endswith(b"1000" if comes else b"")


def test_the_command_line_serves_with_these_connections():
    assert workers.SERVING["http"] is Connection and workers.Worker.CONFIG_KWARGS["http"] is Connection
    assert 0 < workers.SERVING["timeout_graceful_shutdown"] < 30  # gunicorn's own
    assert workers.SERVING["limit_concurrency"] == workers.MAX_CONNECTIONS < 1024
