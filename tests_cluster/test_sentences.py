"""What --ray says when the cluster is not as it should be."""

import re

import pytest

from tests_cluster.conftest import HEAD, PORT, error_of

REFUSED = (
    r"error: the Ray cluster at {} does not take this machine \(.+\): give it the token of the cluster "
    r"\(RAY_AUTH_TOKEN_PATH\), and run ray start on it or take ray://HOST:10001"
)


@pytest.mark.parametrize("address", [f"{HEAD}:1", f"ray://{HEAD}:1"])
def test_nothing_at_an_address(cluster, uncleaned, address):
    code, _, err = cluster.run("clean_images.py", uncleaned, "--ray", address)
    expected = f"error: no Ray cluster answers at {address}: start one with ray start --head, or give its address"
    assert (code, error_of(err)) == (1, expected)


@pytest.mark.parametrize("address", ["auto", f"{HEAD}:{PORT}", f"ray://{HEAD}:10001"])
@pytest.mark.parametrize("token", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}], ids=["wrong", "none"])
def test_another_token_or_none(cluster, uncleaned, address, token):
    code, _, err = cluster.run("clean_images.py", uncleaned, "--ray", address, **token)
    assert code == 1
    assert re.fullmatch(REFUSED.format(re.escape(address)), error_of(err)), err
