"""A Ray cluster behind the signature of a pool of concurrent.futures: its cores, or its GPUs. The only importer of Ray."""

import contextlib
import logging
import os
import platform
import queue
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from marketplace.files.stages import StageError

if TYPE_CHECKING:
    from ray import ObjectRef

ROOT = Path(__file__).resolve().parents[2]
LEFT_BEHIND = ["/*", "!.", "!/marketplace", "__pycache__"]  # of the checkout, in .gitignore's words: all but the package
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")  # never credentials
# No report to Ray's makers, no wait of five minutes for a cluster that is gone.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_NUM_REDIS_GET_RETRIES": "1"}
CONNECT_S = 10
RETRIES = 5  # of what a node was at when it was lost
CALLS_A_GPU = 2  # photos are decoded for one while the other runs
INSTALL = "pip install -r requirements.txt -r requirements-ray.txt -c constraints.txt"

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(submit: Callable[[Item], "Future[Result]"], items: Iterable[Item], ahead: int) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in the order of the items, while `ahead` of them are under way."""
    under_way: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        under_way.append((item, submit(item)))
        if len(under_way) >= ahead:
            first, future = under_way.popleft()
            yield first, future.result()
    while under_way:
        first, future = under_way.popleft()
        yield first, future.result()


@contextlib.contextmanager
def connect(address: str | None) -> Iterator["Cores | None"]:
    """The cores of the cluster at an address, as --ray takes it, until the block ends; None without an address.

    Raises StageError when the cluster cannot be used, when it is lost, and when a function raised one on a node.
    """
    if address is None:
        yield None
        return
    ray = _import()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of lost nodes; stdout is for the summary
            _init(ray, address)
            cores = Cores(ray)
            yield cores
        print("Ray:", ", ".join(f"{count} calls on {name}" for name, count in sorted(cores.calls.items())), file=sys.stderr)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StageError):
            raise StageError(str(error.cause)) from None
        if "ModuleNotFoundError" in str(error):
            missing = str(error).strip().splitlines()[-1]
            raise StageError(f"a node of the cluster lacks a package ({missing}): run {INSTALL} on every node") from None
        raise  # a bug, with its traceback from the node
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = type(error).__name__
        raise StageError(f"the Ray cluster failed ({reason}): see ray status, and run it again; what is done is kept") from None
    finally:
        ray.shutdown()  # ends what is under way


def _import() -> ModuleType:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise StageError(f"--ray needs Ray, which is not installed: run python -m {INSTALL}") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def _init(ray: ModuleType, address: str) -> None:
    nobody = f"no Ray cluster answers at {address}: start one with ray start --head, or give its address"
    if address not in ("auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError:
            raise StageError(nobody) from None
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment = {"working_dir": str(ROOT), "excludes": LEFT_BEHIND, "env_vars": passed_on}
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]  # the rest is about Ray's documentation
        if "Could not find any running Ray" in reason:
            raise StageError(nobody) from None
        mend = "give it the token of the cluster (RAY_AUTH_TOKEN_PATH), and run ray start on it or take ray://HOST:10001"
        if "mismatch" in reason:
            mend = f"run {INSTALL} on all, with one Python"
        raise StageError(f"the Ray cluster at {address} does not take this machine ({reason}): {mend}") from None
    finally:
        signal.signal(signal.SIGTERM, at_sigterm)  # Ray's own would end this process with another code


def get(shared: "ObjectRef") -> object:
    """On a node: what Cores.put() brought to the cluster."""
    import ray

    return ray.get(shared)


def _run(function: Callable, arguments: tuple) -> tuple[str, object]:
    """On a node: its name, and what the function returns."""
    import ray

    node = f"{platform.node()} ({ray.util.get_node_ip_address()})"
    try:
        return node, function(*arguments)
    except StageError as error:
        raise StageError(f"on the node {node}: {error}") from None


class Cores(Executor):
    """Runs functions of this package, one a core of the cluster at once; what a lost node was at is done again by another.

    calls: how many returned, by node.
    """

    def __init__(self, ray: ModuleType):
        self._ray, self._run = ray, ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
        resources = ray.cluster_resources()
        self.count, self.n_gpus = max(1, int(resources.get("CPU", 0))), int(resources.get("GPU", 0))
        self.calls: Counter[str] = Counter()

    def put(self, value: object) -> "ObjectRef":
        """Bring a value to the cluster, once for all functions that get() it."""
        return self._ray.put(value)

    def submit(self, function: Callable, *arguments) -> Future:
        answer = Future()
        self._run.remote(function, arguments).future().add_done_callback(lambda done: self._finish(done, answer))
        return answer

    def _finish(self, done: Future, answer: Future) -> None:
        if error := done.exception():
            answer.set_exception(error)
        else:
            node, result = done.result()
            self.calls[node] += 1
            answer.set_result(result)

    def gpus(self) -> "Gpus":
        return Gpus(self._ray, self)


class _Process:
    """On a node: stays, with what its functions have loaded."""

    def run(self, function: Callable, arguments: tuple) -> tuple[str, object]:
        return _run(function, arguments)


class Gpus(Executor):
    """Runs functions in one long-lived process for each GPU of the cluster: what a process has loaded need not be loaded again.

    A process that is lost with its node is missed from then on, and what it was at is done again by another.
    """

    def __init__(self, ray: ModuleType, cores: Cores):
        self._ray, self._cores, self.count = ray, cores, cores.n_gpus
        self._left, self._losing = cores.n_gpus * CALLS_A_GPU, threading.Lock()
        self._threads = ThreadPoolExecutor(self._left)
        self._idle: queue.SimpleQueue = queue.SimpleQueue()  # processes, each once for every call that it can take
        process = ray.remote(num_gpus=1, max_concurrency=CALLS_A_GPU)(_Process)
        self._processes = [process.remote() for _ in range(cores.n_gpus)]
        for each in self._processes:
            begun = each.run.remote(platform.node, ()).future()  # one whose GPU another user has joins when it is free
            begun.add_done_callback(lambda _, each=each: [self._idle.put(each) for _ in range(CALLS_A_GPU)])

    def submit(self, function: Callable, *arguments) -> Future:
        return self._threads.submit(self._call, function, arguments)

    def _call(self, function: Callable, arguments: tuple) -> object:
        while True:
            process, is_kept = self._idle.get(), True
            try:
                node, result = self._ray.get(process.run.remote(function, arguments))
            except self._ray.exceptions.RayActorError:
                with self._losing:
                    self._left -= 1
                    is_kept = self._left <= 0  # the last: who waits for one learns the same
                if is_kept:
                    raise
            else:
                self._cores.calls[node] += 1
                return result
            finally:
                if is_kept:
                    self._idle.put(process)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for process in self._processes:
            self._ray.kill(process)
        self._threads.shutdown(wait, cancel_futures=True)
