"""Photos decoded in small processes of their own: what a hostile photo breaks or takes is theirs, never their owner's.

A process imports what decodes, no model and no table, and forks a worker for the photos. A worker that dies in a photo, by its
limits or by a fault, is replaced from there in a few milliseconds. All end with their owner, whose end of the pipes closes.
"""

import contextlib
import json
import mmap
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from marketplace.cleaning import photos
from marketplace.cleaning.photos import CleanedPhoto, CleanSettings, DisplayCopy, PhotoRejected

TOO_SLOW, CRASHED = "too_slow", "crashed"  # reasons that tell of the machine, too: a photo may pass another time
BATCH_CPU_S = 30
BASE_BYTES = 256 * 2**20
BYTES_A_PIXEL = 24  # the thirstiest, WebP and grey floats, take 20
COMMAND = "import sys; sys.path.insert(0, sys.argv[1]); from marketplace.cleaning import decoders; decoders.main(sys.argv[2])"
ROOT = Path(__file__).resolve().parents[2]
PIPE_BYTES = 2**20  # most photos in one piece: as much as Linux lets anyone have
POLL_S = 0.02
# glibc raises the size from which memory is given back at once to that of the largest photo seen, and keeps what is smaller.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
TICKS = os.sysconf("SC_CLK_TCK")


class CannotStart(RuntimeError):
    """The processes that decode photos end before they have seen one."""


@dataclass(frozen=True)
class Limits:
    """Of one photo. cpu_s: processor seconds, not those of the clock, so that load changes no result. pixels: decoded at once."""

    cpu_s: float
    pixels: int

    @property
    def memory_bytes(self) -> int:
        return BASE_BYTES + BYTES_A_PIXEL * self.pixels


# In the process that decodes


def main(limits: str) -> None:
    """Replace one worker after the other, and tell of each how the one before it ended, until a worker is told to end."""
    warnings.simplefilter("ignore")  # Pillow's, about odd headers: what matters is rejected
    is_decoding = mmap.mmap(-1, 1)  # shared with the worker
    outcome = {}
    while True:
        worker = os.fork()
        if worker == 0:
            _work(Limits(**json.loads(limits)), is_decoding)
        _send(sys.stdout.buffer, outcome | {"worker": worker})
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if not is_decoding[0]:  # it was told to end, or what it had read and written of a message is not to be told
            sys.exit(abs(code))
        is_decoding[0] = 0
        outcome = {"reason": TOO_SLOW if code == -signal.SIGPROF else CRASHED}


