"""Two processes for what only several can show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes


def run_two(function: Callable[..., None], *given: Any) -> None:
    """``function(rank, *given)`` in two processes at a time.

    They are forked, as importing torch anew takes each of them seconds; but not beside a GPU, where a process that has
    computed gradients cannot fork others that will.
    """
    start_processes(function, given, nprocs=2, start_method="spawn" if torch.cuda.is_available() else "fork")
