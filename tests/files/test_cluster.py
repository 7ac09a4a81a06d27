"""--ray as far as it goes without Ray; what it does with a cluster is in tests_cluster/."""

import argparse
import os
import signal
import socket
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import clean_images
import extract_embeddings
from marketplace.cleaning import decoders, photos, pool
from marketplace.cleaning.sources import Photo
from marketplace.files import cli, cluster, stages
from marketplace.files.stages import StageError
from marketplace.models import photo_model as model
from marketplace.models import photo_nodes
from tests.cleaning.test_decoders import slow_photo
from tests.test_clean_images import good_photos, write_folder


class Nodes(ThreadPoolExecutor):
    """Threads in the place of a cluster's cores."""

    count, n_gpus = 2, 0

    def put(self, value):
        return value


@pytest.fixture
def nodes():
    with Nodes(2) as nodes:
        yield nodes


def tasks(folder, files: dict[str, bytes]) -> list[pool.Task]:
    write_folder(folder, files)
    return [pool.Task(Photo(name, str(folder / name), "", len(data)), "") for name, data in files.items()]


@pytest.mark.parametrize("text", ["auto", "local", "10.0.0.1:6379", "ray://head.lan:10001", "[fd00::1]:6379"])
def test_an_address_of_a_cluster_is_taken(text):
    assert clean_images.parse_args(["--ray", text]).ray == extract_embeddings.parse_args(["--ray", text]).ray == text


@pytest.mark.parametrize("text", ["", "head", "http://head:6379", "head:port", "ray://head", "a b:1"])
def test_anything_else_is_a_usage_error(text):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        cli.ray_address(text)
    assert str(caught.value) == f"{text!r} is neither auto, nor local, nor HOST:PORT, nor ray://HOST:PORT"


@pytest.mark.parametrize("script", [clean_images, extract_embeddings])
def test_without_ray_the_flag_is_one_sentence_and_what_was_made_stays_finished(script, demo_dir, monkeypatch, capsys):
    name = "images" if script is clean_images else "embeddings"
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(stages.Stage, "is_done", lambda self: False)
    monkeypatch.setattr(stages.Stage, "begin", lambda self: pytest.fail("it begins to write"))
    assert script.main(["--data", str(demo_dir), "--ray", "auto"]) == 1
    wanted = "python -m pip install -r requirements.txt -r requirements-ray.txt -c constraints.txt"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: --ray needs Ray, which is not installed: run {wanted}"
    assert (demo_dir / name / "manifest.json").exists()


