import hashlib
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from marketplace.files import s3 as s3_files
from tests import s3_server
from tests.files.asked import files_below, sentence_of

s3, s3_service = s3_server.s3, s3_server.s3_service


READ_FAILED = "S3 cannot be read for {uri} ({reason}): check the network, AWS_ENDPOINT_URL and AWS_PROFILE"
ODD_KEYS = [
    *("plain.jpg", "a b.jpg", "a  b .jpg", "a?b=c.jpg", "a#b.jpg", "100%.jpg", "a%20b.jpg", "a%2Fb.jpg", "a+b.jpg", "a&b.jpg"),
    *(
        "é.jpg",
        "e\u0301.jpg",
        "日本/写真.jpg",
        "😀.jpg",
        "a//b.jpg",
        "a=b;c,d.jpg",
        "quo'te\".jpg",
        "<tag>.jpg",
        "back\\slash.jpg",
    ),
]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("s3://b/k", True), ("s3:/b/k", False), ("data/s3://b", False), (Path("data/raw"), False), ("http://b/k", False)],
)
def test_only_uris_that_begin_with_s3_are_s3(uri, expected):
    assert s3_files.is_s3(uri) is expected


def test_a_local_path_is_its_own_local_file(tmp_path):
    path = tmp_path / "Products.csv"
    path.write_bytes(b"1")
    assert s3_files.local_file(path, tmp_path / "cache") == path
    assert s3_files.local_file(str(path), tmp_path / "cache") == path
    assert not (tmp_path / "cache").exists()


def test_a_local_path_that_is_no_file_is_a_sentence(tmp_path):
    for path in (tmp_path / "gone.csv", tmp_path):
        expected = f"{path} does not exist: give its path or s3:// URI"
        assert sentence_of(s3_files.local_file, path, tmp_path / "cache") == expected


@pytest.mark.parametrize("size", [0, 10, 9_000_000], ids=["empty", "small", "in several parts"])
def test_an_s3_object_is_copied_whole(size, s3, tmp_path):
    data = np.random.default_rng(0).bytes(size)
    s3.put_object(Bucket="market", Key="raw/Products.csv", Body=data)
    copy = s3_files.local_file("s3://market/raw/Products.csv", tmp_path)
    assert copy.name == "Products.csv" and copy.read_bytes() == data
    assert [path for path in tmp_path.rglob("*.tmp*")] == []


def test_a_copy_is_reused_until_the_object_changes(s3, tmp_path):
    uri = "s3://market/Products.csv"
    s3.put_object(Bucket="market", Key="Products.csv", Body=b"old")
    copy = s3_files.local_file(uri, tmp_path)
    made = copy.stat().st_ino, copy.stat().st_mtime_ns
    assert s3_files.local_file(uri, tmp_path) == copy
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == made
    s3.put_object(Bucket="market", Key="Products.csv", Body=b"new")  # as long as the old one
    assert s3_files.local_file(uri, tmp_path).read_bytes() == b"new"


def test_a_copy_without_its_etag_is_made_again_and_takes_the_leftovers_of_a_killed_one_away(s3, tmp_path):
    s3.put_object(Bucket="market", Key="a.zip", Body=b"whole")
    copy = s3_files.local_file("s3://market/a.zip", tmp_path)
    copy.with_name("a.zip.etag").unlink()
    copy.write_bytes(b"stale")
    copy.with_name(".a.zip.77.tmp.1b2C3d4E").write_bytes(b"half")  # s3transfer's own temporary name
    assert s3_files.local_file("s3://market/a.zip", tmp_path).read_bytes() == b"whole"
    assert sorted(files_below(copy.parent)) == ["a.zip", "a.zip.etag"]


