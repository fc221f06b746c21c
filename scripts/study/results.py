"""What the cells came to. The table's CSV is kept with the project, so a cell that was run once is not run again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sam3slim.errors import UserError
from sam3slim.files import write_csv
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import RunRecord
from scripts.study.cells import Cell


@dataclass(frozen=True)
class Result:
    """One finished cell.

    Attributes:
        cell: its name.
        seed: its seed.
        params: parameters of the model.
        mask_map: mask mAP on the test split, percent.
        box_map: box mAP, percent.
        sha: commit it was run at.
        config_hash: of its configuration; a result counts for just this one.
    """

    cell: str
    seed: int
    params: int
    mask_map: float
    box_map: float
    sha: str
    config_hash: str


def result_of(cell: Cell, record: RunRecord) -> Result:
    """Of a finished run's record."""
    return Result(
        cell=cell.name,
        seed=cell.seed,
        params=int(record.model.params or 0),
        mask_map=mask_map(record),
        box_map=round(100 * (record.metrics.value(METRICS["bbox"]) or 0.0), 3),
        sha=record.git.sha or "",
        config_hash=record.config_hash or "",
    )


def mask_map(record: RunRecord) -> float:
    """Mask mAP in percent."""
    return round(100 * (record.metrics.value(METRICS["segm"]) or 0.0), 3)


def read_results(table: Path) -> dict[str, Result]:
    """Cell → result, as :func:`write_results` left them; none when there is no table yet.

    Raises:
        UserError: the file is not such a table.
    """
    if not table.is_file():
        return {}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            found = [
                Result(row["cell"], int(row["seed"]), int(row["params"]), float(row["mask_map"]),
                       float(row["box_map"]), row["sha"], row["config_hash"])
                for row in csv.DictReader(file)
            ]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{table} is not a table of the study ({error}); restore or delete it") from error
    return {result.cell: result for result in found}


def write_results(table: Path, results: Sequence[Result]) -> None:
    """A row per result."""
    write_csv(table, [asdict(result) for result in results], [field.name for field in fields(Result)])
