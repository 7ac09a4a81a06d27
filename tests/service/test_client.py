"""What the authors of clients rely on: names that are checked, pages, answers that can be kept, photos as they have them."""

import json
import re

import numpy as np
import pytest
from starlette.testclient import TestClient

import api
from marketplace.files import reading
from marketplace.service.settings import Settings
from tests.service.conftest import KEY, add_generation, publish

NO_PHOTO = "image: send a photo as a file of the form, or as the body with its Content-Type, such as image/jpeg"
SEARCH_TAKES = "q, sort, counts, category, min_price, max_price, location, k, offset, min_score"
PHOTO_TAKES = "text, category, min_price, max_price, location, k, offset, min_score"


@pytest.fixture(scope="module")
def photos(demo_dir, photos_table) -> list[bytes]:
    """Two photos of listings that have nothing to do with each other."""
    first = photos_table.iloc[0]
    other = photos_table[photos_table["label"] != first["label"]].iloc[0]
    return [(demo_dir / "raw" / "images" / f"{photo['image_id']}.jpg").read_bytes() for photo in (first, other)]


def files(*images: bytes) -> list[tuple[str, bytes]]:
    return [("image", image) for image in images]


# As the course's clients post


def course_form(photo: bytes, **fields: str) -> dict:
    """What requests.post(url, files={"image": open("photo.jpg", "rb")}, data=fields) sends: the photo has no Content-Type."""
    parts = [f'--b0undary\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    head = '--b0undary\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n\r\n'
    content = "".join(parts).encode() + head.encode() + photo + b"\r\n--b0undary--\r\n"
    return {"content": content, "headers": {"Content-Type": "multipart/form-data; boundary=b0undary"}}


def test_the_courses_clients_are_answered_as_they_always_were(client, photos, photos_table, demo_dir):
    assert client.get("/healthcheck").json()["message"] == "API is up and running!"
    features = client.post("/predict/feature_embedding", **course_form(photos[0])).json()["features"]
    saved = reading.read_json(demo_dir / "embeddings" / "image_embeddings.json")[photos_table["image_id"][0]]
    assert np.dot(features, saved) > 0.9999 and all(isinstance(number, float) for number in features)
    answer = client.post("/predict/similar_images", **course_form(photos[0])).json()
    assert photos_table["image_id"][0] in answer["similar_index"] and len(answer["similar_index"]) == 10
    few = client.post("/predict/similar_images", **course_form(photos[0], k="2", text="bed", user="me")).json()
    assert len(few["similar_index"]) == 2, "fields that nobody takes are ignored"
    assert client.post("/predict/listing", **course_form(photos[0], note="mine")).json()["categories"]


# Names


@pytest.mark.parametrize(
    ("path", "query", "sentence"),
    [
        ("/search", "max_pric=3", "unknown parameter 'max_pric': did you mean max_price?"),
        ("/search", "q=bed&Category=a", "unknown parameter 'Category': did you mean category?"),
        ("/search", "price=3", "unknown parameter 'price': did you mean min_price or max_price?"),
        ("/search", "colour=red", f"unknown parameter 'colour': this call takes {SEARCH_TAKES}"),
        ("/search", "%0a=", f"unknown parameter '\\n': this call takes {SEARCH_TAKES}"),
        ("/filters", "k=3", "unknown parameter 'k': this call takes none"),
        ("/products/x", "k=3", "unknown parameter 'k': this call takes none"),
        ("/products/x/similar", "ofset=3", "unknown parameter 'ofset': did you mean offset?"),
        ("/images/x.jpg", "width=300", "unknown parameter 'width': this call takes none"),
    ],
)
def test_a_parameter_that_a_call_does_not_take_is_422_with_the_nearest(client, path, query, sentence):
    for ask in (client.get, client.head):
        answer = ask(f"{path}?{query}")
        assert answer.status_code == 422
    assert client.get(f"{path}?{query}").json() == {"detail": sentence}


def test_who_watches_the_service_and_the_page_may_ask_with_anything(client):
    for path in ("/healthcheck", "/readyz", "/metrics", "/", "/docs"):
        assert client.get(f"{path}?at=noon").status_code == 200


def test_a_body_that_is_not_said_to_be_json_is_422_with_the_header_to_send(client):
    answer = client.post("/recommend", content=b'{"text": "bed"}', headers={"Content-Type": "text/plain"})
    sentence = "send the fields as JSON, with the header Content-Type: application/json"
    assert (answer.status_code, answer.json()) == (422, {"detail": sentence})
    for kind in ("application/json; charset=utf-8", "application/vnd.shop+json"):
        assert client.post("/recommend", content=b'{"text": "bed"}', headers={"Content-Type": kind}).status_code == 200


def test_the_fields_of_admin_calls_are_checked_behind_the_key(data_dir):
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY))) as client:
        body = {"ids": ["x"], "reason": "sold"}
        assert client.post("/admin/hide", json=body).status_code == 401
        answer = client.post("/admin/hide", json=body, headers={"X-API-Key": KEY})
        assert (answer.status_code, answer.json()) == (422, {"detail": "unknown field 'reason': this call takes ids"})


