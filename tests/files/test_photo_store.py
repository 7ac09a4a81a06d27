"""Photos in files and in shards: what is written is read, what is removed is gone, and a kill costs only the last ones."""

import contextlib
import io
import os
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.files import photo_store
from marketplace.files.photo_store import Files, Shards, ShardsWriter, Stored, open_store, writing
from marketplace.files.stages import StageError

COPIES = ("display", "card")
PLACES = ("", *COPIES)


def jpegs_of(image_id: str, text: str = "") -> dict[str, bytes]:
    """What stands for a photo's JPEGs, of different sizes."""
    found = {}
    for place in PLACES:
        content = f"<{image_id}|{place}|{text}>".encode()
        found[str(Path(place, f"{image_id}.jpg"))] = content * (7 + 90 * len(place))
    return found


def held(folder: Path) -> dict[str, bytes]:
    """Everything that is found by its name."""
    store = open_store(folder)
    return {name: store.read(name) for place in PLACES for name in store.names(place)}


def members(folder: Path) -> dict[str, bytes]:
    """What tarfile reads in the shards."""
    found = {}
    for path in sorted((folder / photo_store.SHARDS).glob("*.tar")):
        with tarfile.open(path, errorlevel=2) as tar:
            for member in tar:
                if not member.name.startswith(photo_store.GONE):
                    image_id, _, copy = member.name.removesuffix(".jpg").partition(".")
                    name = str(Path(copy, f"{image_id}.jpg"))
                    assert name not in found
                    found[name] = tar.extractfile(member).read()
    return found


