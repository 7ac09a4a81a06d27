"""Failures that a user can mend, told in one sentence."""

import argparse
import errno
import json
import sys
from collections.abc import Callable

NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}  # the machine's refusals, not bugs


class StageError(Exception):
    """A failure whose message is one sentence for the user: what, where, and what to do or run."""


def exit_code(run: Callable[[argparse.Namespace], dict], args: argparse.Namespace) -> int:
    """Run a stage and turn its end into an exit code.

    Prints the stage's summary as one JSON line on stdout and returns 0, or prints the sentence of a StageError, a full
    disk or a missing permission on stderr and returns 1. Any other exception is a bug and keeps its traceback.
    """
    try:
        summary = run(args)
    except StageError as error:
        # A DataLoader's worker puts its traceback before the sentence.
        sentence = str(error).strip().splitlines()[-1].removeprefix("marketplace.errors.StageError: ")
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        where = error.filename or "the data folder"
        print(f"error: {error.strerror} ({where}): make room or give the permission, and run it again", file=sys.stderr)
        return 1
    print(json.dumps(summary))
    return 0
