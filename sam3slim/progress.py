"""The one progress bar: what, how many of how many, time passed and time left; and a place for all other output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

terminal: TextIO | None = None  # where bars go while a caller keeps everything else in a file; None: stderr


def progress_bar(*, show: bool = True) -> Progress:
    """On stderr, gone in the end; nothing where that is no terminal."""
    console = Console(file=terminal, stderr=terminal is None)
    described = TextColumn("{task.description}", markup=False)
    columns = (described, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal))


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """What this process, its children and libraries in C print goes to ``log``, all but progress bars."""
    global terminal
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        with log.open("a", buffering=1, encoding="utf-8") as file, os.fdopen(os.dup(2), "w") as bars:
            for number in kept:
                os.dup2(file.fileno(), number)
            terminal = bars
            with redirect_stdout(file), redirect_stderr(file):
                yield
    finally:
        terminal = None
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in kept.items():
            os.dup2(before, number)
            os.close(before)