def test_objects_of_one_name_in_different_places_have_copies_of_their_own(s3, tmp_path):
    for key in ("a/Products.csv", "b/Products.csv"):
        s3.put_object(Bucket="market", Key=key, Body=key.encode())
    copies = [s3_files.local_file(f"s3://market/{key}", tmp_path) for key in ("a/Products.csv", "b/Products.csv")]
    assert [copy.read_bytes() for copy in copies] == [b"a/Products.csv", b"b/Products.csv"]


def test_a_key_of_any_spelling_can_be_copied(s3, tmp_path):
    for key in [*ODD_KEYS, "写" * 300 + ".zip", "a/..", "folder/", ".hidden"]:
        s3.put_object(Bucket="market", Key=key, Body=key.encode())
        copy = s3_files.local_file(f"s3://market/{key}", tmp_path / "cache")
        assert copy.read_bytes() == key.encode()
        assert copy.parent.parent == tmp_path / "cache"


def test_objects_are_listed_in_the_order_of_their_keys_and_each_can_be_read(s3):
    for key in ODD_KEYS:
        s3.put_object(Bucket="market", Key=f"photos/{key}", Body=key.encode())
    s3.put_object(Bucket="market", Key="other/a.jpg", Body=b"1")
    listed = s3_files.list_objects("s3://market/photos/")
    assert [entry.uri for entry in listed] == [f"s3://market/photos/{key}" for key in sorted(ODD_KEYS)]
    for entry in listed:
        data = entry.uri.removeprefix("s3://market/photos/").encode()
        assert s3_files.read_object(entry.uri) == data
        assert (entry.size, entry.etag) == (len(data), hashlib.md5(data).hexdigest())


def test_a_prefix_that_looks_like_an_url_with_a_query_is_taken_as_it_stands(s3):
    for key in ("a?x/1.jpg", "a/2.jpg", "/b/3.jpg", "#/4.jpg"):
        s3.put_object(Bucket="market", Key=key, Body=b"1")
    for prefix, key in (("a?x/", "a?x/1.jpg"), ("a/", "a/2.jpg"), ("/b/", "/b/3.jpg"), ("#/", "#/4.jpg")):
        assert [entry.uri for entry in s3_files.list_objects(f"s3://market/{prefix}")] == [f"s3://market/{key}"]
    assert len(s3_files.list_objects("s3://market")) == len(s3_files.list_objects("s3://market/")) == 4


def test_a_listing_goes_over_all_pages(s3):
    keys = [f"photos/{number:04}.jpg" for number in range(1001)]  # a page holds 1000
    for key in keys:  # past HTTP, which would take seconds
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("market", key, b"1")
    assert s3.list_objects_v2(Bucket="market")["IsTruncated"]
    assert [entry.uri for entry in s3_files.list_objects("s3://market/photos/")] == [f"s3://market/{key}" for key in keys]


def test_an_empty_prefix_is_an_empty_list(s3):
    assert s3_files.list_objects("s3://market/none/") == []


def test_a_region_is_not_needed_and_not_in_the_way(s3, monkeypatch, tmp_path):
    s3.put_object(Bucket="market", Key="a", Body=b"1")
    assert s3_files.read_object("s3://market/a") == b"1"  # none is set
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    s3_server.forget_clients(monkeypatch)
    assert s3_files.read_object("s3://market/a") == b"1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "not a region")
    s3_server.forget_clients(monkeypatch)
    assert sentence_of(s3_files.read_object, "s3://market/a").startswith("S3 cannot be used (")


def readers(uri: str, tmp_path: Path):
    return [(s3_files.read_object, uri), (s3_files.local_file, uri, tmp_path / "cache"), (s3_files.list_objects, uri)]


def test_a_missing_object_is_a_sentence(s3, tmp_path):
    uri = "s3://market/raw/gone.csv"
    assert sentence_of(s3_files.local_file, uri, tmp_path) == f"there is no object {uri}: check the bucket and the key"
    assert files_below(tmp_path) == {}


