"""The one exception a user is meant to read, and how a command ends with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Bad input, told in one line: what was given, what was expected, and the fix.

    Entry points print the message without a traceback and exit with status 2; anything else that
    escapes is a bug and keeps its traceback. What no terminal or file takes (escape codes, halves of characters) is
    written as ``\\x1b``, for a message quotes names out of files.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), message))


@contextmanager
def one_line_exits(interrupted: str = "interrupted") -> Iterator[None]:
    """End the process with one line on stderr: status 2 after a ``UserError``, 130 after Ctrl-C."""
    try:
        yield
    except UserError as error:
        exit_with(f"error: {' '.join(str(error).split())}", EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        exit_with(interrupted, EXIT_INTERRUPTED)


def exit_with(line: str, status: int) -> NoReturn:
    """Print ``line`` to stderr and exit."""
    print(line, file=sys.stderr)
    sys.exit(status)
