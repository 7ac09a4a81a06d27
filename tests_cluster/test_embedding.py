"""extract_embeddings.py --ray: the vectors of one machine, from two that share nothing; none of another precision."""

import base64
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests_cluster.conftest import CALLS, LIMIT_S, Cluster, digests, error_of, running, wait_until
from tests_cluster.hosts import ROOT

# A second machine whose 8-bit kernels are wrong, as those of some processors are: the probe of the model finds it out there.
WRONG_8_BITS = """
import importlib.abc
import importlib.util
import sys


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "onnxruntime":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)

            class Session(module.InferenceSession):
                def __init__(self, path, *args, **options):
                    super().__init__(path, *args, **options)
                    self.in_8_bits = path.endswith("int8.onnx")

                def run(self, *args):
                    vectors, *others = super().run(*args)
                    return [vectors[:, ::-1] if self.in_8_bits else vectors, *others]

            module.InferenceSession = Session

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""
CALLS_OF_GPUS = """
import subprocess
import sys
from marketplace.files import cluster

with cluster.connect("auto") as cores, cores.gpus() as gpus:
    for future in [gpus.submit(subprocess.getoutput, "sleep 0.2; hostname") for _ in range(60)]:
        print(future.result(), file=sys.__stdout__, flush=True)
"""


@pytest.fixture
def unembedded(demo_dir, tmp_path) -> Path:
    """A copy of the finished pipeline without the vectors."""
    shutil.copytree(demo_dir, tmp_path / "data", ignore=shutil.ignore_patterns("raw", "index", "features", "tensorboard"))
    shutil.rmtree(tmp_path / "data" / "embeddings")
    return tmp_path / "data"


def embed(cluster: Cluster, data: Path, *flags: str) -> tuple[dict, str]:
    """The summary, and stderr."""
    code, out, err = cluster.run("extract_embeddings.py", data, "--device", "cpu", *flags)
    assert code == 0, err
    return json.loads(out), err


def test_two_machines_give_the_vectors_of_one_byte_by_byte_and_both_work(cluster, unembedded, demo_dir):
    """Both are this processor, whose kernels give a photo the same vector on one core as on several."""
    summary, err = embed(cluster, unembedded, "--ray", "auto")
    assert digests(unembedded / "embeddings") == digests(demo_dir / "embeddings")
    assert all(int(calls) > 0 for calls in CALLS.search(err).groups()), err
    assert summary["precision"] == json.loads((demo_dir / "embeddings" / "manifest.json").read_text())["counts"]["precision"]
    summary, _ = embed(cluster, unembedded)
    assert summary["unchanged"] is True


def test_a_machine_that_dies_on_the_way_changes_no_vector(unembedded, demo_dir):
    with running() as cluster, cluster.begin("extract_embeddings.py", unembedded, "--device", "cpu", "--ray", "auto") as process:
        wait_until(lambda: cluster.second.is_running("ray::_run"), process)
        cluster.second.kill()
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert digests(unembedded / "embeddings") == digests(demo_dir / "embeddings")


def test_a_machine_whose_8_bits_give_other_vectors_is_refused_and_fp32_is_not(unembedded):
    assert json.loads((unembedded / "model" / "image_model.json").read_text())["int8"]["used"], "nothing to refuse"
    encoded = base64.b64encode(WRONG_8_BITS.encode()).decode()
    setup = ("mkdir /tmp/odd", f"echo {encoded} | base64 --decode >/tmp/odd/sitecustomize.py")
    with running(worker_setup=setup, PYTHONPATH="/tmp/odd") as cluster:
        code, _, err = cluster.run("extract_embeddings.py", unembedded, "--device", "cpu", "--ray", "auto")
        assert (code, error_of(err)) == (
            1,
            "error: on the node second (10.77.0.2): the photo model runs in fp32 here and in int8 elsewhere, which gives other "
            "vectors: take the node out of the cluster, or give --device cpu --runtime onnx, which is the same everywhere",
        )
        _, err = embed(cluster, unembedded, "--runtime", "onnx", "--ray", "auto")
        assert all(int(calls) > 0 for calls in CALLS.search(err).groups()), err
        vectors = np.load(unembedded / "embeddings" / "vectors.npy")
        shutil.rmtree(unembedded / "embeddings")
        embed(cluster, unembedded, "--runtime", "onnx")
    np.testing.assert_array_equal(vectors, np.load(unembedded / "embeddings" / "vectors.npy"))


def test_calls_of_gpus_are_spread_over_long_lived_processes_and_survive_a_machine(unembedded):
    """The machines say that they have a GPU each; what needs a real one is refused."""
    with running("--num-gpus=1") as cluster:
        code, _, err = cluster.run("extract_embeddings.py", unembedded, "--ray", "auto")
        assert code == 1
        assert "the photo model runs in fp32 here and in bf16 elsewhere" in error_of(err)
        with cluster.first.begin(sys.executable, "-c", CALLS_OF_GPUS, env={"PYTHONPATH": str(ROOT)}) as process:
            lines = [process.stdout.readline()]
            while lines[-1] not in ("second\n", ""):
                lines.append(process.stdout.readline())
            cluster.second.kill()
            lines += process.stdout.readlines()  # communicate() would miss what was read ahead
            err = process.stderr.read()
    assert process.returncode == 0, err
    assert len(lines) == 60 and set(lines) == {"first\n", "second\n"} and lines[-1] == "first\n"
