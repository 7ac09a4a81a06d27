"""cleaning/photo_names.py: which photos a listing has, by the names of their files."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.cleaning import photo_names, sources
from marketplace.cleaning.photo_names import Named

UUID = "1C58D3F9-8D0B-4E4F-9D2B-0C8E5A8F7E11"
NAMES = st.text(st.sampled_from("aA1_-./ é#%"), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a.jpg", ["a.jpg"]),
        ("a.jpg|b/c.png | d.jpg|", ["a.jpg", "b/c.png", "d.jpg"]),
        ('["a.jpg", "b|c.jpg"]', ["a.jpg", "b|c.jpg"]),
        ("[old] a.jpg", ["[old] a.jpg"]),
        ("photos\\a.jpg", ["photos/a.jpg"]),
        (" ", []),
        ("[]", []),
    ],
)
def test_a_column_holds_one_name_or_several_or_a_list(text, names):
    assert list(photo_names.in_column({"A": text}, "|")) == [Named("A", name) for name in names]


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="\\"), min_size=1), max_size=4))
def test_a_list_in_json_is_read_whatever_its_names(names):
    assert [named.file for named in photo_names.in_column({"A": json.dumps(names)}, "|")] == names


def test_a_pattern_finds_the_photos_of_each_listing_in_the_order_of_their_numbers():
    names = ["7_10.jpg", "7_2.JPG", "A_b_1.jpg", "readme.jpg", "sub/7_1.jpg", f"{UUID}_1.jpg", "7_x.jpg"]
    found = photo_names.by_pattern(names, "{id}_{n}.jpg", {})
    assert [named for named in found if named.product_id == "7"] == [
        *(Named("7", "sub/7_1.jpg"), Named("7", "7_2.JPG"), Named("7", "7_10.jpg"))
    ]
    others = {named for named in found if named.product_id != "7"}
    assert others == {
        Named("A_b", "A_b_1.jpg"),
        Named("", "readme.jpg"),
        Named(UUID.lower(), f"{UUID}_1.jpg"),
        Named("", "7_x.jpg"),
    }


@pytest.mark.parametrize(
    ("pattern", "name", "product_id"),
    [
        ("{id}/{n}.jpg", "shop/A1/2.jpg", "A1"),
        ("{id}.jpg", "A1.jpg", "A1"),
        ("img-{n}-{id}.png", "img-3-A1.png", "A1"),
        ("{id}(.){n}.jpg", "A1(.)2.jpg", "A1"),
        ("{id}(.){n}.jpg", "A1(x)2.jpg", ""),
        ("{id}_{n}.jpg", "shop/BED/00 1_2.jpg", "BED/00 1"),
        ("{id}_{n}.jpg", "BED%2F00%201_2.jpg", "BED/00 1"),
        ("{id}_{n}.jpg", "shop/BED/00_2.jpg", "00"),
    ],
)
def test_a_pattern_may_be_of_any_form(pattern, name, product_id):
    assert photo_names.by_pattern([name], pattern, {"BED/00 1"}) == [Named(product_id, name)]


def test_photos_become_rows_with_plain_ids_where_these_are_safe():
    photos = [Named("A", name) for name in ("a1.jpg", f"{UUID}.jpg", "DSC 1.jpg", "x/a1.jpg", "a1.png")]
    rows, rejects = photo_names.clean(photos, {"A": 3})
    ids = [row["image_id"] for row in rows]
    assert ids[:2] == ["a1", UUID.lower()] and rejects == []
    assert [image_id.rpartition("-")[0] for image_id in ids[2:]] == ["dsc-1", "a1", "a1"]
    assert rows[2] == {"image_id": ids[2], "product_id": "A", "label": 3, "file": "DSC 1.jpg"}


def test_a_file_of_two_listings_is_a_photo_of_each():
    rows, rejects = photo_names.clean([Named("A", "a.jpg"), Named("B", "a.jpg"), Named("C", "a.jpg")], {"A": 0, "B": 0, "C": 0})
    assert [(row["product_id"], row["file"]) for row in rows] == [("A", "a.jpg"), ("B", "a.jpg"), ("C", "a.jpg")]
    assert len({row["image_id"] for row in rows}) == 3 and rejects == []


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        (Named("B", "b.jpg"), "no_listing"),
        (Named("", "b.jpg"), "bad_name"),
        (Named("A", "../b.jpg"), "bad_name"),
        (Named("A", "b\n.jpg"), "bad_name"),
        (Named("A", "b" * 1025), "bad_name"),
        (Named("A", "a.jpg"), "duplicate_id"),
    ],
)
def test_a_photo_that_is_no_listings_is_rejected_with_its_reason(photo, reason):
    rows, rejects = photo_names.clean([Named("A", "a.jpg"), photo], {"A": 0})
    assert len(rows) == 1
    assert [(reject["source"], reject["record"], reject["reason"]) for reject in rejects] == [("photos", 2, reason)]


def test_personal_data_in_a_rejected_name_is_marked():
    _, ((reject,)) = photo_names.clean([Named("B", "joe@example.com.jpg")], {})
    assert reject["raw"] == "[email].jpg"


@given(st.lists(st.tuples(st.sampled_from("ABC"), NAMES).map(lambda pair: Named(*pair)), max_size=12))
def test_every_photo_is_kept_or_rejected_and_ids_are_safe_and_different_in_any_capitals(photos):
    rows, rejects = photo_names.clean(photos, {"A": 0, "B": 1})
    assert len(rows) + len(rejects) == len(photos)
    ids = [row["image_id"] for row in rows]
    assert len(set(map(str.lower, ids))) == len(ids) and all(map(sources.is_image_id, ids))
