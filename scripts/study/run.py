"""Run the cells, several side by side, each a process of its own; what is finished is not run again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_run
from sam3slim.launch.run import Run
from sam3slim.progress import progress_bar
from sam3slim.results.record import read_record
from sam3slim.results.recording import config_hash, forget_other
from scripts.study.cells import Cell
from scripts.study.results import Result, read_results, result_of

LOG_FILE = "study.log"  # what a cell printed


def overrides_of(cell: Cell, more: Sequence[str] = ()) -> list[str]:
    """Overrides of ``train.py`` for a cell; ``more`` goes to every cell (``trainer.max_steps=10``)."""
    return ["experiment=nano_study", *cell.overrides, *more]


def finished(cell: Cell, out: Path, table: Path, more: Sequence[str] = ()) -> Result | None:
    """The cell's result, if its record or the table says that just this configuration has been run to its end."""
    return _result(cell, _composed(cell, out, more), read_results(table))


def _result(cell: Cell, run: Run, table: Mapping[str, Result]) -> Result | None:
    record = run.finished()
    if record is not None:
        return result_of(cell, record)
    kept = table.get(cell.name)
    return kept if kept is not None and kept.config_hash == config_hash(run.config) else None


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
    # All of them first: a mistake is told before hours of work, and Hydra composes on one thread only.
    runs, kept = {cell: _composed(cell, out, more) for cell in cells}, read_results(table)
    waiting = [cell for cell, run in runs.items() if _result(cell, run, kept) is None]
    for cell in waiting:
        forget_other(runs[cell].folder, runs[cell].config)
    say(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished; {len(waiting)} to go, {jobs} at a time")
    failed: dict[str, str] = {}
    with progress_bar() as bar, ThreadPoolExecutor(jobs) as pool:
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


def _composed(cell: Cell, out: Path, more: Sequence[str]) -> Run:
    return compose_run("train", [*overrides_of(cell, more), "resume=auto"], out / cell.name)


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
