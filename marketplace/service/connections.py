"""One connection to the service: uvicorn's, which does not wait for ever for a request, and refuses what is none in JSON."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 10.0  # until a request's headers are whole: from the connection's beginning, or the end of the answer before
LAST_BODY_S = 5.0  # for a body under way when the service is told to stop


class Connection(H11Protocol):
    """What uvicorn's connection lacks.

    One that only waits for a request, or for the rest of a body whose answer is given, is closed after HEADERS_S; and the one
    that has waited longest as soon as others need its place, so that half-open connections lock nobody out.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            waiting = [connection for connection in self.connections if connection._waiting is not None]
            if waiting:
                min(waiting, key=lambda connection: connection._waiting.when())._give_up()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_waiting()
            names = {name for name, _ in self.headers}
            if names >= {b"content-length", b"transfer-encoding"}:  # where the body ends is in doubt: RFC 9112, 6.1
                self.headers.append((b"connection", b"close"))

    def on_response_complete(self) -> None:
        super().on_response_complete()  # may begin the next request, which has been sent already
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait()

    def shutdown(self) -> None:
        super().shutdown()
        if not self.transport.is_closing() and self.cycle.more_body:
            self.loop.call_later(LAST_BODY_S, self._give_up_body)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun
            self.transport.close()
            return
        body = json.dumps(
            {"detail": "this is not an HTTP request that can be understood: check its first lines and headers"}
        ).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason="Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(HEADERS_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._stop_waiting()
        self.connections.discard(self)  # now, for who counts them
        self.transport.abort()

    def _give_up_body(self) -> None:
        if self.cycle.more_body and not self.cycle.response_complete:
            self.transport.abort()
