"""A service whose index and photos lie in a bucket."""

import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

import api
from marketplace.cleaning import photos
from marketplace.files import bucket, generations, photo_store, stages
from marketplace.files import s3 as s3_files
from marketplace.retrieval import catalogue, publishing
from marketplace.service import photo_files, reload
from marketplace.service.settings import Settings
from tests import s3_server
from tests.service.conftest import KEY, TIMEOUT_S, add_generation, publish, wait_until

s3, s3_service = s3_server.s3, s3_server.s3_service

ROOT = Path(__file__).resolve().parents[2]
URI = "s3://market/index"
HEADERS = {"X-API-Key": KEY}
SERVE = """
import sys
from pathlib import Path
import api
from marketplace.service import reload
reload.POLL_S = reload.BUCKET_POLL_S = 0.2
api.run(api.Settings(Path(sys.argv[1]), port=0, bucket=sys.argv[2], api_key=sys.argv[3]))
"""


@pytest.fixture
def published(s3, data_dir):
    """A data folder whose index was published."""
    publishing.publish(data_dir, URI, True, False)
    return data_dir


@pytest.fixture
def eager(monkeypatch):
    """The service looks often."""
    for name in ("POLL_S", "BUCKET_POLL_S"):
        monkeypatch.setattr(reload, name, 0.02)


@pytest.fixture
def unwatched(monkeypatch):
    for name in ("POLL_S", "BUCKET_POLL_S"):
        monkeypatch.setattr(reload, name, 3600)


def settings(folder: Path, **options) -> Settings:
    return Settings(folder, bucket=URI, api_key=KEY, **options)


def image_ids(data_dir: Path) -> list[str]:
    return catalogue.read_image_ids(generations.current_generation(data_dir / "index"))


def publish_second(data_dir: Path) -> None:
    if not (data_dir / "index" / "second").exists():
        add_generation(data_dir / "index", "second", "New ")
    publish(data_dir / "index", "second")
    publishing.publish(data_dir, URI, True, False)


def lose_s3(monkeypatch) -> None:
    s3_server.use_s3(monkeypatch, "http://127.0.0.1:1")


def test_it_answers_as_over_the_folder_itself_and_follows_what_is_published(published, tmp_path, eager):
    first = image_ids(published)[0]
    photo = f"/images/{first}.jpg"
    copies = [f"/images/{first}/display", f"/images/{first}/card"]
    assert {(published / "images" / folder / f"{first}.jpg").is_file() for folder in ("display", "card")} == {True}
    with (
        TestClient(api.create_app(Settings(published))) as local,
        TestClient(api.create_app(settings(tmp_path / "cache"))) as client,
    ):
        for path in ("/healthcheck", "/search?q=guitar", photo, *copies, f"/images/{first}x.jpg", f"/images/{first}x/card"):
            expected, answer = local.get(path), client.get(path)
            assert (answer.status_code, answer.content) == (expected.status_code, expected.content), path
        assert client.get(photo).headers["Cache-Control"] == "public, max-age=60"
        publish_second(published)
        wait_until(lambda: client.get("/healthcheck").json()["generation"] == "second")
        assert all(found["name"].startswith("New ") for found in client.get("/search?q=guitar").json()["results"])


def test_of_a_photo_s_copies_in_the_bucket_the_best_that_is_there_is_shown(s3, data_dir, demo_dir, tmp_path, unwatched):
    images_dir, (with_copy, without, missing, *others) = data_dir / "images", image_ids(data_dir)
    images_dir.unlink()
    (images_dir / "display").mkdir(parents=True)
    for name in (stages.MANIFEST, f"{with_copy}.jpg", f"{without}.jpg", f"display/{with_copy}.jpg"):
        shutil.copy(demo_dir / "images" / name, images_dir / name)
    assert publishing.publish(data_dir, URI, True, False)["photos_not_published"] == 1 + len(others)
    with TestClient(api.create_app(settings(tmp_path / "cache"))) as client:
        for image_id, name in ((with_copy, f"display/{with_copy}.jpg"), (without, f"{without}.jpg")):
            assert client.get(f"/images/{image_id}/card").content == (images_dir / name).read_bytes()
        assert client.get(f"/images/{missing}/card").status_code == 404


def test_photos_in_shards_are_published_as_those_in_files(s3, data_dir, demo_dir):
    images_dir, objects = data_dir / "images", []
    for in_shards in (False, True):
        images_dir.unlink() if images_dir.is_symlink() else shutil.rmtree(images_dir)
        shutil.copytree(demo_dir / "images", images_dir)
        with photo_store.writing(images_dir, in_shards, photos.COPIES):
            pass
        assert publishing.publish(data_dir, f"{URI}/{in_shards}", True, False)["photos_not_published"] == 0
        found = s3_files.list_objects(f"{URI}/{in_shards}/photos/")
        objects.append({one.uri.rpartition("/")[2]: s3_files.read_object(one.uri) for one in found})
    assert objects[0] == objects[1] and len(objects[0]) > len(image_ids(data_dir))