def _work(limits: Limits, is_decoding: mmap.mmap) -> None:
    _silence_libraries()
    _limit_memory(limits.memory_bytes)
    while request := _receive(sys.stdin.buffer):
        header, data = request
        is_decoding[0] = 1
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)  # ends the process
        reply, jpegs = _clean(data, CleanSettings(**header["settings"]), limits.pixels, header["with_display"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        is_decoding[0] = 0
        del request, data
        _send(sys.stdout.buffer, reply, jpegs)
    os._exit(0)


def _silence_libraries() -> None:
    """Leave stderr to Python: libtiff writes a line there for every odd file."""
    sys.stderr = os.fdopen(os.dup(2), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _limit_memory(more_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(FileNotFoundError):  # macOS neither tells what a process has nor limits it
        own_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (own_bytes + more_bytes, own_bytes + more_bytes))


def _clean(data: bytes, settings: CleanSettings, max_decoded_pixels: int, with_display: bool) -> tuple[dict, bytes]:
    """What to reply: a header, and the square's JPEG with the display copy's behind it."""
    try:
        cleaned = photos.clean(data, settings, max_decoded_pixels, with_display)
    except PhotoRejected as rejection:
        return {"reason": rejection.reason, "sentence": str(rejection)}, b""
    facts = asdict(cleaned)
    jpeg, display = facts.pop("jpeg"), facts.pop("display")
    display_jpeg = display.pop("jpeg") if display else b""
    return {"facts": facts, "display": display, "jpeg_bytes": len(jpeg)}, jpeg + display_jpeg


# Messages: a line of JSON and bytes. Never pickle, which could run what a hostile photo made of the process.


def _send(pipe: BinaryIO, header: dict, content: bytes = b"") -> None:
    pipe.write(json.dumps(header | {"bytes": len(content)}).encode() + b"\n" + content)
    pipe.flush()


def _receive(pipe: BinaryIO) -> tuple[dict, bytes] | None:
    """None at the end."""
    if not (line := pipe.readline()).endswith(b"\n"):
        return None
    header = json.loads(line)
    content = pipe.read(header["bytes"])
    return (header, content) if len(content) == header["bytes"] else None


# In the process that owns them


class Decoder:
    """One process that cleans a photo at a time, for one thread at a time; replaced when it ends."""

    def __init__(self, limits: Limits):
        self._limits, self._is_closed = limits, False
        self._start()

    def _start(self) -> None:
        self._worker = None  # its process id, once it is there
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, str(ROOT), json.dumps(asdict(self._limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=PIPE_BYTES,
            start_new_session=True,  # Ctrl-C is for the owner
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | GIVE_BACK,
        )

    def wait_until_ready(self) -> None:
        """Raises CannotStart when the process ended before."""
        if self._worker is None:
            if not (message := _receive(self._process.stdout)):
                code = self._process.wait()
                self.restart()
                raise CannotStart(f"a process that decodes photos cannot start (it ended with {code})")
            self._worker = message[0]["worker"]

    def clean(self, data: bytes, settings: CleanSettings, with_display: bool = False) -> CleanedPhoto:
        """photos.clean() of these bytes; raises PhotoRejected, and CannotStart."""
        self.begin(data, settings, with_display)
        return self.finish()

    def begin(self, data: bytes, settings: CleanSettings, with_display: bool = False) -> None:
        """Hand over a photo; finish() or abandon() must follow. Raises CannotStart."""
        self.wait_until_ready()
        self._begun_cpu_s = self._cpu_s()
        with contextlib.suppress(BrokenPipeError):  # finish() finds out
            _send(self._process.stdin, {"settings": settings.as_dict(), "with_display": with_display}, data)

    def finish(self, patience_cpu_s: float | None = None) -> CleanedPhoto | None:
        """The photo cleaned; None when it takes more than `patience_cpu_s` of the processor. Raises PhotoRejected."""
        if patience_cpu_s is not None:
            answer = select.poll()
            answer.register(self._process.stdout, select.POLLIN)
            while not answer.poll(1000 * POLL_S):
                if self._cpu_s() - self._begun_cpu_s >= patience_cpu_s:
                    return None
        reply = _receive(self._process.stdout)
        header, jpegs = reply or ({"reason": CRASHED}, b"")
        self._worker = header.get("worker", self._worker)
        if reply is None:
            self.restart()
        if "facts" in header:
            jpeg, display_jpeg = jpegs[: header["jpeg_bytes"]], jpegs[header["jpeg_bytes"] :]
            display = DisplayCopy(display_jpeg, **header["display"]) if header["display"] else None
            return CleanedPhoto(jpeg, **header["facts"], display=display)
        raise PhotoRejected(header["reason"], header.get("sentence") or self._sentence(header["reason"]))

    def _sentence(self, reason: str) -> str:
        if reason == TOO_SLOW:
            return f"the photo takes more than {self._limits.cpu_s:g} seconds of the processor to decode"
        return "the photo ended the process that decoded it"

    def abandon(self) -> None:
        """Give up the photo that was begun."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._worker, signal.SIGKILL)
        reply = _receive(self._process.stdout)
        if reply and "worker" in reply[0]:
            self._worker = reply[0]["worker"]
        else:
            self.restart()  # it was done meanwhile, and the kill met a worker without a photo

    def _cpu_s(self) -> float:
        """Processor seconds of the worker; where the system does not tell, those of the clock."""
        try:
            fields = Path(f"/proc/{self._worker}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime

    def pids(self) -> list[int]:
        """The process and, once it is there, its worker."""
        return [pid for pid in (self._process.pid, self._worker) if pid]

    def restart(self) -> None:
        self._stop()
        if not self._is_closed:
            self._start()

    def close(self) -> None:
        self._is_closed = True
        self._stop()

    def _stop(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Decoders:
    """`count` of them, for as many threads at once."""

    def __init__(self, count: int, limits: Limits):
        self._all = [Decoder(limits) for _ in range(count)]
        self._idle: queue.LifoQueue[Decoder] = queue.LifoQueue()  # the last one used is warm
        for decoder in self._all:
            self._idle.put(decoder)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_) -> None:
        for decoder in self._all:
            decoder.close()

    def wait_until_ready(self) -> None:
        for decoder in self._all:
            decoder.wait_until_ready()

    @contextlib.contextmanager
    def one(self) -> Iterator[Decoder]:
        """One of them, once one is idle."""
        decoder = self._idle.get()
        try:
            yield decoder
        finally:
            self._idle.put(decoder)

    def pids(self) -> list[int]:
        return [pid for decoder in self._all for pid in decoder.pids()]
