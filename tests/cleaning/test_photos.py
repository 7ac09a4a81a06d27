"""photos.py: every kind of file becomes one square sRGB JPEG or one reason why not."""

import copy
import dataclasses
import hashlib
import io
import json
import math
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from marketplace.cleaning import containers, photos, pictures
from marketplace.cleaning.photos import CleanSettings, PhotoRejected

RED, GREEN, BLUE, YELLOW, WHITE = (200, 30, 30), (30, 160, 60), (40, 60, 200), (220, 200, 40), (255, 255, 255)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ENCODINGS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {"quality": 95}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {"quality": 90}),
    ("HEIF", {"quality": 90}),
    ("HEIF", {"quality": 90, "tile_size": 64}),  # as phones write it: a grid of tiles
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    if kind == "HEIF" and "exif" in options:  # its encoder looks for the orientation, which it writes as a property, in bytes
        options["exif"] = options["exif"].tobytes()
    image.save(file, kind, **options)
    return file.getvalue()


def quarters(width: int = 320, height: int = 200) -> Image.Image:
    """Red, green, blue and yellow quarters: every orientation and every swap of channels shows."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def smooth(width: int, height: int) -> Image.Image:
    """A photo-like picture: smooth colours with some fine texture."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / width * a + y / height * b) for a, b in ((7, 2), (3, 11), (13, 5))]
    texture = np.random.default_rng(3).normal(0, 6, (height, width, 1))
    return Image.fromarray((128 + 100 * np.stack(waves, axis=2) + texture).clip(0, 255).astype(np.uint8))


def cleaned_pixels(data: bytes, **options) -> np.ndarray:
    return photos.pixels(photos.clean(data, CleanSettings(**options)).jpeg).astype(int)


def corners(square: np.ndarray, height_share: float = 1.0, width_share: float = 1.0) -> list[np.ndarray]:
    """The colours in the middle of the content's four quarters, row by row."""
    size = len(square)
    rows = [round(size * (0.5 + sign * height_share / 4)) for sign in (-1, 1)]
    columns = [round(size * (0.5 + sign * width_share / 4)) for sign in (-1, 1)]
    return [square[row, column] for row in rows for column in columns]


def assert_colours(actual, expected, tolerance: int = 8) -> None:
    assert np.abs(np.asarray(actual, int) - np.asarray(expected, int)).max() <= tolerance, (actual, expected)


def rejection(data: bytes, **options) -> tuple[str, str]:
    with pytest.raises(PhotoRejected) as caught:
        photos.clean(data, CleanSettings(**options))
    return caught.value.reason, str(caught.value)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, before_pixels: bytes = b"", rows: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before_pixels + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


# What comes out


@pytest.mark.parametrize(("kind", "options"), ENCODINGS)
def test_each_format_is_recognised_by_its_content_and_keeps_its_colours(kind, options):
    cleaned = photos.clean(encoded(quarters(), kind, **options))
    assert (cleaned.width, cleaned.height) == (320, 200)
    assert_colours(corners(photos.pixels(cleaned.jpeg), 200 / 320), [RED, GREEN, BLUE, YELLOW])


def test_the_result_is_a_plain_rgb_jpeg_square_without_metadata():
    exif = Image.Exif()
    exif[0x010E] = "taken at 12 Rose Lane"
    exif.get_ifd(0x8825)[1] = "N"
    data = encoded(quarters(), "JPEG", exif=exif, icc_profile=SRGB, comment=b"call me")
    jpeg = photos.clean(data).jpeg
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256))
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert len(image.getexif()) == 0
    assert b"Rose Lane" in data and b"Rose Lane" not in jpeg and b"call me" not in jpeg


def test_pad_keeps_the_whole_picture_centred_on_white():
    square = cleaned_pixels(encoded(quarters(400, 200), "PNG"))
    assert_colours(square[:63], np.broadcast_to(WHITE, (63, 256, 3)), 3)
    assert_colours(square[193:], np.broadcast_to(WHITE, (63, 256, 3)), 3)
    assert_colours(corners(square, 0.5), [RED, GREEN, BLUE, YELLOW])


def test_pad_centres_an_upright_picture_too():
    square = cleaned_pixels(encoded(quarters(200, 400), "PNG"))
    assert_colours(square[:, :63], np.broadcast_to(WHITE, (256, 63, 3)), 3)
    assert_colours(square[:, 193:], np.broadcast_to(WHITE, (256, 63, 3)), 3)
    assert_colours(corners(square, 1, 0.5), [RED, GREEN, BLUE, YELLOW])


