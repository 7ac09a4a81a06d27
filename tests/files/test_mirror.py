"""The copy of a bucket's index that a machine serves: whole, up to date, and there when the bucket is not."""

import json
import logging
import shutil

import numpy as np
import pytest

from marketplace.files import bucket, generations, hidden, locks, mirror
from marketplace.files import s3 as s3_files
from marketplace.files.mirror import Mirror
from marketplace.files.stages import StageError
from tests import s3_server
from tests.files.asked import files_below, sentence_of
from tests.files.test_bucket import URI, find, publish, sha256

s3, s3_service = s3_server.s3, s3_server.s3_service


@pytest.fixture
def index_dir(tmp_path):
    return tmp_path / "cache" / "index"


@pytest.fixture
def copy(index_dir):
    return Mirror(URI, index_dir, index_dir.with_name("photos"))


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """The URIs of the blobs that are copied."""
    copied, download = [], s3_files.download
    monkeypatch.setattr(s3_files, "download", lambda uri, path: copied.append(uri) or download(uri, path))
    return copied


def lose_s3(monkeypatch) -> str:
    """Lead boto3 to where nobody answers; returns the sentence's end."""
    s3_server.use_s3(monkeypatch, "http://127.0.0.1:1")
    return "(EndpointConnectionError): check the network, AWS_ENDPOINT_URL and AWS_PROFILE"


def poll(copy: Mirror) -> None:
    copy.poll_hidden()
    copy.poll()


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "marketplace"]


def test_what_is_served_is_copied_and_followed(s3, tmp_path, copy, index_dir, downloads):
    publish(tmp_path, "one", {"a": b"same", "words/b": b"old"})
    copy.begin()
    folder = generations.current_generation(index_dir)
    assert folder.name == "one"
    assert files_below(folder).keys() == {"a", "words/b", "photo_digests.npy"}
    assert ((folder / "a").read_bytes(), (folder / "words/b").read_bytes()) == (b"same", b"old")
    publish(tmp_path, "two", {"a": b"same", "words/b": b"new"})
    downloads.clear()
    copy.poll()
    assert generations.current_generation(index_dir).name == "two"
    assert (index_dir / "two" / "words/b").read_bytes() == b"new"
    assert downloads == [f"{URI}/blobs/{sha256(b'new')}"]
    downloads.clear()
    publish(tmp_path, "one", {"a": b"same", "words/b": b"old"})
    copy.poll()
    assert generations.current_generation(index_dir).name == "one" and downloads == []


def test_a_bucket_that_did_not_change_is_asked_without_being_read(s3, tmp_path, copy, monkeypatch):
    publish(tmp_path, "one", {"a": b"a"}, hidden_ids=["h"])
    copy.begin()
    answers, read_version = [], s3_files.read_version

    def read(uri, seen=None):
        try:
            return read_version(uri, seen)
        except s3_files.Unchanged:
            answers.append(uri)
            raise

    monkeypatch.setattr(s3_files, "read_version", read)
    poll(copy)
    assert answers == [f"{URI}/hidden.json", f"{URI}/current.json"]


def test_a_damaged_blob_is_told_once_and_the_generation_before_stays(s3, tmp_path, copy, index_dir, caplog, downloads):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    publish(tmp_path, "two", {"a": b"right"})
    s3.put_object(Bucket="market", Key=f"index/blobs/{sha256(b'right')}", Body=b"wrong")
    with caplog.at_level(logging.ERROR, logger="marketplace"):
        for _ in range(8):
            copy.poll()
    uri = f"{URI}/blobs/{sha256(b'right')}"
    expected = f"{uri} is damaged: delete it, and publish again; what was copied goes on being served"
    assert told(caplog) == [expected]
    assert downloads.count(uri) == 3  # after more and more pauses
    assert generations.current_generation(index_dir).name == "one" and not (index_dir / "two").exists()
    s3.delete_object(Bucket="market", Key=f"index/blobs/{sha256(b'right')}")
    publish(tmp_path, "two", {"a": b"right"}, moves=False)
    for _ in range(mirror.MOST_SKIPPED):
        copy.poll()
    assert (generations.current_generation(index_dir) / "a").read_bytes() == b"right"


def test_without_the_bucket_an_earlier_copy_is_served(s3, tmp_path, copy, index_dir, monkeypatch, caplog):
    publish(tmp_path, "one", {"a": b"a"}, hidden_ids=["h"])
    copy.begin()
    ending = lose_s3(monkeypatch)
    later = Mirror(URI, index_dir, index_dir.with_name("photos"))
    with caplog.at_level(logging.ERROR, logger="marketplace"):
        later.begin()
        poll(later)
        poll(later)
    sentence = f"S3 cannot be read for {URI}/hidden.json {ending}"
    assert told(caplog)[0] == f"{sentence}; generation one, copied earlier, is served"
    assert len(told(caplog)) == 3  # of each of the two files once more
    assert generations.current_generation(index_dir).name == "one" and hidden.read(index_dir) == {"h"}