def every_byte(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / photo_store.SHARDS).iterdir())


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten photos in shards of some kilobytes."""
    with writing(tmp_path, True, COPIES) as store:
        for number in range(10):
            store.write(jpegs_of(f"p{number}"))
        store.tidy()
    return tmp_path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(photo_store, "SHARD_BYTES", 20_000)


IDS = st.sampled_from(["a", "b", "B", "c-1", "d" * 64, "display", "z_0", "0"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), IDS, st.text("xyz", max_size=3)),
        st.tuples(st.just("remove"), IDS, st.just("")),
        st.tuples(st.sampled_from(["tidy", "reopen", "kill"]), st.just(""), st.just("")),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, together=st.integers(1, 5))
def test_shards_hold_what_was_written_last_and_nothing_that_was_removed(tmp_path_factory, steps, together):
    folder, told, expected = tmp_path_factory.mktemp("shards"), set(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_store, "TOGETHER", together)
        writer = ShardsWriter(folder)
        for step, image_id, text in steps:
            if step == "write":
                writer.write(jpegs_of(image_id, text))
                expected |= jpegs_of(image_id, text)
                told |= expected.items()
            elif step == "remove":
                there = jpegs_of(image_id).keys() & expected.keys()
                assert writer.remove(jpegs_of(image_id)) == len(there)
                expected = {name: data for name, data in expected.items() if name not in there}
            elif step == "tidy":
                writer.tidy()
            elif step == "reopen":
                writer.close()
                writer = ShardsWriter(folder)
            else:  # the disk as it is now, without what this process has not written yet
                shutil.copytree(folder, killed := tmp_path_factory.mktemp("killed") / "copy")
                writer.close()
                folder, writer = killed, ShardsWriter(killed)
                expected = {name: writer.read(name) for place in PLACES for name in writer.names(place)}
                assert expected.items() <= told
            assert {name: writer.read(name) for place in PLACES for name in writer.names(place)} == expected
        writer.tidy()
        writer.close()
    assert held(folder) == expected
    assert members(folder) == expected
    left = every_byte(folder)
    assert all(data in left for data in expected.values())
    assert not any(data in left for _, data in told if data not in expected.values())


def test_webdataset_reads_a_photos_jpegs_as_one_sample_and_none_that_was_removed(folder):
    with writing(folder, True, COPIES) as store:
        store.remove(name for number in (1, 8) for name in jpegs_of(f"p{number}"))
        store.write(jpegs_of("p2", "new"))
        store.tidy()
    paths = [str(path) for path in sorted((folder / photo_store.SHARDS).glob("*.tar"))]
    assert len(paths) > 1
    found = {}
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        found[sample["__key__"]] = sample["jpg"], sample["display.jpg"], sample["card.jpg"]
    expected = {
        f"p{number}": tuple(jpegs_of(f"p{number}", "new" * (number == 2)).values()) for number in (0, 2, 3, 4, 5, 6, 7, 9)
    }
    assert found == expected


@pytest.mark.parametrize("in_shards", [False, True])
def test_an_identity_is_another_one_only_where_a_photo_was_written_again(tmp_path, in_shards):
    names = [*jpegs_of("a"), *jpegs_of("b"), *jpegs_of("gone")]
    with writing(tmp_path, in_shards, COPIES) as store:
        for image_id in ("a", "gone", "b"):
            store.write(jpegs_of(image_id))
        store.tidy()
        before = [stored.identity for stored in store.find_each(names)]
        store.write(jpegs_of("b"))
        store.remove(jpegs_of("gone"))
        store.tidy()  # where b and gone are most of a shard, a moves to another one
        after = [stored and stored.identity for stored in store.find_each(names)]
        assert store.read("a.jpg") == jpegs_of("a")["a.jpg"]
    assert before[:3] == after[:3] and after[6:] == [None] * 3
    assert not set(before[3:6]) & set(after[3:6])


def test_a_shard_of_which_little_is_left_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_store, "SHARD_BYTES", 10**6)
    with writing(tmp_path, True, COPIES) as store:
        for number in range(10):
            store.write(jpegs_of(f"p{number}"))
        store.tidy()
        n_bytes = (tmp_path / photo_store.SHARDS / "000001.tar").stat().st_size
        store.remove(name for number in range(9) for name in jpegs_of(f"p{number}"))
        store.tidy()
    (only,) = (tmp_path / photo_store.SHARDS).iterdir()
    assert only.name == "000002.tar" and only.stat().st_size < n_bytes / 8 and held(tmp_path) == jpegs_of("p9")


def test_who_reads_while_a_shard_is_written_anew_or_erased_gets_the_photo_or_is_told_that_it_is_gone(folder, monkeypatch):
    read, stays, goes = Stored.read, "display/p0.jpg", "p1.jpg"

    def read_late(stored: Stored) -> bytes:
        monkeypatch.setattr(Stored, "read", read)
        with writing(folder, True, COPIES) as store:
            store.remove(name for number in range(1, 10) for name in jpegs_of(f"p{number}"))
            store.tidy()
        return read(stored)

    monkeypatch.setattr(Stored, "read", read_late)
    assert open_store(folder).read(stays) == jpegs_of("p0")[stays]
    with writing(folder, True, COPIES) as store:
        store.write(jpegs_of("p1"))
    monkeypatch.setattr(Stored, "read", read_late)
    with pytest.raises(FileNotFoundError, match=f"{goes} is missing"):
        open_store(folder).read(goes)


def test_photos_of_a_shard_that_is_lost_or_cut_short_are_missing_and_the_others_are_there(folder):
    first, second, *_ = sorted((folder / photo_store.SHARDS).glob("*.tar"))
    n_members = len(members(folder))
    first.unlink()
    os.truncate(second, second.stat().st_size // 2)
    with pytest.raises(FileNotFoundError, match="p0.jpg is missing"):
        open_store(folder).read("p0.jpg")
    with writing(folder, True, COPIES) as store:
        left = {name: store.read(name) for place in PLACES for name in store.names(place)}
    assert 0 < len(left) < n_members and "p0.jpg" not in left and "p9.jpg" in left
    assert left == members(folder)


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
@pytest.mark.parametrize("name", [photo_store.INDEX, photo_store.WRITTEN])
def test_a_damaged_index_is_told_and_made_again_once_it_is_deleted(folder, name, content):
    expected, path = held(folder), folder / name
    path.write_bytes(content)
    with pytest.raises(StageError) as error:
        open_store(folder).read("p0.jpg")
        with writing(folder, True, COPIES):
            pass
    reason = "file is not a database" if content else "no such table: members"
    reason = "no such table: shards" if not content and name == photo_store.WRITTEN else reason
    assert str(error.value) == f"{path} is damaged ({reason}): delete it and run python clean_images.py again"
    path.unlink()
    with writing(folder, True, COPIES) as store:
        store.write(jpegs_of("new"))
        store.tidy()
    assert held(folder) == members(folder) == expected | jpegs_of("new")


def test_a_full_disk_leaves_what_readers_were_told_of(folder, monkeypatch):
    class Full(io.BytesIO):
        def flush(self):
            raise OSError(28, "No space left on device")

        close = flush

    before = held(folder)
    monkeypatch.setattr(
        "builtins.open", lambda *args, open=open, **named: Full() if args[1:] == ("wb",) else open(*args, **named)
    )
    with pytest.raises(OSError, match="No space left"), writing(folder, True, COPIES) as store:
        store.write(jpegs_of("new"))
    monkeypatch.undo()
    assert held(folder) == before
    with writing(folder, True, COPIES):
        pass
    assert members(folder) == before


@pytest.mark.parametrize("torn", [1, 600, 40_000])
def test_a_photo_that_ctrl_c_cut_in_two_leaves_no_trace(folder, monkeypatch, torn):
    before, write = held(folder), io.BufferedWriter.write

    class Torn(io.BufferedWriter):
        def write(self, data: bytes) -> int:
            if len(data) <= len(photo_store.END):
                return write(self, data)
            write(self, data[:torn])
            raise KeyboardInterrupt

    def opened(*args, open=open, **named):
        return Torn(io.FileIO(args[0], "wb")) if args[1:] == ("wb",) else open(*args, **named)

    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(KeyboardInterrupt), writing(folder, True, COPIES) as store:
        store.write({"new.jpg": b"new" * 20_000})
    monkeypatch.undo()
    with writing(folder, True, COPIES) as store:
        store.write(jpegs_of("next"))
        store.tidy()
    assert held(folder) == members(folder) == before | jpegs_of("next")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", [1, 2, 5, 14])
@pytest.mark.parametrize("into_shards", [True, False])
def test_photos_come_along_from_files_into_shards_and_back_also_after_a_kill(tmp_path, monkeypatch, into_shards, calls):
    expected = {}
    with writing(tmp_path, not into_shards, COPIES) as store:
        for number in range(5):
            store.write(jpegs_of(f"p{number}"))
            expected |= jpegs_of(f"p{number}")
        store.tidy()
    monkeypatch.setattr(photo_store, "TOGETHER", 2)
    with monkeypatch.context() as patch:
        place, name = (Path, "unlink") if into_shards else (photo_store, "_write_file")
        left, function = [None] * calls, getattr(place, name)

        def killed(*args, **kwargs):
            left.pop()
            if not left:
                raise Killed
            return function(*args, **kwargs)

        patch.setattr(place, name, killed)
        with pytest.raises(Killed), writing(tmp_path, into_shards, COPIES):
            pass
    assert held(tmp_path) == expected  # who reads meanwhile finds each where it is
    with writing(tmp_path, into_shards, COPIES) as store:
        assert {name: store.read(name) for place in PLACES for name in store.names(place)} == expected
    assert isinstance(open_store(tmp_path), Shards if into_shards else Files)
    assert held(tmp_path) == expected
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == (2 + len(list((tmp_path / photo_store.SHARDS).iterdir())) if into_shards else 15)


def test_readers_find_the_photos_of_before_until_they_are_told(folder, monkeypatch):
    monkeypatch.setattr(photo_store, "TOGETHER", 2)
    reader, before = open_store(folder), held(folder)
    with writing(folder, True, COPIES) as store:
        for number in range(7):
            store.write(jpegs_of(f"p{number}", "new"))
        store.remove(jpegs_of("p8"))
        assert held(folder) == before
        store.tidy()
        assert reader.read("p1.jpg") == jpegs_of("p1", "new")["p1.jpg"]
        with pytest.raises(FileNotFoundError, match=r"p8\.jpg is missing"):
            reader.read("p8.jpg")


def test_who_may_only_read_needs_no_room_and_no_lock(folder):
    expected = held(folder)
    with contextlib.closing(sqlite3.connect(folder / photo_store.INDEX)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert held(folder) == expected
    folder.chmod(0o555)
    assert held(folder) == expected and not list(folder.glob("*-journal"))
    folder.chmod(0o755)


@pytest.mark.parametrize("name", ["x" * 65 + ".jpg", "a.b.jpg", "\udcff.jpg"])
def test_what_is_no_photo_of_ours_stays_out_of_the_shards_and_can_be_removed(tmp_path, name):
    (tmp_path / name).write_bytes(b"foreign")
    (tmp_path / "folder.jpg").mkdir()
    Files(tmp_path).write({"ours.jpg": b"ours"})
    with writing(tmp_path, True, ()) as store:
        assert sorted(store.names()) == sorted(["ours.jpg", name])
        assert store.remove([name, "nothing.jpg"]) == 1
        store.tidy()
    assert held(tmp_path) == members(tmp_path) == {"ours.jpg": b"ours"}
