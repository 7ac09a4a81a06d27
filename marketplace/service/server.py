"""What a service of published generations needs around its routes: hot reload, keys, figures, the access log, workers."""

import contextlib
import ctypes
import datetime
import gc
import hmac
import json
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
import uuid
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import anyio
import uvicorn._subprocess
from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.supervisors import Multiprocess

from marketplace.files import generations
from marketplace.files.stages import StageError

POLL_S = 1  # between two looks at current.json
RESTART_S = 5  # between two attempts to start a worker that cannot
WORKER_START_S = 120  # until a worker that does not answer its supervisor counts as hung; imports take seconds
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# What workers share, imported once, before they are forked: 100 MB. No threads may run by then, so ONNX Runtime is not here.
PRELOADED = (
    "PIL.Image", "anyio", "faiss", "fastapi", "lightgbm", "pandas", "prometheus_client", "rapidfuzz.process", "scipy.optimize",
    "sklearn.decomposition", "sklearn.feature_extraction.text", "sklearn.linear_model", "sklearn.model_selection",
    "sklearn.naive_bayes", "sklearn.svm", "uvicorn",
)  # fmt: skip
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's mallopt
LARGE_BYTES = 4 * 2**20
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client looks for it when it is imported
REQUEST_ID = re.compile(r"[0-9a-fA-F-]{16,64}")  # a UUID or trace id: a client's own words would be written to the log
# What opening a generation of another version, or one that goes meanwhile, may raise beside StageError.
REFUSALS = (OSError, LookupError, TypeError, ValueError)
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
        "marketplace": {"handlers": ["uvicorn"], "level": "INFO", "propagate": False},
        "marketplace.access": {"handlers": ["plain"], "level": "INFO", "propagate": False},
    },
}

log = logging.getLogger("marketplace")
access_log = logging.getLogger("marketplace.access")


