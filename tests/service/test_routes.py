import io
import json
import math
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

import api
from marketplace.cleaning import decoders
from marketplace.files import reading
from marketplace.retrieval.recommender import Recommender
from marketplace.service import dependencies, schemas
from marketplace.service.settings import Settings
from tests.cleaning.test_decoders import slow_photo
from tests.cleaning.test_photos import encoded


def raw_photo(demo_dir: Path, image_id: str) -> bytes:
    return (demo_dir / "raw" / "images" / f"{image_id}.jpg").read_bytes()


def png(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def test_healthcheck_says_the_agreed_words_and_what_is_served(client, demo_dir, photos_table):
    answer = client.get("/healthcheck").json()
    assert answer["message"] == "API is up and running!"
    assert answer["model"] == "efficientnet_lite0"
    assert answer["rows"] == len(photos_table)


def test_a_raw_photo_gets_the_vector_that_the_batch_gave_it(client, demo_dir, photos_table):
    saved = json.loads((demo_dir / "embeddings" / "image_embeddings.json").read_text())
    for image_id in photos_table["image_id"]:
        response = client.post("/predict/feature_embedding", files={"image": raw_photo(demo_dir, image_id)})
        features = np.array(response.json()["features"])
        assert features @ np.array(saved[image_id]) > 0.9999
        assert abs(np.linalg.norm(features) - 1) < 1e-5


def test_a_catalogue_photo_finds_itself_first_and_says_why(client, demo_dir, photos_table, products):
    photo = photos_table.iloc[7]
    answer = client.post("/predict/similar_images", files={"image": raw_photo(demo_dir, photo["image_id"])}, data={"k": 5}).json()
    first = answer["results"][0]
    assert first["parts"]["photo"] == max(result["parts"]["photo"] for result in answer["results"])
    assert answer["similar_index"] == [result["image_id"] for result in answer["results"]]
    twins = photos_table.loc[photos_table["cluster"] == photo["cluster"], "product_id"]
    assert first["product_id"] in set(twins)
    listing = products.loc[first["product_id"]]
    assert (first["name"], first["price"], first["category"]) == (listing["name"], listing["price"], listing["category"])


def test_results_are_ranked_distinct_listings_whose_parts_add_up(client, demo_dir, photos_table):
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    answer = client.post("/predict/similar_images", files={"image": image}, data={"k": 20, "text": "red guitar"}).json()
    scores = [result["score"] for result in answer["results"]]
    assert len(scores) == 20 and scores == sorted(scores, reverse=True)
    assert len({result["product_id"] for result in answer["results"]}) == 20
    for result in answer["results"]:
        assert {"photo", "text", "words"} <= set(result["parts"]) <= set(get_args(schemas.Kind))
        assert math.isclose(sum(result["parts"].values()), result["score"], abs_tol=1e-5)


def test_words_beside_a_photo_move_its_ranking_towards_them(client, demo_dir, photos_table, products):
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    name = products["name"].iloc[40]
    plain = client.post("/predict/similar_images", files={"image": image}, data={"k": 60}).json()["results"]
    words = client.post("/predict/similar_images", files={"image": image}, data={"k": 60, "text": name}).json()["results"]

    def place(results):
        return [result["product_id"] for result in results].index(products.index[40])

    assert place(words) < place(plain)


def test_filters_hold_for_every_result_and_give_all_that_match(client, demo_dir, photos_table, products):
    category = products["main_category"].mode()[0]
    expected = products[(products["main_category"] == category) & products["price"].between(1, 500)]
    form = {"k": 100, "category": category.upper(), "min_price": 1, "max_price": 500}
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    results = client.post("/predict/similar_images", files={"image": image}, data=form).json()["results"]
    assert {result["product_id"] for result in results} <= set(expected.index)
    assert sum(1 + result["duplicates"] for result in results) == len(expected)
    town = products["town"].iloc[3]
    found = client.get("/search", params={"q": products["name"].iloc[3], "location": town, "k": 100}).json()["results"]
    assert found and all(result["town"] == town for result in found)


def test_a_category_or_place_that_no_listing_has_is_422_with_the_nearest_and_filters_that_nothing_meets_are_200(client, products):
    town = max(products["town"], key=len)
    for field, typed, kind, meant in (
        ("location", f"{town[:-2]}{town[-1]}q", "place", town),
        ("category", "Bxq", "category", None),
    ):
        refused = client.get("/search", params={"q": "good", field: typed})
        sentence = f'no listing has the {kind} "{typed}": '
        assert refused.status_code == 422 and refused.json()["detail"].startswith(sentence)
        assert f'"{meant}"' in refused.json()["detail"] or not meant
    similar = client.get(f"/products/{products.index[0]}/similar", params={"location": "Bxq"})
    assert similar.json() == {"detail": 'no listing has the place "Bxq": GET /filters lists them'}
    met_by_none = client.get("/search", params={"q": "good", "location": town, "min_price": 1e9})
    assert (met_by_none.status_code, met_by_none.json()["results"]) == (200, [])


def test_without_words_all_that_pass_the_filters_are_listed_the_newest_first(client, products):
    town = products["town"].mode()[0]
    there = products[products["town"] == town]
    for params in ({}, {"sort": "newest"}, {"sort": "relevance"}):
        answer = client.get("/search", params={"location": town, "k": 100} | params).json()
        days = [products["posted_on"][result["product_id"]] for result in answer["results"]]
        assert days == sorted(days, reverse=True) and {result["product_id"] for result in answer["results"]} == set(there.index)
        assert (answer["total"], answer["total_is_at_least"], answer["counts"]) == (len(there), False, None)
        told = {(result["score"], len(result["parts"]), result["snippet"], result["duplicates"]) for result in answer["results"]}
        assert told == {(None, 0, None, 0)}
    assert client.get("/search", params={"k": 1}).json()["total"] == len(products)
    nothing = client.get("/search", params={"location": town, "min_price": 1e9, "counts": True}).json()
    assert (nothing["results"], nothing["total"], nothing["counts"]["towns"]) == ([], 0, {})


@pytest.mark.parametrize("q", [None, "good condition"])
def test_listings_are_sorted_by_price_when_asked(client, products, q):
    words = {} if q is None else {"q": q}
    up, down = (client.get("/search", params=words | {"sort": sort, "k": 100}).json() for sort in ("price_up", "price_down"))
    prices = [result["price"] for result in up["results"] if result["price"] is not None]
    assert prices == sorted(prices) and len(prices) > 5 and up["total"] == down["total"] == len(up["results"])
    assert [result["price"] for result in down["results"]][: len(prices)] == prices[::-1]
    assert all((result["score"], result["close"], result["parts"]) == (None, None, {}) for result in up["results"])
    if q is None:
        assert sorted(products["price"].dropna()) == prices


@pytest.mark.parametrize("q", [None, "good condition"])
def test_a_result_is_counted_by_category_place_and_price_when_asked(client, products, q):
    lowest = products["price"].quantile(0.3)
    params = {"counts": "true"} | ({"min_price": lowest} if q is None else {"q": q})
    answer = client.get("/search", params=params).json()
    listed = client.get("/search", params=params | {"sort": "newest", "k": 100}).json()
    expected = products.loc[[result["product_id"] for result in listed["results"]]]
    assert answer["total"] == listed["total"] == len(expected) > 3 and answer["counts"] == listed["counts"]
    if q is None:
        assert set(expected.index) == set(products.index[products["price"] >= lowest])
    assert answer["counts"]["towns"] == expected["town"].value_counts().to_dict()
    assert answer["counts"]["categories"].items() >= expected["category"].value_counts().to_dict().items()
    for step in answer["counts"]["prices"]:
        assert step["listings"] == expected["price"].between(step["min"], step["max"] or 1e9).sum()


def test_the_words_looked_for_are_marked_in_name_and_snippet(client, products):
    for params in ({"q": "guitars"}, {"q": "guitars", "sort": "newest"}):
        results = client.get("/search", params=params).json()["results"]
        marked = 0
        for result in results:
            for text, marks in ((result["name"], result["name_marks"]), (result["snippet"]["text"], result["snippet"]["marks"])):
                assert {text[start:end].lower() for start, end in marks} <= {"guitar", "guitars"}
                marked += len(marks)
        assert marked >= sum("guitar" in result["name"].lower() for result in results) > 0
    similar = client.get(f"/products/{products.index[0]}/similar").json()["results"]
    assert {(result["snippet"], len(result["name_marks"])) for result in similar} == {(None, 0)}


def test_pages_follow_each_other_without_gaps_or_repeats(client, demo_dir, photos_table):
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    form = {"text": "red guitar", "k": 40}
    whole = client.post("/predict/similar_images", files={"image": image}, data=form).json()["results"]
    pages = [
        client.post("/predict/similar_images", files={"image": image}, data=form | {"k": k, "offset": offset}).json()["results"]
        for offset, k in ((0, 7), (7, 20), (27, 13))
    ]
    assert [result["product_id"] for page in pages for result in page] == [result["product_id"] for result in whole]
    similar = f"/products/{photos_table['product_id'][3]}/similar"
    for path, params in (("/search", {"q": "good condition"}), (similar, {})):
        whole = client.get(path, params=params | {"k": 20}).json()["results"]
        assert client.get(path, params=params | {"k": 8, "offset": 5}).json()["results"] == whole[5:13]
        assert client.get(path, params=params | {"offset": 1000}).json()["results"] == []


def test_listings_below_the_score_asked_for_are_left_out(client, demo_dir, photos_table):
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    whole = client.post("/predict/similar_images", files={"image": image}, data={"k": 50}).json()["results"]
    least = whole[4]["score"] - 1e-6
    form = {"k": 50, "min_score": least}
    above = client.post("/predict/similar_images", files={"image": image}, data=form).json()["results"]
    assert 5 <= len(above) < len(whole)
    assert above == [result for result in whole if result["score"] >= least]


def test_every_listing_is_an_answer_to_a_photo_at_last_or_folded_into_one(client, demo_dir, photos_table, products):
    assert (products["photos"] == 0).any()
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    results = client.post("/predict/similar_images", files={"image": image}, data={"k": 60}).json()["results"]
    assert sum(1 + result["duplicates"] for result in results) == len(products) == 60 > len(results)
    for result in results:
        assert (result["image_id"] is None) == (result["photo_url"] is None) == (products["photos"][result["product_id"]] == 0)


def test_a_title_finds_its_listing(client, products):
    for product_id in products.index[:20]:
        results = client.get("/search", params={"q": products["name"][product_id], "k": 5}).json()["results"]
        same_name = set(products.index[products["name"] == products["name"][product_id]])
        assert same_name & {result["product_id"] for result in results}


def test_blanks_and_punctuation_beside_a_photo_are_no_evidence(client, demo_dir, photos_table):
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    plain = client.post("/predict/similar_images", files={"image": image}).json()
    for text in ("  ", "_", "!!!", "\u2028", "\0"):
        assert client.post("/predict/similar_images", files={"image": image}, data={"text": text}).json() == plain


@pytest.mark.parametrize("q", ["a* OR NEAR(b)", "name:x AND", "'; DROP TABLE products; --", "zzzzqqqq"])
def test_hostile_search_words_are_words(client, q):
    assert client.get("/search", params={"q": q}).status_code == 200


@pytest.mark.parametrize("q", ['"', "!!!", "♞♞♞", "é" * 500])
def test_what_holds_no_word_that_can_be_looked_for_is_422_in_any_order(client, q):
    for sort in ("relevance", "price_up"):
        response = client.get("/search", params={"q": q, "sort": sort})
        assert (response.status_code, response.json()) == (422, {"detail": "q: give at least one word"})


def test_where_nothing_is_close_the_result_is_empty_and_the_nearest_are_beside_it(client):
    answer = client.get("/search", params={"q": "zzzzqqqq", "counts": True}).json()
    nearest = answer.pop("nearest")
    assert answer == {
        "results": [],
        "next_offset": None,
        "total": 0,
        "total_is_at_least": False,
        "counts": None,
        "corrections": {},
    }
    assert len(nearest) <= 3 and not any(listing["close"] for listing in nearest)


def test_a_misspelt_word_is_told_with_what_was_read_instead(client):
    answer = client.get("/search", params={"q": "guitarr"}).json()
    assert answer["corrections"] == {"guitarr": "guitar"} and answer["nearest"] == []
    assert "spelt: guitar" in answer["results"][0]["reasons"]


def test_a_result_is_close_from_a_score_of_a_half(client, demo_dir, photos_table, products):
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    by_photo = client.post("/predict/similar_images", files={"image": image}, data={"k": 50}).json()["results"]
    by_words = client.get("/search", params={"q": products["name"].iloc[0]}).json()["results"]
    like_one = client.get(f"/products/{products.index[0]}/similar", params={"k": 50}).json()["results"]
    told = {result["close"] for result in by_photo}
    for result in by_photo + by_words + like_one:
        assert result["close"] is (result["score"] >= 0.5)
    assert told == {True, False}


@pytest.fixture(scope="module")
def viewed(products) -> list[str]:
    """Three listings of one category."""
    return list(products.index[products["category"] == products["category"].mode()[0]][:3])


def test_listings_like_several_are_ranked_and_explained_as_everywhere(client, products, viewed):
    answer = client.post("/recommend", json={"ids": viewed, "k": 20})
    results = answer.json()["results"]
    scores = [result["score"] for result in results]
    assert len(results) == 20 and scores == sorted(scores, reverse=True)
    assert not set(viewed) & {result["product_id"] for result in results}
    for result in results:
        assert math.isclose(sum(result["parts"].values()), result["score"], abs_tol=1e-5)
        assert result["close"] is (result["score"] >= 0.5)
    others = (products["category"] == products["category"][viewed[0]]).sum() - len(viewed)
    assert all(result["category"] == products["category"][viewed[0]] for result in results[: min(others, 2)])
    assert any("the ones you viewed" in reason for reason in results[0]["reasons"])


def test_named_listings_are_left_out_whatever_they_are_named_for(client, products, viewed):
    not_ids, exclude_ids = list(products.index[10:12]), [products.index[20].upper()]
    form = {"ids": viewed[:1] * 2, "not_ids": not_ids, "exclude_ids": exclude_ids, "text": "guitar", "k": 100}
    found = {result["product_id"] for result in client.post("/recommend", json=form).json()["results"]}
    assert found and not found & {viewed[0], *not_ids, products.index[20]}


def test_words_beside_listings_and_alone_are_evidence(client, viewed):
    for form in ({"text": "guitar"}, {"text": "guitar", "ids": viewed}):
        results = client.post("/recommend", json=form).json()["results"]
        assert "words" in results[0]["parts"] and any(result["name_marks"] for result in results)


def test_filters_pages_weights_and_diversity_hold_for_several_listings_too(client, products, viewed):
    def ask(**more):
        return client.post("/recommend", json={"ids": viewed, "k": 30} | more).json()["results"]

    within = ask(min_price=5, max_price=100, location="")
    assert within and all(5 <= result["price"] <= 100 for result in within)
    assert ask(k=5, offset=4, diversity=0.4) == ask(diversity=0.4)[4:9]
    assert ask(min_score=0.5) == [result for result in ask() if result["close"]]
    assert "category" not in set().union(*(result["parts"] for result in ask(weights={"category": 0})))
    assert [r["product_id"] for r in ask(diversity=0.9)] != [r["product_id"] for r in ask()]


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({}, 422, "give listings as `ids`, words as `text`, or both"),
        ({"text": " !", "not_ids": [0], "exclude_ids": [1]}, 422, "give listings as `ids`, words as `text`, or both"),
        ({"ids": [0, "nobody"]}, 404, "no listing has the id nobody"),
        ({"ids": [0], "not_ids": ["nobody"]}, 404, "no listing has the id nobody"),
        ({"ids": [0], "exclude_ids": ["nobody"]}, 404, "no listing has the id nobody"),
        ({"ids": [0], "not_ids": [1, 0]}, 422, "not_ids: {} is in ids too"),
        ({"ids": ["x"] * 60, "not_ids": ["y"] * 41}, 422, "ids, not_ids and exclude_ids: give at most 100 together"),
        ({"ids": ["x"] * 101}, 422, "ids: give at most 100 items"),
        ({"ids": [0], "weights": {"photo": -1}}, 422, "photo in weights: give 0 or more"),
        (
            {"ids": [0], "weights": {"colour": 1}},
            422,
            "the name 'colour' in weights: give 'photo', 'text', 'words', 'category', 'price' or 'place'",
        ),
        ({"ids": [0], "weights": []}, 422, "weights: give an object of names and numbers"),
        ({"ids": "a"}, 422, "ids: give a list"),
        ({"ids": ["a", 3]}, 422, "item 2 of ids: give text"),
        ({"category": 7}, 422, "category: give text"),
        ({"text": "x" * 2001}, 422, "text: give at most 2000 characters"),
        ({"ids": [0], "k": 2.5}, 422, "k: give a whole number"),
        ({"ids": [0], "min_price": "cheap"}, 422, "min_price: give a number"),
        ({"ids": [0], "id": "b"}, 422, "unknown field 'id': did you mean ids?"),
        ({"ids": [0], "maxprice": 7, "x": 1}, 422, "unknown field 'maxprice': did you mean max_price?"),
        (
            {"ids": [0], "weights": dict.fromkeys(get_args(schemas.Kind), 0)},
            422,
            "weights: let at least one kind of what is asked with count",
        ),
        ({"ids": [0], "diversity": 1.1}, 422, "diversity: give 1 or less"),
        ({"ids": [0], "k": 101}, 422, "k: give 100 or less"),
        ({"ids": [0], "min_price": 9, "max_price": 3}, 422, "min_price 9 is above max_price 3: swap them"),
        ({"ids": [0], "location": "Bxq"}, 422, 'no listing has the place "Bxq": GET /filters lists them'),
    ],
)
def test_what_cannot_be_asked_of_several_listings_is_told_in_one_sentence(client, products, body, status, detail):
    """Numbers stand for listings of the catalogue."""
    ids = {name: [products.index[one] if isinstance(one, int) and one < 3 else one for one in some] for name, some in body.items()
           if name.endswith("ids") and isinstance(some, list)}  # fmt: skip
    response = client.post("/recommend", json=body | ids)
    assert (response.status_code, response.json()) == (status, {"detail": detail.format(products.index[0])})


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b'{"ids": ["\\ud800"]}', "item 1 of ids: give text that is valid Unicode"),
        (b'{"text": "\\ud800"}', "text: give text that is valid Unicode"),
        (b'{"text": "bed", "category": "\\ud800"}', "category: give text that is valid Unicode"),
        (
            b'{"text": "bed", "weights": {"\\ud800": 1}}',
            "the name '\ufffd\ufffd\ufffd' in weights: give text that is valid Unicode",
        ),
        (b'{"ids": ["a"], "\\ud800ids": 1}', "unknown field '\\ud800ids': did you mean ids?"),
        (b'{"text": "bed", "weights": {"photo": NaN}}', "photo in weights: give a number that is finite"),
        (b'{"ids": ["\x00"]}', "the body is not JSON: Invalid control character at at character 10"),
        (b'{"ids": [', "the body is not JSON: Expecting value at character 9"),
        (b"[]", "send the fields as one JSON object, such as {}"),
        (b"null", "send the fields as one JSON object, such as {}"),
    ],
)
def test_a_body_that_is_no_question_is_422(client, content, detail):
    response = client.post("/recommend", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()) == (422, {"detail": detail})


