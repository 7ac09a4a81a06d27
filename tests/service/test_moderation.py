"""The lists for moderators: with the key alone, hidden listings marked, and as CSV that no spreadsheet runs."""

import csv
import io

import pytest
from starlette.testclient import TestClient

import api
from marketplace.cleaning import listings
from marketplace.retrieval.moderation import LISTS
from marketplace.service import exports
from marketplace.service.settings import Settings
from tests.service.conftest import KEY

HEADERS = {"X-API-Key": KEY}


@pytest.fixture(scope="module")
def client(demo_dir):
    with TestClient(api.create_app(Settings(demo_dir, api_key=KEY))) as client:
        yield client


def get(client: TestClient, path: str, **query):
    return client.get(f"/moderate/{path}", params=query, headers=HEADERS)


def table(answer) -> list[dict]:
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


@pytest.mark.parametrize("path", ["counts", *LISTS])
def test_only_who_has_the_key_sees_a_list(client, path):
    assert client.get(f"/moderate/{path}").status_code == 401
    assert client.get(f"/moderate/{path}", headers={"X-API-Key": KEY[:-1]}).status_code == 401
    assert get(client, path).status_code == 200


def test_without_a_key_nobody_does(demo_dir):
    with TestClient(api.create_app(Settings(demo_dir))) as client:
        answers = [client.get(f"/moderate/{path}") for path in ("counts", "duplicates", "duplicates?format=csv")]
    assert [answer.status_code for answer in answers] == 3 * [403]


def test_counts_are_those_of_the_lists(client):
    for one in get(client, "counts").json()["lists"]:
        answer = get(client, one["list"], k=100).json()
        assert {name: answer[name] for name in one} == one
        assert len(answer["results"]) == min(100, one["total"])
        for reason, count in one["reasons"].items():
            assert get(client, one["list"], reason=reason).json()["total"] == count


def test_an_entry_shows_its_listing(client, demo_dir):
    products = listings.read_products(demo_dir / "tabular").set_index("product_id")
    results = get(client, "implausible-prices", k=100).json()["results"]
    assert results
    for result in results:
        listing = result["listing"]
        assert (listing["name"], listing["price"]) == tuple(products.loc[listing["product_id"], ["name", "price"]])
        assert not listing["price_plausible"] and not result["hidden"]


def test_an_unknown_list_is_422(client):
    assert get(client, "nothing").status_code == 422


@pytest.mark.parametrize("name", LISTS)
def test_the_whole_list_is_exported(client, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "BLOCK_ROWS", 3)
        exported = table(get(client, name, format="csv"))
    pages = [get(client, name, k=5, offset=start).json()["results"] for start in range(0, len(exported) + 5, 5)]
    entries = [entry for page in pages for entry in page]
    assert [row["reason"] for row in exported] == [entry["reason"] for entry in entries]
    for row, entry in zip(exported, entries, strict=True):
        assert row["product_id"] == (entry["listing"] or {"product_id": ""})["product_id"]
        assert all(row[key].lstrip("'") == str(value).lstrip("'") for key, value in entry["details"].items())


def test_hidden_listings_are_marked(data_dir):
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY))) as client:
        shown = get(client, "implausible-prices", k=100).json()
        doomed = shown["results"][0]["listing"]["product_id"]
        assert client.post("/admin/hide", json={"ids": [doomed]}, headers=HEADERS).status_code == 200
        after, exported = get(client, "implausible-prices", k=100).json(), table(get(client, "implausible-prices", format="csv"))
    assert after["total"] == shown["total"]
    assert [result["hidden"] for result in after["results"]] == [
        result["listing"]["product_id"] == doomed for result in after["results"]
    ]
    assert [row["hidden"] for row in exported] == ["yes" if row["product_id"] == doomed else "no" for row in exported]


@pytest.mark.parametrize(
    ("value", "cell"),
    [("=1+1", "'=1+1"), ("+44", "'+44"), ("-2", "'-2"), ("@x", "'@x"), ("\tx", "'\tx"), ("a=b", "a=b"), (-2.5, -2.5), ("", "")],
)
def test_a_text_that_a_spreadsheet_would_run_is_quoted(value, cell):
    assert exports._cell(value) == cell
