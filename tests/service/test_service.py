import base64
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

import api
from marketplace.files import atomic, reading, stages
from marketplace.files import generations as generation_files
from marketplace.files.stages import StageError
from marketplace.service import server as service

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-twenty-four-chr"
TIMEOUT_S = 60


def publish(index_dir: Path, name: str) -> None:
    atomic.write_json(index_dir / "current.json", {"generation": name}, indent=None)


def add_generation(index_dir: Path, name: str, prefix: str) -> Path:
    """A copy of the published generation in which every listing's name begins with `prefix`; not yet published."""
    folder = index_dir / name
    shutil.copytree(generation_files.current_generation(index_dir), folder)
    with sqlite3.connect(folder / "catalogue.sqlite") as connection:
        connection.execute("UPDATE products SET name = ? || name", (prefix,))
    connection.close()
    report = reading.read_json(folder / "report.json")
    report["files"]["catalogue.sqlite"] = stages.digest(folder / "catalogue.sqlite")
    atomic.write_json(folder / "report.json", report)
    return folder


def spoil(folder: Path) -> None:
    (folder / "vectors.npy").write_bytes((folder / "vectors.npy").read_bytes()[:-4])


@pytest.fixture
def data_dir(demo_dir, tmp_path) -> Path:
    """A data folder with an index of its own, to publish in."""
    shutil.copytree(demo_dir / "index", tmp_path / "index")
    (tmp_path / "images").symlink_to(demo_dir / "images")
    return tmp_path


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"


# Generations


class Opener:
    """Opens folders as bare names; the broken ones not."""

    def __init__(self):
        self.broken: dict[str, Exception] = {}
        self.opened: list[str] = []

    def __call__(self, folder: Path):
        self.opened.append(folder.name)
        if folder.name in self.broken:
            raise self.broken[folder.name]
        return SimpleNamespace(generation=folder.name)


@pytest.fixture
def generations(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    publish(tmp_path, "one")
    generations = service.Generations(tmp_path, Opener(), service.Meters())
    assert generations.reload()
    return generations


def test_a_published_generation_takes_the_place_of_the_old_one_once(generations, tmp_path):
    held = generations.current
    publish(tmp_path, "two")
    generations.poll()
    generations.poll()
    assert generations.current.generation == "two" and held.generation == "one"
    assert not generations.reload()
    assert generations._open.opened == ["one", "two"]


def test_an_inconsistent_generation_is_refused_in_one_sentence_and_the_old_one_goes_on(generations, tmp_path, caplog):
    generations._open.broken["two"] = StageError("two does not belong together: run python build_index.py again")
    publish(tmp_path, "two")
    with caplog.at_level(logging.INFO, logger="marketplace"):
        for _ in range(3):  # it is not looked at again until something is published
            generations.poll()
    assert [record.getMessage() for record in caplog.records] == [
        "two does not belong together: run python build_index.py again; generation one goes on being served"
    ]
    assert generations.current.generation == "one"
    assert 'marketplace_reloads_total{result="refused"} 1.0' in generations._meters.text().decode()
    publish(tmp_path, "two")
    generations._open.broken.clear()
    generations.poll()
    assert generations.current.generation == "two"


@pytest.mark.parametrize("error", [KeyError("files"), FileNotFoundError("vectors.npy"), TypeError("a field more")])
def test_a_generation_of_another_version_is_refused_too(generations, tmp_path, error):
    generations._open.broken["two"] = error
    publish(tmp_path, "two")
    with pytest.raises(StageError, match=rf"two cannot be served \({re.escape(repr(error))}\): run python build_index.py again$"):
        generations.reload()
    assert generations.current.generation == "one"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"generation": "nowhere"}', '{"generation": ""}'])
def test_a_spoiled_or_missing_current_json_changes_nothing(generations, tmp_path, content):
    (tmp_path / "current.json").write_text(content)
    generations.poll()
    (tmp_path / "current.json").unlink()
    generations.poll()
    assert generations.current.generation == "one"


