"""Listings that are taken down at once: in no answer, of any worker, until they are shown again."""

import contextlib
import json
import logging
import os
import signal
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import api
from marketplace.files import hidden
from marketplace.files.stages import StageError
from marketplace.service import reload
from marketplace.service.settings import Settings
from tests.service.conftest import KEY, TIMEOUT_S, add_generation, publish, wait_until
from tests.service.test_workers import STARTED, Service, two_workers

HEADERS = {"X-API-Key": KEY}


@pytest.fixture
def unwatched(monkeypatch):
    """The service looks at files only when it is asked to."""
    monkeypatch.setattr(reload, "POLL_S", 3600)


@pytest.fixture
def doomed(products) -> str:
    """A listing with photos and a category that others have."""
    return products.index[(products["photos"] > 0) & (products["category"] == products["category"].mode()[0])][0]


def opened(data_dir: Path) -> TestClient:
    return TestClient(api.create_app(Settings(data_dir, api_key=KEY)))


def change(client: TestClient, what: str, *ids: str):
    return client.post(f"/admin/{what}", json={"ids": ids}, headers=HEADERS)


def answers_with(client: TestClient, product_id: str, name: str, photo_url: str, other: str) -> list[str]:
    """The calls whose answers hold a listing."""
    calls = {
        "product": client.get(f"/products/{product_id}"),
        "its similar": client.get(f"/products/{product_id}/similar"),
        "photo": client.get(photo_url),
        "recommend": client.post("/recommend", json={"ids": [product_id]}),
        "counter-example": client.post("/recommend", json={"ids": [other], "not_ids": [product_id]}),
        "left out": client.post("/recommend", json={"ids": [other], "exclude_ids": [product_id]}),
    }
    found = [call for call, answer in calls.items() if answer.status_code == 200]
    assert all(answer.status_code in (200, 404) for answer in calls.values())
    lists = {
        "similar": client.get(f"/products/{other}/similar", params={"k": 100}),
        "like several": client.post("/recommend", json={"ids": [other], "k": 100}),
        "like words": client.post("/recommend", json={"text": name, "k": 100}),
        "words": client.get("/search", params={"q": name, "k": 100}),
        "words sorted": client.get("/search", params={"q": name, "k": 100, "sort": "price_up"}),
        "browsed": client.get("/search", params={"k": 100}),
    }
    return found + [call for call, answer in lists.items() if product_id in answer.text]


def test_a_hidden_listing_is_in_no_answer_until_it_is_shown_again(data_dir, unwatched, products, doomed):
    name, other = products["name"][doomed], products.index[products.index != doomed][0]
    with opened(data_dir) as client:
        photo_url = client.get(f"/products/{doomed}").json()["photos"][0]["photo_url"]
        everywhere = answers_with(client, doomed, name, photo_url, other)
        assert len(everywhere) == 12
        whole = [client.get(path).json() for path in ("/healthcheck", "/filters", "/search?k=100&counts=true")]
        answer = change(client, "hide", doomed.upper())
        assert (answer.status_code, answer.json()) == (200, {"hidden": 1})
        assert answers_with(client, doomed, name, photo_url, other) == []
        gone = [client.get(f"/products/{doomed}"), client.get(photo_url)]
        assert [answer.json()["detail"] for answer in gone] == [
            f"no listing has the id {doomed}",
            f"no photo has the id {Path(photo_url).stem}",
        ]
        health, filters, browsed = (client.get(path).json() for path in ("/healthcheck", "/filters", "/search?k=100&counts=true"))
        assert health["listings"] == whole[0]["listings"] - 1
        assert health["rows"] == whole[0]["rows"] - products["photos"][doomed]
        assert browsed["total"] == whole[2]["total"] - 1
        category = products["category"][doomed]
        for before, after in ((whole[1], filters), (whole[2]["counts"], browsed["counts"])):
            assert after["categories"][category] == before["categories"][category] - 1
        assert change(client, "hide", doomed).json() == {"hidden": 1}
        assert change(client, "unhide", doomed).json() == {"hidden": 0}
        assert answers_with(client, doomed, name, photo_url, other) == everywhere
        assert [client.get(path).json() for path in ("/healthcheck", "/filters", "/search?k=100&counts=true")] == whole


