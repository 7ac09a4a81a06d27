"""How much work a photo's file asks for, counted from its bytes before a decoder sees them, and what a decoder need not see."""

import re
import struct
import zlib
from dataclasses import dataclass

MAX_PIECES = 50_000  # segments, chunks, blocks and stray bytes of one file, each a turn of a loop in Pillow: together 0.1 s
MAX_SCANS = 100  # of one progressive JPEG; encoders write about 10, a hostile file thousands
MAX_SCANNED_PIXELS = 1_000_000_000  # pixels x scans of one JPEG, each scan costing a whole decode: 50 megapixels in 20 scans
MAX_STRIPS = 100_000  # strips or tiles of one TIFF: 50 megapixels in tiles of 23 x 23
MAX_EXIF_BYTES = 2**20  # of one JPEG; the standard allows 64 KB, and Pillow copies all of them again with each further segment
MAX_PROFILE_BYTES = 4 * 2**20  # of a colour profile or a text: those of printers are the largest, up to 3 MB

JPEG_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan, a stuffed zero or a restart follows the others
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1
_START_OF_SCAN, _END, _APP1, _APP13 = 0xDA, 0xD9, 0xE1, 0xED
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length: TEM, RST0 to RST7, SOI

# Ancillary chunks of a PNG that change its colours, how it stands, or where its first frame lies; the orientation may be a text.
_NEEDED_CHUNKS = {b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
_NEEDED_TEXTS = {b"XML:com.adobe.xmp", b"Raw profile type exif"}

_STRIPS = {273, 324}  # StripOffsets, TileOffsets: TIFF 6.0, sections 8 and 15


_BOXES = {b"ftyp", b"meta", b"mdat", b"moov"}  # of an AVIF or HEIC; what a phone appends may be of any form


class Overloaded(ValueError):
    """A file that asks for more work than any photo; the message completes "the photo has more than"."""


@dataclass(frozen=True)
class Container:
    """data: what a decoder gets. size: width and height, where a decoder would take memory for them unasked.

    is_open_ended: a JPEG that ends within a scan, by its last two bytes or by more.
    """

    data: bytes
    size: tuple[int, int] | None = None
    is_open_ended: bool = False


def examine(data: bytes) -> Container:
    """The file of a photo, of any kind or none; raises Overloaded, and EOFError for one that is cut off where no decoder minds.

    What is damaged is left to the decoder, which says so.
    """
    for signature, examine_kind in _KINDS.items():
        if data.startswith(signature):
            return examine_kind(data)
    return _boxes(data) if data[4:8] == b"ftyp" else Container(data)


def _count(pieces: int) -> int:
    if pieces > MAX_PIECES:
        raise Overloaded(f"{MAX_PIECES:,} pieces")
    return pieces


def _jpeg(data: bytes) -> Container:
    """Walk the markers: what stands behind the end, such as a phone's video, or within a segment is no scan."""
    pieces = exif_bytes = scans = pixels = 0
    position = 2
    while True:
        if scans:
            found = _MARKER_AFTER_SCAN.search(data, position)
        else:
            found = _MARKER.search(data, position, position + MAX_PIECES + 2)
            pieces = _count(pieces + 1 + (found.start() if found else min(len(data), position + MAX_PIECES + 2)) - position)
        if not found:
            return Container(data, is_open_ended=scans > 0)
        position, marker = found.end(), data[found.end() - 1]
        if marker == _END:
            return Container(data)
        if marker in _ALONE:
            continue
        segment = data[position : position + int.from_bytes(data[position : position + 2])]
        position += max(2, len(segment))
        if marker in _START_OF_FRAME:
            pixels = int.from_bytes(segment[3:5]) * int.from_bytes(segment[5:7])
        elif marker == _START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise Overloaded(f"{MAX_SCANS} progressive scans")
            if scans * pixels > MAX_SCANNED_PIXELS:
                raise Overloaded(f"{MAX_SCANNED_PIXELS:,} pixels in all of its progressive scans")
        elif marker == _APP1 and segment[2:8] == b"Exif\0\0":
            exif_bytes += len(segment)
            if exif_bytes > MAX_EXIF_BYTES:
                raise Overloaded(f"{MAX_EXIF_BYTES:,} bytes of EXIF")
        elif marker == _APP13:
            pieces = _count(pieces + segment.count(b"8BIM"))


def _png(data: bytes) -> Container:
    """Leave out what no pixel needs, however long or damaged it is: a decoder may skip an ancillary chunk (PNG, 5.4)."""
    pieces, position, kept_from, kept = 0, 8, 0, []
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        pieces = _count(pieces + 1)
        is_ancillary = kind[0] & 32
        if is_ancillary and not _is_needed(kind, data[position + 8 : end - 4], int.from_bytes(data[end - 4 : end])):
            kept.append(data[kept_from:position])
            kept_from = end
        position = end
        if kind == b"IEND":
            break
    return Container(b"".join([*kept, data[kept_from:]]) if kept else data)


def _is_needed(kind: bytes, body: bytes, crc: int) -> bool:
    keyword, _, rest = body.partition(b"\0")
    if kind not in _NEEDED_CHUNKS and keyword not in _NEEDED_TEXTS:
        return False
    if kind in (b"iCCP", b"zTXt") and not (rest[:1] == b"\0" and _inflates(rest[1:])):  # behind the method of compression
        return False
    if kind == b"iTXt" and rest[:1] == b"\1" and not _inflates(rest[2:].split(b"\0", 2)[-1]):  # behind language and translation
        return False
    return len(body) <= MAX_PROFILE_BYTES and zlib.crc32(body, zlib.crc32(kind)) == crc if kind != b"fdAT" else True


def _inflates(compressed: bytes) -> bool:
    """Whether this is zlib's, and of a length that is still a profile's or a text's."""
    try:
        return len(zlib.decompressobj().decompress(compressed, MAX_PROFILE_BYTES)) < MAX_PROFILE_BYTES
    except zlib.error:
        return False


def _gif(data: bytes) -> Container:
    """Walk the extensions before the first frame."""
    pieces, position = 0, 13 + (3 << (data[10] % 8 + 1) if len(data) > 10 and data[10] & 128 else 0)
    while position < len(data) and data[position] not in b",;":
        pieces = _count(pieces + 1)
        if data[position] != ord("!"):
            position += 1
            continue
        position += 2
        while position < len(data) and data[position]:
            pieces = _count(pieces + 1)
            position += 1 + data[position]
        position += 1
    return Container(data)


def _tiff(data: bytes) -> Container:
    """Count the strips or tiles of the first page."""
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4] in (b"\x2b\0", b"\0\x2b"):  # BigTIFF
        start, count, entry = (struct.Struct(order + code) for code in ("8xQ", "Q", "HHQQ"))
    else:
        start, count, entry = (struct.Struct(order + code) for code in ("4xI", "H", "HHII"))
    try:
        (position,) = start.unpack_from(data)
        (entries,) = count.unpack_from(data, position)
        for number in range(_count(entries)):
            tag, _, values, _ = entry.unpack_from(data, position + count.size + number * entry.size)
            if tag in _STRIPS and values > MAX_STRIPS:
                raise Overloaded(f"{MAX_STRIPS:,} strips or tiles")
    except struct.error:
        pass
    return Container(data)


def _webp(data: bytes) -> Container:
    """Read the size of the canvas, for which libwebp takes memory when a file is opened."""
    kind, size = data[12:16], None
    if kind == b"VP8X":
        size = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        size = 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    elif kind == b"VP8 ":
        size = int.from_bytes(data[26:28], "little") % 2**14, int.from_bytes(data[28:30], "little") % 2**14
    return Container(data, size)


def _boxes(data: bytes) -> Container:
    """Follow the boxes of an AVIF or HEIC to the end: libheif leaves tiles black that it misses."""
    position = 0
    while data[position + 4 : position + 8] in _BOXES:
        size = int.from_bytes(data[position : position + 4])
        if size == 1:  # the size follows in 64 bits
            size = int.from_bytes(data[position + 8 : position + 16])
        if position + size > len(data):
            raise EOFError("a box is cut off")
        if size < 8:  # 0: up to the end
            break
        position += size
    return Container(data)


_KINDS = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"GIF8": _gif,
    b"II": _tiff,
    b"MM": _tiff,
    b"RIFF": _webp,
}
