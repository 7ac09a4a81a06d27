"""What a publisher leaves in a bucket, and what many write there at once."""

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.files import bucket, hidden
from marketplace.files import s3 as s3_files
from tests import s3_server
from tests.files.asked import sentence_of

s3, s3_service = s3_server.s3, s3_server.s3_service

URI = "s3://market/index"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def outgoing(folder: Path, name: str, files: dict[str, bytes], photos: list[bytes] = ()) -> bucket.Outgoing:
    """A generation of some files and photos, written into a folder."""
    table = np.array([list(bytes.fromhex(sha256(photo))) for photo in photos], np.uint8).reshape(-1, 32)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / bucket.PHOTO_DIGESTS, table)
    files = files | {bucket.PHOTO_DIGESTS: (folder / bucket.PHOTO_DIGESTS).read_bytes()}
    paths = {}
    for data in (*files.values(), *photos):
        paths[sha256(data)] = folder / sha256(data)
        paths[sha256(data)].write_bytes(data)
    contents = {sha256(photo): paths.pop(sha256(photo)).read_bytes for photo in photos}
    return bucket.Outgoing(name, {path: sha256(data) for path, data in files.items()}, paths, contents)


def publish(folder: Path, name: str, files: dict[str, bytes], photos: list[bytes] = (), moves=True, alone=False, hidden_ids=()):
    return bucket.publish(URI, outgoing(folder, name, files, photos), frozenset(hidden_ids), moves, alone)


def objects(s3) -> dict[str, bytes]:
    """Key below the URI -> bytes."""
    listed = s3_files.list_objects(f"{URI}/")
    return {one.uri.removeprefix(f"{URI}/"): s3_files.read_object(one.uri) for one in listed}


def served(s3) -> str:
    return json.loads(objects(s3)["current.json"])["generation"]


def test_a_published_generation_is_in_the_bucket_by_what_its_files_hold(s3, tmp_path):
    figures = publish(tmp_path, "one", {"a.npy": b"a", "words/b": b"b"}, [b"photo"])
    there = objects(s3)
    table = there[f"blobs/{json.loads(there['current.json'])['generations']['one']['files']['photo_digests.npy']}"]
    assert {name: sha256(data) for name, data in there.items() if name != "current.json"} == {
        f"blobs/{sha256(b'a')}": sha256(b"a"),
        f"blobs/{sha256(b'b')}": sha256(b"b"),
        f"blobs/{sha256(table)}": sha256(table),
        f"photos/{sha256(b'photo')}.jpg": sha256(b"photo"),
    }
    assert table.endswith(hashlib.sha256(b"photo").digest())
    assert s3.head_object(Bucket="market", Key=f"index/photos/{sha256(b'photo')}.jpg")["ContentType"] == "image/jpeg"
    assert figures == {"published": URI, "served": "one", "uploaded": 4, "uploaded_bytes": 2 + len(table) + 5, "deleted": 0}


def test_only_what_is_new_goes_up(s3, tmp_path):
    publish(tmp_path, "one", {"a": b"same", "b": b"old"}, [b"photo"])
    figures = publish(tmp_path, "two", {"a": b"same", "b": b"new"}, [b"photo"])
    assert (figures["served"], figures["uploaded"], figures["uploaded_bytes"]) == ("two", 1, 3)
    before = objects(s3)
    assert publish(tmp_path, "two", {"a": b"same", "b": b"new"}, [b"photo"], moves=False)["uploaded"] == 0
    assert objects(s3) == before


def test_a_blob_that_was_lost_goes_up_again(s3, tmp_path):
    publish(tmp_path, "one", {"a": b"a"})
    s3.delete_object(Bucket="market", Key=f"index/blobs/{sha256(b'a')}")
    assert publish(tmp_path, "one", {"a": b"a"}, moves=False)["uploaded"] == 1
    assert objects(s3)[f"blobs/{sha256(b'a')}"] == b"a"


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 2 * bucket.GRACE_S))))
def test_the_served_one_and_the_one_before_it_are_kept_and_others_as_long_as_the_grace_lasts(publishes):
    contents, now_s, was_served = bucket.Contents(), 0.0, []
    left_s: dict[str, float] = {}  # when each was neither of the two for the first time
    for name, waited_s in publishes:
        now_s += waited_s
        contents = contents.serving(name, {bucket.PHOTO_DIGESTS: sha256(name.encode())}, False, now_s)
        was_served = [name, *(one for one in was_served if one != name)]
        left_s = {one: left_s.get(one, now_s) for one in was_served[2:]}
        was_served = [one for one in was_served if one not in left_s or now_s - left_s[one] < bucket.GRACE_S]
        assert contents.generation == name
        assert list(contents.generations) == was_served
        assert [one for one, kept in contents.generations.items() if kept.retired_s is None] == was_served[:2]
    if publishes:
        assert bucket.Contents.decode(contents.encode(), URI) == contents