def test_one_reload_at_a_time(generations, tmp_path):
    inside, release = threading.Event(), threading.Event()
    opened = []

    def slow(folder):
        opened.append(folder.name)
        inside.set()
        assert release.wait(TIMEOUT_S)
        return SimpleNamespace(generation=folder.name)

    generations._open = slow
    publish(tmp_path, "two")
    threads = [threading.Thread(target=generations.reload) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(TIMEOUT_S)
    assert generations.current.generation == "one"  # which answers while the new one is opened
    release.set()
    for thread in threads:
        thread.join()
    assert generations.current.generation == "two" and opened == ["two"]


# The service that swaps them


@pytest.fixture
def unwatched(monkeypatch):
    """The service looks for a new generation only when it is asked to."""
    monkeypatch.setattr(service, "POLL_S", 3600)


def test_a_reload_with_the_key_answers_when_the_new_generation_serves(data_dir, unwatched):
    add_generation(data_dir / "index", "second", "New ")
    with TestClient(api.create_app(data_dir, api_key=KEY)) as client:
        before = client.get("/readyz").json()["generation"]
        publish(data_dir / "index", "second")
        for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
            refused = client.post("/admin/reload", headers=headers)
            assert (refused.status_code, refused.json()) == (401, {"detail": "give the key as X-API-Key or as a bearer token"})
        answer = client.post("/admin/reload", headers={"Authorization": f"Bearer {KEY}"})
        assert answer.json() == {"generation": "second", "switched": True} and before != "second"
        results = client.get("/search", params={"q": "guitar"})
        assert results.headers["X-Generation"] == "second"
        assert all(result["name"].startswith("New ") for result in results.json()["results"])
        assert client.post("/admin/reload", headers={"X-API-Key": KEY}).json() == {"generation": "second", "switched": False}


def test_what_is_published_is_served_without_being_asked(data_dir, monkeypatch):
    monkeypatch.setattr(service, "POLL_S", 0.01)
    add_generation(data_dir / "index", "second", "New ")
    with TestClient(api.create_app(data_dir)) as client:
        publish(data_dir / "index", "second")
        wait_until(lambda: client.get("/healthcheck").json()["generation"] == "second")


def test_a_spoiled_generation_is_409_and_the_old_one_answers_on(data_dir, unwatched):
    spoil(add_generation(data_dir / "index", "second", "New "))
    with TestClient(api.create_app(data_dir, api_key=KEY)) as client:
        before = client.get("/readyz").json()
        publish(data_dir / "index", "second")
        answer = client.post("/admin/reload", headers={"X-API-Key": KEY})
        folder = data_dir / "index" / "second"
        sentence = f"the files in {folder} are not those it was published with: run python build_index.py --full"
        assert (answer.status_code, answer.json()) == (409, {"detail": sentence})
        assert client.get("/readyz").json() == before and client.get("/search", params={"q": "guitar"}).json()["results"]


def test_answers_are_never_dropped_or_mixed_while_generations_change(data_dir, unwatched):
    index_dir = data_dir / "index"
    first = generation_files.current_generation(index_dir).name
    add_generation(index_dir, "second", "New ")
    done, wrong, served = threading.Event(), [], set()

    def ask(client):
        while not done.is_set():
            answer = client.get("/search", params={"q": "guitar", "k": 5})
            generation = answer.headers.get("X-Generation")
            served.add(generation)
            names = [result["name"].startswith("New ") for result in answer.json().get("results", [])]
            if answer.status_code != 200 or not names or any(name != (generation == "second") for name in names):
                wrong.append(answer.text)

    with TestClient(api.create_app(data_dir, api_key=KEY)) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for name in ("second", first, "second"):
                publish(index_dir, name)
                assert client.post("/admin/reload", headers={"X-API-Key": KEY}).json() == {"generation": name, "switched": True}
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert wrong == [] and served == {first, "second"}


def test_a_build_killed_while_it_publishes_leaves_the_old_generation_serving(data_dir):
    before = generation_files.current_generation(data_dir / "index").name
    code = (
        "import os, pathlib, signal, sys; from marketplace import storage\n"
        "storage._put_in_place = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with storage.new_generation(pathlib.Path(sys.argv[1]), 'half') as folder: (folder / 'index.faiss').write_bytes(b'')"
    )
    with TestClient(api.create_app(data_dir, api_key=KEY)) as client:
        ended = subprocess.run([sys.executable, "-c", code, str(data_dir / "index")], cwd=ROOT)
        assert ended.returncode == -signal.SIGKILL and (data_dir / "index" / ".half.tmp").is_dir()
        answer = client.post("/admin/reload", headers={"X-API-Key": KEY})
        assert answer.json() == {"generation": before, "switched": False}
        assert client.get("/search", params={"q": "guitar"}).status_code == 200


# Keys, headers, logs


def test_without_a_key_admin_calls_are_refused(data_dir):
    answer = TestClient(api.create_app(data_dir)).post("/admin/reload", headers={"X-API-Key": ""})
    assert (answer.status_code, answer.json()) == (
        403,
        {"detail": "this service has no key: start it with --api-key or MARKETPLACE_API_KEY"},
    )


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()}


