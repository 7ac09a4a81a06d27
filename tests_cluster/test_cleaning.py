"""clean_images.py --ray: the same files as without, from two machines that share nothing, whatever becomes of one."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests_cluster.conftest import CALLS, HEAD, LIMIT_S, PORT, Cluster, digests, error_of, running, wait_until
from tests_cluster.hosts import children

S3_PORT = 9000
DECODER = "decoders.main"


def cleaned(cluster: Cluster, data: Path, *flags: str, **env: str) -> tuple[dict, str]:
    """The summary, and stderr."""
    code, out, err = cluster.run("clean_images.py", data, *flags, **env)
    assert code == 0, err
    return json.loads(out), err


@pytest.mark.parametrize("address", ["auto", f"{HEAD}:{PORT}", f"ray://{HEAD}:10001"])
def test_two_machines_make_the_files_that_one_makes_and_both_work(cluster, uncleaned, cleaned_dir, address):
    summary, err = cleaned(cluster, uncleaned, "--ray", address)
    assert digests(uncleaned / "images") == digests(cleaned_dir / "images")
    assert all(int(calls) > 0 for calls in CALLS.search(err).groups()), err
    assert summary["cleaned"] == summary["kept"] + summary["rejected"]
    for host in (cluster.first, cluster.second):
        wait_until(lambda host=host: not host.is_running(DECODER))


def test_photos_of_a_zip_go_along_too(cluster, uncleaned, cleaned_dir, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", uncleaned / "raw" / "images")
    cleaned(cluster, uncleaned, "--ray", "auto", "--photos", archive)
    assert digests(uncleaned / "images") == digests(cleaned_dir / "images")


def test_with_and_without_a_cluster_it_is_the_same_run(cluster, uncleaned, cleaned_dir):
    cleaned(cluster, uncleaned, "--ray", "auto")
    summary, _ = cleaned(cluster, uncleaned)
    assert summary["unchanged"] is True
    (uncleaned / "images" / "manifest.json").unlink()
    summary, _ = cleaned(cluster, uncleaned)
    assert (summary["cleaned"], summary["removed"]) == (0, 0)
    assert json.loads((uncleaned / "images" / ".flags.json").read_text()).keys().isdisjoint({"ray", "workers"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_at_once_and_goes_on_without_the_cluster(cluster, uncleaned, cleaned_dir, number):
    with cluster.begin("clean_images.py", uncleaned, "--ray", "auto") as process:
        wait_until(lambda: len(list((uncleaned / "images").glob("*.jpg"))) > 1, process)  # so the first one is recorded
        os.kill(children(process.pid)[0], number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -number, err
    assert not (uncleaned / "images" / "manifest.json").exists()
    for host in (cluster.first, cluster.second):
        wait_until(lambda host=host: not host.is_running(DECODER))
    summary, _ = cleaned(cluster, uncleaned)
    assert summary["reused"] > 0
    assert digests(uncleaned / "images") == digests(cleaned_dir / "images")


def test_a_machine_that_dies_on_the_way_changes_nothing(uncleaned, cleaned_dir):
    with running() as cluster, cluster.begin("clean_images.py", uncleaned, "--ray", "auto") as process:
        wait_until(lambda: cluster.second.is_running(DECODER), process)
        cluster.second.kill()
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert json.loads(out)["stage"] == "images" and "first (10.77.0.1)" in err
    assert digests(uncleaned / "images") == digests(cleaned_dir / "images")


def test_a_cluster_that_is_gone_is_one_sentence(uncleaned):
    with running() as cluster, cluster.begin("clean_images.py", uncleaned, "--ray", f"ray://{HEAD}:10001") as process:
        wait_until(lambda: cluster.second.is_running(DECODER), process)
        cluster.first.must("bash", "-c", "kill -KILL $(pgrep -f '[r]ay.util.client.server')")  # what a ray:// address leads to
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert re.fullmatch(
        r"error: the Ray cluster failed \(\w+\): see ray status, and run it again; what is done is kept", error_of(err)
    )


# S3


@pytest.fixture
def bucket(cluster, uncleaned, tmp_path) -> Iterator[tuple[str, Path]]:
    """The address of an S3 on the first machine that holds the photos, and its log."""
    url, log = f"http://{HEAD}:{S3_PORT}", tmp_path / "s3.log"
    serve = f"exec {sys.executable} -m moto.server -H {HEAD} -p {S3_PORT} >{log} 2>&1"
    fill = f"""
import boto3, pathlib
client = boto3.client("s3", endpoint_url="{url}", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
client.create_bucket(Bucket="market")
for path in pathlib.Path("{uncleaned}/raw/images").iterdir():
    client.upload_file(str(path), "market", f"photos/{{path.name}}")
"""
    with cluster.first.begin("bash", "-c", serve) as server:
        try:
            wait_until(lambda: cluster.first.run("bash", "-c", f"</dev/tcp/{HEAD}/{S3_PORT}")[0] == 0)
            cluster.first.must(sys.executable, "-c", fill)
            yield url, log
        finally:
            for child in children(server.pid):
                os.kill(child, signal.SIGKILL)


def test_nodes_read_from_s3_with_credentials_of_their_own(cluster, uncleaned, cleaned_dir, bucket):
    url, log = bucket
    flags = ["--ray", "auto", "--photos", "s3://market/photos/"]
    own = {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "driver", "AWS_SECRET_ACCESS_KEY": "secret"}
    code, _, err = cluster.run("clean_images.py", uncleaned, *flags, **own)
    assert code == 1
    assert re.match(
        r"error: on the node (first|second) \(10\.77\.0\.\d\): no AWS credentials to read s3://market/photos/", error_of(err)
    )
    for host in (cluster.first, cluster.second):
        host.must("bash", "-c", "printf '[default]\\naws_access_key_id=node\\naws_secret_access_key=own\\n' >/dev/shm/aws")
    cleaned(cluster, uncleaned, *flags, **own)
    assert digests(uncleaned / "images") == digests(cleaned_dir / "images")
    readers = {line.partition(" ")[0] for line in log.read_text().splitlines() if '"GET /market/photos/' in line}
    assert readers == {"10.77.0.1", "10.77.0.2"}
