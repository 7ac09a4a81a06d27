import base64
import json
import logging
import re
from urllib.parse import quote, unquote

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import api
from marketplace.retrieval.recommender import Recommender
from marketplace.service.dependencies import ProductId
from marketplace.service.middleware import BodyLimitMiddleware, EncodedSlashMiddleware, RelativeRedirectMiddleware
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


WATCHED = ["/healthcheck", "/readyz", "/metrics"]
REFUSED = {"detail": "give the key as X-API-Key, as a bearer token or as a password"}


def test_a_private_service_answers_nothing_without_the_key_but_to_who_watches_it(data_dir):
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY, private=True))) as client:
        paths = ["/", "/docs", "/openapi.json", "/web/app.js", "/filters", "/nothing", "/metrics/", "/healthcheck/x"]
        for path in paths:
            for headers in ({}, basic("wrong"), {"Authorization": "Basic !"}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": f"{KEY}x"}):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic realm="), path
                assert answer.json() == REFUSED
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}, basic(KEY)):
            assert [client.get(path, headers=headers).status_code for path in paths] == [200] * 5 + [404, 200, 404]
        assert client.get("/search", params={"q": "bed", "api_key": KEY}).status_code == 401
        assert [client.get(path).status_code for path in WATCHED] == [200] * 3


def test_the_metrics_of_a_private_service_can_be_closed_too(data_dir):
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY, private=True, private_metrics=True))) as client:
        assert [client.get(path).status_code for path in WATCHED] == [200, 200, 401]
        assert client.get("/metrics", headers={"X-API-Key": KEY}).status_code == 200


def test_nothing_of_a_private_service_is_kept_by_a_cache(data_dir, client):
    photo = client.get("/search?q=guitar").json()["results"][0]["photo_url"]
    paths = ["/", "/search?q=bed", photo, "/web/app.js", "/nothing", "/healthcheck"]
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY, private=True))) as private:
        for path in paths:
            for headers in ({"X-API-Key": KEY}, {}):
                assert private.get(path, headers=headers).headers["Cache-Control"] == "private, no-store", path
    assert client.get(photo).headers["Cache-Control"] == "public, max-age=60"


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
        monkeypatch.setattr(Recommender, "typed", lambda *_, **__: 1 / 0)
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


def test_head_is_answered_like_get_without_a_body(client, caplog):
    photo = client.get("/search?q=guitar").json()["results"][0]["photo_url"]
    for path in (
        "/",
        "/docs",
        "/healthcheck",
        "/readyz",
        "/search?q=bed",
        "/search",
        "/nothing",
        "/filters",
        photo,
        "/web/app.js",
    ):
        with caplog.at_level(logging.INFO, logger="marketplace.access"):
            got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        # Of one kind, and of a length that the time does not change.
        assert {**head.headers, "x-request-id": ""} == {**got.headers, "x-request-id": ""}, path
        lines = [json.loads(record.getMessage()) for record in caplog.records[-2:]]
        assert [line["method"] for line in lines] == ["GET", "HEAD"] and lines[0]["route"] == lines[1]["route"]
    assert client.head("/metrics").status_code == 200
    assert client.head("/predict/listing").status_code == client.get("/predict/listing").status_code == 405


@pytest.mark.parametrize("host", ["testserver", "evil.example"])
def test_redirects_name_no_host(client, host):
    for path, place in (("/search/?q=bed", "/search?q=bed"), ("/docs/", "/docs"), ("//search/?q=bed", None)):
        answer = client.get(f"http://testserver{path}", headers={"Host": host}, follow_redirects=False)
        assert answer.headers.get("location") == place and (answer.status_code == 307) == bool(place)


def test_a_redirect_never_leads_to_another_host():
    async def redirect(scope, receive, send):
        await send(
            {"type": "http.response.start", "status": 307, "headers": [(b"location", b"http://testserver//evil.example/x?y")]}
        )
        await send({"type": "http.response.body"})

    answer = TestClient(RelativeRedirectMiddleware(redirect)).get("/", follow_redirects=False)
    assert answer.headers["location"] == "/evil.example/x?y"


def test_a_photo_is_found_by_its_id_in_capitals(client):
    photo = client.get("/search?q=guitar").json()["results"][0]["image_id"]
    answers = [client.get(f"/images/{name}.jpg") for name in (photo, photo.upper())]
    assert photo != photo.upper() and answers[0].content == answers[1].content and answers[0].status_code == 200


def test_the_limits_of_bodies_are_those_of_the_settings(demo_dir):
    app = api.create_app(Settings(demo_dir, max_upload_bytes=10, max_bodies_bytes=100, body_timeout_s=7, workers=4))
    (limits,) = [layer.kwargs for layer in app.user_middleware if layer.cls is BodyLimitMiddleware]
    assert limits == {"max_bytes": 10, "max_total_bytes": 25, "max_seconds": 7}


# Ids in addresses

products = FastAPI()
products.add_middleware(EncodedSlashMiddleware)


@products.get("/products/{product_id}")
def echo(product_id: ProductId):
    return ["product", product_id]


@products.get("/products/{product_id}/similar")
def echo_similar(product_id: ProductId):
    return ["similar", product_id]


IDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=128)


def answer_of(address: str) -> tuple[int, object]:
    """Status and JSON of `products`, its path decoded once, as servers do; Starlette's TestClient decodes it twice."""
    scope = {"type": "http", "method": "GET", "path": unquote(address), "raw_path": address.encode(), "query_string": b""}
    sent = []

    async def send(message):
        sent.append(message)

    anyio.run(products, scope | {"headers": [], "root_path": ""}, None, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


@settings(deadline=None)
@given(
    IDS.filter(lambda text: text not in (".", "..")) | st.sampled_from(["a/b", "a/similar", "/", "%2F", "a%2fb", "A?b#c", "../x"])
)
def test_any_id_comes_through_an_address_that_is_percent_encoded(product_id):
    address = f"/products/{quote(product_id, safe='')}"
    assert answer_of(address) == (200, ["product", product_id])
    assert answer_of(f"{address}/similar") == (200, ["similar", product_id])


def test_a_slash_that_is_not_encoded_parts_the_path():
    assert answer_of("/products/a/b")[0] == 404
