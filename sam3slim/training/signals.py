"""Signals of processes that others have forked."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import lightning
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher


@contextmanager
def forwarded_sigterm(trainer: lightning.Trainer) -> Iterator[None]:
    """While a process only waits for the ones it forked (``strategy: ddp_fork``), its SIGTERM goes on to them.

    They then stop as ``GracefulStop`` says; without this they would die with the process that was told.

    Raises:
        KeyboardInterrupt: they were told, and have ended.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, frame: FrameType | None) -> None:
        launcher.kill(signal.Signals(number))
        # Here, because Lightning waits for a result of theirs, which those that were stopped never send.
        for process in launcher.procs:
            process.join()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