def test_the_most_listings_at_once_are_answered(client, products):
    body = {"ids": list(products.index[:20]), "not_ids": list(products.index[20:40]), "exclude_ids": [products.index[50]] * 60}
    assert client.post("/recommend", json=body).status_code == 200


def test_listings_like_one_leave_it_out(client, products):
    product_id = products.index[5]
    results = client.get(f"/products/{product_id}/similar", params={"k": 30}).json()["results"]
    assert len(results) == 30 and product_id not in {result["product_id"] for result in results}


def test_a_listing_is_shown_with_its_photos(client, products, photos_table):
    product_id = photos_table["product_id"].value_counts().index[0]
    answer = client.get(f"/products/{product_id}").json()
    assert answer["name"] == products["name"][product_id] and answer["description"] == products["description"][product_id]
    own = set(photos_table.loc[photos_table["product_id"] == product_id, "image_id"])
    assert {photo["image_id"] for photo in answer["photos"]} == own
    for photo in answer["photos"]:
        assert client.get(photo["photo_url"]).headers["content-type"] == "image/jpeg"
        display = client.get(photo["display_url"])
        assert display.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(display.content)).size == (photo["width"], photo["height"])
        card = Image.open(io.BytesIO(client.get(f"/images/{photo['image_id']}/card").content))
        scale = min(1, 400 / max(photo["width"], photo["height"]))
        assert card.size == (round(scale * photo["width"]), round(scale * photo["height"]))
    found = client.get("/search", params={"q": answer["name"]}).json()["results"]
    (itself,) = (result for result in found if result["product_id"] == product_id)
    (shown,) = (photo for photo in answer["photos"] if photo["image_id"] == itself["image_id"])
    assert [itself[name] for name in ("display_url", "photo_width", "photo_height")] == [
        shown[name] for name in ("display_url", "width", "height")
    ]