def test_a_private_service_answers_nothing_without_the_key(data_dir):
    with TestClient(api.create_app(data_dir, api_key=KEY, private=True)) as client:
        paths = ["/", "/docs", "/openapi.json", "/web/app.js", "/healthcheck", "/readyz", "/metrics", "/filters", "/nothing"]
        for path in paths:
            for headers in ({}, basic("wrong"), {"Authorization": "Basic !"}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": f"{KEY}x"}):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic realm="), path
                assert answer.json() == {"detail": "give the key as X-API-Key, as a bearer token or as a password"}
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, basic(KEY)):
            assert [client.get(path, headers=headers).status_code for path in paths] == [200] * 8 + [404]
        assert client.get("/search", params={"q": "bed", "api_key": KEY}).status_code == 401


WEAK_KEY = "argument --api-key or MARKETPLACE_API_KEY: give at least 16 ASCII characters without blanks"


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--private"], {}, "argument --private: give a key with --api-key or MARKETPLACE_API_KEY"),
        (["--api-key", "short"], {}, WEAK_KEY),
        (["--api-key", "k" * 16 + " "], {}, WEAK_KEY),
        ([], {"MARKETPLACE_API_KEY": ""}, WEAK_KEY),
        (["--cors-origin", "*"], {}, "argument --cors-origin: '*' is not of the form https://host"),
        (["--workers", "0"], {}, "argument --workers: '0' is not a whole number above 0"),
    ],
)
def test_flags_that_cannot_be_are_usage_errors(capsys, monkeypatch, arguments, environment, sentence):
    monkeypatch.delenv("MARKETPLACE_API_KEY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        api.parse_args(arguments)
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")


def test_the_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MARKETPLACE_API_KEY", KEY)
    assert api.parse_args([]).api_key == KEY and api.parse_args(["--api-key", "k" * 16]).api_key == "k" * 16


@pytest.fixture(scope="module")
def client(demo_dir):
    with TestClient(api.create_app(demo_dir)) as client:
        yield client


def test_every_answer_carries_a_request_id_and_careful_headers(client):
    for path in ("/", "/search?q=bed", "/nothing", "/search", "/web/app.js", "/metrics"):
        headers = client.get(path).headers
        assert re.fullmatch(r"[0-9a-f]{32}", headers["X-Request-ID"])
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer" and headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "Access-Control-Allow-Origin" not in headers
    assert "unsafe" not in client.get("/").headers["Content-Security-Policy"]


def test_a_trace_id_is_kept_and_a_clients_own_words_are_not(client):
    known = "0af76519-16cd-43dd-8448-eb211c80319c"
    assert client.get("/readyz", headers={"X-Request-ID": known}).headers["X-Request-ID"] == known
    for words in ("ring 07700 900123", "x" * 20, "a" * 65, "abc"):
        assert client.get("/readyz", headers={"X-Request-ID": words}).headers["X-Request-ID"] != words


def test_pages_of_other_origins_may_call_only_when_they_are_named(demo_dir):
    client = TestClient(api.create_app(demo_dir, api_key=KEY, private=True, cors_origins=("https://shop.example",)))
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key"}
    named = client.options("/search", headers={"Origin": "https://shop.example"} | asked)
    assert (named.status_code, named.headers["Access-Control-Allow-Origin"]) == (200, "https://shop.example")
    other = client.options("/search", headers={"Origin": "https://other.example"} | asked)
    assert other.status_code == 400 and "Access-Control-Allow-Origin" not in other.headers


def test_the_access_log_names_routes_and_nothing_personal(client, caplog, demo_dir):
    secret = "seekrit"
    with caplog.at_level(logging.INFO, logger="marketplace.access"):
        client.get("/search", params={"q": secret, "location": secret})
        client.get(f"/products/{secret}", headers={"User-Agent": secret, "Referer": f"https://{secret}.example"})
        client.post("/predict/listing", files={"image": (f"{secret}.jpg", b"no photo")}, data={"text": secret})
        client.get(f"/{secret}")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "marketplace.access"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("GET", "/search", 200),
        ("GET", "/products/{product_id}", 404),
        ("POST", "/predict/listing", 400),
        ("GET", "other", 404),
    ]
    for line in lines:
        assert set(line) == {"time", "request_id", "method", "route", "status", "ms", "generation"}
    assert secret not in caplog.text and "testclient" not in caplog.text