def test_what_no_generation_is_made_of_any_more_goes_when_its_grace_is_over(s3, tmp_path, monkeypatch):
    for number in range(4):
        publish(tmp_path, f"g{number}", {"a": b"same", "b": b"%d" % number}, [b"photo", b"photo %d" % number])
    own = [f"blobs/{sha256(b'%d' % number)}" for number in range(4)] + [
        f"photos/{sha256(b'photo %d' % number)}.jpg" for number in range(4)
    ]
    assert set(own) <= objects(s3).keys()
    monkeypatch.setattr(bucket, "GRACE_S", 0)
    figures = publish(tmp_path, "g3", {"a": b"same", "b": b"3"}, [b"photo", b"photo 3"], moves=False)
    assert figures["deleted"] == 6  # of two generations the photo, the file, and the digests of its photos
    left = objects(s3)
    assert [name in left for name in own] == 2 * [False, False, True, True]
    assert {f"blobs/{sha256(b'same')}", f"photos/{sha256(b'photo')}.jpg"} <= left.keys()


def test_what_a_killed_publisher_left_goes_too(s3, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(s3_files, "write_version", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path, "never", {"a": b"left"}, [b"left too"])
    assert publish(tmp_path, "one", {"a": b"a"})["deleted"] == 0  # it may be at work still
    monkeypatch.setattr(bucket, "GRACE_S", 0)
    assert publish(tmp_path, "one", {"a": b"a"})["deleted"] == 3
    assert objects(s3).keys() >= {"current.json", f"blobs/{sha256(b'a')}"} and len(objects(s3)) == 3


def test_a_purged_generation_is_alone_at_once(s3, tmp_path):
    publish(tmp_path, "one", {"a": b"secret"}, [b"her photo"])
    publish(tmp_path, "two", {"a": b"clean"}, [], alone=True)
    assert f"blobs/{sha256(b'secret')}" not in objects(s3) and f"photos/{sha256(b'her photo')}.jpg" not in objects(s3)
    assert list(json.loads(objects(s3)["current.json"])["generations"]) == ["two"]


def test_an_unchanged_build_does_not_undo_what_was_served_again(s3, tmp_path):
    for name in ("one", "two", "one"):
        publish(tmp_path, name, {"a": name.encode()})
    assert served(s3) == "one"
    assert publish(tmp_path, "two", {"a": b"two"}, moves=False)["served"] == served(s3) == "one"
    assert publish(tmp_path, "three", {"a": b"three"}, moves=False)["served"] == served(s3) == "three"


@pytest.mark.parametrize("others", [0, 1])
def test_of_two_publishers_the_slower_one_is_told_and_changes_nothing(others, s3, tmp_path, monkeypatch):
    for number in range(others):
        publish(tmp_path, f"before-{number}", {"a": b"before"})
    write_version, late = s3_files.write_version, []

    def another_first(uri, data, seen):
        if not late:
            late.append(uri)
            publish(tmp_path / "other", "faster", {"a": b"faster"})
        return write_version(uri, data, seen)

    monkeypatch.setattr(s3_files, "write_version", another_first)
    expected = f"another run published to {URI} meanwhile: run the command again"
    assert sentence_of(publish, tmp_path, "slower", {"a": b"slower"}) == expected
    assert served(s3) == "faster" and "slower" not in json.loads(objects(s3)["current.json"])["generations"]


def test_what_another_publisher_deletes_at_the_last_moment_goes_up_again(s3, tmp_path, monkeypatch):
    write_version = s3_files.write_version

    def then_lose(uri, data, seen):
        s3.delete_object(Bucket="market", Key=f"index/blobs/{sha256(b'a')}")
        return write_version(uri, data, seen)

    monkeypatch.setattr(s3_files, "write_version", then_lose)
    publish(tmp_path, "one", {"a": b"a"})
    assert objects(s3)[f"blobs/{sha256(b'a')}"] == b"a"


def hostile(path="a", digest="0" * 64, name="one") -> bytes:
    files = {bucket.PHOTO_DIGESTS: "0" * 64, path: digest}
    return json.dumps({"generation": name, "generations": {name: {"files": files}}}).encode()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"{}", b"\xff"),
        *(b'{"generation": "a", "generations": {}}', b'{"generation": "a", "generations": {"a": {}}}'),
        b'{"generation": "a", "generations": {"a": {"files": {}}}}',
        *(hostile("../a"), hostile("/etc/a"), hostile("a/../../b"), hostile("a", "../a"), hostile("a", "x", "../one")),
        *(hostile("a\0b"), hostile("a/./b"), hostile("a", name="."), hostile("a", name="a/b")),
    ],
)
def test_a_current_json_that_is_damaged_or_leads_elsewhere_is_told(data, s3):
    s3.put_object(Bucket="market", Key="index/current.json", Body=data)
    expected = f"{URI}/current.json is damaged: delete it, and run python build_index.py --publish {URI}"
    assert sentence_of(bucket.read, URI) == expected


