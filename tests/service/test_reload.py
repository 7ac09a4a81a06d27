import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

import api
from marketplace.files import atomic, stages
from marketplace.files import generations as generation_files
from marketplace.files.stages import StageError
from marketplace.retrieval.vectors import Unavailable
from marketplace.service import reload
from marketplace.service.meters import Meters
from marketplace.service.settings import Settings
from tests.service.conftest import KEY, TIMEOUT_S, add_generation, publish, spoil, wait_until

ROOT = Path(__file__).resolve().parents[2]


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
    generations = reload.Generations(tmp_path, Opener(), Meters())
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


def test_a_generation_whose_vectors_cannot_be_reached_is_tried_again(generations, tmp_path):
    generations._open.broken["two"] = Unavailable("Milvus at milvus://a fails (timeout): see that it runs")
    publish(tmp_path, "two")
    generations.poll()
    assert generations.current.generation == "one"
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


@pytest.fixture
def unwatched(monkeypatch):
    """The service looks for a new generation only when it is asked to."""
    monkeypatch.setattr(reload, "POLL_S", 3600)


def test_a_reload_with_the_key_answers_when_the_new_generation_serves(data_dir, unwatched):
    add_generation(data_dir / "index", "second", "New ")
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY))) as client:
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
    monkeypatch.setattr(reload, "POLL_S", 0.01)
    add_generation(data_dir / "index", "second", "New ")
    with TestClient(api.create_app(Settings(data_dir))) as client:
        publish(data_dir / "index", "second")
        wait_until(lambda: client.get("/healthcheck").json()["generation"] == "second")


def test_a_spoiled_generation_is_409_and_the_old_one_answers_on(data_dir, unwatched):
    spoil(add_generation(data_dir / "index", "second", "New "))
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY))) as client:
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

    with TestClient(api.create_app(Settings(data_dir, api_key=KEY))) as client:
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
        "import os, pathlib, signal, sys; from marketplace.files import generations\n"
        "generations.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with generations.new_generation(pathlib.Path(sys.argv[1]), 'half') as folder: (folder / 'index.faiss').write_bytes(b'')"
    )
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY))) as client:
        ended = subprocess.run([sys.executable, "-c", code, str(data_dir / "index")], cwd=ROOT)
        assert ended.returncode == -signal.SIGKILL and (data_dir / "index" / ".half.tmp").is_dir()
        answer = client.post("/admin/reload", headers={"X-API-Key": KEY})
        assert answer.json() == {"generation": before, "switched": False}
        assert client.get("/search", params={"q": "guitar"}).status_code == 200


def copy_index(demo_dir: Path, target: Path) -> Path:
    """A copy of the published index below `target`; returns its generation."""
    shutil.copytree(demo_dir / "index", target / "index")
    return generation_files.current_generation(target / "index")


def test_a_generation_that_was_removed_is_served_on(demo_dir, tmp_path):
    generation = copy_index(demo_dir, tmp_path)
    with TestClient(api.create_app(Settings(tmp_path))) as client:
        shutil.rmtree(generation)
        statuses = []
        ask = lambda: statuses.append(client.get("/search", params={"q": "guitar"}).status_code)  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 8


def test_artefacts_that_do_not_belong_together_are_refused(demo_dir, tmp_path):
    def exchange_model(folder):
        description = json.loads((folder / "image_model.json").read_text()) | {"input_size": 64}
        (folder / "image_model.json").write_text(json.dumps(description))

    def drop_a_vector(folder):
        vectors = np.load(folder / "vectors.npy")
        atomic.write_array(folder / "vectors.npy", vectors[1:])

    def lose_the_texts(folder):
        (folder / "text.faiss").unlink()

    def turn_the_vectors_round(folder):  # of the right shape, but another photo's
        atomic.write_array(folder / "vectors.npy", np.load(folder / "vectors.npy")[::-1])

    def spoil_the_catalogue(folder):
        (folder / "catalogue.sqlite").write_bytes(b"no database")

    damages = (exchange_model, drop_a_vector, lose_the_texts, turn_the_vectors_round, spoil_the_catalogue)
    for position, damage in enumerate(damages):
        generation = copy_index(demo_dir, tmp_path / str(position))
        damage(generation)
        client = TestClient(api.create_app(Settings(tmp_path / str(position))))
        with pytest.raises(stages.StageError, match="run python build_index.py (--full|first)$"), client:
            pass


def test_before_its_models_are_loaded_the_service_is_not_ready(demo_dir):
    client = TestClient(api.create_app(Settings(demo_dir)))  # without `with`, the lifespan does not run
    response = client.get("/healthcheck")
    assert response.status_code == 503 and response.json() == {"detail": "the models are not loaded yet: try again"}
