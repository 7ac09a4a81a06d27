"""A Ray cluster of two machines, each with one core, that a test runs the scripts on."""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo import sample
from tests.conftest import demo_dir, run_stages  # noqa: F401 (a fixture)
from tests_cluster.hosts import ROOT, Host, are_allowed, hide, join

RAY = Path(sys.executable).with_name("ray")
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
PORT = 6379
TOKEN = "5f" * 32
START = ["--num-cpus=1", "--object-store-memory=200000000", "--disable-usage-stats"]
CALLS = re.compile(r"^Ray: (\d+) calls on first \(10\.77\.0\.1\), (\d+) calls on second \(10\.77\.0\.2\)$", re.MULTILINE)
LIMIT_S = 300
LISTINGS = 150  # with photos enough that one machine does not clean them all while the other begins

TWO_MACHINES = ["test_cleaning.py", "test_embedding.py", "test_sentences.py"]
collect_ignore = ["test_one_machine.py"] if are_allowed() else TWO_MACHINES  # root on Linux may make namespaces


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """process: what must still run then."""
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, "it never happened"
        assert process is None or process.poll() is None, "the process ended before"
        time.sleep(0.05)


def environment(**more: str) -> dict[str, str]:
    """What every machine has: the cluster's token, and nothing of this machine's proxies and AWS configuration."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    own = {
        "RAY_AUTH_TOKEN_PATH": "/dev/shm/token",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/shm/aws",
        "AWS_CONFIG_FILE": "/dev/shm/none",
    }
    return kept | own | {"RAY_AUTH_MODE": "token", "AWS_EC2_METADATA_DISABLED": "true"} | more


def start(host: Host, *flags: str) -> None:
    words = [str(RAY), "start", f"--node-ip-address={host.address}", *START, *flags]
    log = "/dev/shm/start.log"  # not a pipe, which what it leaves running would keep open
    host.must("bash", "-c", f"{shlex.join(words)} >{log} 2>&1 || {{ cat {log} >&2; exit 1; }}")


class Cluster:
    """Two machines, the first of which drives and sees the data."""

    def __init__(self, more: list[str], worker_setup: list[str], **worker_env: str):
        """more: flags of ray start; worker_setup, worker_env: of the second machine, as Host's."""
        token = f"echo {TOKEN} >/dev/shm/token"
        temporary = {Path("/tmp"), Path(tempfile.gettempdir())}
        with contextlib.ExitStack() as stack:  # ends what has begun where the rest cannot begin
            self.first = Host("first", HEAD, ["mkdir -p /tmp/ray", "mount -t tmpfs none /tmp/ray", token], environment())
            stack.callback(self.first.kill)
            setup = [*hide(ROOT, *temporary), token, *worker_setup]
            self.second = Host("second", WORKER, setup, environment(**worker_env))
            stack.callback(self.second.kill)
            join(self.first, self.second)
            start(self.first, "--head", f"--port={PORT}", "--include-dashboard=false", *more)
            start(self.second, f"--address={HEAD}:{PORT}", *more)
            self._ending = stack.pop_all()

    def end(self) -> None:
        self._ending.close()

    def begin(self, script: str, data: Path, *flags: str, **env: str) -> subprocess.Popen:
        return self.first.begin(sys.executable, ROOT / script, "--data", data, *flags, env=env)

    def run(self, script: str, data: Path, *flags: str, **env: str) -> tuple[int, str, str]:
        return self.first.run(sys.executable, ROOT / script, "--data", data, *flags, env=env, timeout_s=LIMIT_S)


@contextlib.contextmanager
def running(*more: str, worker_setup: tuple[str, ...] = (), **worker_env: str) -> Iterator[Cluster]:
    cluster = Cluster(list(more), list(worker_setup), **worker_env)
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One that tests leave as they found it."""
    with running() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cleaned_dir(tmp_path_factory) -> Path:
    """The data folder of a small synthetic marketplace whose photos were cleaned without a cluster."""
    data_dir = tmp_path_factory.mktemp("cleaned")
    sample.write(data_dir / "raw", listings=LISTINGS)
    run_stages(data_dir, ("tabular", "images"))
    return data_dir


@pytest.fixture
def uncleaned(cleaned_dir, tmp_path) -> Path:
    """A copy of it without the cleaned photos."""
    shutil.copytree(cleaned_dir, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "images")
    return tmp_path / "data"


def digests(folder: Path) -> dict[str, str]:
    """Of what a stage made: its tables, photos and arrays."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".csv", ".jpg", ".npy") or path.name.endswith("s.json")]
    paths = [path for path in paths if not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def error_of(stderr: str) -> str:
    return "".join(line for line in stderr.splitlines() if line.startswith("error: "))
