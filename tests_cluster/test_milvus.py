"""Vectors in Milvus: what every engine must do, a generation's life on a server, and an outage.

The server is the real one, from PyPI's wheel. It listens on all interfaces, so it runs in a network namespace of its own, which
this machine alone reaches.
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

import api
import build_index
import recommend
from marketplace.files import generations, reading
from marketplace.files.stages import StageError
from marketplace.retrieval import milvus
from marketplace.retrieval.filters import Filters
from marketplace.retrieval.milvus import MilvusIndex, Server
from marketplace.retrieval.open_index import OpenIndex
from marketplace.retrieval.vectors import Unavailable
from marketplace.service.settings import Settings
from tests.retrieval.vector_contract import Shop, VectorContract

OURS, THEIRS = "10.213.77.1", "10.213.77.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="session")
def link() -> Iterator[str]:
    """A namespace that a pair of interfaces joins to this one; the name of both, and of the near end."""
    name = f"mv{os.getpid()}"
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here ({error})")
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        ip("address", "add", f"{OURS}/30", "dev", name)
        ip("-n", name, "address", "add", f"{THEIRS}/30", "dev", "far")
        for where, interface in (([], name), (["-n", name], "far"), (["-n", name], "lo")):
            ip(*where, "link", "set", interface, "up")
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", name], capture_output=True)
        ip("netns", "delete", name)


@pytest.fixture(scope="session")
def server(link, tmp_path_factory) -> Iterator[Server]:
    """Milvus 2.3.5, in the namespace."""
    command = ["ip", "netns", "exec", link, str(Path(sys.executable).with_name("milvus-server")), "--data"]
    process = subprocess.Popen([*command, str(tmp_path_factory.mktemp("milvus"))], stdout=subprocess.PIPE, text=True)
    try:
        told = [line for line in itertools.takewhile(lambda line: "Ctrl+C" not in line, process.stdout)]
        assert process.poll() is None, told
        yield Server.parse(f"milvus://{THEIRS}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


class Milvus:
    """Collections of shops, on a server or in a file."""

    def __init__(self, server: Server, kind: str):
        self.server, self.kind, self._numbers = server, kind, itertools.count()

    def build(self, shop: Shop) -> MilvusIndex:
        own = {name: values[shop.listings.listing_of_photo] for name, values in shop.listings.numbers().items()}
        name = self.server.collection(f"{next(self._numbers):012x}", "photos")
        place = milvus.write(self.server, name, shop.vectors, shop.keys, own, self.kind, recall=0.98)
        milvus.write_places(shop.folder, self.server, {"photos": place})
        np.save(shop.folder / "photo_keys.npy", shop.keys)
        return milvus.open_vectors(shop.folder, "photos")

    def update(self, before: Shop, after: Shop) -> MilvusIndex:
        return self.build(after)


@pytest.mark.parametrize("kind", ["flat", "hnsw"], scope="class")
class TestServer(VectorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, server, kind) -> Milvus:
        return Milvus(Server(server.uri, server.address, f"{kind}_contract"), kind)


class TestLite(VectorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tmp_path_factory) -> Milvus:
        return Milvus(Server("milvus-lite", str(tmp_path_factory.mktemp("lite") / "shop.db")), "hnsw")


# A generation's life


@pytest.fixture
def built(demo_dir, server, tmp_path) -> tuple[Path, Server]:
    """A data folder, and a server with a name of its own for it."""
    shutil.copytree(demo_dir, tmp_path / "data")
    return tmp_path / "data", Server.parse(f"{server.uri}/t{os.urandom(4).hex()}")


def build(data_dir: Path, server: Server, *flags: str) -> Path:
    """The generation that is published then."""
    assert build_index.main(["--data", str(data_dir), "--vectors", server.uri, *flags]) == 0
    return generations.current_generation(data_dir / "index")


def answers(index: OpenIndex) -> list:
    """Of some listings and some words, with filters and without."""
    category = index.catalogue.names["category"][0]
    found = []
    for filters in (Filters(), Filters(category=category), Filters(max_price=80.0), Filters(min_price=20.0)):
        for row in range(0, index.catalogue.n_products, 7):
            found.append([(hit.row, hit.photo_row) for hit in index.like(index.query_of(row), 8, filters)])
        for listing in index.catalogue.products(range(0, index.catalogue.n_products, 9), ["name"]):
            found.append([one["product_id"] for one in index.search(index.typed(listing["name"]), 8, filters).results])
    return found


def aliased(server: Server) -> dict[str, list[str]]:
    """The collections with a server's name, and the aliases of each."""
    client = server.client()
    return {name: client.list_aliases(name)["aliases"] for name in server.collections()}


def test_an_index_in_milvus_answers_as_one_in_files_does(built, demo_dir, capsys):
    data_dir, server = built
    folder = build(data_dir, server)
    assert not [path.name for path in folder.iterdir() if path.suffix == ".faiss" or path.name.endswith("vectors.npy")]
    report = reading.read_json(folder / "report.json")
    assert (report["index"]["kind"], report["index"]["recall_at_10"]) == ("FLAT", 1.0)
    in_files = OpenIndex(generations.current_generation(demo_dir / "index"))
    in_milvus = OpenIndex(folder)
    expected = answers(in_files)
    assert answers(in_milvus) == expected and any(expected)
    hidden = [listing["product_id"] for listing in in_files.catalogue.products(range(0, 30, 2), ["product_id"])]
    assert answers(in_milvus.hiding(hidden)) == answers(in_files.hiding(hidden))
    capsys.readouterr()
    assert build(data_dir, server) == folder and json.loads(capsys.readouterr().out)["unchanged"]
    assert recommend.main(["--data", str(data_dir), "--k", "3", "--workers", "1"]) == 0


