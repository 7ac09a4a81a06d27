import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from marketplace.files import generations
from tests.service.conftest import KEY, TIMEOUT_S, add_generation, publish, spoil, wait_until

ROOT = Path(__file__).resolve().parents[2]
STARTED = "Application startup complete"


@dataclass
class Service:
    """The service with two workers, as a user starts it."""

    url: str
    data_dir: Path
    process: subprocess.Popen

    def log(self) -> str:
        return (self.data_dir / "api.log").read_text()

    def workers(self) -> list[int]:
        pid = self.process.pid
        return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=TIMEOUT_S) as answer:
            return answer.read()


@contextlib.contextmanager
def two_workers(demo_dir: Path, data_dir: Path) -> Iterator[Service]:
    """A service over a copy of the index, which is killed at last if it runs by then."""
    shutil.copytree(demo_dir / "index", data_dir / "index")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "api.py", "--data", str(data_dir), "--port", str(port), "--workers", "2"]
    environment = os.environ | {"MARKETPLACE_API_KEY": KEY, "TMPDIR": str(data_dir)}  # a killed one leaves its figures there
    with (data_dir / "api.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    service = Service(f"http://127.0.0.1:{port}", data_dir, process)
    try:
        wait_until(lambda: service.log().count(STARTED) == 2)
        yield service
    finally:
        process.kill()
        process.communicate()


def ended(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet waited for by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def service(demo_dir, tmp_path_factory) -> Iterator[Service]:
    with two_workers(demo_dir, tmp_path_factory.mktemp("workers")) as service:
        yield service
        service.process.send_signal(signal.SIGTERM)
        workers = service.workers()
        summary, _ = service.process.communicate(timeout=TIMEOUT_S)
        assert service.process.returncode == 0 and json.loads(summary).keys() == {"served_seconds"}
        assert len(workers) == 2 and all(ended(pid) for pid in workers)


def test_a_killed_worker_is_replaced_while_the_other_answers(service):
    before = service.workers()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: f"Worker (pid:{before[0]}) was sent SIGKILL!" in service.log())
    for _ in range(5):
        assert json.loads(service.get("/search?q=guitar"))["results"]
    wait_until(lambda: service.log().count(STARTED) == 3)
    after = service.workers()
    assert len(after) == 2 and before[0] not in after and before[1] in after


def test_workers_share_what_they_import(service):
    for pid in service.workers():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        shared_kb = next(int(line.split()[1]) for line in lines if line.startswith("Shared_Dirty:"))
        assert shared_kb > 60_000  # of about 100,000; each of them would have its own


def test_no_thread_runs_where_workers_are_forked(service):
    # Those of OpenBLAS end by themselves before a fork; a lock that any other held would never open in the worker.
    assert len(list(Path(f"/proc/{service.process.pid}/task").iterdir())) == 1


def test_the_figures_are_those_of_all_workers(service):
    def answered() -> float:
        text = service.get("/metrics").decode()
        return sum(float(count) for count in re.findall(r'marketplace_requests_total{path="/filters",status="200"} (\S+)', text))

    before = answered()
    for _ in range(20):
        service.get("/filters")
    assert answered() == before + 20


def test_the_figures_of_a_worker_that_ended_stay_but_for_what_it_held(service):
    def figures() -> dict[str, float]:
        lines = [line for line in service.get("/metrics").decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    started, before = service.log().count(STARTED), figures()
    os.kill(service.workers()[0], signal.SIGKILL)
    wait_until(lambda: service.log().count(STARTED) == started + 1)
    after = figures()
    filters = 'marketplace_requests_total{path="/filters",status="200"}'
    assert after[filters] == before[filters] > 0
    assert after["marketplace_photos_pending"] == 0
    assert after["marketplace_generation_timestamp_seconds"] == before["marketplace_generation_timestamp_seconds"] > 0


def test_every_worker_switches_to_what_is_published(service):
    add_generation(service.data_dir / "index", "second", "New ")
    publish(service.data_dir / "index", "second")
    wait_until(lambda: service.log().count("serving generation second") == 2)
    assert json.loads(service.get("/readyz")) == {"generation": "second"}


def test_workers_killed_while_they_are_stopped_are_all_replaced(service):
    started, before = service.log().count(STARTED), service.workers()
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: service.log().count(STARTED) == started + 2)
    assert set(service.workers()).isdisjoint(before) and len(service.workers()) == 2
    assert json.loads(service.get("/search?q=guitar"))["results"]


def test_a_worker_that_cannot_be_replaced_yet_leaves_the_others_serving(demo_dir, tmp_path):
    with two_workers(demo_dir, tmp_path) as service:
        name = generations.current_generation(tmp_path / "index").name
        first, second = service.workers()
        (tmp_path / "index" / "current.json").unlink()
        os.kill(first, signal.SIGKILL)
        wait_until(
            lambda: f"\nerror: {tmp_path / 'index'} holds no published index: run python build_index.py first\n" in service.log()
        )
        assert json.loads(service.get("/search?q=guitar"))["results"]
        publish(tmp_path / "index", name)
        wait_until(lambda: service.log().count(STARTED) == 3)
        assert second in service.workers() and len(service.workers()) == 2


def test_a_killed_supervisor_takes_its_workers_with_it(demo_dir, tmp_path):
    with two_workers(demo_dir, tmp_path) as service:
        workers = service.workers()
        service.process.kill()
        wait_until(lambda: all(ended(pid) for pid in workers))


def test_an_interrupted_supervisor_ends_its_workers_in_order(demo_dir, tmp_path):
    with two_workers(demo_dir, tmp_path) as service:
        workers = service.workers()
        service.process.send_signal(signal.SIGINT)
        summary, _ = service.process.communicate(timeout=TIMEOUT_S)
        assert service.process.returncode == 0 and json.loads(summary).keys() == {"served_seconds"}
        assert all(f"Finished server process [{pid}]" in service.log() for pid in workers)


def test_workers_that_cannot_start_end_the_service_with_their_reason(demo_dir, tmp_path):
    shutil.copytree(demo_dir / "index", tmp_path / "index")
    spoil(generations.current_generation(tmp_path / "index"))
    command = [sys.executable, "api.py", "--data", str(tmp_path), "--port", "0", "--workers", "2"]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1 and failed.stdout == "" and "Traceback" not in failed.stderr
    assert "are not those it was published with: run python build_index.py --full\n" in failed.stderr
    assert failed.stderr.endswith("error: no worker could start: mend what the lines above say, and start it again\n")
