"""What of Milvus needs no server and no pymilvus; tests_cluster/ has the rest."""

import re
import sys

import numpy as np
import pytest

import api
import build_index
import recommend
from marketplace.files.stages import StageError
from marketplace.retrieval import milvus
from marketplace.retrieval.filters import Conditions
from marketplace.retrieval.milvus import Server


@pytest.mark.parametrize(
    ("uri", "address", "name"),
    [
        ("milvus://vectors", "http://vectors:19530", "marketplace"),
        ("milvus://10.0.0.7:1234/", "http://10.0.0.7:1234", "marketplace"),
        ("milvus://[::1]:1234/shop_2", "http://[::1]:1234", "shop_2"),
        ("milvus+tls://vectors.example/shop", "https://vectors.example:19530", "shop"),
    ],
)
def test_a_server_is_told_by_one_uri(uri, address, name):
    assert Server.parse(uri) == Server(uri, address, name)


@pytest.mark.parametrize("script", [api, build_index, recommend])
@pytest.mark.parametrize(
    "uri", ["vectors:19530", "http://vectors", "milvus://", "milvus://a:99999", "milvus://a/1b", "milvus://me:secret@a"]
)
def test_what_is_no_such_uri_is_told(script, uri, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.parse_args(["--vectors", uri])
    expected = f"{uri!r} is not of the form milvus://host:port or milvus://host:port/name; a token goes into MILVUS_TOKEN\n"
    assert stopped.value.code == 2 and capsys.readouterr().err.endswith(f"error: argument --vectors: {expected}")


@pytest.mark.parametrize("flags", [["--kind", "ivf"], ["--max-memory", "1000000"]])
def test_what_is_of_an_index_in_files_does_not_go_with_a_server(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        build_index.parse_args(["--vectors", "milvus://vectors", *flags])
    expected = "argument --vectors: goes with neither --kind ivf nor --max-memory, which are of an index in files\n"
    assert stopped.value.code == 2 and capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize(
    ("conditions", "expression"),
    [
        (Conditions(), ""),
        (Conditions(categories=np.array([3, 5])), "category in [3, 5]"),
        (Conditions(categories=np.array([], np.int64)), "category in []"),
        (Conditions(places=np.array([7]), min_price=2.5), "place in [7] and price >= 2.5"),
        (Conditions(max_price=9.0), "price >= 0.0 and price <= 9.0"),  # -1 is no price
        (Conditions(min_price=1.0, max_price=9.0, hidden=np.array([8, 9])),
         "price >= 1.0 and price <= 9.0 and not (listing in [8, 9])"),
    ],
)  # fmt: skip
def test_conditions_as_milvus_takes_them(conditions, expression):
    assert milvus.expression_of(conditions) == expression


def test_without_its_client_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(StageError, match="^milvus://a needs pymilvus: run pip install -r requirements-milvus.txt$"):
        Server.parse("milvus://a").client()


def test_a_server_for_a_generation_whose_vectors_are_in_its_files_is_refused(tmp_path):
    message = f"the vectors of {tmp_path} are in its files: leave --vectors out, or give it to build_index.py first"
    with pytest.raises(StageError, match=f"^{re.escape(message)}$"):
        milvus.open_vectors(tmp_path, "photos", Server.parse("milvus://a"))
