"""Failures that a user can mend, told in one sentence."""

import argparse
import json
import sys
from collections.abc import Callable


class StageError(Exception):
    """A failure whose message is one sentence for the user: what, where, and what to do or run."""


def exit_code(run: Callable[[argparse.Namespace], dict], args: argparse.Namespace) -> int:
    """Run a stage and turn its end into an exit code.

    Prints the stage's summary as one JSON line on stdout and returns 0, or prints the sentence of a
    StageError on stderr and returns 1. Any other exception is a bug and keeps its traceback.
    """
    try:
        summary = run(args)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary))
    return 0
