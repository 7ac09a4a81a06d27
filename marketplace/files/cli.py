"""What the command lines have in common: checked numbers, the device, the runtime, the cluster, the exit code."""

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from marketplace.files import disk
from marketplace.files.stages import StageError

Arguments = TypeVar("Arguments")  # what a script's parse_args() gives
RAY_ADDRESS = re.compile(r"(ray://)?([^\s:/\[\]]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}")
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS}  # the machine's, not bugs


def exit_code(run: Callable[[Arguments], dict], args: Arguments) -> int:
    """Run a stage and turn its end into an exit code.

    Prints the stage's summary, unless it is empty, as one JSON line on stdout and returns 0, or prints the sentence of a
    StageError, a full disk or a missing permission on stderr and returns 1. Any other exception is a bug and keeps its traceback.
    """
    try:
        summary = run(args)
        if summary:
            _tell(json.dumps(summary))
    except StageError as error:
        # A DataLoader's worker puts its traceback before the sentence.
        return _fail(str(error).strip().splitlines()[-1].removeprefix("marketplace.files.stages.StageError: "))
    except Exception as error:
        where = getattr(error, "filename", None) or getattr(args, "data", os.curdir)
        if disk.is_full(error):
            return _fail(f"the disk at {disk.mount_of(where)} is full ({where}): make room on it, and run it again")
        if not isinstance(error, OSError) or error.errno not in REFUSALS:
            raise
        return _fail(f"{error.strerror} ({where}): give the permission, and run it again")
    return 0


def flags_of(args: argparse.Namespace, *aside: str) -> dict[str, str | int | float | bool]:
    """The flags that were given, or have a default, as JSON values; without --data, and without `aside`: flags that are meant for
    one run alone, or decide nothing."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    kept = (name for name, value in given.items() if name not in ("data", *aside) and value is not None and value is not False)
    return {name.replace("_", "-"): given[name] for name in kept}


def _tell(line: str) -> None:
    """Print a line on stdout now: where it goes to a full disk, the failure belongs to this run and not to its very end."""
    try:
        print(line, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what could not be written is tried again at exit
        raise StageError(f"the summary cannot be printed ({error.strerror}): see where standard output goes") from None


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has only the latter


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number from 0 to 2**32 - 1, as every library's seed allows, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)


def device(text: str) -> str:
    """cpu, or a cuda device that this machine has, for argparse."""
    if text == "cpu":
        return text
    import torch  # only who asks for a GPU pays for the import

    if text.partition(":")[0] != "cuda":
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    if not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("this machine has no CUDA device: use cpu")
    return text


def ray_address(text: str) -> str:
    """Where a Ray cluster is, for argparse."""
    if text not in ("auto", "local") and not RAY_ADDRESS.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto, nor local, nor HOST:PORT, nor ray://HOST:PORT")
    return text


def add_ray(parser: argparse.ArgumentParser) -> None:
    """--ray, for the scripts whose photos several machines can share."""
    parser.add_argument(
        "--ray",
        type=ray_address,
        metavar="ADDRESS",
        help="do it on the nodes of a Ray cluster instead: auto, HOST:PORT of its head, ray://HOST:PORT, or local to try it",
    )


def add_runtime(parser: argparse.ArgumentParser, runtimes: tuple[str, ...]) -> None:
    """--runtime and --device, for the scripts that run the trained model."""
    parser.add_argument(
        "--runtime",
        default="auto",
        choices=runtimes,
        help="auto: torch with CUDA, else ONNX Runtime, in 8 bits where they passed; onnx: in fp32 (default: %(default)s)",
    )
    parser.add_argument("--device", type=device, help="cpu or cuda (default: cuda where there is one)")