def test_one_object_that_is_gone_or_archived_is_not_the_end_of_all_reading(s3):
    s3.put_object(Bucket="market", Key="archived", Body=b"1", StorageClass="GLACIER")
    for key, code in (("gone", "NoSuchKey"), ("archived", "InvalidObjectState")):
        with pytest.raises(s3_files.ObjectUnreadable) as caught:
            s3_files.read_object(f"s3://market/{key}")
        assert isinstance(caught.value, OSError) and str(caught.value) == f"s3://market/{key} cannot be read ({code})"


def test_a_missing_bucket_is_a_sentence(s3, tmp_path):
    uri = "s3://nowhere/a.csv"
    read_object, local_file, list_objects = readers(uri, tmp_path)
    for read in (read_object, list_objects):
        assert sentence_of(*read) == f"there is no bucket nowhere for {uri}: check its name"
    assert sentence_of(*local_file) == f"there is no object {uri}: check the bucket and the key"  # HEAD tells no more


@pytest.mark.parametrize("uri", ["s3://", "s3:///Products.csv"])
def test_an_uri_without_a_bucket_is_a_sentence(uri, s3, tmp_path):
    for read in readers(uri, tmp_path):
        assert sentence_of(*read) == f"{uri} names no bucket: write s3://bucket/key"


@pytest.mark.parametrize("uri", ["s3://market", "s3://market/", "s3://My Bucket/key", "s3://[/key", "s3://market?x/key"])
def test_an_uri_that_names_no_object_or_no_possible_bucket_is_a_sentence(uri, s3, tmp_path):
    for read in readers(uri, tmp_path)[:2]:
        assert sentence_of(*read) == f"{uri} is no valid S3 URI: write s3://bucket/key"


@pytest.mark.parametrize("missing", [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY",)])
def test_no_credentials_is_a_sentence(missing, s3, monkeypatch, tmp_path):
    for name in missing:
        monkeypatch.delenv(name)
    s3_server.forget_clients(monkeypatch)
    for read in readers("s3://market/a", tmp_path):
        assert sentence_of(*read) == (
            "no AWS credentials to read s3://market/a: "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an instance role"
        )


def test_a_profile_that_does_not_exist_is_a_sentence(s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_PROFILE", "gone")
    s3_server.forget_clients(monkeypatch)
    for read in readers("s3://market/a", tmp_path):
        assert sentence_of(*read) == READ_FAILED.format(uri="s3://market/a", reason="ProfileNotFound")


def test_an_endpoint_that_nobody_listens_at_is_a_sentence(monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    s3_server.use_s3(monkeypatch, f"http://127.0.0.1:{port}")
    for read in readers("s3://market/a", tmp_path):
        assert sentence_of(*read) == READ_FAILED.format(uri="s3://market/a", reason="EndpointConnectionError")


def test_an_endpoint_without_http_is_a_sentence(monkeypatch, tmp_path):
    s3_server.use_s3(monkeypatch, "127.0.0.1:9000")
    for read in readers("s3://market/a", tmp_path):
        assert sentence_of(*read) == "S3 cannot be used (Invalid endpoint: 127.0.0.1:9000): check AWS_ENDPOINT_URL and the region"


def refuse(status: int, code: str):
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>".encode()

    def respond(request) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    return respond


def test_an_access_that_is_denied_is_a_sentence(monkeypatch, tmp_path):
    with s3_server.odd_server(refuse(403, "AccessDenied")) as url:
        s3_server.use_s3(monkeypatch, url)
        read_object, *others = readers("s3://market/a", tmp_path)
        for read in others:
            assert sentence_of(*read) == "access to s3://market/a is denied: allow s3:GetObject and s3:ListBucket on market"
        with pytest.raises(s3_files.ObjectUnreadable, match="AccessDenied"):
            read_object[0](*read_object[1:])


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (503, "SlowDown")])
def test_any_other_refusal_is_a_sentence_with_its_code(status, code, monkeypatch, tmp_path):
    with s3_server.odd_server(refuse(status, code)) as url:
        s3_server.use_s3(monkeypatch, url)
        assert sentence_of(s3_files.read_object, "s3://market/a") == (
            f"S3 refused s3://market/a ({code}): check the credentials, and the bucket's region and policy"
        )


class CutServer:
    """Answers with an object of 1000 bytes, and hangs up in the middle of the first `cuts` bodies."""

    body = bytes(range(250)) * 4

    def __init__(self, cuts: float):
        self.cuts = cuts
        self.bodies = 0

    def __call__(self, request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.body)))
        request.send_header("ETag", '"e1"')
        request.end_headers()
        if request.command != "HEAD":
            self.bodies += 1
            request.wfile.write(self.body[: 10 if self.bodies <= self.cuts else None])