def test_collections_come_and_go_with_their_generations_and_the_aliases_follow(built):
    data_dir, server = built
    first, second, third = (build(data_dir, server, "--recall", recall) for recall in ("0.91", "0.92", "0.93"))
    assert not first.exists()
    kinds = milvus.read_places(third)[1]
    kept = {server.collection(one.name, kind): [] for one in (second, third) for kind in kinds}
    pointed = {server.collection(third.name, kind): [server.alias(kind)] for kind in kinds}
    assert aliased(server) == kept | pointed
    assert build_index.main(["--data", str(data_dir), "--serve", second.name]) == 0
    pointed = {server.collection(second.name, kind): [server.alias(kind)] for kind in kinds}
    assert aliased(server) == kept | pointed
    for recall in ("0.94", "0.95"):  # in files again
        assert build_index.main(["--data", str(data_dir), "--recall", recall]) == 0
    assert aliased(server) == {}


def test_a_collection_that_is_not_the_generations_is_refused_and_made_again(built):
    data_dir, server = built
    folder = build(data_dir, server)
    name, client = server.collection(folder.name, "listings"), server.client()
    client.drop_alias(server.alias("listings"))
    client.drop_collection(name)
    place = milvus.read_places(folder)[1]["listings"]
    listings, dimension = place.rows, place.dimension
    held = f"is not there, and the generation has {listings} of {dimension}: run python build_index.py --full"
    message = f"{name} in {server.uri} {held}"
    with pytest.raises(StageError, match=f"^{re.escape(message)}$"):
        OpenIndex(folder)
    rows = np.eye(3, dimension, dtype=np.float32)
    milvus.write(server, name, rows, np.arange(3), {"place": np.zeros(3, np.int64)})
    with pytest.raises(StageError, match=re.escape(f"holds 3 vectors of {dimension}, and the generation has {listings} of")):
        OpenIndex(folder)
    again = build(data_dir, server)
    assert again.name == f"{folder.name}-2" and milvus.are_there(again)


def test_the_names_of_another_folders_collections_are_refused(built, tmp_path, capsys):
    data_dir, server = built
    shutil.copytree(data_dir, tmp_path / "other")
    name = server.collection(build(data_dir, server).name, "listings")
    before = aliased(server)
    assert build_index.main(["--data", str(tmp_path / "other"), "--vectors", server.uri]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {name} in {server.uri} is served, and is of no generation in {tmp_path / 'other' / 'index'}: give a name of its "
        "own to this folder, as milvus://host:port/name, or drop that collection first"
    )
    assert aliased(server) == before


# An outage


@pytest.fixture
def cut(link) -> Iterator[SimpleNamespace]:
    """off() cuts the way to the server, until mend() or the end of the test."""
    cut = SimpleNamespace(off=lambda: ip("link", "set", link, "down"), mend=lambda: ip("link", "set", link, "up"))
    yield cut
    cut.mend()


def test_where_no_server_answers_nothing_is_built(built, capsys):
    data_dir, _ = built
    served = (data_dir / "index" / "current.json").read_bytes()
    nowhere = f"milvus://{THEIRS}:1"
    assert build_index.main(["--data", str(data_dir), "--vectors", nowhere]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"error: Milvus at {nowhere} fails \(.*\): see that it runs, or give another --vectors", error)
    assert (data_dir / "index" / "current.json").read_bytes() == served


def test_an_index_that_milvus_cannot_build_is_told_in_a_sentence(server, monkeypatch):
    monkeypatch.setattr(type(server.client()), "describe_index", lambda *_, **__: {"state": "Failed"})
    message = f"Milvus at {server.uri} could not index failing: see its log, and run this again"
    with pytest.raises(Unavailable, match=f"^{re.escape(message)}$"):
        milvus.write(server, "failing", np.eye(3, dtype=np.float32), np.arange(3), {})


def test_an_outage_is_told_in_a_sentence_and_ends_by_itself(built, cut, caplog):
    data_dir, server = built
    build(data_dir, server)
    with TestClient(api.create_app(Settings(data_dir))) as client:
        products = reading.read_csv(data_dir / "tabular" / "products.csv")
        similar = f"/products/{products['product_id'].iloc[0]}/similar"
        before = client.get(similar).json()["results"]
        assert before and client.get("/readyz").status_code == 200
        cut.off()
        response = client.get(similar)
        assert (response.status_code, response.json()) == (503, {"detail": "the vectors cannot be searched now: try again"})
        assert response.headers["Retry-After"] and server.uri in caplog.text
        assert client.get("/readyz").status_code == 503 and client.get("/healthcheck").status_code == 200
        cut.mend()
        assert client.get(similar).json()["results"] == before and client.get("/readyz").status_code == 200
