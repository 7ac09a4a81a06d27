"""decoders.py: the same photos as photos.clean makes, and a process that outlives none of its limits, nor its owner."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from marketplace.cleaning import decoders, photos
from marketplace.cleaning.decoders import Decoder, Decoders, Limits
from marketplace.cleaning.photos import CleanSettings, PhotoRejected
from marketplace.files import locks
from tests.cleaning.test_photos import display_p3_profile, encoded, quarters, smooth

LIMITS = Limits(cpu_s=20, pixels=50_000_000)
TIMEOUT_S = 60


def slow_photo(side: int = 2000) -> bytes:
    """A BMP of runs of one pixel, for each of which Pillow takes a turn of a loop in Python: seconds."""
    runs = (b"\1\0" * side + b"\0\0") * side
    head = struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078)
    head += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 0, 0)
    return b"BM" + head + bytes(1024) + runs


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"


def is_gone(pid: int) -> bool:
    """Whether a process is no more, or dead and not yet waited for by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(scope="module")
def shared():
    with Decoders(1, LIMITS) as pool:
        yield pool


@pytest.fixture
def decoder(shared):
    with shared.one() as one:
        yield one


def rejection(decoder: Decoder, data: bytes) -> tuple[str, str]:
    with pytest.raises(PhotoRejected) as caught:
        decoder.clean(data, CleanSettings())
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        encoded(smooth(640, 480), "JPEG", icc_profile=display_p3_profile()),
        encoded(smooth(1500, 1000), "PNG"),
        encoded(quarters(), "HEIF"),
        encoded(Image.effect_noise((1500, 1500), 90), "BMP"),  # 2 MB: more than a pipe holds
    ],
    ids=["JPEG", "PNG", "HEIC", "BMP"],
)
@pytest.mark.parametrize(
    "settings", [CleanSettings(), CleanSettings(size=1024, fit="crop", quality=95)], ids=["default", "other"]
)
def test_a_photo_becomes_what_photos_clean_makes_of_it(decoder, data, settings):
    assert decoder.clean(data, settings) == photos.clean(data, settings)
    assert decoder.clean(data, settings, with_display=True) == photos.clean(data, settings, with_display=True)


@pytest.mark.parametrize("data", [b"", b"no photo", encoded(quarters(), "JPEG")[:2000], encoded(quarters(), "PNG")[:60]])
def test_a_rejection_has_the_reason_and_the_sentence_of_photos_clean(decoder, data):
    with pytest.raises(PhotoRejected) as caught:
        photos.clean(data)
    assert rejection(decoder, data) == (caught.value.reason, str(caught.value))


def test_the_pixels_that_are_decoded_are_bounded():
    with Decoders(1, Limits(cpu_s=20, pixels=63_999)) as pool, pool.one() as one:
        assert rejection(one, encoded(quarters(), "PNG"))[0] == "too_many_pixels"


def test_a_photo_that_takes_too_much_of_the_processor_ends_its_worker_and_the_next_one_is_cleaned():
    with Decoders(1, Limits(cpu_s=0.2, pixels=10_000_000)) as pool, pool.one() as one:
        one.wait_until_ready()
        for _ in range(2):
            before = one.pids()
            assert rejection(one, slow_photo()) == (
                "too_slow",
                "the photo takes more than 0.2 seconds of the processor to decode",
            )
            assert one.clean(encoded(quarters(), "JPEG"), CleanSettings()) == photos.clean(encoded(quarters(), "JPEG"))
            assert one.pids()[0] == before[0] and one.pids()[1] != before[1]


def test_the_processor_time_of_one_photo_is_not_that_of_those_before_it():
    data = encoded(smooth(640, 480), "PNG")
    with Decoders(1, Limits(cpu_s=0.5, pixels=10_000_000)) as pool, pool.one() as one:
        one.wait_until_ready()
        before = one.pids()
        while one._cpu_s() < 0.6:
            one.clean(data, CleanSettings())
        assert one.pids() == before


def test_a_photo_that_kills_its_worker_is_rejected_alone(decoder):
    for number in (signal.SIGKILL, signal.SIGSEGV):
        decoder.begin(slow_photo(), CleanSettings())
        wait_until(lambda: decoder.finish(patience_cpu_s=0.05) is None)
        os.kill(decoder.pids()[1], number)
        with pytest.raises(PhotoRejected) as caught:
            decoder.finish()
        assert (caught.value.reason, str(caught.value)) == ("crashed", "the photo ended the process that decoded it")
        assert decoder.clean(encoded(quarters(), "JPEG"), CleanSettings()).width == 320


def test_processes_that_die_between_photos_are_replaced(decoder):
    data = encoded(quarters(), "JPEG")
    for positions in ([1], [0, 1]):
        decoder.wait_until_ready()
        killed = [decoder.pids()[position] for position in positions]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda killed=killed: all(map(is_gone, killed)))
        with pytest.raises(PhotoRejected, match="the photo ended the process"):
            decoder.clean(data, CleanSettings())
        assert decoder.clean(data, CleanSettings()) == photos.clean(data)