def test_crop_keeps_the_central_square():
    striped = Image.new("RGB", (400, 200), BLUE)
    striped.paste(RED, (100, 0, 300, 200))
    assert_colours(cleaned_pixels(encoded(striped, "PNG"), fit="crop"), np.broadcast_to(RED, (256, 256, 3)))


def test_stretch_fills_the_square_with_the_whole_picture():
    assert_colours(corners(cleaned_pixels(encoded(quarters(400, 100), "PNG"), fit="stretch")), [RED, GREEN, BLUE, YELLOW])


@pytest.mark.parametrize("fit", photos.FITS)
@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1), (2, 65000), (28, 28), (3, 7)])
def test_tiny_and_very_thin_photos_are_cleaned(size, fit):
    cleaned = photos.clean(encoded(Image.new("RGB", size, RED), "JPEG"), CleanSettings(size=64, fit=fit))
    assert (cleaned.width, cleaned.height) == size
    square = photos.pixels(cleaned.jpeg)
    assert square.shape == (64, 64, 3)
    if fit != "pad":
        assert_colours(square, np.broadcast_to(RED, (64, 64, 3)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_applied(kind, orientation):
    # The oracle: the stored array is what NumPy makes of the upright one, from the standard's table of row 0 and column 0.
    store = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(store(np.asarray(quarters()))))
    cleaned = photos.clean(encoded(stored, kind, exif=exif))
    assert (cleaned.width, cleaned.height) == (320, 200)
    assert_colours(corners(photos.pixels(cleaned.jpeg), 200 / 320), [RED, GREEN, BLUE, YELLOW], 14)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert photos.clean(encoded(quarters(), "JPEG", exif=exif)).sha256 == photos.clean(encoded(quarters(), "JPEG")).sha256


@pytest.mark.filterwarnings("ignore")  # Pillow's
def test_damaged_exif_is_ignored():
    data = encoded(quarters(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 40)
    assert photos.clean(data).sha256 == photos.clean(encoded(quarters(), "JPEG")).sha256


def display_p3_profile() -> bytes:
    """A matrix profile with Display P3's primaries (adapted to D50) and a 2.2 curve, built by hand from the ICC specification."""

    def s15(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(s15, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 3) + b"P3\0" + b"\0" * 78 + b"\0" * 3
    tags = [
        (b"desc", text),
        (b"cprt", b"text\0\0\0\0none\0\0\0\0"),
        (b"wtpt", xyz(0.9642, 1.0, 0.8249)),
        (b"rXYZ", xyz(0.5151, 0.2412, -0.0011)),
        (b"gXYZ", xyz(0.2919, 0.6922, 0.0419)),
        (b"bXYZ", xyz(0.1572, 0.0666, 0.7841)),
        (b"rTRC", curve),
        (b"gTRC", curve),
        (b"bTRC", curve),
    ]
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags:
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", offset + len(body), len(value))
        body += value
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"test", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + s15(0.9642) + s15(1.0) + s15(0.8249)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def p3_as_srgb(colour: tuple[int, int, int]) -> np.ndarray:
    """The published linear Display P3 -> sRGB matrix (CSS Color 4, section 17) and sRGB's transfer curve."""
    linear = (np.asarray(colour) / 255) ** 2.2
    matrix = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]
    mixed = (np.asarray(matrix) @ linear).clip(0, 1)
    return 255 * np.where(mixed <= 0.0031308, 12.92 * mixed, 1.055 * mixed ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("colour", [(180, 120, 100), (90, 140, 90), (60, 90, 150), (128, 128, 128)])
def test_a_wide_gamut_profile_is_converted_to_srgb(colour, mode):
    data = encoded(Image.new("RGB", (64, 64), colour).convert(mode), "PNG", icc_profile=display_p3_profile())
    assert_colours(cleaned_pixels(data)[128, 128], p3_as_srgb(colour).round(), 4)


@pytest.mark.parametrize(
    "profile", [b"no profile", b"\0" * 200, SRGB[:200], ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_profile_that_is_broken_or_of_another_kind_is_ignored(profile, mode):
    image = quarters().convert(mode)
    with_profile, without = encoded(image, "JPEG", icc_profile=profile), encoded(image, "JPEG")
    assert photos.clean(with_profile).sha256 == photos.clean(without).sha256


def test_transparency_is_flattened_on_white():
    image = Image.new("RGBA", (64, 64), (*RED, 128))
    assert_colours(cleaned_pixels(encoded(image, "PNG"))[128, 128], (np.asarray(RED) + 255) / 2, 3)
    assert_colours(cleaned_pixels(encoded(image, "WEBP", lossless=True))[128, 128], (np.asarray(RED) + 255) / 2, 3)


def test_hidden_colours_do_not_bleed_out_of_transparent_pixels():
    image = Image.new("RGBA", (512, 512), (0, 0, 0, 0))
    image.paste((*WHITE, 255), (0, 0, 255, 512))
    assert cleaned_pixels(encoded(image, "PNG")).min() >= 253


def test_a_display_copy_is_the_whole_upright_picture_in_srgb_without_metadata():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    colour = (180, 120, 100)
    picture = quarters(1200, 800)
    picture.paste(colour, (300, 200, 900, 600))
    data = encoded(picture, "JPEG", quality=95, exif=exif, icc_profile=display_p3_profile(), comment=b"secret")
    display = photos.clean(data, with_display=True).display
    image = Image.open(io.BytesIO(display.jpeg))
    assert (display.width, display.height) == image.size == (533, 800)
    assert (image.format, image.mode, "exif" in image.info, "icc_profile" in image.info, "comment" in image.info) == (
        *("JPEG", "RGB"),
        *(False, False, False),
    )
    shown = np.asarray(image).astype(int)
    assert_colours(shown[400, 266], p3_as_srgb(colour))
    top_left, top_right = shown[20, 20], shown[20, -20]  # turned clockwise, the lower left quarter comes first
    assert_colours(top_left, p3_as_srgb(BLUE), 12)
    assert_colours(top_right, p3_as_srgb(RED), 12)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
@pytest.mark.parametrize("size", [(640, 480), (2500, 1000)])
def test_a_photo_with_a_display_copy_has_the_same_square(kind, size):
    data = encoded(smooth(*size), kind)
    alone, beside = photos.clean(data), photos.clean(data, with_display=True)
    assert alone.display is None and dataclasses.replace(beside, display=None) == alone
    expected = Image.open(io.BytesIO(data)).convert("RGB").resize((beside.display.width, beside.display.height), photos.RESAMPLE)
    shown = photos.pixels(beside.display.jpeg).astype(int)
    assert np.abs(shown - np.asarray(expected)).mean() < 8  # grey levels, of a texture that JPEG blurs


def test_grey_with_alpha_is_flattened_on_white():
    assert_colours(cleaned_pixels(encoded(Image.new("LA", (64, 64), (100, 51)), "PNG"))[128, 128], [224] * 3, 3)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 255, 255])])
def test_a_palette_with_a_transparent_colour_is_flattened_on_white(transparency):
    image = Image.new("P", (64, 64), 0)
    image.putpalette([*RED, *GREEN, *BLUE, *YELLOW])
    image.paste(1, (32, 0, 64, 64))
    square = cleaned_pixels(encoded(image, "PNG", transparency=transparency))
    assert_colours([square[128, 64], square[128, 192]], [WHITE, GREEN])


def test_a_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert_colours(cleaned_pixels(data)[128, 128], RED)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "TIFF", "MPO"])
def test_animations_and_files_of_many_pages_give_their_first(kind):
    data = encoded(quarters(), kind, save_all=True, append_images=[Image.new("RGB", (320, 200), BLUE)])
    assert_colours(corners(cleaned_pixels(data), 200 / 320), [RED, GREEN, BLUE, YELLOW], 14)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind):
    cmyk = Image.merge("CMYK", [Image.new("L", (64, 64), ink) for ink in (0, 200, 255, 20)])
    # The usual formula without a profile: (1 - ink) x (1 - black).
    expected = [(255 - ink) * (255 - 20) / 255 for ink in (0, 200, 255)]
    assert_colours(cleaned_pixels(encoded(cmyk, kind))[128, 128], expected, 10)