def test_a_photo_is_kept_by_others_for_a_minute_and_then_asked_for_again(data_dir, unwatched, doomed):
    with opened(data_dir) as client:
        photo = client.get(f"/products/{doomed}").json()["photos"][0]
        urls = [photo["photo_url"], photo["display_url"], f"/images/{photo['image_id']}/card"]
        before = [client.get(url) for url in urls]
        assert [answer.headers["Cache-Control"] for answer in before] == 3 * ["public, max-age=60"]
        change(client, "hide", doomed)
        for url, first in zip(urls, before, strict=True):
            assert client.get(url, headers={"If-None-Match": first.headers["ETag"]}).status_code == 404


def test_only_who_has_the_key_hides_and_without_one_nobody(data_dir, unwatched, doomed):
    with opened(data_dir) as client:
        for what in ("hide", "unhide"):
            for headers in ({}, {"X-API-Key": "wrong"}):
                refused = client.post(f"/admin/{what}", json={"ids": [doomed]}, headers=headers)
                assert (refused.status_code, refused.json()) == (
                    401,
                    {"detail": "give the key as X-API-Key or as a bearer token"},
                )
        assert client.get(f"/products/{doomed}").status_code == 200
    with TestClient(api.create_app(Settings(data_dir))) as client:
        refused = client.post("/admin/hide", json={"ids": [doomed]})
        sentence = "this service has no key: start it with --api-key or MARKETPLACE_API_KEY"
        assert (refused.status_code, refused.json()) == (403, {"detail": sentence})


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"ids": ["nobody"]}, 404, "no listing has the id nobody"),
        ({"ids": [0, "nobody", "someone", "nobody"]}, 404, "no listing has the ids nobody, someone"),
        (
            {"ids": [f"x{number}" for number in range(12)]},
            404,
            "no listing has the ids x0, x1, x2, x3, x4, x5, x6, x7, x8, x9 and 2 more",
        ),
        ({"ids": []}, 422, "ids: give at least 1 item"),
        ({"ids": ["x"] * 1001}, 422, "ids: give at most 1000 items"),
        ({}, 422, "ids: give it, as this call cannot do without"),
    ],
)
def test_unknown_ids_are_named_and_nothing_is_changed(data_dir, unwatched, products, body, status, detail):
    """Numbers stand for listings of the catalogue."""
    ids = {"ids": [products.index[one] if isinstance(one, int) else one for one in body["ids"]]} if body else {}
    with opened(data_dir) as client:
        for what in ("hide", "unhide"):
            answer = client.post(f"/admin/{what}", json=ids, headers=HEADERS)
            assert (answer.status_code, answer.json()) == (status, {"detail": detail})
    assert hidden.read(data_dir / "index") == frozenset()


def test_it_stays_hidden_through_restarts_and_later_generations(data_dir, unwatched, doomed):
    add_generation(data_dir / "index", "second", "New ")
    with opened(data_dir) as client:
        change(client, "hide", doomed)
    with opened(data_dir) as client:
        assert client.get(f"/products/{doomed}").status_code == 404
        publish(data_dir / "index", "second")
        assert client.post("/admin/reload", headers=HEADERS).json() == {"generation": "second", "switched": True}
        assert client.get(f"/products/{doomed}").status_code == 404
        assert change(client, "unhide", doomed).json() == {"hidden": 0}
        assert client.get(f"/products/{doomed}").json()["name"].startswith("New ")


def test_it_is_hidden_while_another_generation_is_being_opened(data_dir, unwatched, doomed):
    add_generation(data_dir / "index", "second", "New ")
    with opened(data_dir) as client:
        inside, release = threading.Event(), threading.Event()
        generations = client.app.state.generations
        open_generation = generations._open

        def slow(folder):
            inside.set()
            assert release.wait(TIMEOUT_S)
            return open_generation(folder)

        generations._open = slow
        publish(data_dir / "index", "second")
        thread = threading.Thread(target=generations.reload)
        thread.start()
        try:
            assert inside.wait(TIMEOUT_S)
            assert change(client, "hide", doomed).json() == {"hidden": 1}
            assert client.get(f"/products/{doomed}").status_code == 404
        finally:
            release.set()
            thread.join()
        assert client.get("/readyz").json() == {"generation": "second"}
        assert client.get(f"/products/{doomed}").status_code == 404