def test_an_id_in_capitals_is_the_same_id(client, products):
    product_id = products.index[5]
    assert client.get(f"/products/{product_id.upper()}").json() == client.get(f"/products/{product_id}").json()
    similar = client.get(f"/products/{product_id.upper()}/similar").json()["results"]
    assert similar and product_id not in {result["product_id"] for result in similar}


def test_a_photo_that_the_client_has_is_not_sent_again(client, photos_table):
    image_id = photos_table["image_id"][0]
    for url in (f"/images/{image_id}.jpg", f"/images/{image_id}/display", f"/images/{image_id}/card"):
        check_that_it_is_sent_once(client, url)


def check_that_it_is_sent_once(client, url: str) -> None:
    first = client.get(url)
    assert first.headers["Cache-Control"] == "public, max-age=60"
    again = client.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert again.headers["Cache-Control"] == "public, max-age=60"
    assert client.get(url, headers={"If-None-Match": '"another"'}).content == first.content


def test_the_page_s_files_are_sent_compressed_and_photos_as_they_are(client, photos_table):
    image_id = photos_table["image_id"][0]
    encodings = {
        url: client.get(url, headers={"Accept-Encoding": "gzip"}).headers.get("Content-Encoding")
        for url in ("/web/app.js", "/web/style.css", f"/images/{image_id}/card")
    }
    assert list(encodings.values()) == ["gzip", "gzip", None]


