"""What the command lines have in common: checked numbers, the device, the runtime, the exit code."""

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from marketplace.files.stages import StageError

Arguments = TypeVar("Arguments")  # what a script's parse_args() gives
NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}  # the machine's refusals, not bugs


def exit_code(run: Callable[[Arguments], dict], args: Arguments) -> int:
    """Run a stage and turn its end into an exit code.

    Prints the stage's summary, unless it is empty, as one JSON line on stdout and returns 0, or prints the sentence of a
    StageError, a full disk or a missing permission on stderr and returns 1. Any other exception is a bug and keeps its traceback.
    """
    try:
        summary = run(args)
    except StageError as error:
        # A DataLoader's worker puts its traceback before the sentence.
        sentence = str(error).strip().splitlines()[-1].removeprefix("marketplace.files.stages.StageError: ")
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        where = error.filename or "the data folder"
        print(f"error: {error.strerror} ({where}): make room or give the permission, and run it again", file=sys.stderr)
        return 1
    if summary:
        print(json.dumps(summary))
    return 0


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


def add_runtime(parser: argparse.ArgumentParser, runtimes: tuple[str, ...]) -> None:
    """--runtime and --device, for the scripts that run the trained model."""
    parser.add_argument(
        "--runtime",
        default="auto",
        choices=runtimes,
        help="auto: torch with CUDA, else ONNX Runtime, in 8 bits where they passed; onnx: in fp32 (default: %(default)s)",
    )
    parser.add_argument("--device", type=device, help="cpu or cuda (default: cuda where there is one)")