def test_a_connection_cut_in_the_middle_of_an_object_is_tried_again(monkeypatch, tmp_path):
    uri = "s3://market/a"
    for read in (lambda: s3_files.read_object(uri), lambda: s3_files.local_file(uri, tmp_path).read_bytes()):
        server = CutServer(cuts=2)
        with s3_server.odd_server(server) as url:
            s3_server.use_s3(monkeypatch, url)
            assert read() == server.body
        assert server.bodies == 3


def test_a_connection_that_is_always_cut_is_a_sentence_and_leaves_no_file(monkeypatch, tmp_path):
    server = CutServer(cuts=float("inf"))
    with s3_server.odd_server(server) as url:
        s3_server.use_s3(monkeypatch, url)
        read_object, local_file, _ = readers("s3://market/a", tmp_path)
        for read, reason in ((read_object, "ResponseStreamingError"), (local_file, "RetriesExceededError")):
            assert sentence_of(*read) == READ_FAILED.format(uri="s3://market/a", reason=reason)
    assert server.bodies == 2 * s3_files.S3_BODY_ATTEMPTS
    assert files_below(tmp_path) == {}


def test_an_interrupted_copy_leaves_no_file_and_the_next_one_is_whole(s3, monkeypatch, tmp_path):
    s3.put_object(Bucket="market", Key="a.zip", Body=b"whole")
    download = type(s3).download_file

    def interrupted(client, bucket, key, path, **options):
        download(client, bucket, key, path, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(s3_files._client()), "download_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            s3_files.local_file("s3://market/a.zip", tmp_path)
    assert files_below(tmp_path) == {}
    assert s3_files.local_file("s3://market/a.zip", tmp_path).read_bytes() == b"whole"


def test_an_object_that_changes_while_it_is_copied_is_a_sentence(s3, monkeypatch, tmp_path):
    s3.put_object(Bucket="market", Key="a.zip", Body=b"old")
    client = s3_files._client()
    head_object = client.head_object

    def then_change(**names):
        head = head_object(**names)
        s3.put_object(Bucket="market", Key="a.zip", Body=b"longer")
        return head

    monkeypatch.setattr(client, "head_object", then_change, raising=False)
    expected = "s3://market/a.zip changed while it was being copied: run the command again"
    assert sentence_of(s3_files.local_file, "s3://market/a.zip", tmp_path) == expected
    assert files_below(tmp_path) == {}


def test_many_threads_of_a_new_process_share_one_client(s3, monkeypatch):
    s3.put_object(Bucket="market", Key="a", Body=b"1")
    s3_server.forget_clients(monkeypatch)
    made = []
    make = boto3.client
    monkeypatch.setattr(boto3, "client", lambda *names, **options: made.append(names) or make(*names, **options))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(s3_files.read_object, ["s3://market/a"] * 32)) == [b"1"] * 32
    assert made == [("s3",)]


# Writing.