def test_a_photo_can_be_given_up(decoder):
    data = encoded(quarters(), "JPEG")
    decoder.begin(slow_photo(), CleanSettings())
    assert decoder.finish(patience_cpu_s=0.05) is None
    decoder.abandon()
    assert decoder.clean(data, CleanSettings()) == photos.clean(data)
    decoder.begin(data, CleanSettings())
    assert decoder.finish(patience_cpu_s=10) == photos.clean(data)
    decoder.begin(data, CleanSettings())
    decoder.abandon()  # perhaps it was done
    assert decoder.clean(data, CleanSettings()) == photos.clean(data)


PATCHED = """
import sys
sys.path.insert(0, sys.argv[1])
from marketplace.cleaning import decoders
decoders.BASE_BYTES, decoders.BYTES_A_PIXEL = 2**20, 1
decoders.main(sys.argv[2])
"""


def test_a_photo_that_takes_too_much_memory_is_rejected(monkeypatch):
    monkeypatch.setattr(decoders, "COMMAND", PATCHED)
    with Decoders(1, Limits(cpu_s=20, pixels=50_000_000)) as pool, pool.one() as one:
        sentence = "the photo takes too much memory to decode"
        assert rejection(one, encoded(Image.new("RGB", (6000, 5000)), "PNG")) == ("unreadable", sentence)
        assert one.clean(encoded(quarters(), "PNG"), CleanSettings()).width == 320


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [("WEBP", "RGBA", {"lossless": True, "method": 0}), ("TIFF", "F", {"compression": "tiff_adobe_deflate"})],
)
def test_the_memory_allowed_is_enough_for_the_thirstiest_photos(kind, mode, options):
    with Decoders(1, Limits(cpu_s=30, pixels=16_000_000)) as pool, pool.one() as one:
        assert one.clean(encoded(Image.new(mode, (4000, 4000)), kind, **options), CleanSettings(size=8)).width == 4000


def test_the_memory_of_large_photos_is_given_back(decoder):
    def resident_mb() -> float:
        return int(Path(f"/proc/{decoder._worker}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    decoder.clean(encoded(Image.new("RGB", (300, 300)), "JPEG"), CleanSettings())
    before = resident_mb()
    for size in ((2000, 1500), (3000, 2500)):
        for kind in ("PNG", "JPEG", "WEBP"):
            decoder.clean(encoded(Image.effect_noise(size, 60).convert("RGB"), kind), CleanSettings())
    assert resident_mb() - before < 16  # the largest takes 180 MB


def test_a_process_that_cannot_start_says_so_and_the_next_try_may_pass(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(decoders, "COMMAND", "raise SystemExit(3)")
        one = Decoder(LIMITS)
        with pytest.raises(decoders.CannotStart, match=r"^a process that decodes photos cannot start \(it ended with 3\)$"):
            one.clean(encoded(quarters(), "JPEG"), CleanSettings())
    one.restart()
    assert one.clean(encoded(quarters(), "JPEG"), CleanSettings()).width == 320
    pids = one.pids()
    one.close()
    wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_what_decodes_imports_no_model_no_table_and_no_network():
    code = "import json, sys; from marketplace.cleaning import decoders; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], cwd=decoders.ROOT, capture_output=True, text=True, check=True).stdout
    imported = {name.partition(".")[0] for name in json.loads(output)}
    assert {"PIL", "numpy", "pillow_heif"} <= imported
    assert not imported & {"torch", "onnxruntime", "faiss", "pandas", "scipy", "sklearn", "boto3", "fastapi", "uvicorn"}


def test_processes_end_with_their_owner():
    code = (
        "import sys\nfrom marketplace.cleaning.decoders import Decoder, Limits\n"
        "one = Decoder(Limits(20, 50_000_000)); one.wait_until_ready(); print(*one.pids(), flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], cwd=decoders.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 2 and not any(is_gone(pid) for pid in pids)
    owner.kill()
    owner.communicate()
    wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_no_lock_of_the_owner_is_held_by_its_processes(tmp_path):
    with locks.hold(tmp_path, exclusive=True):
        one = Decoder(LIMITS)
        one.wait_until_ready()
    with locks.hold(tmp_path, exclusive=True):
        one.close()


def test_ctrl_c_on_the_terminal_is_for_the_owner(decoder):
    decoder.wait_until_ready()
    assert {os.getsid(pid) for pid in decoder.pids()} == {decoder.pids()[0]} != {os.getsid(0)}


def test_nothing_that_pillow_warns_of_is_printed(capfd):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x0e"
    tiff = bytearray(encoded(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_lzw"))
    tiff[int.from_bytes(tiff[4:8], "little")] += 1  # one tag more than the file holds, told of when opened and when loaded
    huge = encoded(Image.new("1", (10_000, 9_500)), "PNG")  # between Pillow's warning and its error
    with Decoders(1, Limits(cpu_s=20, pixels=100_000_000)) as pool, pool.one() as one:
        assert one.clean(encoded(quarters(), "JPEG", exif=exif), CleanSettings()).height == 320
        assert rejection(one, bytes(tiff))[0] == "unreadable"
        assert one.clean(huge, CleanSettings(size=8, max_pixels=100_000_000)).width == 10_000
    assert capfd.readouterr() == ("", "")