def test_where_no_copy_to_look_at_is_kept_the_square_is_shown(demo_dir, tmp_path, photos_table):
    name = f"{photos_table['image_id'][0]}.jpg"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).write_bytes((demo_dir / "images" / name).read_bytes())
    (tmp_path / "index").symlink_to(demo_dir / "index")
    with TestClient(api.create_app(Settings(tmp_path))) as client:
        square = client.get(f"/images/{name}")
        copies = [client.get(f"/images/{photos_table['image_id'][0]}/{kind}") for kind in ("display", "card")]
    assert [(copy.status_code, copy.content) for copy in copies] == 2 * [(200, square.content)]


def test_a_new_listing_gets_categories_and_a_price_range(client, demo_dir, photos_table, products):
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    for request in (
        {"files": {"image": image}},
        {"data": {"text": "acoustic guitar"}},
        {"files": {"image": image}, "data": {"text": "bed"}},
    ):
        answer = client.post("/predict/listing", **request).json()
        probabilities = [entry["probability"] for entry in answer["categories"]]
        assert {entry["category"] for entry in answer["categories"]} == set(products["main_category"])
        assert probabilities == sorted(probabilities, reverse=True) and abs(sum(probabilities) - 1) < 1e-4
        assert 0 < answer["price"]["low"] <= answer["price"]["median"] <= answer["price"]["high"]
        assert isinstance(answer["price"]["is_informative"], bool)
        shares = [path["probability"] for path in answer["paths"]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-4
        assert {path["category"] for path in answer["paths"]} <= set(products["category"])
        assert answer["category"] is None or any(path.startswith(answer["category"]) for path in products["category"])
        assert 0 < len(answer["comparables"]) <= 8
        assert all(each["price"] > 0 and each["price_plausible"] for each in answer["comparables"])
        scores = [each["score"] for each in answer["comparables"]]
        assert scores == sorted(scores, reverse=True)


def test_signs_alone_are_words_without_anything_like_them(client):
    answer = client.post("/predict/listing", data={"text": "?!"}).json()
    assert answer["comparables"] == [] and answer["price"]["low"] > 0


def test_a_listing_is_told_with_its_levels_its_price_range_and_its_duplicates(client, demo_dir, products):
    told = reading.read_csv(demo_dir / "model" / "price_ranges.csv").set_index("product_id").astype(float)
    table = reading.read_csv(demo_dir / "dataset" / "listings.csv").set_index("product_id")
    for product_id in products.index:
        answer = client.get(f"/products/{product_id}").json()
        levels = products["category"][product_id].split(" / ")
        assert [level["name"] for level in answer["breadcrumb"]] == levels
        assert answer["breadcrumb"][-1]["category"] == products["category"][product_id]
        own = table["duplicates"][product_id]
        others = set(table.index[table["duplicates"] == own]) - {product_id}
        assert {card["product_id"] for card in answer["duplicate_listings"]} == others and answer["duplicates"] == len(others)
        found, price = answer["price_range"], answer["price"]
        if product_id in told.index:
            assert [found[name] for name in told] == told.loc[product_id].tolist()
        expected = "low" if price < found["low"] else "high" if price > found["high"] else "likely"
        assert answer["price_verdict"] == (expected if price and found["is_informative"] else None)
        assert (answer["same_seller"], answer["same_seller_listings"]) == (0, [])
    assert len(told) and set(told.index) < set(products.index)


def test_filters_can_be_listed(client, products):
    assert set(client.get("/filters").json()["towns"]) == set(products["town"])


def test_the_page_and_the_description_are_served(client):
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/docs").headers["content-type"].startswith("text/html")
    for path in re.findall(r'(?:src|href)="([^"]+)"', client.get("/").text + client.get("/docs").text):
        assert path.startswith("#") or client.get(path).status_code == 200, path
    assert "/predict/similar_images" in client.get("/openapi.json").json()["paths"]


OPERATIONS = [
    (path, method)
    for path, operations in api.create_app(Settings(Path("data"))).openapi()["paths"].items()
    for method in operations
]


@pytest.fixture(scope="module")
def described(served):
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_whatever_is_sent_is_answered_as_described(described, path, method):
    @given(described[path][method].as_strategy())
    @settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def send(case):
        # No schema can say that bytes are a photo, or that one price is not above another.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    send()


def test_the_examples_of_the_description_work(client):
    tried = 0
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        parameters = operations.get("get", {}).get("parameters", [])
        examples = {p["name"]: p.get("example", next(iter(p["schema"].get("examples", [])), None)) for p in parameters}
        if (
            path == "/metrics"
            or path.startswith("/moderate/")
            or None in (examples[p["name"]] for p in parameters if p["required"])
        ):
            continue
        query = {p["name"]: examples[p["name"]] for p in parameters if p["in"] == "query" and examples[p["name"]] is not None}
        answer = client.get(path.format(**examples), params=query)
        assert answer.status_code == (405 if "get" not in operations else 200), path
        tried += "get" in operations
    assert tried == 9


def test_every_field_parameter_and_error_is_described(client):
    description = client.get("/openapi.json").json()
    for name, schema in description["components"]["schemas"].items():
        if name.startswith("Body_"):
            continue
        assert schema["description"], name
        assert [field for field, content in schema["properties"].items() if not content.get("description")] == [], name
    for path, operations in description["paths"].items():
        for operation in operations.values():
            assert operation["description"] and all(p["description"] for p in operation.get("parameters", [])), path
            for status, answer in operation["responses"].items():
                if status >= "400" and status != "416":
                    reference = answer["content"]["application/json"]["schema"]["$ref"]
                    assert reference.endswith("/ErrorMessage"), (path, status)


def test_metrics_count_requests_by_path_and_status(client):
    client.get("/products/nobody")
    text = client.get("/metrics").text
    assert 'marketplace_requests_total{path="/products/{product_id}",status="404"}' in text
    for step in ("decode", "embed", "search", "rank"):
        assert f'marketplace_step_seconds_count{{step="{step}"}}' in text
    assert "marketplace_photos_pending 0.0" in text and 'marketplace_reloads_total{result="switched"} 1.0' in text


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"<html>no photo</html>", "not_an_image"), (png()[:-30], "truncated")]
)
def test_a_photo_that_the_pipeline_would_reject_is_400_with_the_same_reason(client, data, reason):
    for path in ("feature_embedding", "similar_images", "listing"):
        response = client.post(f"/predict/{path}", files={"image": ("x.jpg", data)})
        assert response.status_code == 400
        assert response.json()["detail"].startswith(f"not a usable image ({reason}): ")


