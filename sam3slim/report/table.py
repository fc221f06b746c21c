"""One table, as CSV for programs and Markdown for people."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3slim.files import atomic_path
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import Drop, RunRecord

Row = Mapping[str, Any]

DEMO_COLUMNS = (
    "name", "precision", "params", "bytes", "ratio", "bbox_map", "segm_map", "segm_drop", "retrained",
)  # fmt: skip


def table_row(record: RunRecord, baseline: RunRecord, *, retrained: bool, name: str | None = None) -> dict[str, Any]:
    """One row of the demo's table from records.

    mAP in 0..1; ``segm_drop`` in points against ``baseline`` (positive: worse); ``ratio`` is how many
    times smaller than ``baseline`` it is on disk. What a record does not say is None.
    """
    segm = METRICS["segm"]
    value, before = record.metrics.value(segm), baseline.metrics.value(segm)
    return {
        "name": name or record.model.name,
        "precision": record.artifact.precision,
        "params": record.model.params,
        "bytes": record.artifact.bytes,
        "ratio": times_smaller(record, baseline),
        "bbox_map": record.metrics.value(METRICS["bbox"]),
        "segm_map": value,
        "segm_drop": None if value is None or before is None else segm.points_lost(before, value),
        "retrained": retrained,
    }


def times_smaller(record: RunRecord, baseline: RunRecord) -> float | None:
    """How many times smaller than ``baseline`` an artifact is."""
    size, full_size = record.artifact.bytes, baseline.artifact.bytes
    return full_size / size if size and full_size else None


def metric_cells(record: RunRecord) -> dict[str, Any]:
    """Of every metric the number, and its drop with the interval's ends and as text."""
    cells: dict[str, Any] = {}
    for name, metric in METRICS.items():
        cells[metric.column] = record.metrics.value(metric)
        if (drop := record.drop.get(name)) is not None:
            cells |= drop_cells(name, drop)
    return cells


def drop_cells(metric: str, drop: Drop) -> dict[str, Any]:
    """A drop with the ends of its interval, and as text."""
    return {
        f"{metric}_drop": drop.points, f"{metric}_drop_low": drop.low, f"{metric}_drop_high": drop.high,
        f"{metric}_drop_interval": drop.text(),
    }  # fmt: skip


def write_table(
    rows: Sequence[Row],
    folder: str | Path,
    *,
    columns: Sequence[str] = DEMO_COLUMNS,
    shown: Sequence[str] | None = None,
    stem: str = "table",
) -> tuple[Path, Path]:
    """Write ``folder/stem.csv`` (``columns``) and ``folder/stem.md`` (``shown``, or the same), each atomically.

    Returns both paths.

    Raises:
        ValueError: a row lacks a column.
        UserError: the folder cannot be written to.
    """
    for number, row in enumerate(rows):
        missing = [column for column in columns if column not in row]
        if missing:
            raise ValueError(f"row {number} of the table lacks {', '.join(missing)}")
    csv_path, md_path = Path(folder) / f"{stem}.csv", Path(folder) / f"{stem}.md"
    with atomic_path(csv_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_csv_cell(row[column]) for column in columns] for row in rows)
    with atomic_path(md_path) as temporary:
        temporary.write_text(to_markdown(rows, shown or columns), encoding="utf-8")
    return csv_path, md_path


def to_markdown(rows: Sequence[Row], columns: Sequence[str] = DEMO_COLUMNS) -> str:
    """A Markdown table with headings and units for people; numbers are right-aligned."""
    headings = [HEADINGS.get(column, column) for column in columns]
    lines = ["| " + " | ".join(headings) + " |"]
    lines.append("|" + "|".join("---" if column in TEXT_COLUMNS else "---:" for column in columns) + "|")
    for row in rows:
        cells = [_md_cell(column, row[column]) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def megabytes(size: float) -> str:
    """Bytes as text, in units of 1000: 840 kB, 8.1 MB, 3.36 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def _count(number: float) -> str:
    return f"{number / 1e6:.2f} M" if number < 1e8 else f"{number / 1e6:.1f} M"


HEADINGS = {
    "params": "parameters",
    "bytes": "size",
    "ratio": "smaller by",
    "bbox_map": "box mAP %",
    "segm_map": "mask mAP %",
    "segm_drop": "mask drop, points",
    "bytes_saved": "bytes saved",
    "bbox_drop_interval": "box drop, points (95 %)",
    "segm_drop_interval": "mask drop, points (95 %)",
    "calibration_change": "presence / top score",
    "latency_p50_ms": "latency, ms",
    "retraining_needed": "retraining needed",
    "pareto": "Pareto front",
}
TEXT_COLUMNS = {
    "name", "group", "method", "precision", "retrained", "retraining_needed", "recommended", "calibration_change",
    "error", "pareto", "note", "run",
}  # fmt: skip
FORMATS: dict[str, Callable[[Any], str]] = {
    "params": _count,
    "bytes": megabytes,
    "bytes_saved": megabytes,
    "ratio": "{:.1f}×".format,
    "bbox_map": lambda value: f"{100 * value:.1f}",
    "segm_map": lambda value: f"{100 * value:.1f}",
    # A minus sign for a gain, and no "-0.00".
    "segm_drop": lambda value: f"{round(value, 2) + 0.0:.2f}",
    "latency_p50_ms": "{:.1f}".format,
    "retrained": lambda value: "yes" if value else "no",
    "retraining_needed": lambda value: "yes" if value else "no",
    "recommended": lambda value: "yes" if value else "",
    "pareto": lambda value: "yes" if value else "",
}


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return round(value, 6) if isinstance(value, float) else value


def _md_cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    text = FORMATS.get(column, str)(value)
    return text.replace("|", "\\|").replace("\n", " ")
