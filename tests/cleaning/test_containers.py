"""containers.py: what asks for too much work is refused before a decoder sees it, and a good photo stays a good photo."""

import struct
import zlib

import pytest
from PIL import Image

from marketplace.cleaning import containers, photos
from marketplace.cleaning.photos import CleanSettings
from tests.cleaning.test_photos import SRGB, display_p3_profile, encoded, png_chunk, quarters, rejection, smooth

MANY = 50_001
JPEG = encoded(smooth(320, 200), "JPEG")
PROGRESSIVE = encoded(smooth(320, 200), "JPEG", progressive=True)
PNG = encoded(smooth(320, 200), "PNG")
GIF = encoded(smooth(320, 200), "GIF")


def in_png(chunks: bytes, png: bytes = PNG) -> bytes:
    """The chunks behind the header."""
    return png[:33] + chunks + png[33:]


def in_gif(blocks: bytes) -> bytes:
    frame = GIF.index(b",\0\0\0\0")
    return GIF[:frame] + blocks + GIF[frame:]


def with_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    jpeg = encoded(Image.new("L", (width, height)), "JPEG", progressive=True)
    first, *rest = jpeg[:-2].split(b"\xff\xda")
    return b"\xff\xda".join([first, *rest, *[rest[-1]] * (scans - len(rest))]) + jpeg[-2:]


def tiff_of_strips(count: int, order: str, is_big: bool) -> bytes:
    """One page, a pixel wide, of strips that are a byte each and all the same."""
    number, entry, slot = ("Q", "HHQ", 8) if is_big else ("I", "HHI", 4)
    start = {("<", False): b"II*\0", (">", False): b"MM\0*", ("<", True): b"II+\0\x08\0\0\0", (">", True): b"MM\0+\0\x08\0\0"}[
        order, is_big
    ]
    head = len(start) + slot
    table = struct.pack(f"{order}{count}I", *[head] * count)
    sizes = struct.pack(f"{order}{count}I", *[1] * count)
    tables = {273: head, 279: head + len(table)}
    tags = [(256, 1), (257, count), (258, 8), (259, 1), (262, 1), (273, None), (277, 1), (278, 1), (279, None)]
    page = struct.pack(order + ("Q" if is_big else "H"), len(tags))
    for tag, value in tags:
        page += struct.pack(order + entry, tag, 4, count if tag in tables else 1)
        page += struct.pack(order + number, tables[tag]) if tag in tables else struct.pack(order + "I", value).ljust(slot, b"\0")
    return start + struct.pack(order + number, head + len(table + sizes)) + table + sizes + page + bytes(slot)


PHOTOSHOP = b"\xff\xed\xea\x70Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 5000  # a segment of 60,000 bytes

BOMBS = {
    "comments": (JPEG[:2] + b"\xff\xfe\0\2" * MANY + JPEG[2:], "50,000 pieces"),
    "fill bytes": (JPEG[:2] + b"\xff" * MANY + JPEG[2:], "50,000 pieces"),
    "stray bytes": (JPEG[:2] + b"\xff\xfe\0\2" + b"\0" * MANY + JPEG[2:], "50,000 pieces"),
    "nothing but fill bytes": (JPEG[:2] + b"\xff" * 20_000_000, "50,000 pieces"),
    "Photoshop's blocks": (JPEG[:2] + PHOTOSHOP * 11 + JPEG[2:], "50,000 pieces"),
    "EXIF": (JPEG[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 17 + JPEG[2:], "1,048,576 bytes of EXIF"),
    "scans": (with_scans(64, 64, 101), "100 progressive scans"),
    "scans of many pixels": (with_scans(7000, 7000, 21), "1,000,000,000 pixels in all of its progressive scans"),
    "chunks": (in_png(png_chunk(b"abCd", b"") * MANY), "50,000 pieces"),
    "empty data": (PNG[:-12] + png_chunk(b"IDAT", b"") * MANY + PNG[-12:], "50,000 pieces"),
    "blocks": (in_gif(b"!\xfe" + b"\1a" * MANY + b"\0"), "50,000 pieces"),
    "extensions": (in_gif(b"!\xfe\1a\0" * MANY), "50,000 pieces"),
    "strips": (tiff_of_strips(100_001, "<", False), "100,000 strips or tiles"),
    "strips of the other order": (tiff_of_strips(100_001, ">", False), "100,000 strips or tiles"),
    "strips of a BigTIFF": (tiff_of_strips(100_001, "<", True), "100,000 strips or tiles"),
    "strips of a BigTIFF of the other order": (tiff_of_strips(100_001, ">", True), "100,000 strips or tiles"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_of_more_work_than_any_photo_is_refused_before_a_decoder_sees_it(name, monkeypatch):
    data, what = BOMBS[name]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow saw it"))
    assert rejection(data) == ("unreadable", f"the photo has more than {what}")


@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True)])  # Pillow reads no fourth
def test_a_tiff_of_many_strips_that_may_be_one_is_cleaned(order, is_big):
    assert photos.clean(tiff_of_strips(3000, order, is_big)).height == 3000


