"""Bytes of any photo -> a cleaned square JPEG -> the model's input: the only decoder and the only evaluation transform."""

import contextlib
import dataclasses
import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import (
    AvifImagePlugin,
    ExifTags,
    Image,
    ImageChops,
    ImageCms,
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401, as WebP's: registers its format; Pillow would import all that it has for one that is missing
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from marketplace.cleaning import containers
from marketplace.files import photo_store

# Still raster formats that Pillow decodes by itself, and HEIF (HEIC), which phones write. Left out on purpose: EPS and WMF (run
# other programs), PDF and SVG (documents), ICO, PSD, TGA and other formats that no camera or shop writes (more decoders, more to
# attack). JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
NAMES = "JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF"
pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a photo has one core: others have photos, too
PngImagePlugin.MAX_TEXT_CHUNK = containers.MAX_PROFILE_BYTES  # of a profile, too; longer ones are left out before


SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")  # tell a damaged photo from a file that never was one


FITS = ("pad", "crop", "stretch")


WHITE = (255, 255, 255)  # what transparency is flattened on, and the letterbox around it: the background of shop photos


FTYP_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")  # likewise, behind "ftyp"


MAX_SIDE = 65_535  # pixels, as a JPEG's: Pillow takes memory for each row, and a picture of more is no photo


MAX_TRANSFORMS = 16  # colour transforms that are kept: building one takes longer than all the rest, and cameras have few profiles


OTHER_DATA = bytes(range(255)) * 16  # what a decoder would use up if a JPEG's own data ended too early


# Measured from 400 x 533 to 256: bicubic takes 0.57 of LANCZOS's time and leaves 98.7% of the values within 4 grey levels of
# it; bilinear takes 0.33, but leaves 91.9%. A large picture first shrinks by whole numbers to at least twice the wanted size:
# five times faster at 1600 x 2132, at a mean distance to LANCZOS of 0.58 grey levels instead of 0.46. A JPEG is decoded at the
# least of 1/2, 1/4 and 1/8 that leaves the wanted size itself: 400 x 533 in half the time of a full decode, at a distance of
# 1.5 instead of 0.6, and a mean cosine to the vectors after LANCZOS (EfficientNet-Lite0) of 0.991 instead of 0.996.
RESAMPLE = Image.Resampling.BICUBIC


REDUCING_GAP = 2.0


WHITES = (1.0, 255.0, 65535.0, 2.0**31 - 1)  # of grey pixels in floats, 8, 16 and 32 bits


LOW_FREQUENCIES = 2 * np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32) + 1) / 64)  # (8, 32), the DCT-II's first rows


TRANSPOSITIONS = {  # EXIF orientation (CIPA DC-008, tag 0x0112) -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height


# What Pillow's decoders raise on broken or hostile bytes.
DECODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class CleanSettings:
    """How photos are cleaned; stored with the photos and with the model, so that an upload is cleaned as the batch was.

    size: side of the square, pixels. fit: "pad" (letterbox), "crop" (central square) or "stretch".
    max_pixels: width x height above which a photo is rejected unread. quality: of the JPEG, 1 to 95.
    Raises ValueError for values outside these bounds.
    """

    size: int = 256
    fit: str = "pad"
    max_pixels: int = 50_000_000
    quality: int = 90

    def __post_init__(self) -> None:
        if not 8 <= self.size <= 4096:
            raise ValueError(f"size must be from 8 to 4096 pixels, not {self.size}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, not {self.fit}")
        pillow_limit = 2 * Image.MAX_IMAGE_PIXELS
        if not 1 <= self.max_pixels <= pillow_limit:
            raise ValueError(f"max_pixels must be from 1 to {pillow_limit}, not {self.max_pixels}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality must be from 1 to 95, not {self.quality}")

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "CleanSettings":
        """The settings among `values`, such as a manifest's arguments or a model's JSON; other keys are ignored."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})


DEFAULTS = CleanSettings()


# Measured on photos of 300 x 400: WebP of the same structural similarity saves 14% of the bytes of a JPEG, for twenty times the
# encoding, and less than curl's users and old programs lose by it; WebP in a tenth of that time saves none.
DISPLAY_SIDE, DISPLAY_QUALITY = 800, 80  # pixels of the longer side; of the JPEG
CARD_SIDE, CARD_QUALITY = 400, 75  # of the copy for lists: what two columns of a phone show, at a quarter of the bytes
# Folders of the copies, below that of the squares, and their table: one of its own, as no model depends on them.
DISPLAY, CARD = COPIES = "display", "card"
SQUARE = ""  # the squares have no folder of their own
PHOTO_FOLDERS = SQUARE, *COPIES
DISPLAY_TABLE = "display.csv"


class PhotoRejected(ValueError):
    """A photo that cannot be cleaned: `reason` is a code for tables, the message one sentence for people.

    Reasons: empty, not_an_image, too_many_pixels, truncated, unreadable; of a decoder's process also too_slow and crashed.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True)
class DisplayCopy:
    """A photo to be looked at: whole, upright, in sRGB, without metadata. width, height: pixels of the JPEG."""

    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True)