class Ray(SimpleNamespace):
    """In Ray's place: a cluster that cannot be entered, or whose calls fail."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            cause: Exception | None = None

    def __init__(self, at_init: Exception | None = None):
        super().__init__(__name__="ray", ended=0)
        self.at_init = at_init

    def init(self, address, **options):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        self.options = options
        if self.at_init:
            raise self.at_init

    def remote(self, **options):
        return lambda function: function

    def cluster_resources(self):
        return {"CPU": 2.0, "GPU": 1.0}

    def shutdown(self):
        self.ended += 1


def sentence_of(ray: Ray, monkeypatch, address: str = "auto", error: Exception | None = None) -> str:
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(StageError) as caught, cluster.connect(address):
        raise error
    assert ray.ended == 1 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    return str(caught.value)


def test_what_is_wrong_with_a_cluster_is_one_sentence(monkeypatch):
    mismatch = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n")
    assert sentence_of(Ray(mismatch), monkeypatch) == (
        "the Ray cluster at auto does not take this machine (Version mismatch: The cluster was started with: Ray: 2.59.0 "
        f"Python: 3.12.1): run {cluster.INSTALL} on all, with one Python"
    )
    assert sentence_of(Ray(ConnectionError("Could not find any running Ray instance.")), monkeypatch) == (
        "no Ray cluster answers at auto: start one with ray start --head, or give its address"
    )
    assert sentence_of(Ray(Ray.exceptions.RayError("no token")), monkeypatch) == (
        "the Ray cluster at auto does not take this machine (no token): give it the token of the cluster (RAY_AUTH_TOKEN_PATH), "
        "and run ray start on it or take ray://HOST:10001"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"ray://127.0.0.1:{free.getsockname()[1]}"
    assert sentence_of(Ray(), monkeypatch, address) == (
        f"no Ray cluster answers at {address}: start one with ray start --head, or give its address"
    )


def test_what_fails_on_a_node_is_one_sentence_and_a_bug_keeps_its_traceback(monkeypatch):
    class Lost(Ray.exceptions.RayError):
        pass

    assert sentence_of(Ray(), monkeypatch, error=Lost("raylet died\nfor a reason")) == (
        "the Ray cluster failed (Lost): see ray status, and run it again; what is done is kept"
    )
    failed = Ray.exceptions.RayTaskError("traceback")
    failed.cause = StageError("on the node b (10.0.0.2): no AWS credentials")
    assert sentence_of(Ray(), monkeypatch, error=failed) == "on the node b (10.0.0.2): no AWS credentials"
    failed = Ray.exceptions.RayTaskError("The remote function failed to import.\nModuleNotFoundError: No module named 'orjson'\n")
    assert sentence_of(Ray(), monkeypatch, error=failed) == (
        "a node of the cluster lacks a package (ModuleNotFoundError: No module named 'orjson'): run pip install "
        "-r requirements.txt -r requirements-ray.txt -c constraints.txt on every node"
    )
    bug = Ray.exceptions.RayTaskError("IndexError on node b")
    bug.cause = IndexError()
    monkeypatch.setitem(sys.modules, "ray", Ray())
    with pytest.raises(Ray.exceptions.RayTaskError), cluster.connect("auto"):
        raise bug


def test_endpoint_and_region_are_passed_on_and_credentials_are_not(monkeypatch):
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
    ):
        monkeypatch.setenv(name, name.lower())
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with cluster.connect("auto") as cores:
        assert (cores.count, cores.n_gpus) == (2, 1)
    passed_on = {"AWS_ENDPOINT_URL": "aws_endpoint_url", "AWS_REGION": "aws_region"}
    assert ray.options["runtime_env"]["env_vars"] == passed_on and ray.options["log_to_driver"] is False
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_results_come_in_order_while_so_many_are_under_way():
    futures = [Future() for _ in range(5)]
    begun = []

    def submit(item: int) -> Future:
        begun.append(item)
        if item == 3:  # the first ones are done last
            for future in reversed(futures[:3]):
                future.set_result(futures.index(future) * 10)
        if item >= 3:
            futures[item].set_result(item * 10)
        return futures[item]

    results = cluster.in_order(submit, range(5), 4)
    assert next(results) == (0, 0) and begun == [0, 1, 2, 3]
    assert list(results) == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert list(cluster.in_order(submit, [], 4)) == []


def test_nodes_give_what_processes_here_give_and_keep_their_decoder(tmp_path, nodes):
    todo = tasks(tmp_path, good_photos(20) | {"bad.jpg": b"no photo", "empty.jpg": b""})
    (tmp_path / "empty.jpg").unlink()
    todo[3] = pool.Task(todo[3].photo, next(pool.clean_all(todo[3:4], None, photos.DEFAULTS, True, 1))[1].content)
    here = list(pool.clean_all(todo, None, photos.DEFAULTS, True, 2))
    assert list(pool.clean_all(todo, None, photos.DEFAULTS, True, 2, nodes)) == here
    assert [result.row and result.row["reason"] for _, result in here[-2:]] == ["not_an_image", "read_error"]
    assert here[3][1].row is None
    own = pool._own_decoder(pool._limits(photos.DEFAULTS))
    before = own.pids()
    pool.clean_chunk([here[0][1], (todo[1].photo.name.encode(), "")], photos.DEFAULTS, True)
    assert own.pids() == before


def test_a_hostile_photo_meets_the_same_limits_on_a_node(tmp_path, nodes, monkeypatch):
    monkeypatch.setattr(decoders, "BATCH_CPU_S", 0.5)
    files = good_photos(3)
    todo = tasks(tmp_path, {"photo-0.jpg": files["photo-0.jpg"], "slow.png": slow_photo(), "photo-2.jpg": files["photo-2.jpg"]})
    results = pool.clean_all(todo, None, photos.DEFAULTS, True, 2, nodes)
    assert [result.row["reason"] for _, result in results] == ["", "too_slow", ""]


def test_a_decoder_that_cannot_start_on_a_node_is_a_sentence(monkeypatch):
    monkeypatch.setattr(decoders, "COMMAND", "raise SystemExit(3)")
    monkeypatch.setattr(decoders, "BATCH_CPU_S", 29)  # another decoder than the other tests'
    with pytest.raises(StageError, match="^a process that decodes photos cannot start"):
        pool.clean_chunk([(b"photo", "")], photos.DEFAULTS, True)


@pytest.fixture
def on_nodes(demo_dir, nodes, monkeypatch):
    monkeypatch.setattr(cluster, "get", lambda shared: shared)
    monkeypatch.setattr(photo_nodes, "_open", photo_nodes._open.__wrapped__)  # a dictionary in an ObjectRef's place has no hash
    return photo_nodes.PhotoModelOnNodes(demo_dir / "model", "auto", nodes, None)


def test_nodes_give_the_vectors_of_this_machine(demo_dir, on_nodes):
    here = model.PhotoModel(demo_dir / "model", "auto", "cpu", threads=1)
    assert (on_nodes.runtime, on_nodes.precision) == (here.runtime, here.precision)
    image_ids = sorted(path.stem for path in (demo_dir / "images").glob("*.jpg"))[:11]
    expected = list(extract_embeddings.run_photos(here, demo_dir / "images", image_ids, 1, 4))
    found = list(extract_embeddings.run_photos(on_nodes, demo_dir / "images", image_ids, 1, 4))
    for there, own in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        assert b"".join(array.tobytes() for array in there) == b"".join(array.tobytes() for array in own)


def test_a_node_of_another_precision_is_refused(demo_dir, on_nodes):
    on_nodes.precision = "fp16"
    image_id = next((demo_dir / "images").glob("*.jpg")).stem
    with pytest.raises(StageError) as caught:
        list(on_nodes.run_photos(demo_dir / "images", [[image_id]], 4))
    precision = model.PhotoModel(demo_dir / "model", "auto", "cpu").precision
    assert str(caught.value) == (
        f"the photo model runs in {precision} here and in fp16 elsewhere, which gives other vectors: "
        "take the node out of the cluster, or give --device cpu --runtime onnx, which is the same everywhere"
    )


def test_a_damaged_photo_is_named_by_its_path_on_this_machine(demo_dir, on_nodes, tmp_path):
    write_folder(tmp_path, {"a.jpg": b"damaged"})
    with pytest.raises(StageError) as caught:
        list(on_nodes.run_photos(tmp_path, [["a"]], 4))
    assert str(caught.value) == f"{tmp_path / 'a.jpg'} is damaged: run python clean_images.py again"