def test_the_name_of_an_upload_is_never_used(client):
    for name in ("../../etc/passwd", "a" * 3000, "x.exe", "\u202e.jpg"):
        assert client.post("/predict/feature_embedding", files={"image": (name, png())}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/products/nobody",
        "/products/nobody/similar",
        "/images/nobody.jpg",
        "/images/..%2f..%2fraw.jpg",
        "/images/nobody/display",
        "/images/nobody/card",
    ],
)
def test_unknown_ids_are_404(client, path):
    response = client.get(path)
    assert response.status_code == 404 and isinstance(response.json()["detail"], str)


@pytest.mark.parametrize(
    ("params", "detail"),
    [
        ({"q": "bed", "k": 0}, "k: give 1 or more"),
        ({"q": "bed", "k": 101}, "k: give 100 or less"),
        ({"q": "bed", "offset": -1}, "offset: give 0 or more"),
        ({"q": "bed", "offset": 1001}, "offset: give 1000 or less"),
        ({"q": "bed", "min_score": 1.5}, "min_score: give 1 or less"),
        ({"q": "bed", "min_score": "nan"}, "min_score: give a number that is finite"),
        ({"q": "bed", "min_price": -1}, "min_price: give 0 or more"),
        ({"q": "bed", "min_price": "nan"}, "min_price: give a number that is finite"),
        ({"q": "bed", "min_price": 9, "max_price": 3}, "min_price 9 is above max_price 3: swap them"),
        ({"q": ""}, "q: give at least 1 character"),
        ({"q": "  "}, "q: give at least one word"),
        ({"sort": "price"}, "sort: give 'relevance', 'price_up', 'price_down' or 'newest'"),
        ({"counts": "many"}, "counts: give true or false"),
        ({"location": "Bxq"}, 'no listing has the place "Bxq": GET /filters lists them'),
    ],
)
def test_bad_values_are_422_with_one_sentence(client, params, detail):
    response = client.get("/search", params=params)
    assert response.status_code == 422 and response.json() == {"detail": detail}