@pytest.mark.parametrize("kind", ["VP8 ", "VP8L", "VP8X"])
def test_the_canvas_of_a_webp_is_measured_before_memory_is_taken_for_it(kind, monkeypatch):
    options = {"VP8 ": {}, "VP8L": {"lossless": True}, "VP8X": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}}[kind]
    data = encoded(quarters(300, 170), "WEBP", **options)
    assert data[12:16] == kind.encode() and containers.examine(data).size == (300, 170)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow saw it"))
    assert rejection(data, max_pixels=50_999)[0] == "too_many_pixels"


# Good photos stay


@pytest.mark.parametrize("jpeg", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
def test_what_stands_behind_a_jpeg_or_in_its_segments_is_no_scan(jpeg):
    video = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x0c" * 100_000
    segments = (b"\xff\xe4\xff\xff" + b"\xff\xda\xff" * 21_844 + b"\0") * 100  # 6.5 MB
    assert photos.clean(jpeg[:2] + segments + jpeg[2:] + video) == photos.clean(jpeg)


@pytest.mark.parametrize("jpeg", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
def test_a_jpeg_without_its_end_is_whole_and_one_that_lacks_more_is_cut_off(jpeg):
    assert photos.clean(jpeg[:-2]) == photos.clean(jpeg[:-1]) == photos.clean(jpeg)
    for missing in (10, 30, 200, 2000):
        assert rejection(jpeg[:-missing]) == ("truncated", "the photo is cut off: part of its data is missing")


def test_a_jpeg_with_restarts_and_fill_bytes_is_cleaned():
    jpeg = encoded(smooth(320, 200), "JPEG", restart_marker_blocks=4)
    assert jpeg.count(b"\xff\xd3") > 5
    assert (
        photos.clean(jpeg[:2] + b"\xff" * 100 + jpeg[2:-2] + b"\xff" * 100 + jpeg[-2:])
        == photos.clean(jpeg)
        == photos.clean(JPEG)
    )


TEXT = zlib.compress(b"a picture of my bed " * 300_000)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"note\0\0" + TEXT),
        png_chunk(b"iTXt", b"note\0\1\0\0\0" + TEXT),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + TEXT),
        png_chunk(b"tEXt", b"note\0" + b"a" * 3_000_000),
        png_chunk(b"tEXt", b"note\0hello")[:-4] + b"\0\0\0\0",
        png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")[:-4] + b"\0\0\0\0",
        png_chunk(b"iCCP", b"note\0\0" + TEXT),
        png_chunk(b"iCCP", b"note\0\0no zlib"),
        png_chunk(b"iCCP", b"note\0\7" + zlib.compress(SRGB)),
        png_chunk(b"iCCP", b"note"),
        png_chunk(b"vpAg", b"whatever"),
    ],
    ids=["zTXt", "iTXt", "XMP", "tEXt", "bad text", "bad EXIF", "huge profile", "no profile", "method 7", "no end", "private"],
)
def test_a_text_or_profile_of_a_png_that_is_long_or_damaged_is_left_out(chunk):
    assert photos.clean(in_png(chunk)) == photos.clean(PNG)
    assert photos.clean(PNG[:-12] + chunk + PNG[-12:]) == photos.clean(PNG)


def test_a_profile_of_a_png_above_a_megabyte_is_applied():
    profile = display_p3_profile() + bytes(2_000_000)
    converted = photos.clean(in_png(png_chunk(b"iCCP", b"P3\0\0" + zlib.compress(profile))))
    assert (
        converted
        == photos.clean(in_png(png_chunk(b"iCCP", b"P3\0\0" + zlib.compress(display_p3_profile()))))
        != photos.clean(PNG)
    )


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>')),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(
            b"\nexif\n26\n" + (b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0) + bytes(4)).hex().encode()
        )),
    ],
    ids=["XMP", "compressed XMP", "ImageMagick's"],
)  # fmt: skip
def test_an_orientation_that_a_png_tells_in_a_text_is_applied(chunk, behind):
    data = PNG[:-12] + chunk + PNG[-12:] if behind else in_png(chunk)
    assert (photos.clean(data).width, photos.clean(data).height) == (200, 320)


def test_a_png_without_anything_to_leave_out_is_decoded_as_it_is():
    data = in_png(png_chunk(b"iCCP", b"P3\0\0" + zlib.compress(SRGB)))
    assert containers.examine(data).data is data


def test_a_heic_may_be_followed_by_anything():
    data = encoded(quarters(), "HEIF")
    assert photos.clean(data + b"\xff\xff\xff\xffmpvd" + bytes(50)).sha256 == photos.clean(data).sha256


def test_the_largest_photos_that_are_decoded_at_all_pass():
    assert photos.clean(with_scans(7000, 7000, 20), CleanSettings(size=8)).width == 7000