def test_without_the_bucket_and_a_copy_the_reason_is_told(copy, monkeypatch):
    ending = lose_s3(monkeypatch)
    assert sentence_of(copy.begin) == f"S3 cannot be read for {URI}/hidden.json {ending}"


def test_an_empty_bucket_tells_what_to_run(s3, copy):
    assert sentence_of(copy.begin) == f"{URI} holds no published index: run python build_index.py --publish {URI} first"


def test_a_copy_that_was_damaged_is_made_again(s3, tmp_path, copy, index_dir):
    publish(tmp_path, "one", {"a": b"whole", "b": b"b"})
    copy.begin()
    for damage in (lambda path: path.write_bytes(b"half"), lambda path: path.unlink()):
        damage(index_dir / "one" / "a")
        Mirror(URI, index_dir, index_dir.with_name("photos")).begin()
        assert (index_dir / "one" / "a").read_bytes() == b"whole"


def test_what_is_gone_from_the_bucket_goes_from_the_copy(s3, tmp_path, copy, index_dir):
    photos_dir = index_dir.with_name("photos")
    photos_dir.mkdir(parents=True)
    publish(tmp_path, "one", {"a": b"secret"}, [b"her photo", b"another"])
    copy.begin()
    for photo in (b"her photo", b"another"):
        (photos_dir / f"{sha256(photo)}.jpg").write_bytes(photo)
    publish(tmp_path, "two", {"a": b"clean"}, [b"another"], alone=True)
    copy.poll()
    assert [path.name for path in index_dir.iterdir() if path.is_dir()] == ["two"]
    assert [path.read_bytes() for path in photos_dir.iterdir()] == [b"another"]


def test_hidden_listings_are_followed_and_written(s3, tmp_path, copy, index_dir):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    assert hidden.signature(index_dir) is None
    bucket.change_hidden(URI, ["a"], True, find)
    poll(copy)
    assert hidden.read(index_dir) == {"a"}
    assert copy.change_hidden(["b"], True, find) == {"a", "b"} == hidden.read(index_dir) == bucket.read_hidden(URI)[0]
    s3.delete_object(Bucket="market", Key="index/hidden.json")
    poll(copy)
    assert hidden.read(index_dir) == frozenset()


def test_what_was_hidden_in_the_bucket_is_hidden_here_even_when_it_cannot_be_read_again(
    s3, tmp_path, copy, index_dir, monkeypatch
):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    change_hidden = bucket.change_hidden

    def change_and_go(*arguments):
        left = change_hidden(*arguments)
        lose_s3(monkeypatch)
        return left

    monkeypatch.setattr(bucket, "change_hidden", change_and_go)
    assert copy.change_hidden(["b"], True, find) == {"b"} == hidden.read(index_dir)


def test_what_is_hidden_while_a_generation_is_copied_is_hidden_before_it_is_served(s3, tmp_path, copy, index_dir, monkeypatch):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    publish(tmp_path, "two", {"a": b"b"})
    served, download, write_current = [], s3_files.download, generations.publish

    def download_slowly(uri, path):
        bucket.change_hidden(URI, ["b"], True, find)
        download(uri, path)

    def publish_later(*arguments):
        served.append(hidden.read(index_dir))
        write_current(*arguments)

    monkeypatch.setattr(s3_files, "download", download_slowly)
    monkeypatch.setattr(generations, "publish", publish_later)
    copy.poll()
    assert served == [{"b"}] and generations.current_generation(index_dir).name == "two"


def test_where_all_is_gone_from_the_bucket_what_was_hidden_stays_hidden(s3, tmp_path, copy, index_dir):
    publish(tmp_path, "one", {"a": b"a"}, hidden_ids=["h"])
    copy.begin()
    for name in ("current.json", "hidden.json"):
        s3.delete_object(Bucket="market", Key=f"index/{name}")
    poll(copy)
    assert hidden.read(index_dir) == {"h"} and generations.current_generation(index_dir).name == "one"