def test_an_empty_field_is_a_field_not_given(client, demo_dir, photos_table):
    empty = {"min_price": "", "max_price": "", "category": "", "location": ""}
    plain = client.get("/search", params={"q": "guitar"}).json()
    assert client.get("/search", params={"q": "guitar"} | empty).json() == plain
    image = raw_photo(demo_dir, photos_table["image_id"][0])
    plain = client.post("/predict/similar_images", files={"image": image}).json()
    assert client.post("/predict/similar_images", files={"image": image}, data=empty).json() == plain


def test_a_form_without_a_photo_is_422(client):
    sentence = "image: send a photo as a file of the form, or as the body with its Content-Type, such as image/jpeg"
    for request in ({"data": {"k": 3}}, {"data": {"image": "a.jpg"}}, {"content": png()}, {}):
        response = client.post("/predict/similar_images", **request)
        assert (response.status_code, response.json()) == (422, {"detail": sentence})
    for text in ("  ", "\0"):
        response = client.post("/predict/listing", data={"text": text})
        assert (response.status_code, response.json()["detail"]) == (422, "give a photo as `image`, words as `text`, or both")


def test_a_text_field_over_a_megabyte_is_413_and_a_broken_form_400(client):
    answer = client.post("/predict/listing", files={"image": png()}, data={"text": "x" * (2**20 + 1)})
    assert (answer.status_code, answer.json()) == (413, {"detail": "a text field is larger than 1 MB: shorten it"})
    answer = client.post("/predict/listing", data={"text": "x" * (2**20 + 1)})
    assert (answer.status_code, answer.json()) == (413, {"detail": "a text field is larger than 1 MB: shorten it"})
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/predict/listing", content=b"--c\r\nno form", headers=headers)
    assert answer.status_code == 400 and isinstance(answer.json()["detail"], str)