# Pages


def all_pages(ask) -> list[dict]:
    """Every result, by next_offset; ask(offset) gives an answer."""
    found, offset = [], 0
    while offset is not None:
        answer = ask(offset)
        assert answer["results"] or offset == 0, "a page that was announced is empty"
        found += answer["results"]
        offset = answer["next_offset"]
    return found


@pytest.mark.parametrize("k", [1, 7, 30, 59, 60, 61])
@pytest.mark.parametrize("sort", [None, "price_up", "newest"])
def test_paging_through_the_catalogue_gives_each_listing_once(client, products, k, sort):
    params = {"k": k} | ({"sort": sort} if sort else {})
    found = all_pages(lambda offset: client.get("/search", params=params | {"offset": offset}).json())
    ids = [result["product_id"] for result in found]
    assert len(ids) == len(products) and set(ids) == set(products.index)
    whole = client.get("/search", params=params | {"k": 100}).json()
    assert ids == [result["product_id"] for result in whole["results"]] and whole["next_offset"] is None


def test_paging_through_a_ranking_gives_each_listing_once_folded_ones_included(client, products, photos):
    first = products.index[0]
    ways = {
        "words": (lambda **page: client.get("/search", params={"q": "good condition"} | page), None),
        "listing": (lambda **page: client.get(f"/products/{first}/similar", params=page), set(products.index) - {first}),
        "photo": (lambda **page: client.post("/predict/similar_images", files=files(photos[0]), data=page), set(products.index)),
        "several": (lambda **page: client.post("/recommend", json={"ids": [first], "diversity": 0.5} | page), None),
    }
    for name, (ask, expected) in ways.items():
        found = all_pages(lambda offset, ask=ask: ask(k=7, offset=offset).json())
        ids = [one for result in found for one in (result["product_id"], *result["duplicate_ids"])]
        assert len(found) > 7 and len(ids) == len(set(ids)), name
        assert expected is None or set(ids) == expected, name
        assert [result["product_id"] for result in ask(k=100).json()["results"]] == [r["product_id"] for r in found], name


def test_the_last_page_says_so_and_a_page_that_is_exactly_full_does_too(client, products):
    for k, offset, following in ((59, 0, 59), (60, 0, None), (30, 30, None), (10, 40, 50), (10, 55, None), (5, 1000, None)):
        assert client.get("/search", params={"k": k, "offset": offset}).json()["next_offset"] == following


def test_a_client_that_pages_sees_in_x_generation_that_the_index_changed(data_dir):
    add_generation(data_dir / "index", "second", "New ")
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY))) as client:
        before = client.get("/search", params={"k": 5}).headers["X-Generation"]
        publish(data_dir / "index", "second")
        client.post("/admin/reload", headers={"X-API-Key": KEY})
        assert client.get("/search", params={"k": 5, "offset": 5}).headers["X-Generation"] == "second" != before


def test_every_answer_that_depends_on_the_generation_names_it(client, products, photos):
    generation = client.get("/healthcheck").json()["generation"]
    first = products.index[0]
    photo = client.get(f"/products/{first}/similar").json()["results"][0]["photo_url"]
    paths = ("/search", "/search?q=zzzzqqqq", "/filters", f"/products/{first}", "/products/nobody", "/search?location=Bxq", photo)
    answers = [client.get(path) for path in (*paths, "/readyz", f"/products/{first}/similar")]
    answers += [client.post(f"/predict/{what}", files=files(photos[0])) for what in ("feature_embedding", "similar_images")]
    answers += [client.post("/predict/listing", data={"text": "bed"}), client.post("/recommend", json={"text": "bed"})]
    assert {answer.headers.get("X-Generation") for answer in answers} == {generation}