def test_a_listing_hidden_in_one_service_is_hidden_in_the_others_and_after_restarts(published, tmp_path, eager):
    with TestClient(api.create_app(settings(tmp_path / "a"))) as one, TestClient(api.create_app(settings(tmp_path / "b"))) as two:
        found = one.get("/search?q=guitar").json()["results"][0]
        product, photo = f"/products/{found['product_id']}", f"/images/{found['image_id']}.jpg"
        assert two.get(photo).status_code == 200
        assert one.post("/admin/hide", json={"ids": [found["product_id"]]}, headers=HEADERS).json() == {"hidden": 1}
        assert one.get(product).status_code == 404
        wait_until(lambda: two.get(product).status_code == 404)
        assert two.get(photo).status_code == 404
    with TestClient(api.create_app(settings(tmp_path / "c"))) as three:
        assert three.get(product).status_code == 404
        assert three.post("/admin/unhide", json={"ids": [found["product_id"]]}, headers=HEADERS).json() == {"hidden": 0}
        assert three.get(product).status_code == 200


def test_without_the_bucket_it_serves_on_and_starts_again_and_only_new_photos_are_refused(
    published, tmp_path, unwatched, monkeypatch
):
    seen, unseen = (f"/images/{image_id}.jpg" for image_id in image_ids(published)[:2])
    with TestClient(api.create_app(settings(tmp_path / "cache"))) as client:
        first = client.get(seen)
        lose_s3(monkeypatch)
        assert client.get("/search?q=guitar").json()["results"]
        assert client.get(seen).content == first.content
        for _ in range(2):
            answer = client.get(unseen)
            assert (answer.status_code, answer.json()) == (503, {"detail": "the photo cannot be had now: try again"})
            assert answer.headers["Retry-After"] == "1"
        product_id = client.get("/search?q=guitar").json()["results"][0]["product_id"]
        answer = client.post("/admin/hide", json={"ids": [product_id]}, headers=HEADERS)
        sentence = f"S3 cannot be read for {URI}/hidden.json (EndpointConnectionError): check the network, AWS_ENDPOINT_URL and "
        assert (answer.status_code, answer.json()) == (409, {"detail": f"{sentence}AWS_PROFILE"})
    with TestClient(api.create_app(settings(tmp_path / "cache"))) as client:
        assert client.get("/search?q=guitar").json()["results"] and client.get(seen).content == first.content


def test_the_figures_tell_since_when_the_bucket_could_not_be_followed(published, tmp_path, unwatched, monkeypatch):
    app = api.create_app(settings(tmp_path / "cache"))
    with TestClient(app) as client:

        def told() -> list[float]:
            lines = client.get("/metrics").text.splitlines()
            return [float(line.split()[-1]) for line in lines if line.startswith("marketplace_bucket_timestamp_seconds{")]

        polls = app.state.generations.bucket_polls()
        begun = told()
        for poll in polls:
            poll()
        last = told()
        assert len(begun) == 2 and all(now > before for before, now in zip(begun, last, strict=True))
        lose_s3(monkeypatch)
        for poll in polls:
            poll()
        assert told() == last


def test_whoever_has_the_key_can_have_the_bucket_looked_at_now(published, tmp_path, unwatched):
    with TestClient(api.create_app(settings(tmp_path / "cache"))) as client:
        publish_second(published)
        for switched in (True, False):
            assert client.post("/admin/reload", headers=HEADERS).json() == {"generation": "second", "switched": switched}


def test_photos_on_this_machine_stay_within_their_limit_and_the_least_wanted_go(published, tmp_path, unwatched):
    ids = image_ids(published)[:30]
    sizes = [(published / "images" / f"{image_id}.jpg").stat().st_size for image_id in ids]
    limit = sum(sizes) // 3
    with TestClient(api.create_app(settings(tmp_path / "cache", photo_cache_bytes=limit))) as client:
        for image_id in ids:
            assert client.get(f"/images/{image_id}.jpg").content == (published / "images" / f"{image_id}.jpg").read_bytes()
            assert client.get(f"/images/{ids[0]}.jpg").status_code == 200
        kept = {path.read_bytes() for path in (tmp_path / "cache" / "photos").iterdir()}
        assert sum(map(len, kept)) <= limit
        assert {(published / "images" / f"{image_id}.jpg").read_bytes() for image_id in (ids[0], ids[-1])} <= kept


def test_a_photo_from_a_bucket_is_not_sent_again_whichever_server_is_asked(published, tmp_path, unwatched):
    photo = f"/images/{image_ids(published)[0]}/card"
    with (
        TestClient(api.create_app(settings(tmp_path / "a"))) as one,
        TestClient(api.create_app(settings(tmp_path / "b"))) as two,
    ):
        tag = one.get(photo).headers["ETag"]
        for client in (one, two):
            answer = client.get(photo, headers={"If-None-Match": tag})
            assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)