def test_before_the_first_publication_a_reader_is_told_what_to_run(s3):
    expected = f"{URI} holds no published index: run python build_index.py --publish {URI} first"
    assert sentence_of(bucket.read_served, URI) == expected


# Hidden listings.


def find(ids):
    """A catalogue that has the ids a to f."""
    return {one for one in ids if one in "abcdef"}


def test_hidden_listings_go_along_with_the_first_generation_and_are_the_buckets_own_from_then_on(s3, tmp_path):
    publish(tmp_path, "one", {"a": b"1"}, hidden_ids=["a"])
    assert bucket.read_hidden(URI)[0] == {"a"}
    assert bucket.change_hidden(URI, ["b"], True, find) == {"a", "b"}
    assert bucket.change_hidden(URI, ["a"], False, find) == {"b"}
    publish(tmp_path, "two", {"a": b"2"}, hidden_ids=["a", "c"])
    assert bucket.read_hidden(URI)[0] == {"b"}
    bucket.forget_gone(URI, lambda ids: set())
    assert bucket.read_hidden(URI)[0] == frozenset()


def test_an_unknown_id_is_named_and_nothing_is_written(s3):
    with pytest.raises(hidden.UnknownIds, match="^no listing has the id x$"):
        bucket.change_hidden(URI, ["a", "x"], True, find)
    assert objects(s3) == {}


def test_writers_at_once_lose_nothing_of_each_other(s3):
    start = threading.Barrier(4)

    def hide(name: str) -> None:
        start.wait()
        for number in range(4):
            bucket.change_hidden(URI, [f"{name}{number}"], True, set)

    threads = [threading.Thread(target=hide, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.read_hidden(URI)[0] == {f"{name}{number}" for name in "abcd" for number in range(4)}


def test_who_never_comes_first_says_so(s3, monkeypatch):
    monkeypatch.setattr(s3_files, "write_version", lambda *_: (_ for _ in ()).throw(s3_files.Overtaken))
    expected = f"others keep writing {URI}/hidden.json: run the command again"
    assert sentence_of(bucket.change_hidden, URI, ["a"], True, find) == expected


def test_a_damaged_file_of_hidden_listings_is_told(s3):
    s3.put_object(Bucket="market", Key="index/hidden.json", Body=b"{}")
    expected = f"{URI}/hidden.json is damaged: put a whole one back, or delete it to show every listing again"
    assert sentence_of(bucket.read_hidden, URI) == expected


def test_a_publisher_without_anything_new_deletes_nothing_that_another_has_just_published(s3, tmp_path, monkeypatch):
    publish(tmp_path, "one", {"a": b"a"})
    monkeypatch.setattr(bucket, "GRACE_S", 0)
    listed, calls = bucket._listed, []

    def publish_between(uri):
        calls.append(uri)
        if len(calls) == 2:
            publish(tmp_path / "other", "two", {"a": b"b"})
        return listed(uri)

    monkeypatch.setattr(bucket, "_listed", publish_between)
    assert publish(tmp_path, "one", {"a": b"a"}, moves=False)["deleted"] == 0
    assert served(s3) == "two" and f"blobs/{sha256(b'b')}" in objects(s3)
