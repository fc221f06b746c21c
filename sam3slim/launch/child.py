"""A function in a process of its own: whatever kills that process does not kill the caller."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

# Forked, not started anew: torch and Lightning, imported once by the parent, take longer to import than a tiny trial.
FORKS = sys.platform == "linux"


class ChildDied(Exception):
    """The process ended without an answer; the message says how."""


def in_child(work: Callable[[], Any]) -> Any:
    """``work()`` in a forked process; elsewhere than on Linux in this one.

    The child dies with its parent. Ctrl-C, SIGTERM and, where a job scheduler's handler is installed, SIGUSR2 are
    passed on to it as one Ctrl-C, so that it can save; when it has ended, the parent answers to the signal as it
    would have before.

    Args:
        work: returns something that can be pickled, and raises nothing.

    Raises:
        ChildDied: it was killed.
        KeyboardInterrupt: the parent was asked to stop.
    """
    if not FORKS:
        return work()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(work, sender))
    with _passing_on(child):
        child.start()
        sender.close()
        try:
            answer, answered = receiver.recv(), True
        except EOFError:
            answer, answered = None, False
        child.join()
    if not answered:
        raise ChildDied(_how(child.exitcode))
    return answer


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = "; often the memory was not enough" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process ended with status {exitcode}"


@contextmanager
def _passing_on(child: Any) -> Iterator[None]:
    """While the body runs, a request to stop goes to ``child``; afterwards it takes effect here."""
    asked: list[tuple[int, FrameType | None]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append((number, frame))
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGINT)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _requests_to_stop():
            before[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in asked[:1]:
        if number == signal.SIGUSR2:
            before[number](number, frame)  # submitit: puts the job back into the queue and exits
        raise KeyboardInterrupt


def _requests_to_stop() -> Iterator[int]:
    # A background job of a shell script ignores Ctrl-C, and goes on ignoring it.
    if callable(signal.getsignal(signal.SIGINT)):
        yield signal.SIGINT
    # Submitit ignores the SIGTERM that Slurm sends beside SIGUSR2; that is left as it is.
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None):
        yield signal.SIGTERM
    if callable(signal.getsignal(signal.SIGUSR2)):
        yield signal.SIGUSR2


def _child(work: Callable[[], Any], sender: Connection) -> None:
    # A group of its own: Ctrl-C in a terminal reaches the parent alone, which passes it on once.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    sender.send(work())


def _follow_parent() -> None:
    """When the parent dies, SIGTERM, so that training can save what it has."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
