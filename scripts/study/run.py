"""Run the cells, several side by side, each a process of its own; what is finished is not run again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import read_record
from sam3slim.results.recording import config_hash, finished_record, forget_other
from scripts.study.cells import Cell
from scripts.study.results import Result, read_results, result_of

LOG_FILE = "study.log"  # what a cell printed


def overrides_of(cell: Cell, more: Sequence[str] = ()) -> list[str]:
    """Overrides of ``train.py`` for a cell; ``more`` goes to every cell (``trainer.max_steps=10``)."""
    return ["experiment=nano_study", *cell.overrides, *more]


def finished(cell: Cell, out: Path, table: Path, more: Sequence[str] = ()) -> Result | None:
    """The cell's result, if its record or the table says that just this configuration has been run to its end."""
    config = _config(cell, out, more)
    record = finished_record(out / cell.name, config)
    if record is not None:
        return result_of(cell, record)
    kept = read_results(table).get(cell.name)
    return kept if kept is not None and kept.config_hash == config_hash(config) else None


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    table: Path,
    *,
    jobs: int,
    more: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> dict[str, str]:
    """Train what is not finished; a cell that fails does not stop the others.

    Args:
        out: gets a folder per cell.
        table: the CSV that keeps what was found before.
        jobs: cells at a time, one thread each.
        more: overrides for all cells.

    Returns:
        Cell → the first line of what went wrong, for those that failed.
    """
    for cell in cells:
        _config(cell, out, more)  # a mistake is told before hours of work
    waiting = [cell for cell in cells if finished(cell, out, table, more) is None]
    for cell in waiting:  # here, because Hydra composes on one thread only
        forget_other(out / cell.name, _config(cell, out, more))
    say(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished; {len(waiting)} to go, {jobs} at a time")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    failed: dict[str, str] = {}
    with Progress(*columns) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("study", total=len(waiting))
        running = {pool.submit(_run, cell, out, more): cell for cell in waiting}
        try:
            for future in as_completed(running):
                error = future.result()
                if error:
                    failed[running[future].name] = error
                    say(f"{running[future].name} failed: {error}")
                bar.advance(task)
        except KeyboardInterrupt:
            for future in running:
                future.cancel()
            raise
    return failed


def _config(cell: Cell, out: Path, more: Sequence[str]) -> dict[str, Any]:
    return compose_plain("train", [*overrides_of(cell, more), "resume=auto"], out / cell.name)


def _run(cell: Cell, out: Path, more: Sequence[str]) -> str | None:
    folder = out / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", *overrides_of(cell, more), "resume=auto", f"hydra.run.dir={folder}"]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        code = subprocess.run(command, env=os.environ | threads, stdout=log, stderr=subprocess.STDOUT).returncode
    if code == 0:
        return None
    try:
        error = read_record(folder).error
    except UserError:
        error = None  # it never came to a record
    return error or f"exit code {code}, see {folder / LOG_FILE}"