class CleanedPhoto:
    """jpeg: the cleaned square. width, height: pixels of the original, upright.

    sha256: of the square's size and RGB pixels before the JPEG's loss, hexadecimal.
    phash: 64-bit perceptual hash of the picture before padding, 16 hexadecimal digits.
    colours: of the same picture, the mean R G B of 4 x 4 parts, row by row, a byte each: 96 hexadecimal digits.
    display: None unless it was asked for.
    """

    jpeg: bytes
    width: int
    height: int
    sha256: str
    phash: str
    colours: str
    display: DisplayCopy | None = None


@dataclass(frozen=True)
class _Frame:
    """What a picture is brought to: a square of `size` pixels, or what fits into one; fit: as of CleanSettings."""

    size: int
    fit: str
    may_enlarge: bool = True

    def wanted(self, width: int, height: int) -> tuple[int, int]:
        if self.fit != "pad":
            return self.size, self.size
        longest = max(width, height)
        size = self.size if self.may_enlarge else min(self.size, longest)
        return max(1, round(width * size / longest)), max(1, round(height * size / longest))


_DISPLAY = _Frame(DISPLAY_SIDE, "pad", may_enlarge=False)


def clean(
    data: bytes, settings: CleanSettings = DEFAULTS, max_decoded_pixels: int | None = None, with_display: bool = False
) -> CleanedPhoto:
    """The photo as an sRGB JPEG square without metadata; the same bytes give the same result.

    data: the whole file, of any of FORMATS, recognised by its content; of an animation, the first frame.
    max_decoded_pixels: those that may be decoded, which of a JPEG are fewer than it has; None: settings.max_pixels.
    with_display: whether to make a DisplayCopy too. The square is the same without one: an upload is cleaned without.
    Raises PhotoRejected, and nothing else, for bytes that are no such photo. Pillow may warn of odd headers.
    """
    if not data:
        raise PhotoRejected("empty", "the photo is an empty file")
    try:
        container = containers.examine(data)
    except containers.Overloaded as error:
        raise PhotoRejected("unreadable", f"the photo has more than {error}") from None
    except EOFError as error:
        raise _unreadable(error) from None
    if container.size:
        _check_size(*container.size, settings)
        _check_decoded(*container.size, max_decoded_pixels)
    end = containers.JPEG_END if container.is_open_ended else b""
    frame = _Frame(settings.size, settings.fit)
    content, width, height = _decode(container.data + end, frame, settings, max_decoded_pixels)
    if container.is_open_ended:
        # Where only the end is missing, what stands in its place is not looked at.
        other, _, _ = _decode(container.data + OTHER_DATA + end, frame, settings, max_decoded_pixels)
        if other.tobytes() != content.tobytes():
            raise _unreadable(EOFError())

    square = Image.new("RGB", (settings.size, settings.size), WHITE)
    square.paste(content, ((settings.size - content.width) // 2, (settings.size - content.height) // 2))
    jpeg = io.BytesIO()
    square.save(jpeg, "JPEG", quality=settings.quality)
    sha256 = hashlib.sha256(b"%d " % settings.size)
    sha256.update(square.tobytes())
    facts = (width, height, sha256.hexdigest(), _perceptual_hash(content), _colours(content))
    display = _display_copy(container.data + end, settings, max_decoded_pixels) if with_display else None
    return CleanedPhoto(jpeg.getvalue(), *facts, display)


def _display_copy(data: bytes, settings: CleanSettings, max_decoded_pixels: int | None) -> DisplayCopy:
    """Decoded by itself: a JPEG's square comes from fewer pixels, and must not depend on this."""
    picture, _, _ = _decode(data, _DISPLAY, settings, max_decoded_pixels)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=DISPLAY_QUALITY, optimize=True)
    return DisplayCopy(jpeg.getvalue(), *picture.size)


def card_copy(display_jpeg: bytes) -> bytes:
    """The JPEG of a DisplayCopy, at most CARD_SIDE pixels a side."""
    with Image.open(io.BytesIO(display_jpeg)) as picture:
        picture.thumbnail((CARD_SIDE, CARD_SIDE))
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=CARD_QUALITY, optimize=True)
    return jpeg.getvalue()


