"""Vectors in Milvus: what every engine must do, a generation's life on a server, and an outage.

The server is the real one, from PyPI's wheel. It listens on all interfaces, so it runs in a network namespace of its own, which
this machine alone reaches.
"""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from marketplace.retrieval import milvus
from marketplace.retrieval.milvus import MilvusIndex, Server
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