def test_cmyk_without_adobes_marker_is_not_inverted():
    inks = (0, 200, 255, 20)
    inverted = Image.merge("CMYK", [Image.new("L", (64, 64), 255 - ink) for ink in inks])
    data = encoded(inverted, "JPEG")  # Pillow inverts again, as Adobe's files are
    start = data.index(b"\xff\xee\x00\x0eAdobe")
    plain = data[:start] + data[start + 16 :]
    assert_colours(cleaned_pixels(plain)[128, 128], [(255 - ink) * 235 / 255 for ink in inks[:3]], 10)


def test_ycbcr_and_lab_tiffs_are_converted():
    for mode in ("YCbCr", "LAB"):
        square = cleaned_pixels(encoded(quarters().convert(mode), "TIFF"))
        assert_colours(corners(square, 200 / 320), [RED, GREEN, BLUE, YELLOW])


RAMP = np.tile(np.linspace(0, 1, 256), (256, 1))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("PNG", (RAMP * 65535).astype(np.uint16)),
        ("TIFF", (RAMP * 65535).astype("<u2")),
        ("TIFF", (RAMP * 65535).astype(">u2")),
        ("TIFF", (RAMP * 65535).astype(np.int32)),
        ("TIFF", (RAMP * 255).astype(np.int32)),
        ("TIFF", (RAMP * (2**31 - 1000)).astype(np.int32)),
        ("TIFF", RAMP.astype(np.float32)),
        ("TIFF", (RAMP * 65535).astype(np.float32)),
    ],
    ids=["16 png", "16 little", "16 big", "32 of 16", "32 of 8", "32", "float 1", "float 65535"],
)
def test_deep_grey_pixels_are_scaled_not_clipped(kind, values):
    square = cleaned_pixels(encoded(Image.fromarray(values), kind))
    assert_colours(square[128], np.repeat(RAMP[0][:, None] * 255, 3, axis=1), 4)