def test_more_photos_than_may_wait_are_told_to_come_back(demo_dir, monkeypatch):
    inside, release = threading.Event(), threading.Event()
    embed = Recommender.embed

    def slow_embed(self, jpeg):
        inside.set()
        assert release.wait(timeout=30)
        return embed(self, jpeg)

    with TestClient(api.create_app(Settings(demo_dir, max_pending=1))) as client:
        monkeypatch.setattr(Recommender, "embed", slow_embed)  # now that it is warm
        statuses = []
        post = lambda: client.post("/predict/feature_embedding", files={"image": png()})  # noqa: E731
        first = threading.Thread(target=lambda: statuses.append(post().status_code))
        first.start()
        assert inside.wait(timeout=30)
        refused = post()
        release.set()
        first.join()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json() == {"detail": "too many photos are being looked at: try again in a second"}
    assert statuses == [200]


def test_a_photo_that_takes_too_long_is_400_and_its_like_is_told_to_come_back_while_others_are_answered(demo_dir, monkeypatch):
    monkeypatch.setattr(dependencies, "LIMITS", dependencies.Limits(cpu_s=1, pixels=24_000_000))
    monkeypatch.setattr(dependencies, "MAX_SLOW_WAITING", 1)
    with TestClient(api.create_app(Settings(demo_dir))) as client, ThreadPoolExecutor(12) as pool:
        post = lambda photo: client.post("/predict/feature_embedding", files={"image": photo})  # noqa: E731
        slow = [pool.submit(post, slow_photo()) for _ in range(8)]
        assert [post(png()).status_code for _ in range(3)] == [200] * 3
        answers = [future.result() for future in slow]
        assert post(png()).status_code == 200
    sentence = "not a usable image (too_slow): the photo takes more than 1 seconds of the processor to decode"
    assert {answer.status_code for answer in answers} == {400, 503}
    assert {answer.json()["detail"] for answer in answers if answer.status_code == 400} == {sentence}
    assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 503} == {"1"}


def test_a_photo_of_48_megapixels_passes_as_a_jpeg_and_of_25_as_a_png_is_too_large(client):
    def post(kind: str, size: tuple[int, int]):
        return client.post("/predict/feature_embedding", files={"image": encoded(Image.new("RGB", size), kind)})

    assert post("JPEG", (8000, 6000)).status_code == 200
    refused = post("PNG", (5000, 5000))
    assert (refused.status_code, refused.json()["detail"]) == (
        400,
        "not a usable image (too_many_pixels): "
        "the photo has 5000 x 5000 pixels to decode, more than the 24,000,000 allowed: send a smaller one",
    )


def test_without_processes_that_decode_a_photo_is_told_to_come_back(demo_dir, monkeypatch):
    with TestClient(api.create_app(Settings(demo_dir))) as client:
        monkeypatch.setattr(decoders, "COMMAND", "raise SystemExit(3)")
        for decoder in client.app.state.photo_queue._decoders._all:
            decoder.restart()
        answer = client.post("/predict/feature_embedding", files={"image": png()})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"detail": "a process that decodes photos cannot start (it ended with 3): try again"}