def test_a_version_is_read_once_and_written_only_in_the_place_of_the_one_that_was_read(s3):
    uri = "s3://market/current.json"
    assert s3_files.read_version(uri) == (None, None)
    first = s3_files.write_version(uri, b"1", None)
    assert s3_files.read_version(uri) == (b"1", first)
    with pytest.raises(s3_files.Unchanged):
        s3_files.read_version(uri, first)
    second = s3_files.write_version(uri, b"2", first)
    assert s3_files.read_version(uri, first) == (b"2", second)
    for seen in (first, None):
        with pytest.raises(s3_files.Overtaken):
            s3_files.write_version(uri, b"3", seen)
    s3.delete_object(Bucket="market", Key="current.json")
    with pytest.raises(s3_files.Overtaken):
        s3_files.write_version(uri, b"3", second)
    assert s3_files.read_version(uri) == (None, None)


@pytest.mark.parametrize("size", [0, 10, 9_000_000], ids=["empty", "small", "in several parts"])
def test_what_is_uploaded_is_what_is_downloaded(size, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_files, "IN_PARTS_BYTES", 100)
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(np.random.default_rng(0).bytes(size))
    s3_files.upload(source, "s3://market/blobs/a b")
    assert s3.head_object(Bucket="market", Key="blobs/a b")["ContentType"] == "application/octet-stream"
    s3_files.download("s3://market/blobs/a b", copy)
    assert copy.read_bytes() == source.read_bytes()


def test_any_number_of_objects_is_deleted_and_those_that_are_gone_are_no_failure(s3):
    uris = [f"s3://market/{number}" for number in range(1001)]  # S3 takes 1000 at once
    for number in (0, 999, 1000):
        s3.put_object(Bucket="market", Key=str(number), Body=b"1")
    s3.put_object(Bucket="market", Key="stays", Body=b"1")
    s3_files.delete(uris)
    assert [one.uri for one in s3_files.list_objects("s3://market/")] == ["s3://market/stays"]
    s3_files.delete([])


def test_a_signed_address_reads_one_object_without_credentials(s3):
    s3.put_object(Bucket="market", Key="photos/a.jpg", Body=b"photo")
    address = s3_files.sign("s3://market/photos/a.jpg", 60)
    assert "X-Amz-Expires=60" in address and "X-Amz-Algorithm=AWS4-HMAC-SHA256" in address
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"photo"


def writers(uri: str, tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(b"1")
    return [(s3_files.write_version, uri, b"1", None), (s3_files.upload, source, uri), (s3_files.delete, [uri])]


def test_a_permission_to_write_or_delete_that_is_missing_is_named(monkeypatch, tmp_path):
    with s3_server.odd_server(refuse(403, "AccessDenied")) as url:
        s3_server.use_s3(monkeypatch, url)
        sentences = [sentence_of(*write) for write in writers("s3://market/a", tmp_path)]
    permissions = ("s3:PutObject", "s3:PutObject", "s3:DeleteObject")
    assert sentences == [f"access to s3://market/a is denied: allow {permission} on market" for permission in permissions]


def test_a_refusal_to_delete_one_object_of_many_is_a_sentence_about_that_one(s3, monkeypatch):
    client = s3_files._client()
    refused = {"Errors": [{"Key": "b", "Code": "AccessDenied", "Message": "No."}]}
    monkeypatch.setattr(client, "delete_objects", lambda **request: refused, raising=False)
    expected = "access to s3://market/b is denied: allow s3:DeleteObject on market"
    assert sentence_of(s3_files.delete, ["s3://market/a", "s3://market/b"]) == expected


def test_without_a_network_nothing_is_written_and_the_sentence_says_what_was_to_be(monkeypatch, tmp_path):
    s3_server.use_s3(monkeypatch, "http://127.0.0.1:1")
    for write, what in zip(
        writers("s3://market/a", tmp_path), ("cannot be written for", "cannot be written for", "cannot delete"), strict=True
    ):
        expected = f"S3 {what} s3://market/a (EndpointConnectionError): check the network, AWS_ENDPOINT_URL and AWS_PROFILE"
        assert sentence_of(*write) == expected
