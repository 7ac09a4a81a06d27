"""What happens around every request: its log line and figures, the key, the limit of its body, careful headers."""

import contextlib
import datetime
import hmac
import json
import logging
import re
import time
import uuid
from base64 import b64decode

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marketplace.service.meters import Meters

REQUEST_ID = re.compile(r"[0-9a-fA-F-]{16,64}")  # a UUID or trace id: a client's own words would be written to the log
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
LOG_CONFIG = {  # stdout is for the summary
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "uvicorn": {"()": "uvicorn.logging.DefaultFormatter", "fmt": "%(levelprefix)s %(message)s"},
        "plain": {"format": "%(message)s"},
    },
    "handlers": {
        name: {"class": "logging.StreamHandler", "formatter": name, "stream": "ext://sys.stderr"} for name in ("uvicorn", "plain")
    },
    "loggers": {
        "uvicorn": {"handlers": ["uvicorn"], "level": "INFO", "propagate": False},
        "gunicorn.error": {"handlers": ["uvicorn"], "level": "INFO", "propagate": False},
        "marketplace": {"handlers": ["uvicorn"], "level": "INFO", "propagate": False},
        "marketplace.access": {"handlers": ["plain"], "level": "INFO", "propagate": False},
    },
}

access_log = logging.getLogger("marketplace.access")


class RequestLoggingMiddleware:
    """Gives every request an id, counts it, and writes one JSON line about it to the access log.

    The line names the route, never the path or the query: what people look for is theirs.
    """

    def __init__(self, app: ASGIApp, meters: Meters):
        self.app, self.meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = Headers(scope=scope).get("x-request-id", "")
        state = scope.setdefault("state", {})
        state["request_id"] = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        state["status"] = 500  # unless an answer begins

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = state["request_id"]
                if "generation" in state:
                    headers["X-Generation"] = state["generation"]
            await send(message)

        started_s = time.perf_counter()
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._record(scope, time.perf_counter() - started_s)

    def _record(self, scope: Scope, seconds: float) -> None:
        state, path = scope["state"], getattr(scope.get("route"), "path", "other")
        self.meters.requests.labels(path, state["status"]).inc()
        self.meters.request_seconds.labels(path).observe(seconds)
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "request_id": state["request_id"],
            "method": scope["method"],
            "route": path,
            "status": state["status"],
            "ms": round(1000 * seconds, 1),
            "generation": state.get("generation"),
        }
        access_log.info(json.dumps(line))


class SecurityHeadersMiddleware:
    """Adds headers to every answer that does not have its own."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]):
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class AuthenticationMiddleware:
    """Answers nothing, the page included, without the key."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not holds_key(Headers(scope=scope), self.key):
            headers = {"WWW-Authenticate": 'Basic realm="marketplace", charset="UTF-8"'}
            refused = JSONResponse({"detail": "give the key as X-API-Key, as a bearer token or as a password"}, 401, headers)
            return await refused(scope, receive, send)
        await self.app(scope, receive, send)


def holds_key(headers: Headers, key: str) -> bool:
    """Whether a request carries the key: as X-API-Key, as a bearer token, or as the password of any user.

    Compared in constant time. A browser asks its user for the password, and sends it with every further request.
    """
    scheme, _, value = headers.get("authorization", "").partition(" ")
    offered = headers.get("x-api-key", "")
    if scheme.lower() == "bearer":
        offered = value
    elif scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            offered = b64decode(value, validate=True).decode().partition(":")[2]
    return hmac.compare_digest(offered.encode(), key.encode())


class BodyLimitMiddleware:
    """Ends a request with 413 as soon as its body is known to be too large."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            declared = Headers(scope=scope).get("content-length", "0")
            receive = _LimitedBody(receive, int(declared) if declared.isdigit() else 0, self.max_bytes)
        await self.app(scope, receive, send)


class _LimitedBody:
    """The `receive` of one request, which counts what arrives."""

    def __init__(self, receive: Receive, declared_bytes: int, max_bytes: int):
        self._receive, self._declared_bytes, self._max_bytes = receive, declared_bytes, max_bytes
        self._received_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        if max(self._received_bytes, self._declared_bytes) > self._max_bytes:
            raise HTTPException(413, f"the request is larger than {self._max_bytes} bytes: send a smaller photo")
        return message
