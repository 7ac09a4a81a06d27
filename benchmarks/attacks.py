"""Photos that ask for more time or memory than any photo: what benchmarks/fuzz.py sends, and what each costs plain Pillow."""

import io
import multiprocessing
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import baseline
import pillow_heif
from PIL import Image, ImageCms

pillow_heif.register_heif_opener()

UPLOAD_BYTES = 20 * 2**20 - 2000  # all that the service takes
GIF_FRAME = b",\0\0\0\0"  # how a frame at the left upper corner begins
PATIENCE_S = 60  # for plain Pillow
MEMORY_BYTES = 8 * 2**30  # likewise


def encoded(kind: str, mode: str, size: tuple[int, int], **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _png(*chunks: bytes, count: int = 1) -> bytes:
    """A small picture with the chunks behind its header."""
    png = encoded("PNG", "RGB", (16, 16))
    return png[:33] + b"".join(chunks) * count + png[33:]


def _jpeg(segments: bytes, size: tuple[int, int] = (16, 16)) -> bytes:
    jpeg = encoded("JPEG", "RGB", size)
    return jpeg[:2] + segments + jpeg[2:]


def _scans(mode: str, size: tuple[int, int], count: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    first, *scans = encoded("JPEG", mode, size, progressive=True)[:-2].split(b"\xff\xda")
    return b"\xff\xda".join([first, *scans, *[scans[-1]] * (count - len(scans))]) + b"\xff\xd9"


def _interlaced(side: int) -> bytes:
    """A PNG of 16-bit RGBA pixels, in seven passes."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [(b"\0" + bytes(8 * -(-(side - x) // right))) * -(-(side - y) // down) for x, y, right, down in passes]
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"".join(rows), 9)) + _chunk(b"IEND")


def _strips(count: int) -> bytes:
    """A TIFF, a pixel wide, of strips of one byte that are all the same."""
    table, sizes = struct.pack("<I", 8) * count, struct.pack("<I", 1) * count
    fields = {256: 1, 257: count, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items()]
    entries += [struct.pack("<HHII", tag, 4, count, at) for tag, at in ((273, 8), (279, 8 + len(table)))]
    page = struct.pack("<H", len(entries)) + b"".join(sorted(entries, key=lambda entry: entry[:2][::-1])) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(table + sizes)) + table + sizes + page


def _runs(side: int) -> bytes:
    """A BMP of runs of one pixel, each a turn of a loop in Python."""
    runs = (b"\1\0" * side + b"\0\0") * side
    head = struct.pack("<IHHIIiiHHIIiiII", 1078 + len(runs), 0, 0, 1078, 40, side, side, 1, 8, 1, len(runs), 0, 0, 0, 0)
    return b"BM" + head + bytes(1024) + runs


def _noise(kind: str, size: tuple[int, int], **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size[0] // 4, size[1] // 4), 100).convert("RGB").resize(size).save(buffer, kind, **options)
    return buffer.getvalue()


def _profile(kind: str, number: int, padding: int) -> bytes:
    """A photo with a colour profile of its own, made long."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(padding) + b"%d" % number
    return encoded(kind, "RGB", (64, 64), icc_profile=struct.pack(">I", len(profile)) + profile[4:])


ATTACKS: dict[str, Callable[[], bytes]] = {
    "JPEG of 99 scans, 49 megapixels": lambda: _scans("L", (7000, 7000), 99),
    "JPEG of 20 scans, 49 megapixels": lambda: _scans("RGB", (7000, 7000), 20),
    "JPEG, 20 MB of fill bytes": lambda: _jpeg(b"\xff" * UPLOAD_BYTES),
    "JPEG, 20 MB of empty comments": lambda: _jpeg(b"\xff\xfe\0\2" * (UPLOAD_BYTES // 4)),
    "JPEG, 20 MB of Photoshop's segments": lambda: _jpeg(b"\xff\xed\0\x10Photoshop 3.0\0" * (UPLOAD_BYTES // 18)),
    "PNG, 20 MB of empty chunks": lambda: _png(_chunk(b"abCd"), count=UPLOAD_BYTES // 12),
    "PNG, 20 MB of empty data": lambda: encoded("PNG", "RGB", (16, 16))[:-12] + _chunk(b"IDAT") * (UPLOAD_BYTES // 12),
    "PNG of 1 x 49,000,000": lambda: encoded("PNG", "L", (1, 49_000_000)),
    "PNG of 49,000,000 x 1": lambda: encoded("PNG", "RGB", (49_000_000, 1)),
    "PNG of 49 megapixels, 16-bit RGBA, interlaced": lambda: _interlaced(7000),
    "PNG of 23 megapixels, 16-bit RGBA, interlaced": lambda: _interlaced(4800),
    "WebP of 16000 x 3100, 34 bytes": lambda: encoded("WEBP", "RGBA", (16000, 3100), lossless=True, method=0),
    "WebP of 23 megapixels of noise": lambda: _noise("WEBP", (5600, 4200), quality=60, method=0),
    "TIFF of 2,400,000 strips": lambda: _strips(2_400_000),
    "TIFF of 49 megapixels of floats": lambda: encoded("TIFF", "F", (7000, 7000), compression="tiff_adobe_deflate"),
    "BMP of 9,000,000 runs": lambda: _runs(3000),
    "AVIF of 23 megapixels of noise": lambda: _noise("AVIF", (5600, 4200), quality=60, speed=10),
    "HEIC of 12 megapixels of noise": lambda: _noise("HEIF", (4000, 3000), quality=60),
    "GIF of 400,000 comments": lambda: encoded("GIF", "P", (16, 16)).replace(GIF_FRAME, b"!\xfe\1a\0" * 400_000 + GIF_FRAME, 1),
    "WebP with a profile of 19 MB": lambda: _profile("WEBP", 0, 19 * 2**20),
    "JPEG with a profile of 15 MB": lambda: _profile("JPEG", 1, 15 * 2**20),
}  # fmt: skip


def make() -> dict[str, bytes]:
    return {name: attack() for name, attack in ATTACKS.items()}


def memory_kb(pid: int | str, field: str) -> int:
    """VmRSS, or its peak VmHWM, of a process; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def _decode_plainly(pipe, data: bytes) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    before_kb, start_s = memory_kb("self", "VmRSS"), time.process_time()
    try:
        baseline.clean(data)
        answer = "decoded"
    except Exception as error:  # whatever Pillow raises
        answer = type(error).__name__
    pipe.send((answer, time.process_time() - start_s, (memory_kb("self", "VmHWM") - before_kb) / 1024))


def with_plain_pillow(data: bytes) -> dict:
    """What baseline.clean(), a full decode and a resize, makes of it in a process of its own: answer, CPU seconds, megabytes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_decode_plainly, args=(sender, data))
    process.start()
    try:
        answer, cpu_s, mb = receiver.recv() if receiver.poll(PATIENCE_S) else (f"not done after {PATIENCE_S} s", None, None)
    except EOFError:
        answer, cpu_s, mb = "crashed", None, None
    process.kill()
    process.join()
    return {"answer": answer, "cpu_s": cpu_s and round(cpu_s, 2), "mb": mb and round(mb)}
