"""What a subcommand is."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@dataclass(frozen=True)
class Command:
    """A subcommand: ``add_arguments`` describes its arguments, ``run`` does it (UserError for bad input)."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    epilog: str = ""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around heavy imports: they make a million objects and hardly any garbage, so a quarter of their time is gc."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def plain_console(width: int | None = None) -> Console:
    """A console that prints texts and cells of tables as they are: ``[b]`` is no markup and ``:x:`` no emoji.

    Args:
        width: columns; None for the terminal's.
    """
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=width)


def plain_progress(*, show: bool = True) -> Progress:
    """A progress bar that is gone in the end and prints descriptions as they are, like ``plain_console``."""
    from rich.progress import Progress, TextColumn

    described = TextColumn("{task.description}", style="progress.description", markup=False)
    return Progress(described, *Progress.get_default_columns()[1:], transient=True, disable=not show)
