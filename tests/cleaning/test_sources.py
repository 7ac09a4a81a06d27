"""Which files of a source are read, and in which order those of one id are tried."""

import hashlib
import json
from collections import Counter
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.cleaning import sources
from marketplace.cleaning.sources import Photo, Source

SUFFIXES = ["", ".jpg", ".JPEG", ".png", ".webp", ".gif", ".tiff", ".heic", ".MOV", ".AAE", ".html"]
ORDER = [{".jpg", ".jpeg"}, {".png"}, {".webp"}, {"", ".gif", ".tiff"}, {".heic"}, {".mov", ".aae", ".html"}]
NAMES = st.builds(
    lambda folder, stem, suffix: folder + stem + suffix,
    st.sampled_from(["", "a/", "b/c/", "../"]),
    st.sampled_from(["x", "X", "y", "x y", "0af76519-16cd-43dd-8448-eb211c80319c", "0AF76519-16cd-43dd-8448-eb211c80319c"]),
    st.sampled_from(SUFFIXES),
)


def photo(name: str, size: int = 1) -> Photo:
    return Photo(name, name, "", size)


@given(st.text(st.sampled_from("aB1_-./ é"), min_size=1, max_size=8))
def test_the_parts_of_a_name_are_a_path_s(name):
    photo, path = Photo(name, 0, "", 1), PurePosixPath(name)
    assert (photo.stem, photo.suffix) == (path.stem, path.suffix)


def source_of(*photos: Photo) -> Source:
    """The photos, and one beside them that keeps their names as they are: else they lose the folder that they share."""
    return Source([*photos, photo("0.jpg")])


def candidates_of(source: Source, selection: sources.Selection) -> dict[str, list[Photo]]:
    """The files of each id in the order of their turns; that of source_of() left out."""
    found, photos = {}, dict(source.numbered())
    for image_id, number in source.database.execute("SELECT id, file FROM candidates WHERE id != '0' ORDER BY id, turn"):
        found.setdefault(image_id, []).append(photos[number])
    assert selection.turns == max([1, *map(len, found.values())])
    return found


@given(st.lists(NAMES, unique=True), st.none() | st.sets(st.sampled_from(["x", "y", "x y"])))
def test_every_file_is_tried_rejected_or_skipped_and_the_kinds_of_one_id_are_tried_in_order(names, wanted):
    source = source_of(*map(photo, names))
    assert [photo.name for photo in source.photos()] == sorted(["0.jpg", *names])
    selection = sources.select(source, wanted and {*wanted, "0"} if wanted is None or wanted else {"0"})
    candidates = candidates_of(source, selection)
    tried = [candidate.name for files in candidates.values() for candidate in files]
    rejected = [candidate.name for candidate, _ in selection.unread()]
    assert len(tried) + len(rejected) + selection.skipped == len(names)
    assert selection.wanted == len(tried) + len(rejected) + 1
    assert Counter(tried + rejected) <= Counter(names)
    for name, files in candidates.items():
        assert {PurePosixPath(file.name).stem.lower() for file in files} == {name} and (wanted is None or name in wanted)
        kinds = [
            next(rank for rank, kind in enumerate(ORDER) if PurePosixPath(file.name).suffix.lower() in kind) for file in files
        ]
        assert kinds == sorted(kinds)
        assert [sources.is_sidecar(file) for file in files] == [kind == len(ORDER) - 1 for kind in kinds]
    assert all(reason == "bad_name" and ("../" in file.name or "x y" in file.name) for file, reason in selection.unread())


def test_a_file_too_large_to_be_a_photo_takes_no_id():
    large = photo("x.jpg", sources.MAX_PHOTO_BYTES + 1)
    source = source_of(large, photo("x.png"))
    selection = sources.select(source, None)
    assert list(selection.unread()) == [(large, "too_large")]
    assert candidates_of(source, selection) == {"x": [photo("x.png")]}


FILE_NAMES = st.text(st.characters(blacklist_characters="/\0"), max_size=8)  # undecodable bytes are lone surrogates


@given(st.lists(st.tuples(FILE_NAMES, st.text("0123456789-"), st.integers(0, 2**62)), max_size=9))
def test_a_source_lists_in_pythons_order_and_its_digests_are_of_all_of_it(files):
    photos = [Photo(f"é{name}.jpg", f"/{name}", identity, size) for name, identity, size in files]
    source, ordered = Source([None, *photos, None]), sorted(photos, key=lambda each: each.name)
    assert list(source.photos()) == ordered and (source.n_photos, source.ignored) == (len(photos), 2)
    listing = json.dumps([[each.name, each.identity] for each in ordered])
    assert source.digest() == hashlib.sha256(listing.encode()).hexdigest()
    assert source.names_digest() == hashlib.sha256(json.dumps([each.name for each in ordered]).encode()).hexdigest()


# Names that a table gives


def select_names(names, files, urls=None):
    source = source_of(*map(photo, names))
    found = sources.select_files(source, [*files.items(), ("0", "0.jpg")], lambda photo: (urls or {}).get(photo.stem, ""))
    candidates = candidates_of(source, found)
    return {image_id: [photo.name for photo in those] for image_id, those in candidates.items()}, found.skipped


@pytest.mark.parametrize(
    ("names", "files", "found", "skipped"),
    [
        (["a.jpg", "b.jpg"], {"1": "a.jpg"}, {"1": ["a.jpg"]}, 1),
        (["a.jpg"], {"1": "photos/a.jpg"}, {"1": ["a.jpg"]}, 0),  # the source is that folder
        (["photos/a.jpg"], {"1": "a.jpg"}, {"1": ["photos/a.jpg"]}, 0),
        (["x/a.jpg", "y/a.jpg"], {"1": "x/a.jpg", "2": "y/a.jpg"}, {"1": ["x/a.jpg"], "2": ["y/a.jpg"]}, 0),
        (["a.jpg"], {"1": "x/a.jpg", "2": "y/a.jpg"}, {}, 1),  # of which of the two, cannot be told
        (["a.jpg"], {"1": "a.jpg", "2": "a.jpg"}, {"1": ["a.jpg"], "2": ["a.jpg"]}, 0),
        (["A.jpg"], {"1": "a.jpg"}, {}, 1),
        (["a b.jpg"], {"1": "https://cdn.example/x/a%20b.jpg?w=9"}, {"1": ["a b.jpg"]}, 0),
        (["cdn.example/x/a.jpg"], {"1": "https://cdn.example/x/a.jpg"}, {"1": ["cdn.example/x/a.jpg"]}, 0),
    ],
)
def test_a_file_is_found_by_the_name_that_a_table_gives_it(names, files, found, skipped):
    assert select_names(names, files) == (found, skipped)


def test_a_fetched_photo_is_found_by_its_whole_address_only():
    files = {"1": "https://x.example/a.jpg", "2": "https://y.example/a.jpg"}
    urls = {"000000000": "https://y.example/a.jpg", "000000001": "https://z.example/a.jpg"}
    assert select_names(["000000000.jpg", "000000001.jpg"], files, urls) == ({"2": ["000000000.jpg"]}, 1)


def test_a_named_photo_that_is_too_large_is_rejected_unread():
    source = Source([photo("a.jpg", sources.MAX_PHOTO_BYTES + 1)])
    found = sources.select_files(source, [("1", "a.jpg")], lambda _: "")
    assert [(one.image_id, reason) for one, reason in found.unread()] == [("1", "too_large")] and found.wanted == 1