class Meters:
    """Prometheus figures of one application; of all its workers where METRICS_DIR is set."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("marketplace_requests", "Requests answered", ["path", "status"], registry=registry)
        self.request_seconds = Histogram(
            "marketplace_request_seconds", "Duration of a request", ["path"], buckets=STEP_BUCKETS_S, registry=registry
        )
        self._step_seconds = Histogram(
            "marketplace_step_seconds", "Duration of each step", ["step"], buckets=STEP_BUCKETS_S, registry=registry
        )
        self.pending = Gauge(
            "marketplace_photos_pending", "Photos in work or waiting", multiprocess_mode="livesum", registry=registry
        )
        self.reloads = Counter("marketplace_reloads", "Generations switched to or refused", ["result"], registry=registry)
        self.generation = Gauge(
            "marketplace_generation_timestamp_seconds",
            "When the generation being served was built; the oldest of all workers'",
            multiprocess_mode="livemin",
            registry=registry,
        )

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        with self._step_seconds.labels(name).time():
            yield

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        if METRICS_DIR not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)


class Opened(Protocol):
    """What Generations serves."""

    generation: str


class Generations:
    """The generation being served; a newly published one takes its place once it is open and warm."""

    def __init__(self, index_dir: Path, open_generation: Callable[[Path], Opened], meters: Meters):
        self.current: Opened | None = None
        self._index_dir, self._open, self._meters = index_dir, open_generation, meters
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None

    def reload(self) -> bool:
        """Switch to the published generation; whether it is another than before.

        A request that holds the old one keeps it to its end. Raises StageError, and the old one goes on being served,
        when there is no published generation or it cannot be served.
        """
        with self._lock:
            self._seen = self._signature()
            folder = self._index_dir
            try:
                folder = generations.current_generation(self._index_dir)
                if self.current is not None and folder.name == self.current.generation:
                    return False
                fresh = self._open(folder)
                self._meters.generation.set(folder.stat().st_mtime)
            except StageError:
                self._meters.reloads.labels("refused").inc()
                raise
            except REFUSALS as error:
                self._meters.reloads.labels("refused").inc()
                raise StageError(f"{folder} cannot be served ({error!r}): run python build_index.py again") from error
            self._meters.reloads.labels("switched").inc()
            self.current = fresh
            _give_memory_back()
            return True

    def poll(self) -> None:
        """Reload if current.json was written since it was last looked at; a refusal is logged in one sentence."""
        if self._signature() == self._seen:
            return
        try:
            if self.reload():
                log.info("serving generation %s", self.current.generation)
        except StageError as error:
            log.error("%s; generation %s goes on being served", error, self.current.generation)

    async def watch(self) -> None:
        """Poll for ever, and end this process when its supervisor was killed."""
        thread = anyio.CapacityLimiter(1)  # its own: uploads may hold all of the others
        supervisor = multiprocessing.parent_process()
        while True:
            await anyio.sleep(POLL_S)
            await anyio.to_thread.run_sync(self.poll, limiter=thread)
            if supervisor is not None and not supervisor.is_alive():
                os.kill(os.getpid(), signal.SIGTERM)

    def _signature(self) -> tuple[int, int] | None:
        """Changes whenever current.json is renamed into its place."""
        try:
            status = (self._index_dir / "current.json").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def keep_memory_compact() -> None:
    """Have glibc, where it is the C library, give large arrays back at once and not spread small ones over an arena a thread.

    Else a process that opens a generation every 20 seconds has grown by 8% after ten minutes (benchmarks/api.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _give_memory_back() -> None:
    """What the old generation held goes to the system: glibc would keep it, half as much again after ten reloads."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


class BodyLimit:
    """ASGI middleware that ends a request with 413 as soon as its body is known to be too large."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        received = 0

        async def limited():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes or (declared.isdigit() and int(declared) > self.max_bytes):
                raise HTTPException(413, f"the request is larger than {self.max_bytes} bytes: send a smaller photo")
            return message

        await self.app(scope, limited, send)


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


class Private:
    """ASGI middleware that answers nothing, the page included, without the key."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not holds_key(Headers(scope=scope), self.key):
            headers = {"WWW-Authenticate": 'Basic realm="marketplace", charset="UTF-8"'}
            refused = JSONResponse({"detail": "give the key as X-API-Key, as a bearer token or as a password"}, 401, headers)
            return await refused(scope, receive, send)
        await self.app(scope, receive, send)


class Envelope:
    """ASGI middleware around every answer: request id, security headers, figures, and one JSON line in the access log.

    The line names the route, never the path or the query: what people look for is theirs.
    """

    def __init__(self, app: ASGIApp, meters: Meters, headers: dict[str, str]):
        self.app, self.meters, self.headers = app, meters, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        started_s = time.perf_counter()
        status = 500

        async def send_wrapped(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                if "generation" in state:
                    headers["X-Generation"] = state["generation"]
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_wrapped)
        finally:
            seconds = time.perf_counter() - started_s
            path = getattr(scope.get("route"), "path", "other")
            self.meters.requests.labels(path, status).inc()
            self.meters.request_seconds.labels(path).observe(seconds)
            line = {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "method": scope["method"],
                "route": path,
                "status": status,
                "ms": round(1000 * seconds, 1),
                "generation": state.get("generation"),
            }
            access_log.info(json.dumps(line))


class Workers(Multiprocess):
    """uvicorn's supervisor of several processes on one socket, two things aside.

    When a worker fails before any serves, it ends; later, one that cannot start is tried again, as others go on. One that was
    killed is replaced at once.
    """

    def __init__(self, config: Config, sockets):
        super().__init__(config, sockets)
        self.failed = False
        self._served, self._restart_at_s = False, 0.0

    def keep_subprocess_alive(self) -> None:
        for position, process in enumerate(self.processes):
            process.child_conn.close()  # the worker has its own: with it the pipe ends, and with that the waiting for an answer
            if process.is_alive(self.config.timeout_worker_healthcheck):
                self._served = self._served or process.is_ready(self.config.timeout_worker_healthcheck)
                continue
            process.kill()
            process.join()
            multiprocess.mark_process_dead(process.pid)
            if not self._served and process.exitcode > 0:
                self.failed = True
                self.should_exit.set()
                return
            if process.exitcode > 0:  # not a signal: it may not start again either, until something is mended
                if time.monotonic() < self._restart_at_s:
                    continue
                self._restart_at_s = time.monotonic() + RESTART_S
            log.warning("worker %s ended (%s): another one takes its place", process.pid, process.exitcode)
            self.processes[position] = type(process)(self.config, self.sockets)
            self.processes[position].start()


def run_workers(config: Config, sockets) -> None:
    """Serve with `config.workers` processes until told to stop; StageError when none can start."""
    cores = len(os.sched_getaffinity(0))
    # Read when FAISS and NumPy are imported: workers that each take every core only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // config.workers)))
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as api.py limits it later: no thread is there when a worker is forked
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    uvicorn._subprocess.spawn = multiprocessing.get_context("forkserver")  # there is no setting for it
    with tempfile.TemporaryDirectory(prefix="marketplace-metrics-") as folder:
        os.environ[METRICS_DIR] = folder
        workers = Workers(config, sockets)
        workers.run()
        del os.environ[METRICS_DIR]
    if workers.failed:
        raise StageError("no worker could start: mend what the lines above say, and start it again")
