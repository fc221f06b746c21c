"""One trial of a sweep: where it lives, that it runs once at a time, and what is left when it fails."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sam3slim.errors import UserError
from sam3slim.files import ensure_writable_dir
from sam3slim.launch.child import ChildDied, in_child
from sam3slim.launch.journal import Outcome
from sam3slim.launch.run import Run
from sam3slim.results.costs import COSTS
from sam3slim.results.metrics import METRICS, main_metric
from sam3slim.results.record import FILE_NAME, RunRecord
from sam3slim.results.recording import config_hash, is_finished, outcome, record_of

LOCK = ".lock"
HASH_LENGTH = 10
NAME_LENGTH = 80


@dataclass(frozen=True)
class Done:
    """What a run hands back to its sweep.

    Attributes:
        records: the last one counts.
        fresh: whether it had to do anything.
        metric: name of the metric that a search compares; None: see ``main_metric``.
        cost: name of the cost that it compares.
    """

    records: tuple[RunRecord, ...]
    fresh: bool = True
    metric: str | None = None
    cost: str = "bytes"


def trial_name(config: Mapping[str, Any], varied: Mapping[str, str], sweep_dir: str | Path) -> str:
    """The folder of a trial below ``sweep_dir``: ``vit-nano_slim_decoder-l2_1a2b3c4d5e``.

    The end is the configuration's hash: the same trial comes to the same folder whatever the order, the number or
    the wording of a sweep's overrides. A name needs no quotes on a command line.

    Args:
        varied: key → value of what distinguishes the trial from others of its sweep.
    """
    code = config_hash(config)[:HASH_LENGTH]
    for known in sorted(Path(sweep_dir).glob(f"*{code}")):
        return known.name
    words = [f"{short}-{value}" for short, value in zip(_short(list(varied)), varied.values(), strict=True)]
    clean = [re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-") for word in words]
    name = "_".join(clean)[:NAME_LENGTH].strip("-._")
    return f"{name}_{code}" if name else code


def _short(keys: Sequence[str]) -> list[str]:
    """The last word of every key, or as many of its last words as tell it from the others."""
    steps = [re.split(r"[./]", key) for key in keys]
    for length in range(1, max(map(len, steps), default=0) + 1):
        short = [".".join(words[-length:]) for words in steps]
        if len(set(short)) == len(set(keys)):
            return short
    return list(keys)


def run_trial(trial: Run, work: Callable[[], Any], *, isolated: bool) -> Outcome:
    """Do ``work`` for a trial, alone in its folder; whatever happens, its record says so.

    Args:
        work: returns ``Done`` or the run's record or records.
        isolated: in a process of its own, so that the sweep survives its death.

    Raises:
        KeyboardInterrupt: the sweep was asked to stop; the trial has saved what it could.
    """
    ensure_writable_dir(trial.folder)
    with _alone(trial.folder):
        if not isolated:
            return _attempt(trial, work)
        try:
            found: Outcome = in_child(lambda: _attempt(trial, work))
        except ChildDied as death:
            _note_death(trial, str(death))
            found = Outcome("failed", str(trial.folder), str(death))
    return found


def _attempt(trial: Run, work: Callable[[], Any]) -> Outcome:
    folder = str(trial.folder)
    before = _stamp(trial.folder)
    try:
        result = work()
    except BaseException as error:
        status, text = outcome(error)
        if status != "interrupted" and not isinstance(error, UserError):
            traceback.print_exc()
        # Whatever went wrong, a finished record is true and stays.
        if _stamp(trial.folder) == before and not is_finished(trial.folder):
            _record_failure(trial, error)
        return Outcome("interrupted" if status == "interrupted" else "failed", folder, " ".join(str(text).split()))
    done = result if isinstance(result, Done) else Done(tuple(result) if isinstance(result, list) else (result,))
    values = values_of(done)
    machine = None if values is None else COSTS[done.cost].axis(done.records[-1])
    return Outcome("finished" if done.fresh else "skipped", folder, values=values, machine=machine)


def values_of(done: Done) -> tuple[float, float] | None:
    """What a search compares: the metric (more is better) and the cost of the last record; None without both."""
    record = done.records[-1] if done.records else None
    if not isinstance(record, RunRecord):
        return None
    metric = main_metric(record) if done.metric is None else METRICS[done.metric]
    score, cost = metric.score_of(record), COSTS[done.cost].of(record)
    return None if score is None or cost is None else (score, float(cost))


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Changes when the record is written: it is always a new file."""
    try:
        status = (folder / FILE_NAME).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _record_failure(trial: Run, error: BaseException) -> None:
    """For what went wrong before the run began a record of its own: an impossible architecture, for example."""
    with suppress(type(error)), trial.recording():
        raise error


def _note_death(trial: Run, text: str) -> None:
    """The record a killed process left says only that it did not end."""
    if is_finished(trial.folder):
        return  # something after it died
    record = RunRecord(trial.kind, trial.command, config_hash=config_hash(trial.config), choices=dict(trial.choices))
    with suppress(UserError):  # one that cannot be read is replaced
        record = record_of(trial.folder, trial.config) or record
    record.status, record.error = "failed", text
    record.write(trial.folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process works in ``folder``: a second sweep, or a trial that outlives a killed one.

    The system takes the lock from a process that dies.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder}: another process works on this trial; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
