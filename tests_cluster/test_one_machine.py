"""Where namespaces are not allowed: two nodes of Ray's own test cluster on this machine."""

import shutil

import pytest
from ray.cluster_utils import Cluster

import clean_images
from tests_cluster.conftest import digests

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}


@pytest.fixture
def nodes():
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_two_nodes_make_the_files_that_this_process_makes_and_one_of_them_too(nodes, uncleaned, cleaned_dir):
    second = nodes.add_node(**NODE)
    for _ in range(2):
        assert clean_images.main(["--data", str(uncleaned), "--ray", nodes.address]) == 0
        assert digests(uncleaned / "images") == digests(cleaned_dir / "images")
        shutil.rmtree(uncleaned / "images")
        if second:
            nodes.remove_node(second, allow_graceful=False)
            second = None