def test_a_bug_is_500_with_one_sentence_and_is_logged(demo_dir, caplog, monkeypatch):
    with TestClient(api.create_app(demo_dir), raise_server_exceptions=False) as client:
        monkeypatch.setattr(api.Recommender, "query", lambda *_, **__: 1 / 0)
        with caplog.at_level(logging.INFO):
            answer = client.get("/search", params={"q": "bed"})
    assert (answer.status_code, answer.json()) == (500, {"detail": "the service failed: try again, or tell who runs it"})
    assert '"status": 500' in caplog.text


def test_connections_do_not_wait_to_fill_packets():
    with api.listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# Several processes


@pytest.fixture(scope="module")
def workers(demo_dir, tmp_path_factory):
    """The service with two workers over a copy of the index, as a user starts it."""
    data_dir = tmp_path_factory.mktemp("workers")
    shutil.copytree(demo_dir / "index", data_dir / "index")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (data_dir / "api.log").open("w+")
    command = [sys.executable, "api.py", "--data", str(data_dir), "--port", str(port), "--workers", "2"]
    environment = os.environ | {"MARKETPLACE_API_KEY": KEY}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    service = SimpleNamespace(url=f"http://127.0.0.1:{port}", process=process, data_dir=data_dir, log=data_dir / "api.log")
    wait_until(lambda: service.log.read_text().count("Application startup complete") == 2)
    yield service
    process.send_signal(signal.SIGTERM)
    summary, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0 and json.loads(summary).keys() == {"served_seconds"}
    assert children(process.pid) == []


def children(pid: int) -> list[int]:
    """The workers of a supervisor: children of the child that they are forked from."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if b"forkserver" in (status.parent / "cmdline").read_bytes():
                parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    return sorted(worker for worker, parent in parents.items() if parents.get(parent) == pid)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return answer.read()


def test_a_killed_worker_is_replaced_while_the_other_answers(workers):
    before = children(workers.process.pid)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: f"worker {before[0]} ended (-9): another one takes its place" in workers.log.read_text())
    for _ in range(5):
        assert json.loads(get(f"{workers.url}/search?q=guitar"))["results"]
    wait_until(lambda: workers.log.read_text().count("Application startup complete") == 3)
    after = children(workers.process.pid)
    assert len(after) == 2 and before[0] not in after and before[1] in after


def test_workers_share_what_they_import(workers):
    for pid in children(workers.process.pid):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        shared_kb = next(int(line.split()[1]) for line in lines if line.startswith("Shared_Dirty:"))
        assert shared_kb > 60_000  # of about 100,000; each of them would have its own


def test_nothing_that_is_imported_before_workers_are_forked_starts_a_thread():
    code = (
        f"import importlib, os; [importlib.import_module(n) for n in {service.PRELOADED}]; print(os.listdir('/proc/self/task'))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    assert ran.stdout.count("'") == 2, ran.stdout + ran.stderr  # one name


def test_the_figures_are_those_of_all_workers(workers):
    def searches() -> float:
        text = get(f"{workers.url}/metrics").decode()
        return sum(float(count) for count in re.findall(r'marketplace_requests_total{path="/filters",status="200"} (\S+)', text))

    before = searches()
    for _ in range(20):
        get(f"{workers.url}/filters")
    assert searches() == before + 20


def test_every_worker_switches_to_what_is_published(workers):
    add_generation(workers.data_dir / "index", "second", "New ")
    publish(workers.data_dir / "index", "second")
    wait_until(lambda: workers.log.read_text().count("serving generation second") == 2)
    assert json.loads(get(f"{workers.url}/readyz")) == {"generation": "second"}


def test_workers_killed_while_they_are_asked_whether_they_live_are_replaced(workers):
    def written() -> int:
        lines = Path(f"/proc/{workers.process.pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))

    started = workers.log.read_text().count("Application startup complete")
    before, asked = children(workers.process.pid), written()
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: written() > asked)  # and nobody answers
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(f"worker {pid} ended (-9)" in workers.log.read_text() for pid in before))
    wait_until(lambda: workers.log.read_text().count("Application startup complete") == started + 2)


def test_workers_that_cannot_start_end_the_service_with_their_reason(demo_dir, tmp_path):
    shutil.copytree(demo_dir / "index", tmp_path / "index")
    spoil(generation_files.current_generation(tmp_path / "index"))
    command = [sys.executable, "api.py", "--data", str(tmp_path), "--port", "0", "--workers", "2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "are not those it was published with: run python build_index.py --full\n" in ended.stderr
    assert ended.stderr.endswith("error: no worker could start: mend what the lines above say, and start it again\n")