def test_a_damaged_file_of_hidden_listings_shows_nothing_more_and_is_told(data_dir, monkeypatch, doomed, caplog):
    monkeypatch.setattr(reload, "POLL_S", 0.01)
    path = data_dir / "index" / "hidden.json"
    sentence = f"{path} is damaged: put a whole one back, or delete it to show every listing again"
    with opened(data_dir) as client, caplog.at_level(logging.INFO, logger="marketplace"):
        change(client, "hide", doomed)
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        wait_until(lambda: f"{sentence}; the same listings as before stay hidden" in caplog.text)
        assert client.get(f"/products/{doomed}").status_code == 404
        answer = change(client, "unhide", doomed)
        assert (answer.status_code, answer.json()) == (409, {"detail": sentence})
    with pytest.raises(StageError) as refused, opened(data_dir):
        pass
    assert str(refused.value) == sentence
    path.write_bytes(whole)
    with opened(data_dir) as client:
        assert client.get(f"/products/{doomed}").status_code == 404
        path.unlink()
        wait_until(lambda: client.get(f"/products/{doomed}").status_code == 200)


def test_where_the_file_cannot_be_written_nothing_is_hidden_and_the_reason_is_told(data_dir, unwatched, monkeypatch, doomed):
    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    with opened(data_dir) as client:
        monkeypatch.setattr(os, "replace", refuse)
        answer = change(client, "hide", doomed)
        assert (answer.status_code, answer.json()) == (
            409,
            {"detail": "the file of hidden listings cannot be written (Permission denied)"},
        )
        assert client.get(f"/products/{doomed}").status_code == 200


def test_an_index_of_nothing_but_hidden_listings_answers(data_dir, unwatched, products):
    with opened(data_dir) as client:
        assert '"example"' in client.get("/openapi.json").text
        assert change(client, "hide", *products.index).json() == {"hidden": len(products)}
        assert client.get("/search", params={"q": "guitar"}).json()["total"] == 0
        assert client.get("/search", params={"counts": True}).json()["results"] == []
        assert client.get("/filters").json() == {"categories": {}, "towns": {}, "counties": {}, "price": None}
        assert client.post("/recommend", json={"text": "guitar"}).json()["results"] == []
        parameters = [
            parameter
            for path in client.get("/openapi.json").json()["paths"].values()
            for operation in path.values()
            for parameter in operation.get("parameters", [])
        ]
        assert not [
            parameter for parameter in parameters if parameter["name"] in ("product_id", "image_id") and "example" in parameter
        ]


def asked(service: Service, path: str, body: dict | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{service.url}{path}", data, {"content-type": "application/json", **HEADERS})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@contextlib.contextmanager
def load(service: Service, paths: list[str]):
    """Requests from three threads meanwhile; gives the list of what was not answered with 200."""
    done, wrong = threading.Event(), []

    def ask():
        while not done.is_set():
            for path in paths:
                status, text = asked(service, path)
                if status != 200:
                    wrong.append((path, status, text))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_both_of_two_workers_leave_out_what_one_was_told_to_hide_while_requests_run(demo_dir, tmp_path, products, doomed):
    other = products.index[products.index != doomed][0]
    lists = ["/search?k=100", "/search?q=good&k=100&sort=newest", f"/products/{other}/similar?k=100", "/filters"]

    def is_told() -> bool:
        return any(doomed in asked(service, path)[1] for path in lists) or asked(service, f"/products/{doomed}")[0] != 404

    with two_workers(demo_dir, tmp_path) as service:
        with load(service, lists) as wrong:
            assert asked(service, "/admin/hide", {"ids": [doomed]}) == (200, '{"hidden":1}')
            wait_until(lambda: service.log().count("listings that are hidden: 1") == 2)
            assert not any(is_told() for _ in range(10))
        started = service.log().count(STARTED)
        os.kill(service.workers()[0], signal.SIGKILL)
        wait_until(lambda: service.log().count(STARTED) == started + 1)
        assert not any(is_told() for _ in range(10))  # by the new worker neither
        with load(service, lists) as wrong_again:
            assert asked(service, "/admin/unhide", {"ids": [doomed]}) == (200, '{"hidden":0}')
            wait_until(lambda: service.log().count("listings that are hidden: 0") == 2)
            assert all(asked(service, f"/products/{doomed}")[0] == 200 for _ in range(10))
    assert wrong == wrong_again == []