def _decode(data: bytes, frame: _Frame, settings: CleanSettings, max_decoded_pixels: int | None) -> tuple[Image.Image, int, int]:
    """The upright RGB picture at its size inside the frame; width and height of the original, upright."""
    image = _open(data, settings)
    width, height = image.size
    _check_size(width, height, settings)
    try:
        content, orientation = _shrink(image, frame, max_decoded_pixels)
    except PhotoRejected:
        raise
    except DECODE_ERRORS as error:
        raise _unreadable(error) from None
    return (content, height, width) if orientation in SIDEWAYS else (content, width, height)


def _open(data: bytes, settings: CleanSettings) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_many_pixels("too many pixels", settings) from None
    except UnidentifiedImageError as error:
        if data.startswith(SIGNATURES) or (data[4:8] == b"ftyp" and data[8:12] in FTYP_BRANDS):
            raise _unreadable(error) from None
        raise PhotoRejected("not_an_image", f"the file is not a {NAMES} picture") from None
    except DECODE_ERRORS as error:
        riff_cut_off = data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
        raise _unreadable(EOFError() if riff_cut_off else error) from None


def _perceptual_hash(picture: Image.Image) -> str:
    """imagehash.phash's hash, in half its time: the signs, about their median, of the 8 x 8 lowest frequencies of a thumbnail.

    Source: Krawetz, "Looks Like It" (2011). The thumbnail shrinks in two steps, which turns a bit of 64 now and then.
    """
    thumbnail = picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=2.0)
    low = LOW_FREQUENCIES @ np.asarray(thumbnail, np.float64) @ LOW_FREQUENCIES.T
    return np.packbits(low > np.sort(low, axis=None)[31:33].mean()).tobytes().hex()  # np.median() takes four times as long


def _colours(picture: Image.Image) -> str:
    """The mean colours of 4 x 4 parts of a picture, which its perceptual hash, of grey, cannot tell apart."""
    return picture.resize((4, 4), Image.Resampling.BOX).tobytes().hex()


def _check_size(width: int, height: int, settings: CleanSettings) -> None:
    if width * height > settings.max_pixels:
        raise _too_many_pixels(f"{width} x {height} pixels", settings)
    if max(width, height) > MAX_SIDE:
        raise PhotoRejected(
            "too_many_pixels", f"the photo has {width} x {height} pixels, more than the {MAX_SIDE:,} allowed along a side"
        )


def _check_decoded(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels and width * height > max_pixels:
        raise PhotoRejected(
            "too_many_pixels",
            f"the photo has {width} x {height} pixels to decode, more than the {max_pixels:,} allowed: send a smaller one",
        )


def _too_many_pixels(size: str, settings: CleanSettings) -> PhotoRejected:
    return PhotoRejected("too_many_pixels", f"the photo has {size}, more than the {settings.max_pixels:,} allowed")


def _unreadable(error: BaseException) -> PhotoRejected:
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return PhotoRejected("truncated", "the photo is cut off: part of its data is missing")
    if isinstance(error, MemoryError):
        return PhotoRejected("unreadable", "the photo takes too much memory to decode")
    return PhotoRejected("unreadable", "the photo's data is damaged or of a kind that cannot be read")


def _shrink(image: Image.Image, frame: _Frame, max_decoded_pixels: int | None) -> tuple[Image.Image, int]:
    """The upright RGB picture at its size inside the frame, and its EXIF orientation.

    The full-size pixels are only decoded and shrunk: all that costs time per pixel happens on the small picture.
    """
    width, height = image.size
    wanted = frame.wanted(width, height)
    draft = image.draft(None, wanted)
    _check_decoded(image.width, image.height, max_decoded_pixels)
    image.load()
    left, top, right, bottom = draft[1] if draft else (0, 0, width, height)
    if frame.fit == "crop":
        side = min(right, bottom)
        left, top = (right - side) / 2, (bottom - side) / 2
        right, bottom = left + side, top + side
    profile = image.info.get("icc_profile")
    orientation = _orientation(image)
    picture = _plain(image).resize(wanted, RESAMPLE, (left, top, right, bottom), REDUCING_GAP)
    if orientation in TRANSPOSITIONS:
        picture = picture.transpose(TRANSPOSITIONS[orientation])
    colours = _srgb(picture.convert("RGB") if picture.mode == "RGBA" else picture, profile)
    if picture.mode == "RGBA":
        colours = Image.composite(colours, Image.new("RGB", colours.size, WHITE), picture.getchannel("A"))
    return colours, orientation


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture, 1 where it has none or a damaged one. (Pillow has turned a TIFF already.)"""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1


def _plain(image: Image.Image) -> Image.Image:
    """The picture in one of the modes that resize well: L, RGB, RGBA or CMYK."""
    if image.mode == "CMYK":
        # Pillow takes every CMYK JPEG for Adobe's, whose inks are stored inverted; without Adobe's marker they are not.
        # Source: libjpeg's libjpeg.txt, "Special color spaces".
        return ImageChops.invert(image) if image.format in ("JPEG", "MPO") and "adobe" not in image.info else image
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "1"):
        return image.convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() copies one that is RGB already


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16-bit, 32-bit or float pixels scaled to 8 bits, not clipped.

    White is 65535 for 16 bits (4095 and so on where a TIFF says fewer); for 32-bit and float pixels, whose white
    no header tells, it is the smallest of WHITES that holds the brightest pixel. NaN and negatives are black.
    """
    values = np.asarray(image)
    if values.dtype.itemsize == 2:
        bits = image.tag_v2.get(ExifTags.Base.BitsPerSample, (16,))[0] if image.format == "TIFF" else 16
        grey = (np.arange(65536) * (255 / (2**bits - 1)) + 0.5).clip(0, 255).astype(np.uint8)[values]
    else:
        scaled = values.astype(np.float32)  # in place from here: these are the largest arrays of all
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=WHITES[-1], neginf=0.0)
        np.clip(scaled, 0, None, out=scaled)
        brightest = float(scaled.max())
        scaled *= 255 / next((white for white in WHITES if brightest <= white), brightest)
        scaled += 0.5
        grey = scaled.astype(np.uint8)
    if not isinstance(transparent := image.info.get("transparency"), int):
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha))).convert("RGBA")


