"""Libraries that talk: what they say goes to a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from sam3slim import progress


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """What this process, its children and libraries in C print goes to ``log``, all but progress bars."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        with log.open("a", buffering=1, encoding="utf-8") as file, os.fdopen(os.dup(2), "w") as terminal:
            for number in kept:
                os.dup2(file.fileno(), number)
            progress.terminal = terminal
            with redirect_stdout(file), redirect_stderr(file):
                yield
    finally:
        progress.terminal = None
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in kept.items():
            os.dup2(before, number)
            os.close(before)