def test_hidden_listings_that_could_not_be_written_are_tried_again(s3, tmp_path, copy, index_dir, monkeypatch, caplog):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    bucket.change_hidden(URI, ["a"], True, find)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, logger="marketplace"):
        patch.setattr(hidden, "write", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        copy.poll_hidden()
    assert told(caplog) == ["no room; the same listings as before stay hidden"] and hidden.read(index_dir) == frozenset()
    copy.poll_hidden()
    assert hidden.read(index_dir) == {"a"}


def test_photos_that_a_generation_is_published_with_later_are_followed(s3, tmp_path, copy, index_dir):
    publish(tmp_path, "one", {"a": b"a"}, [b"first"])
    copy.begin()
    publish(tmp_path, "one", {"a": b"not as it was"}, [b"first", b"second"])
    copy.poll()
    folder = generations.current_generation(index_dir)
    digests = np.load(folder / bucket.PHOTO_DIGESTS)
    assert [bytes(row).hex() for row in digests] == [sha256(b"first"), sha256(b"second")]
    assert (folder / "a").read_bytes() == b"a"


def test_a_look_is_now_whatever_failed_before_and_says_why_it_cannot_be(s3, tmp_path, copy, index_dir, monkeypatch):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    publish(tmp_path, "two", {"a": b"right"})
    with monkeypatch.context() as patch:
        patch.setattr(s3_files, "download", lambda *_: (_ for _ in ()).throw(StageError("not now")))
        for _ in range(3):
            copy.poll()
        assert sentence_of(copy.look) == "not now"
    copy.look()
    assert generations.current_generation(index_dir).name == "two"
    with locks.hold(index_dir, exclusive=True):
        publish(tmp_path, "three", {"a": b"c"})
        assert sentence_of(copy.look) == f"another process of this machine is copying from {URI}: it will be served by itself"


def test_a_copy_that_another_process_has_begun_is_taken_as_it_is(s3, tmp_path, copy, index_dir, monkeypatch):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    lose_s3(monkeypatch)
    with locks.hold(index_dir, exclusive=True):  # who asked or waited for anything would not come back
        Mirror(URI, index_dir, index_dir.with_name("photos"), is_begun=True).begin()


def test_a_copy_that_was_interrupted_or_killed_is_made_again(s3, tmp_path, copy, index_dir, monkeypatch):
    publish(tmp_path, "one", {"a": b"a", "b": b"b"})
    with monkeypatch.context() as patch:
        patch.setattr(s3_files, "download", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            copy.begin()
    assert [path.name for path in index_dir.iterdir() if path.is_dir()] == []
    (index_dir / ".one.tmp").mkdir()
    (index_dir / ".one.tmp" / "a").write_bytes(b"half")  # as a kill leaves it
    copy.begin()
    assert [path.name for path in index_dir.iterdir() if path.is_dir()] == ["one"]
    assert (index_dir / "one" / "a").read_bytes() == b"a"


def test_a_damaged_file_of_hidden_listings_leaves_what_was_hidden_and_lets_generations_through(
    s3, tmp_path, copy, index_dir, caplog
):
    publish(tmp_path, "one", {"a": b"a"}, hidden_ids=["a"])
    copy.begin()
    s3.put_object(Bucket="market", Key="index/hidden.json", Body=b"{}")
    publish(tmp_path, "two", {"a": b"b"})
    with caplog.at_level(logging.ERROR, logger="marketplace"):
        poll(copy)
    assert "hidden.json is damaged" in caplog.text
    assert hidden.read(index_dir) == {"a"} and generations.current_generation(index_dir).name == "two"


def test_processes_of_one_machine_take_turns(s3, tmp_path, copy, index_dir):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    publish(tmp_path, "two", {"a": b"b"})
    other = Mirror(URI, index_dir, index_dir.with_name("photos"))
    follow = other._follow
    other._follow = lambda: (copy.poll(), follow())  # while the other one is about it
    other.poll()
    assert copy._seen != other._seen and generations.current_generation(index_dir).name == "two"


def test_the_folder_of_a_build_is_no_place_for_copies(s3, tmp_path, copy, index_dir):
    index_dir.mkdir(parents=True)
    (index_dir / "manifest.json").write_text(json.dumps({}))
    assert sentence_of(copy.begin) == f"{index_dir} is where build_index.py writes: give another --cache"


def test_a_copy_whose_folder_is_taken_away_says_so_and_does_not_end_the_service(s3, tmp_path, copy, index_dir, caplog):
    publish(tmp_path, "one", {"a": b"a"})
    copy.begin()
    shutil.rmtree(index_dir)
    for _ in range(2):
        copy.poll()
    missing = f"[Errno 2] No such file or directory: '{index_dir / '.lock'}'"
    assert told(caplog) == [f"{missing}; what was copied cannot follow {URI}: start the service again"]