def test_twelve_bit_pixels_are_scaled_by_their_own_white():
    values = [[0, 2048] * 16, [4095, 2048] * 16]
    bits = "".join(f"{value:012b}" for row in values for value in row)
    pixels = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = [
        (256, 3, 32),
        (257, 3, 2),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 2),
        (279, 4, len(pixels)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + b"\0" * 4
    square = cleaned_pixels(data, size=32, fit="stretch")
    assert_colours(square[:8].mean(axis=(0, 1)), [64] * 3, 10)
    assert_colours(square[-8:].mean(axis=(0, 1)), [192] * 3, 10)


def test_deep_colour_pixels_are_scaled_not_clipped():
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32896, 257) * 8 for _ in range(8))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert_colours(cleaned_pixels(data)[128, 128], (255, 128, 1), 4)


def test_deep_grey_with_a_transparent_value_is_flattened_on_white():
    values = np.full((64, 64), 30000, np.uint16)
    values[:, 32:] = 1234
    square = cleaned_pixels(encoded(Image.fromarray(values), "PNG", transparency=1234))
    assert_colours([square[128, 64], square[128, 192]], [[round(30000 / 257)] * 3, WHITE])


def test_floats_that_are_no_numbers_are_black():
    values = np.ones((64, 64), np.float32)
    values[:, :32] = np.nan
    values[:8] = -np.inf
    assert_colours([cleaned_pixels(encoded(Image.fromarray(values), "TIFF"))[128, x] for x in (64, 192)], [[0] * 3, WHITE])


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "group4"}), ("GIF", {})])
def test_one_bit_pictures_become_black_and_white(kind, options):
    image = Image.new("1", (64, 64), 1)
    image.paste(0, (0, 0, 32, 64))
    square = cleaned_pixels(encoded(image, kind, **options))
    assert_colours([square[128, 64], square[128, 192]], [[0] * 3, WHITE])


# What is refused


def test_an_empty_file_is_rejected():
    assert rejection(b"") == ("empty", "the photo is an empty file")


@pytest.mark.parametrize(
    "data",
    [
        b"hello, is this still available?",
        b"\0" * 1000,
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        encoded(Image.new("RGB", (32, 32)), "EPS"),
        encoded(Image.new("RGB", (32, 32)), "PDF"),
        encoded(Image.new("RGB", (32, 32)), "ICO"),
        encoded(Image.new("RGB", (32, 32)), "PPM"),
        b"\xd7\xcd\xc6\x9a" + b"\0" * 100,
        b"PK\x03\x04" + b"\0" * 100,
    ],
    ids=["text", "zeros", "html", "svg", "pdf", "eps", "real eps", "real pdf", "ico", "ppm", "wmf", "zip"],
)
def test_what_is_no_photo_is_rejected(data):
    assert rejection(data) == ("not_an_image", "the file is not a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF picture")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize(
    ("kind", "options"), [case for case in ENCODINGS if case[0] not in ("TIFF", "AVIF", "HEIF")] + [("GIF", {})]
)
def test_a_file_that_is_cut_off_is_rejected(kind, options, share):
    data = encoded(smooth(320, 200), kind, **options)
    assert rejection(data[: int(len(data) * share)]) == ("truncated", "the photo is cut off: part of its data is missing")