# Answers that are kept


def kept_paths(products) -> list[str]:
    first = products.index[0]
    return ["/search", "/search?q=good+condition&k=3", "/filters", f"/products/{first}", f"/products/{first}/similar"]


def test_an_answer_that_a_client_has_is_not_sent_again(client, products):
    for path in kept_paths(products):
        first = client.get(path)
        tag = first.headers["ETag"]
        assert re.fullmatch(r'W/"[\w-]+"', tag) and first.headers["Cache-Control"] == "no-cache", path
        for kept in (tag, tag.removeprefix("W/"), f'"other", {tag}'):
            again = client.get(path, headers={"If-None-Match": kept})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag), path
            assert again.headers["X-Generation"] == first.headers["X-Generation"]
        assert client.head(path, headers={"If-None-Match": tag}).status_code == 304
        for other in ('"other"', 'W/"other"', "", "*"):
            assert client.get(path, headers={"If-None-Match": other}).json() == first.json(), path
    for path in ("/search?k=0", "/search?max_pric=3", "/products/nobody", "/healthcheck", "/readyz"):
        assert "ETag" not in client.get(path).headers, path


def test_what_a_client_has_is_sent_again_once_a_listing_is_hidden_or_another_generation_is_served(data_dir, products):
    add_generation(data_dir / "index", "second", "New ")
    path = kept_paths(products)[0]
    with TestClient(api.create_app(Settings(data_dir, api_key=KEY))) as client:
        client.headers["X-API-Key"] = KEY
        tags = [client.get(path).headers["ETag"]]
        for change, body in (("hide", [0]), ("hide", [1]), ("unhide", [0]), ("hide", [0]), ("unhide", [0, 1])):
            client.post(f"/admin/{change}", json={"ids": [products.index[number] for number in body]})
            answer = client.get(path, headers={"If-None-Match": tags[-1]})
            assert answer.status_code == 200
            tags.append(answer.headers["ETag"])
        publish(data_dir / "index", "second")
        client.post("/admin/reload")
        answer = client.get(path, headers={"If-None-Match": tags[-1]})
        assert answer.status_code == 200 and answer.json()["results"][0]["name"].startswith("New ")
        tags.append(answer.headers["ETag"])
    # None hidden, 0, 0 and 1, 1, 0 and 1, none; the other generation: what is the same again has the same tag again.
    assert [tags.index(tag) for tag in tags] == [0, 1, 2, 3, 2, 0, 6]


def test_all_workers_and_restarts_give_the_same_tags_and_another_version_of_the_program_others(data_dir, monkeypatch):
    def tag() -> str:
        with TestClient(api.create_app(Settings(data_dir))) as client:
            return client.get("/filters").headers["ETag"]

    first = tag()
    assert tag() == first
    monkeypatch.setattr("marketplace.service.dependencies.program_version", lambda: "another")
    assert tag() != first