def test_what_else_lies_beside_the_photos_stays(published, tmp_path, unwatched):
    ids, folder = image_ids(published)[:10], tmp_path / "cache" / "photos"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine.jpg").write_bytes(b"mine" * 10_000)
    with TestClient(api.create_app(settings(tmp_path / "cache", photo_cache_bytes=1000))) as client:
        for image_id in ids:
            assert client.get(f"/images/{image_id}.jpg").status_code == 200
    assert (folder / "mine").is_dir() and (folder / "mine.jpg").exists()


def test_a_damaged_photo_is_not_shown(published, tmp_path, unwatched, s3, caplog):
    image_id = image_ids(published)[0]
    digest = s3_files.list_objects(f"{URI}/photos/")
    for one in digest:
        s3.put_object(Bucket="market", Key=one.uri.removeprefix("s3://market/"), Body=b"other")
    with TestClient(api.create_app(settings(tmp_path / "cache"))) as client:
        assert client.get(f"/images/{image_id}.jpg").status_code == 503
    assert "is damaged: delete it, and publish again" in caplog.text


def test_clients_can_be_sent_to_the_bucket_for_photos(published, tmp_path, unwatched, s3_service, monkeypatch):
    image_id = image_ids(published)[0]
    with TestClient(api.create_app(settings(tmp_path / "cache", photo_redirects=True))) as client:
        answer = client.get(f"/images/{image_id}.jpg", follow_redirects=False)
        assert answer.status_code == 307 and "X-Amz-Signature" in answer.headers["Location"]
        assert f"X-Amz-Expires={photo_files.SIGNED_S}" in answer.headers["Location"]
        with urllib.request.urlopen(answer.headers["Location"]) as photo:
            assert photo.read() == (published / "images" / f"{image_id}.jpg").read_bytes()
            assert photo.headers["Content-Type"] == "image/jpeg"
        assert client.get("/images/nobody.jpg", follow_redirects=False).status_code == 404
        assert f"img-src 'self' {s3_service.url};" in client.get("/").headers["Content-Security-Policy"]
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        s3_server.forget_clients(monkeypatch)
        assert client.get(f"/images/{image_id}.jpg", follow_redirects=False).status_code == 503


@pytest.fixture
def two_services(published, tmp_path) -> SimpleNamespace:
    """Two processes of the API, each with a copy of its own."""
    processes, urls = [], []
    for name in ("a", "b"):
        command = [sys.executable, "-c", SERVE, str(tmp_path / name), URI, KEY]
        log = tmp_path / f"{name}.log"
        with log.open("w") as file:
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=dict(os.environ)))
    try:
        for name in ("a", "b"):
            log = tmp_path / f"{name}.log"
            wait_until(lambda log=log: "Application startup complete" in log.read_text())
            urls.append(log.read_text().partition("http://")[2].split()[0])
        yield SimpleNamespace(urls=[f"http://{url}" for url in urls], data_dir=published)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_two_processes_on_one_bucket_switch_while_they_answer_and_lose_nothing(two_services):
    first = generations.current_generation(two_services.data_dir / "index").name
    done, wrong, served = threading.Event(), [], {url: [] for url in two_services.urls}

    def ask(url: str) -> None:
        while not done.is_set():
            try:
                with urllib.request.urlopen(f"{url}/search?q=guitar&k=5", timeout=TIMEOUT_S) as answer:
                    generation, results = answer.headers["X-Generation"], json.load(answer)["results"]
            except urllib.error.URLError as error:
                wrong.append(repr(error))
                return
            served[url].append(generation)
            if not results or any(found["name"].startswith("New ") != (generation == "second") for found in results):
                wrong.append(results)

    threads = [threading.Thread(target=ask, args=(url,)) for url in two_services.urls for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for serve in ("second", first):
            if serve == "second":
                publish_second(two_services.data_dir)
            else:
                publish(two_services.data_dir / "index", first)
                publishing.publish(two_services.data_dir, URI, True, False)
            wait_until(lambda serve=serve: wrong or all(served[url] and served[url][-1] == serve for url in served))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == [] and all(set(served[url]) == {first, "second"} for url in served)
    assert bucket.read(URI)[0].generation == first


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (Path("data"), None)),
        (["--data", "elsewhere"], (Path("elsewhere"), None)),
        (["--data", "s3://market/index/"], (Path("data/serving"), "s3://market/index")),
        (["--data", "s3://market", "--cache", "there"], (Path("there"), "s3://market")),
    ],
)
def test_data_may_be_a_folder_or_a_bucket(flags, expected):
    parsed = api.parse_args(flags)
    assert (parsed.data_dir, parsed.bucket) == expected


def test_redirects_without_a_bucket_are_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        api.parse_args(["--photo-redirects"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("error: argument --photo-redirects: goes with an s3:// URI as --data\n")
