"""The one progress bar: what, how many of how many, time passed and time left."""

from __future__ import annotations

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