def test_large_answers_are_compressed_for_who_takes_it_and_small_ones_and_photos_are_not(client, products):
    photo = client.get("/search", params={"q": "guitar"}).json()["results"][0]["photo_url"]
    for path, compressed in (("/search?k=50", True), ("/readyz", False), (photo, False), (f"{photo}x", False)):
        zipped = client.get(path, headers={"Accept-Encoding": "gzip"})
        plain = client.get(path, headers={"Accept-Encoding": "identity"})
        assert zipped.headers.get("Content-Encoding") == ("gzip" if compressed else None), path
        assert "Content-Encoding" not in plain.headers and zipped.content == plain.content, path
        if compressed:
            assert int(zipped.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 3
            assert zipped.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"


# Photos


def test_several_photos_have_one_vector_the_mean_of_theirs_of_unit_length(client, photos):
    alone = [np.array(client.post("/predict/feature_embedding", files=files(one)).json()["features"]) for one in photos]
    together = client.post("/predict/feature_embedding", files=files(*photos)).json()
    expected = (alone[0] + alone[1]) / np.linalg.norm(alone[0] + alone[1])
    assert np.allclose(together["features"], expected, atol=1e-6) and together["dimension"] == len(expected)
    twice = client.post("/predict/feature_embedding", files=files(photos[0], photos[0])).json()["features"]
    assert np.allclose(twice, alone[0], atol=1e-6)


def test_the_photo_that_is_most_like_a_listing_counts_of_several(client, photos):
    def by_photo(*images: bytes) -> dict[str, float]:
        results = client.post("/predict/similar_images", files=files(*images), data={"k": 100}).json()["results"]
        return {result["product_id"]: (result["parts"].get("photo", 0), result["image_id"]) for result in results}

    first, second, both = by_photo(photos[0]), by_photo(photos[1]), by_photo(*photos)
    assert both == by_photo(*photos[::-1])
    best = [max(some, key=lambda one: some[one][0]) for some in (first, second)]
    assert set(best) <= set(list(both)[:6]) and best[0] != best[1]
    for one in both.keys() & first.keys() & second.keys():
        assert both[one][1] in (first[one][1], second[one][1])


def test_several_photos_of_a_new_listing_are_all_looked_at(client, photos):
    def probabilities(*images: bytes) -> dict[str, float]:
        answer = client.post("/predict/listing", files=files(*images)).json()
        return {entry["category"]: entry["probability"] for entry in answer["categories"]}

    together = probabilities(*photos)
    for one in photos:
        assert together != probabilities(one)
    assert together == probabilities(*photos[::-1])


def test_a_photo_as_the_body_is_answered_as_one_in_a_form_with_its_parameters_in_the_query(client, photos):
    fields = {"k": "3", "text": "red bed", "min_price": "1", "category": "", "user": "me"}
    form = client.post("/predict/similar_images", files=files(photos[0]), data=fields).json()
    fields.pop("user")
    for kind in ("image/jpeg", "IMAGE/JPEG", "image/*", "application/octet-stream"):
        headers = {"Content-Type": kind}
        assert client.post("/predict/similar_images", content=photos[0], params=fields, headers=headers).json() == form
    assert client.post("/predict/similar_images", files=files(photos[0]), params=fields).json() == form
    for what in ("feature_embedding", "listing"):
        by_form = client.post(f"/predict/{what}", files=files(photos[0])).json()
        assert client.post(f"/predict/{what}", content=photos[0], headers={"Content-Type": "image/jpeg"}).json() == by_form


@pytest.mark.parametrize(
    ("request_of", "status", "sentence"),
    [
        (lambda photo: {"params": {"kk": 3}}, 422, "unknown parameter 'kk': did you mean k?"),
        (lambda photo: {"params": {"image": "x"}}, 422, f"unknown parameter 'image': this call takes {PHOTO_TAKES}"),
        (lambda photo: {"params": {"k": 0}}, 422, "k: give 1 or more"),
        (lambda photo: {"content": b""}, 400, "not a usable image (empty): the photo is an empty file"),
        (lambda photo: {"headers": {"Content-Type": "text/plain"}}, 422, NO_PHOTO),
        (lambda photo: {"headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 422, NO_PHOTO),
    ],
)
def test_what_is_wrong_with_a_photo_as_the_body_is_told_in_one_sentence(client, photos, request_of, status, sentence):
    request = {"content": photos[0], "headers": {"Content-Type": "image/jpeg"}} | request_of(photos[0])
    answer = client.post("/predict/similar_images", **request)
    assert (answer.status_code, answer.json()) == (status, {"detail": sentence})


def test_a_field_that_is_in_the_form_and_in_the_query_must_be_the_same(client, photos):
    ask = lambda k: client.post("/predict/similar_images", params={"k": k}, files=files(photos[0]), data={"k": "2"})  # noqa: E731
    assert len(ask("2").json()["results"]) == 2
    sentence = "k: it is in the form and in the query with another value: give it once"
    assert (ask("3").status_code, ask("3").json()) == (422, {"detail": sentence})


def test_a_bad_photo_of_several_is_named_and_too_many_are_refused(client, photos):
    for path in ("feature_embedding", "similar_images", "listing"):
        answer = client.post(f"/predict/{path}", files=files(photos[0], b"no photo"))
        sentence = "photo 2 of 2: not a usable image (not_an_image): "
        assert answer.status_code == 400 and answer.json()["detail"].startswith(sentence)
        answer = client.post(f"/predict/{path}", files=files(*[photos[0]] * 9))
        assert (answer.status_code, answer.json()) == (422, {"detail": "image: give at most 8 items"})
    assert client.post("/predict/feature_embedding", files=files(*[photos[0]] * 8)).status_code == 200


def test_a_bare_photo_and_several_are_bounded_as_one_in_a_form_is(demo_dir, photos):
    detail = "the request is larger than 1000 bytes: send a smaller photo"
    with TestClient(api.create_app(Settings(demo_dir, max_upload_bytes=1000))) as client:
        for request in ({"content": bytes(1001)}, {"content": iter([bytes(600), bytes(600)])}):
            answer = client.post("/predict/feature_embedding", headers={"Content-Type": "image/jpeg"}, **request)
            assert (answer.status_code, answer.json()) == (413, {"detail": detail})
        answer = client.post("/predict/feature_embedding", files=files(bytes(600), bytes(600)))
        assert (answer.status_code, answer.json()) == (413, {"detail": detail})


def test_several_photos_take_one_place_in_the_queue(demo_dir, photos):
    with TestClient(api.create_app(Settings(demo_dir, max_pending=1))) as client:
        assert client.post("/predict/feature_embedding", files=files(*photos)).status_code == 200


def test_results_tell_when_they_were_posted(client, products):
    assert products["posted_on"].any()
    for params in ({}, {"q": "good condition"}):
        results = client.get("/search", params=params | {"k": 100}).json()["results"]
        told = {result["product_id"]: result["posted_on"] for result in results}
        assert told and told == products["posted_on"][list(told)].to_dict()


# The description


@pytest.fixture(scope="module")
def description(client) -> dict:
    return client.get("/openapi.json").json()


def operations(description: dict) -> list[dict]:
    return [operation for path in description["paths"].values() for operation in path.values()]


def test_operations_are_named_and_sorted_for_generated_clients(description):
    names = [operation["operationId"] for operation in operations(description)]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    assert {"search", "find_similar_images", "recommend_products", "get_product"} <= set(names)
    tags = {tag["name"] for tag in description["tags"]}
    assert all(len(operation["tags"]) == 1 and operation["tags"][0] in tags for operation in operations(description))


def test_uploads_are_described_as_binary_in_a_form_and_as_a_body(description):
    binary = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    for what in ("feature_embedding", "similar_images", "listing"):
        operation = description["paths"][f"/predict/{what}"]["post"]
        form = description["components"]["schemas"][f"Body_{operation['operationId']}"]["properties"]
        assert (form["image"]["type"], form["image"]["items"], form["image"]["maxItems"]) == ("array", binary, 8)
        parameters = operation["parameters"]
        assert {parameter["name"] for parameter in parameters} == set(form) - {"image"}
        assert all(parameter["in"] == "query" and "default" not in parameter["schema"] for parameter in parameters)
        if parameters:
            assert operation["requestBody"]["content"]["application/octet-stream"]["schema"] == binary


def test_what_a_description_offers_to_be_tried_leaves_nothing_out(client, description):
    optional = ("category", "min_price", "max_price", "location")
    parameters = [p for operation in operations(description) for p in operation.get("parameters", []) if p["name"] in optional]
    fields = [schema["properties"][name] for schema in description["components"]["schemas"].values() for name in optional
              if schema.get("additionalProperties") is False or "image" in schema.get("properties", {})
              if name in schema["properties"]]  # fmt: skip
    assert {json.dumps(p["schema"].get("examples", [""])) for p in parameters} == {'[""]'} and len(parameters) > 8
    assert [field["examples"] for field in fields] == [[""]] * 8
    example = description["paths"]["/recommend"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/recommend", json=example).json()["results"]


def test_the_description_is_the_same_each_time(client, description):
    assert client.get("/openapi.json").json() == description


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        (
            "get",
            "/products/BED/000",
            404,
            "nothing is at this address: GET /docs shows what there is, and a / within an id is written %2F",
        ),
        (
            "get",
            "/nowhere",
            404,
            "nothing is at this address: GET /docs shows what there is, and a / within an id is written %2F",
        ),
        ("get", "/recommend", 405, "this address is not asked so: GET /docs shows how"),
        ("post", "/search", 405, "this address is not asked so: GET /docs shows how"),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(client, method, path, status, sentence):
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()) == (status, {"detail": sentence})
    assert status == 404 or answer.headers["allow"]