@pytest.mark.filterwarnings("ignore")  # Pillow's
@pytest.mark.parametrize(("kind", "options"), [case for case in ENCODINGS if case[0] == "TIFF"])
def test_a_tiff_that_is_cut_off_is_rejected(kind, options):
    data = encoded(smooth(320, 200), kind, **options)
    assert rejection(data[: len(data) // 2])[0] in ("truncated", "unreadable")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize(("kind", "options"), [case for case in ENCODINGS if case[0] in ("AVIF", "HEIF")])
def test_an_avif_or_heic_that_is_cut_off_is_rejected_also_between_tiles(kind, options, share):
    data = encoded(smooth(320, 200), kind, **options)
    assert rejection(data[: int(len(data) * share)])[0] == "truncated"


def test_a_photo_that_is_cut_off_is_rejected_at_reduced_scale_too():
    data = encoded(smooth(1200, 900), "JPEG")
    assert rejection(data[: len(data) // 2], size=64)[0] == "truncated"


def test_pillow_is_not_told_to_accept_truncated_files():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


BOMBS = {
    "png": png(100_000, 100_000),
    "png beyond our limit only": png(10_000, 6_000),
    "gif": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;",
    "tiff": encoded(Image.new("L", (9, 9)), "TIFF").replace(
        struct.pack("<HHII", 256, 4, 1, 9), struct.pack("<HHII", 256, 4, 1, 10**8)
    ),
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\x0f\0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_rejected_by_its_header(name, monkeypatch):
    def decode(*_):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    assert rejection(BOMBS[name])[0] == "too_many_pixels"


def test_the_message_names_size_and_limit():
    sentence = "the photo has 320 x 200 pixels, more than the 63,999 allowed"
    assert rejection(encoded(quarters(), "JPEG"), max_pixels=63_999) == ("too_many_pixels", sentence)
    assert photos.clean(encoded(quarters(), "JPEG"), CleanSettings(max_pixels=64_000)).width == 320


def test_a_side_longer_than_any_jpegs_is_rejected_however_few_the_pixels():
    sentence = "the photo has 65536 x 1 pixels, more than the 65,535 allowed along a side"
    assert rejection(encoded(Image.new("1", (65_536, 1)), "PNG")) == ("too_many_pixels", sentence)
    assert photos.clean(encoded(Image.new("1", (65_535, 1)), "PNG")).width == 65_535


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF"])
def test_who_decodes_for_many_may_bound_the_pixels_that_are_decoded(kind, monkeypatch):
    data = encoded(quarters(), kind)
    assert photos.clean(data, CleanSettings(), 64_000) == photos.clean(data)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("a pixel was decoded"))
    sentence = "the photo has 320 x 200 pixels to decode, more than the 63,999 allowed: send a smaller one"
    with pytest.raises(PhotoRejected) as caught:
        photos.clean(data, CleanSettings(), 63_999)
    assert (caught.value.reason, str(caught.value)) == ("too_many_pixels", sentence)


def test_of_a_large_jpeg_only_the_pixels_of_its_reduced_decoding_count():
    data = encoded(Image.new("RGB", (8000, 6000)), "JPEG")
    assert photos.clean(data, CleanSettings(), 1000 * 750).width == 8000
    with pytest.raises(PhotoRejected, match="^the photo has 1000 x 750 pixels to decode, more than the 749,999 allowed"):
        photos.clean(data, CleanSettings(), 1000 * 750 - 1)


def test_damaged_data_is_rejected():
    assert rejection(png(0, 0)) == ("unreadable", "the photo's data is damaged or of a kind that cannot be read")
    data = encoded(quarters(), "PNG")
    assert rejection(data[:60] + b"\xff" * 40 + data[100:])[0] in ("unreadable", "truncated")


def test_a_rejection_crosses_processes_whole():
    copied = copy.copy(PhotoRejected("empty", "the photo is an empty file"))
    assert (copied.reason, str(copied)) == ("empty", "the photo is an empty file")
    assert isinstance(copied, ValueError)


SEEDS = [encoded(smooth(48, 32), kind, **options) for kind, options in [*ENCODINGS, ("GIF", {})]]
SEEDS += [encoded(smooth(48, 32).convert("CMYK"), "JPEG"), encoded(smooth(48, 32).convert("P"), "PNG", transparency=0)]
SEEDS += [encoded(smooth(48, 32), "JPEG", icc_profile=display_p3_profile())]


def clean_or_reject(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's
        try:
            cleaned = photos.clean(data, CleanSettings(size=32))
        except PhotoRejected as error:
            assert error.reason in ("empty", "not_an_image", "too_many_pixels", "truncated", "unreadable")
        else:
            assert photos.pixels(cleaned.jpeg).shape == (32, 32, 3)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*", b"BM"])
)
def test_any_bytes_are_cleaned_or_rejected_and_nothing_else(tail, head):
    clean_or_reject(head + tail)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_damaged_photo_is_cleaned_or_rejected_and_nothing_else(data):
    photo = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.integers(0, len(photo)))
        end = start + data.draw(st.integers(0, 8))
        photo[start:end] = data.draw(st.binary(max_size=8))
    clean_or_reject(bytes(photo))


# Numbers that others build on


def test_the_same_bytes_give_the_same_result():
    data = encoded(smooth(500, 300), "JPEG")
    assert photos.clean(data) == photos.clean(bytes(bytearray(data)))


def test_sha256_is_of_the_squares_pixels_and_its_size():
    data = encoded(quarters(256, 256), "PNG")
    assert photos.clean(data).sha256 == hashlib.sha256(b"256 " + quarters(256, 256).tobytes()).hexdigest()
    assert photos.clean(encoded(quarters(256, 256), "BMP")).sha256 == photos.clean(data).sha256
    blank = encoded(Image.new("RGB", (9, 9), WHITE), "PNG")
    assert photos.clean(blank, CleanSettings(size=64)).sha256 != photos.clean(blank, CleanSettings(size=32)).sha256


def hamming(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def test_the_perceptual_hash_has_64_bits_and_survives_resizing_and_recompression():
    photo = smooth(640, 400)
    original = photos.clean(encoded(photo, "PNG"))
    assert len(original.phash) == 16
    smaller = photos.clean(encoded(photo.resize((320, 200)), "JPEG", quality=60))
    assert hamming(original.phash, smaller.phash) <= 6
    assert hamming(original.phash, photos.clean(encoded(quarters(640, 400), "PNG")).phash) > 10


@pytest.mark.parametrize("size", [(3, 5), (64, 64), (200, 256), (256, 31)])
def test_the_perceptual_hash_is_imagehashs_within_two_bits(size):
    photo = smooth(*size)
    cleaned = photos.clean(encoded(photo, "PNG"), CleanSettings(size=max(size)) if max(size) >= 8 else CleanSettings(size=8))
    content = photo if max(size) >= 8 else photo.resize((5, 8), Image.Resampling.BICUBIC)
    assert hamming(cleaned.phash, str(imagehash.phash(content))) <= 2


def test_a_profile_is_applied_alike_every_time_and_by_every_thread():
    data = encoded(smooth(300, 200), "PNG", icc_profile=display_p3_profile())
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(lambda _: photos.clean(data).sha256, range(40)))
    assert set(hashes) == {photos.clean(data).sha256} != {photos.clean(encoded(smooth(300, 200), "PNG")).sha256}


def test_what_is_kept_of_a_profile_is_its_digest_and_of_few(monkeypatch):
    monkeypatch.setattr(photos, "_transforms", {})
    profiles = [SRGB + bytes(number) for number in range(photos.MAX_TRANSFORMS + 5)]
    for profile in profiles:
        photos.clean(encoded(quarters(), "JPEG", icc_profile=profile))
    expected = [(hashlib.sha256(profile).digest(), "RGB") for profile in profiles[-photos.MAX_TRANSFORMS :]]
    assert list(photos._transforms) == expected


def test_a_profile_larger_than_any_is_ignored():
    data = encoded(quarters(), "WEBP", icc_profile=display_p3_profile() + bytes(containers.MAX_PROFILE_BYTES))
    assert photos.clean(data).sha256 == photos.clean(encoded(quarters(), "WEBP")).sha256


def test_the_perceptual_hash_is_taken_before_padding():
    photo = smooth(640, 320)
    padded, stretched = (photos.clean(encoded(photo, "PNG"), CleanSettings(fit=fit)).phash for fit in ("pad", "stretch"))
    assert hamming(padded, stretched) <= 2


def decoded_size(monkeypatch, data: bytes, **options) -> tuple[int, int]:
    """Width and height at which the photo itself was decoded."""
    sizes = []
    load = ImageFile.ImageFile.load
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda image: (load(image), sizes.append(image.size))[0])
        photos.clean(data, CleanSettings(**options))
    return sizes[0]


@pytest.mark.parametrize("fit", photos.FITS)
@pytest.mark.parametrize("size", [(1500, 1000), (513, 1027), (2000, 550), (130, 150)])
def test_reduced_decoding_stays_close_to_the_full_decode(size, fit, monkeypatch):
    """Stated distance: 1 grey level on average, and 99.9% of the values within 8; twice that just above twice the wanted size."""
    allowance = 2 if max(size) < 3 * 64 else 1
    data = encoded(smooth(*size), "JPEG", quality=92)
    reduced = cleaned_pixels(data, size=64, fit=fit, quality=95)
    assert decoded_size(monkeypatch, data, size=64, fit=fit)[0] <= -(-size[0] // 2)
    full = cleaned_pixels(encoded(Image.open(io.BytesIO(data)), "BMP"), size=64, fit=fit, quality=95)
    distance = np.abs(reduced - full)
    assert distance.mean() <= allowance
    assert np.quantile(distance, 0.999) <= 8 * allowance


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        ((2048, 1000), "pad", (256, 125)),
        ((2047, 1000), "pad", (512, 250)),
        ((512, 400), "pad", (256, 200)),
        ((511, 400), "pad", (511, 400)),
        ((4000, 510), "crop", (4000, 510)),
        ((4000, 1000), "crop", (2000, 500)),
        ((4000, 1100), "stretch", (1000, 275)),
    ],
)
def test_reduced_decoding_leaves_at_least_the_wanted_size(size, fit, expected, monkeypatch):
    assert decoded_size(monkeypatch, encoded(Image.new("RGB", size), "JPEG"), fit=fit) == expected


def test_cleaning_a_cleaned_photo_changes_little():
    first = photos.clean(encoded(smooth(640, 400), "PNG"))
    again = photos.clean(first.jpeg)
    assert np.abs(photos.pixels(first.jpeg).astype(int) - photos.pixels(again.jpeg)).mean() < 1.5


# The model's input


def test_model_input_is_the_normalised_square_as_channels():
    jpeg = photos.clean(encoded(smooth(300, 300), "PNG")).jpeg
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    actual = photos.model_input(jpeg, 256, mean, std)
    assert (actual.shape, actual.dtype, actual.flags["C_CONTIGUOUS"]) == ((3, 256, 256), np.float32, True)
    square = np.asarray(Image.open(io.BytesIO(jpeg)), float) / 255
    for channel in range(3):
        np.testing.assert_allclose(actual[channel], (square[:, :, channel] - mean[channel]) / std[channel], atol=1e-5)


@pytest.mark.parametrize("size", [64, 128, 300])
def test_model_input_is_resized_without_crop_or_flip(size):
    jpeg = photos.clean(encoded(quarters(300, 300), "PNG")).jpeg
    actual = photos.model_input(jpeg, size, (0, 0, 0), (1, 1, 1))
    assert actual.shape == (3, size, size)
    assert_colours(corners(actual.transpose(1, 2, 0) * 255), [RED, GREEN, BLUE, YELLOW])
    if size < 256 and 256 % size == 0:
        # The oracle: away from the edges of the quarters, averaging blocks gives the same colours.
        block = 256 // size
        means = photos.pixels(jpeg).reshape(size, block, size, block, 3).mean(axis=(1, 3))
        assert np.abs(actual.transpose(1, 2, 0) * 255 - means)[: size // 2 - 4, : size // 2 - 4].mean() < 1


def test_pixels_can_be_written_to():
    square = photos.pixels(photos.clean(encoded(quarters(), "PNG")).jpeg)
    assert (square.shape, square.dtype) == ((256, 256, 3), np.uint8)
    square[0] = 0


@pytest.mark.parametrize("read", [photos.pixels, lambda jpeg: photos.model_input(jpeg, 64, (0, 0, 0), (1, 1, 1))])
def test_a_damaged_cleaned_photo_is_an_error_not_a_guess(read):
    jpeg = photos.clean(encoded(smooth(300, 300), "PNG")).jpeg
    with pytest.raises(OSError):
        read(jpeg[: len(jpeg) // 2])


# Settings


def test_settings_survive_json():
    chosen = CleanSettings(size=64, fit="crop", max_pixels=1000, quality=80)
    stored = json.loads(json.dumps(chosen.as_dict() | {"another": "key"}))
    assert CleanSettings.from_dict(stored) == chosen
    assert CleanSettings.from_dict({}) == CleanSettings(256, "pad", 50_000_000, 90)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": 7}, "size must be from 8 to 4096 pixels, not 7"),
        ({"fit": "squash"}, "fit must be one of pad, crop, stretch, not squash"),
        ({"max_pixels": 0}, "max_pixels must be from 1 to 178956970, not 0"),
        ({"quality": 100}, "quality must be from 1 to 95, not 100"),
    ],
)
def test_settings_out_of_bounds_are_refused(values, sentence):
    with pytest.raises(ValueError) as caught:
        CleanSettings(**values)
    assert str(caught.value) == sentence


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CleanSettings().size = 8


# The contact sheet


def test_a_contact_sheet_shows_every_photo_with_its_frame_and_a_caption_cut_to_fit():
    jpeg = photos.clean(encoded(Image.new("RGB", (64, 64), RED), "PNG")).jpeg
    tiles = [(jpeg, "a caption much too long for its photo" * 3, "#00ff00"), (jpeg, "two\nlines", None), (jpeg, "", None)]
    sheet = np.asarray(Image.open(io.BytesIO(pictures.contact_sheet(tiles, columns=2, tile=64)))).astype(int)
    reds = (np.abs(sheet - RED).max(axis=2) < 10).sum()
    assert abs(reds - 3 * 64 * 64) <= 64
    assert (sheet == (0, 255, 0)).all(axis=2).sum() >= 4 * 64
    dark_columns = np.flatnonzero((sheet.max(axis=2) < 100).any(axis=0))
    assert dark_columns.max() < sheet.shape[1] / 2 + 64  # no caption runs over its neighbour's end
    assert math.ceil(len(tiles) / 2) * 64 < sheet.shape[0] < 4 * 64


def test_a_contact_sheet_of_nothing_is_a_blank_page():
    assert np.asarray(Image.open(io.BytesIO(pictures.contact_sheet([])))).min() == 255


def test_a_tile_without_a_photo_is_a_grey_square():
    sheet = np.asarray(Image.open(io.BytesIO(pictures.contact_sheet([(None, "", None)], tile=64))))
    assert (sheet == (238, 238, 238)).all(axis=2).sum() == 64 * 64


def test_colours_are_the_mean_colours_of_16_parts_which_the_perceptual_hash_cannot_see():
    red, grey = (Image.new("RGB", (400, 400), colour) for colour in ((200, 0, 0), (60, 60, 60)))
    red.paste((0, 40, 255), (100, 0, 200, 100))
    grey.paste((53, 53, 53), (100, 0, 200, 100))  # the same greys, within a level
    cleaned = [photos.clean(encoded(picture, "PNG")) for picture in (red, grey)]
    parts = [tuple(bytes.fromhex(photo.colours)[at : at + 3]) for photo in cleaned[:1] for at in range(0, 48, 3)]
    assert parts == [(200, 0, 0), (0, 40, 255), *[(200, 0, 0)] * 14]
    assert hamming(cleaned[0].phash, cleaned[1].phash) <= 6
    assert cleaned[0].colours != cleaned[1].colours


@pytest.mark.parametrize("fmt", ["JPEG", "WEBP"])
def test_colours_of_a_photo_saved_again_and_smaller_differ_by_a_few_levels(fmt):
    picture = quarters(640, 480)
    first, again = photos.clean(encoded(picture, "PNG")), photos.clean(encoded(picture.resize((320, 240)), fmt, quality=60))
    levels = [np.frombuffer(bytes.fromhex(photo.colours), np.uint8).astype(int) for photo in (first, again)]
    assert len(first.colours) == 96 and np.abs(levels[0] - levels[1]).max() <= 8