_transforms: dict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = {}  # by the profile's digest: it may be large


def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None for a profile of another kind of picture."""
    key = hashlib.sha256(profile).digest(), mode
    if key not in _transforms:
        if len(_transforms) >= MAX_TRANSFORMS:
            _transforms.pop(next(iter(_transforms)), None)  # the oldest
        _transforms[key] = _build_transform(profile, mode)
    return _transforms[key]


def _build_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()] != mode:
        return None
    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """The picture in sRGB. A profile that is broken, huge or not of the picture's kind is ignored, as browsers do."""
    if profile and len(profile) <= containers.MAX_PROFILE_BYTES:
        with contextlib.suppress(ImageCms.PyCMSError, *DECODE_ERRORS):
            if transform := _transform_to_srgb(profile, picture.mode):
                return ImageCms.applyTransform(picture, transform)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def pixels(jpeg: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels of a cleaned JPEG, writable. Raises OSError when it is damaged."""
    return np.array(Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("RGB"))


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """scale and shift, (3,) float32 each: value * scale - shift normalises a value of 0 to 255.

    mean, std: one value a channel, R G B, of pixels scaled to [0, 1].
    """
    scale = 1 / (255 * np.asarray(std, np.float32))
    return scale, np.asarray(mean, np.float32) / np.asarray(std, np.float32)


def model_input(jpeg: bytes, size: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(3, size, size) float32, contiguous: a cleaned JPEG resized to the model's input, no crop, no flip, and normalised.

    size: pixels; mean, std: as for normalisation(). Raises OSError when the JPEG is damaged.
    """
    scale, shift = normalisation(mean, std)
    image = Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), RESAMPLE)
    channels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    channels *= scale[:, None, None]
    channels -= shift[:, None, None]
    return channels


def load(images_dir: Path, image_id: str, transform: Callable[[bytes], object]) -> object:
    """What `transform` makes of a cleaned photo's JPEG bytes; StageError when its file is gone or does not decode."""
    from marketplace.files.stages import StageError  # here, as below: a process that decodes needs neither this nor pandas

    name = f"{image_id}.jpg"
    try:
        return transform(photo_store.read(images_dir, name))
    except (OSError, ValueError):
        raise StageError(f"{images_dir / name} is missing or damaged: run python clean_images.py again") from None


def pixel_digests(images_dir: Path, image_ids: Sequence[str]) -> np.ndarray:
    """(N,) text, the sha256 of each kept photo's pixels; photos.csv has more rows of an id when several files bore it."""
    from marketplace.files import reading

    table = reading.read_csv(images_dir / "photos.csv", usecols=["image_id", "status", "sha256"])
    kept = table[table["status"] == "ok"].set_index("image_id")["sha256"]
    assert kept.index.is_unique, "two photos of one id were kept"
    return kept.loc[list(image_ids)].to_numpy()
