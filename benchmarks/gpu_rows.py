"""The rows of a benchmark that always goes on: a case that fails, or has no time left, is a row that says why."""

from __future__ import annotations

import gc
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import torch

from sam3slim.errors import UserError
from sam3slim.files import atomic_path, write_csv

NOT_MEASURED = "not measured"
REASON_LENGTH = 300  # CUDA's message for lack of memory goes on and on
RING_AGAIN = 5.0  # seconds; an exception that rises inside a destructor is lost


class Measure(NamedTuple):
    """One number of a case; ``value`` None needs a ``note`` that says why."""

    quantity: str
    value: float | None
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the CSV."""

    section: str
    case: str
    quantity: str
    value: float | None
    unit: str
    note: str


class Outcome(Enum):
    """How a case ended."""

    DONE = "done"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


class OutOfTime(BaseException):
    """No ``Exception``: nothing between the alarm and the case may take it for a fault of its own."""


class Recorder:
    """Runs cases one after another, within ``minutes`` for all of them.

    Every section may take until its share of the time is over; what it leaves is for those that follow.
    """

    def __init__(self, minutes: float) -> None:
        self.rows: list[Row] = []
        self.minutes = minutes
        self._started = time.perf_counter()
        self._section, self._until = "", 0.0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def begin(self, section: str, share: float) -> None:
        """What follows belongs to ``section``, which must end when ``share`` of the time is over."""
        self._section, self._until = section, share * 60 * self.minutes
        self.say(f"{section}, until {self._until:.0f} s at the latest")

    def say(self, text: str) -> None:
        """A progress line."""
        print(f"[{self.seconds:6.1f} s] {text}", flush=True)

    def add(self, case: str, measure: Measure) -> None:
        """Keep a number; one that is not finite is told and left out."""
        quantity, value, unit, note = measure
        if value is not None and not math.isfinite(value):
            value, note = None, f"{value} is not a finite number; {note}".rstrip("; ")
        self.rows.append(Row(self._section, case, quantity, value, unit, note))
        shown = "–" if value is None else f"{value:.4g} {unit}"
        self.say(f"{self._section} | {case} | {quantity}: {shown}{f' ({note})' if note else ''}")

    def attempt(self, case: str, action: Callable[[], Iterable[Measure]]) -> Outcome:
        """Keep what ``action`` yields, up to where it fails or its time is over, and free the GPU's memory."""
        left = self._until - self.seconds
        outcome, reason = Outcome.DONE, ""
        if left <= 0:
            outcome, reason = Outcome.FAILED, "skipped: the time was used up before it could start"
        else:
            self.say(f"{self._section} | {case}")
            try:
                with _alarm(left):
                    for measure in action():
                        self.add(case, measure)
            except OutOfTime:
                outcome, reason = Outcome.FAILED, f"stopped after {left:.0f} s: the section's time was used up"
            except Exception as error:
                outcome = Outcome.OUT_OF_MEMORY if is_out_of_memory(error) else Outcome.FAILED
                reason = reason_of(error)
        # Not in the except block, in which the traceback still holds the tensors of the case.
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU
        if reason:
            self.add(case, Measure(NOT_MEASURED, None, "", reason))
        return outcome

    def write(self, folder: Path, stem: str, title: str, metadata: Mapping[str, object]) -> None:
        """All rows so far as ``stem``.csv, and as ``stem``.md for a reader; old files stay until these are whole."""
        rows = [asdict(row) | {"value": "" if row.value is None else f"{row.value:.6g}"} for row in self.rows]
        write_csv(folder / f"{stem}.csv", rows, list(Row.__dataclass_fields__))
        with atomic_path(folder / f"{stem}.md") as temporary:
            temporary.write_text(self._markdown(title, metadata), encoding="utf-8")

    def _markdown(self, title: str, metadata: Mapping[str, object]) -> str:
        lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in metadata.items())]
        for section in dict.fromkeys(row.section for row in self.rows):
            lines += ["", f"## {section}", "", "| case | quantity | value | unit | note |", "|---|---|---:|---|---|"]
            for row in self.rows:
                if row.section == section:
                    value = "–" if row.value is None else f"{row.value:.4g}"
                    cells = (row.case, row.quantity, value, row.unit, row.note)
                    lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        return "\n".join([*lines, ""])


def is_out_of_memory(error: BaseException) -> bool:
    """Also where the compiler has put an error of its own around it."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def reason_of(error: BaseException) -> str:
    """One line."""
    text = " ".join(str(error).split()) or "no message"
    return (text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")[:REASON_LENGTH]


def fewer_images(counts: Iterable[int], attempt: Callable[[int], Outcome]) -> None:
    """``attempt`` with one of ``counts`` after another, as long as memory does not suffice."""
    for count in counts:
        if attempt(count) is not Outcome.OUT_OF_MEMORY:
            return


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """OutOfTime in the body when they are over; a kernel or a compilation in C++ is waited for."""

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, RING_AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
