"""Several processes on one socket: gunicorn starts, watches and replaces them, uvicorn serves in each."""

import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable

from fastapi import FastAPI
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from uvicorn_worker import UvicornWorker

from marketplace.files import cli
from marketplace.files.stages import StageError
from marketplace.service.connections import Connection
from marketplace.service.meters import METRICS_DIR
from marketplace.service.middleware import LOG_CONFIG
from marketplace.service.settings import Settings

MAX_CONNECTIONS = 512  # of one process: half of the files that a process may usually have open
GRACEFUL_S = 25  # for requests under way when told to stop; gunicorn kills a worker after 30
SERVING = {  # of uvicorn; the access log is our own
    "http": Connection,
    "lifespan": "on",
    "access_log": False,
    "server_header": False,
    "limit_concurrency": MAX_CONNECTIONS,
    "timeout_graceful_shutdown": GRACEFUL_S,
}
KEEP_ALIVE_S = 5  # uvicorn's; gunicorn's 2 s is made for a proxy in front of it
WATCH_S = 1  # between two signs of life of a worker, and two looks at whether its supervisor lives
HUNG_S = 120  # without a sign of life, until a worker is replaced; to start takes seconds
RESTART_S = 5  # between two attempts to start a worker that cannot


class Worker(UvicornWorker):
    """uvicorn in a process of gunicorn's, which ends when its supervisor was killed."""

    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | SERVING | {"timeout_notify": WATCH_S}

    async def callback_notify(self) -> None:
        await super().callback_notify()
        if os.getppid() != self.ppid:
            os.kill(os.getpid(), signal.SIGTERM)

    def handle_exit(self, sig: int, frame: object) -> None:
        """Stop on SIGQUIT, which the supervisor sends after Ctrl-C; uvicorn only notes it."""
        os.kill(os.getpid(), signal.SIGTERM)


class Supervisor(BaseApplication):
    """gunicorn, set up by a program instead of by its command line."""

    def __init__(self, create: Callable[[], FastAPI], options: dict):
        self._create, self._options = create, options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> FastAPI:
        return self._create()


def run(create: Callable[[], FastAPI], settings: Settings, listening: socket.socket) -> None:
    """Serve with `settings.workers` processes until told to stop; StageError when they cannot start.

    create: makes the application, in each worker, for its figures are those of one process; what is shared are the imports,
    100 MB. No thread may run when workers are forked, so ONNX Runtime is not among them.
    listening: its descriptor is taken over.
    """
    own_pid = os.getpid()
    # Workers that each take every core only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cli.cores() // settings.workers)))
    os.environ[METRICS_DIR] = tempfile.mkdtemp(prefix="marketplace-metrics-")
    gc.collect()
    gc.freeze()  # looking through the imports for garbage would copy them
    options = {
        "bind": f"fd://{listening.detach()}",
        "workers": settings.workers,
        "worker_class": Worker,
        "keepalive": KEEP_ALIVE_S,
        "timeout": HUNG_S,
        "logconfig_dict": LOG_CONFIG | {"root": {}},
        "control_socket_disable": True,  # it is a thread, and whoever reaches it controls the service
        "post_worker_init": _open_first,
        "child_exit": _forget,
        "on_exit": _clean_up,
    }
    try:
        Supervisor(create, options).run()
    except (SystemExit, HaltServer) as ended:  # the latter: another worker ended while it was halting for the first
        if os.getpid() != own_pid:
            raise  # a worker: it was forked in there
        if isinstance(ended, HaltServer) or ended.code:
            raise StageError("no worker could start: mend what the lines above say, and start it again") from None


def _open_first(worker: Worker) -> None:
    """Open the published generation in a worker that was just forked; where it cannot be, the worker ends with the reason.

    The first workers end the service with them. Later, others serve: what cannot start is tried again and again.
    """
    try:
        worker.wsgi.state.generations.open_first()
    except StageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if worker.age <= worker.cfg.workers:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        time.sleep(RESTART_S)
        sys.exit(1)


def _forget(arbiter: Arbiter, worker: Worker) -> None:
    from prometheus_client import multiprocess

    multiprocess.mark_process_dead(worker.pid)


def _clean_up(arbiter: Arbiter) -> None:
    shutil.rmtree(os.environ.pop(METRICS_DIR))
