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
from collections.abc import Collection
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marketplace.service.meters import Meters

BUSY = "too much is being sent at once: try again in a second"
RETRY_AFTER = {"Retry-After": "1"}  # seconds
REQUEST_ID = re.compile(r"[0-9a-fA-F-]{16,64}")  # a UUID or trace id: a client's own words would be written to the log
SLASH = "\x1f"  # a control character, as no id holds one
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
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


class EncodedSlashMiddleware:
    """Lets an id in an address hold a slash, written as %2F: it does not part the path, as a slash that is not encoded does.

    It goes through the routes as SLASH, which no id holds, and becomes a slash again in with_slashes().
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path = scope.get("raw_path") or b""
        if scope["type"] == "http" and b"%2f" in raw_path.lower():
            scope = scope | {"path": unquote(_ENCODED_SLASH.sub(SLASH, raw_path.decode("latin-1")))}
        await self.app(scope, receive, send)


def with_slashes(part: str) -> str:
    """A part of a path, from a route, as the client meant it."""
    return part.replace(SLASH, "/")


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
    """Answers nothing, the page included, without the key, but for the paths that are open."""

    def __init__(self, app: ASGIApp, key: str, open_paths: Collection[str]):
        self.app, self.key, self.open_paths = app, key, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths and not holds_key(Headers(scope=scope), self.key):
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


class HeadMiddleware:
    """Answers HEAD as GET: the server sends no body after it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)
        inner = scope | {"method": "GET"}  # a copy: the server must go on seeing HEAD
        try:
            await self.app(inner, receive, send)
        finally:
            scope.update({"route": inner["route"]} if "route" in inner else {})


class RelativeRedirectMiddleware:
    """Leaves the host out of redirects to this service: behind a proxy it is another one, and its scheme too.

    photo_origin: the one other place that clients are sent to.
    """

    def __init__(self, app: ASGIApp, photo_origin: str | None = None):
        self.app, self.photo_origin = app, photo_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_relative(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                place = urlsplit(headers.get("location", ""))
                if "location" in headers and f"{place.scheme}://{place.netloc}" != self.photo_origin:
                    # Two slashes at the beginning would be another host.
                    headers["location"] = urlunsplit(("", "", "/" + place.path.lstrip("/"), place.query, place.fragment))
            await send(message)

        await self.app(scope, receive, send_relative)


class BodyLimitMiddleware:
    """Bounds what bodies take: the bytes of each, the time until it is whole, and the memory of all that are not yet answered.

    Where memory runs out, those that began first and are not whole give way: a client that is slow, or sends nothing more, does
    not keep others from sending theirs.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_total_bytes: int, max_seconds: float):
        self.app, self.max_bytes, self.max_total_bytes, self.max_seconds = app, max_bytes, max_total_bytes, max_seconds
        self.total_bytes = 0
        self._bodies: dict[_LimitedBody, None] = {}  # in the order in which they began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        body = _LimitedBody(receive, int(declared) if declared.isdigit() else 0, self)
        self._bodies[body] = None
        try:
            await self.app(scope, body, send)
        finally:
            del self._bodies[body]
            body.forget()

    def make_room(self, own: "_LimitedBody") -> None:
        """Refuse others' unfinished bodies until all fit, or raise HTTPException."""
        for body in self._bodies:
            if self.total_bytes <= self.max_total_bytes:
                return
            if body is not own and not body.is_whole:
                body.refuse()
        if self.total_bytes > self.max_total_bytes:
            own.refuse()
            raise HTTPException(503, BUSY, RETRY_AFTER)


class _LimitedBody:
    """The `receive` of one request, which counts what arrives."""

    def __init__(self, receive: Receive, declared_bytes: int, limits: BodyLimitMiddleware):
        self._receive, self._declared_bytes, self._limits = receive, declared_bytes, limits
        self.is_whole = False
        self._held_bytes = 0
        self._deadline_s: float | None = None  # by the event loop's clock
        self._refused, self._scope = False, None

    async def __call__(self) -> Message:
        if self.is_whole:  # who asks again waits for the client to go
            return await self._receive()
        if self._deadline_s is None:
            self._deadline_s = anyio.current_time() + self._limits.max_seconds
        with anyio.CancelScope(deadline=self._deadline_s) as self._scope:
            message = {} if self._refused else await self._receive()
        if self._refused:
            raise HTTPException(503, BUSY, RETRY_AFTER)
        if self._scope.cancelled_caught:
            seconds = self._limits.max_seconds
            raise HTTPException(408, f"the request was not whole after {seconds:g} seconds: send it again, or a smaller photo")
        self._count(message)
        return message

    def _count(self, message: Message) -> None:
        arrived = len(message.get("body", b""))
        self._held_bytes += arrived
        self._limits.total_bytes += arrived
        max_bytes = self._limits.max_bytes
        if max(self._held_bytes, self._declared_bytes) > max_bytes:
            raise HTTPException(413, f"the request is larger than {max_bytes} bytes: send a smaller photo")
        self.is_whole = not message.get("more_body", False)
        self._limits.make_room(self)

    def refuse(self) -> None:
        """End this body with 503, now if it is being waited for."""
        self._refused = True
        self.forget()
        if self._scope is not None:
            self._scope.cancel()

    def forget(self) -> None:
        self._limits.total_bytes -= self._held_bytes
        self._held_bytes = 0
