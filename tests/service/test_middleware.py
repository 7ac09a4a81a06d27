import base64
import json
import logging
import re

import pytest
from starlette.testclient import TestClient

import api
from marketplace.retrieval.recommender import Recommender
from marketplace.service.settings import Settings
from tests.service.conftest import KEY


def test_without_a_key_admin_calls_are_refused(data_dir):
    answer = TestClient(api.create_app(Settings(data_dir))).post("/admin/reload", headers={"X-API-Key": ""})
    assert (answer.status_code, answer.json()) == (
        403,
        {"detail": "this service has no key: start it with --api-key or MARKETPLACE_API_KEY"},
    )


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()}


def test_a_private_service_answers_nothing_without_the_key(data_dir):
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY, private=True))) as client:
        paths = ["/", "/docs", "/openapi.json", "/web/app.js", "/healthcheck", "/readyz", "/metrics", "/filters", "/nothing"]
        for path in paths:
            for headers in ({}, basic("wrong"), {"Authorization": "Basic !"}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": f"{KEY}x"}):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic realm="), path
                assert answer.json() == {"detail": "give the key as X-API-Key, as a bearer token or as a password"}
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, basic(KEY)):
            assert [client.get(path, headers=headers).status_code for path in paths] == [200] * 8 + [404]
        assert client.get("/search", params={"q": "bed", "api_key": KEY}).status_code == 401


@pytest.fixture(scope="module")
def client(demo_dir):
    with TestClient(api.create_app(Settings(demo_dir))) as client:
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
    trace_id = "0af76519-16cd-43dd-8448-eb211c80319c"
    assert client.get("/readyz", headers={"X-Request-ID": trace_id}).headers["X-Request-ID"] == trace_id
    for words in ("ring 07700 900123", "x" * 20, "a" * 65, "abc"):
        assert client.get("/readyz", headers={"X-Request-ID": words}).headers["X-Request-ID"] != words


def test_pages_of_other_origins_may_call_only_when_they_are_named(demo_dir):
    client = TestClient(api.create_app(Settings(demo_dir, api_key=KEY, private=True, cors_origins=("https://shop.example",))))
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
        ("GET", "/search", 422),  # there is no such place
        ("GET", "/products/{product_id}", 404),
        ("POST", "/predict/listing", 400),
        ("GET", "other", 404),
    ]
    for line in lines:
        assert set(line) == {"time", "request_id", "method", "route", "status", "ms", "generation"}
    assert secret not in caplog.text and "testclient" not in caplog.text


def test_a_bug_is_500_with_one_sentence_and_is_logged(demo_dir, caplog, monkeypatch):
    with TestClient(api.create_app(Settings(demo_dir)), raise_server_exceptions=False) as client:
        monkeypatch.setattr(Recommender, "query", lambda *_, **__: 1 / 0)
        with caplog.at_level(logging.INFO):
            answer = client.get("/search", params={"q": "bed"})
    assert (answer.status_code, answer.json()) == (500, {"detail": "the service failed: try again, or tell who runs it"})
    assert '"status": 500' in caplog.text


def test_an_upload_over_the_limit_is_413_declared_or_streamed(demo_dir):
    detail = "the request is larger than 1000 bytes: send a smaller photo"
    with TestClient(api.create_app(Settings(demo_dir, max_upload_bytes=1000))) as client:
        declared = client.post("/predict/feature_embedding", files={"image": bytes(5000)})
        assert (declared.status_code, declared.json()["detail"]) == (413, detail)
        body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + bytes(5000) + b"\r\n--b--\r\n"
        headers = {"content-type": "multipart/form-data; boundary=b"}
        streamed = client.post("/predict/feature_embedding", content=iter([body]), headers=headers)
        assert (streamed.status_code, streamed.json()["detail"]) == (413, detail)
