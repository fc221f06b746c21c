"""Run the cells, several side by side, each a process of its own; what is finished is not run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sam3slim.launch.run import Run
from sam3slim.results.recording import config_hash
from scripts.steps import Step, run_steps
from scripts.study.cells import Cell
from scripts.study.results import Result, read_results, result_of


def step_of(cell: Cell, more: Sequence[str] = ()) -> Step:
    """The training of a cell; ``more`` overrides go to every cell (``trainer.max_steps=10``)."""
    return Step(cell.name, "train", ("experiment=nano_study", *cell.overrides, *more))


def finished(cell: Cell, out: Path, table: Path, more: Sequence[str] = ()) -> Result | None:
    """The cell's result, if its record or the table says that just this configuration has been run to its end."""
    run = step_of(cell, more).composed(out)
    record = run.finished()
    return result_of(cell, record) if record is not None else _kept(cell.name, run, read_results(table))


def _kept(name: str, run: Run, table: Mapping[str, Result]) -> Result | None:
    kept = table.get(name)
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
    """``run_steps`` for cells; ``table`` is the CSV that keeps what was found before."""
    kept = read_results(table)
    return run_steps(
        [step_of(cell, more) for cell in cells], out, jobs=jobs, title="study",
        known=lambda step, run: _kept(step.name, run, kept) is not None, say=say,
    )  # fmt: skip
