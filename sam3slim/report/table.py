"""One table, as CSV for programs and Markdown for people."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sam3slim.files import atomic_path, size_text
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
    """Of every metric the number and its drop."""
    return {m.column: record.metrics.value(m) for m in METRICS.values()} | drop_cells(record.drop)


def drop_cells(drops: Mapping[str, Drop]) -> dict[str, Any]:
    """Of every metric the drop, the ends of its interval, and both as text."""
    cells: dict[str, Any] = {}
    for name in METRICS:
        drop = drops.get(name)
        cells[f"{name}_drop"] = drop.points if drop else None
        cells[f"{name}_drop_low"] = drop.low if drop else None
        cells[f"{name}_drop_high"] = drop.high if drop else None
        cells[f"{name}_drop_interval"] = drop.text() if drop else None
    return cells


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
    heads = HEADINGS | _metric_headings()
    formats = FORMATS | _metric_formats()
    headings = [heads.get(column, column) for column in columns]
    lines = ["| " + " | ".join(headings) + " |"]
    lines.append("|" + "|".join("---" if column in TEXT_COLUMNS else "---:" for column in columns) + "|")
    for row in rows:
        cells = [_md_cell(row[column], formats.get(column, str)) for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _count(number: float) -> str:
    return f"{number / 1e6:.2f} M" if number < 1e8 else f"{number / 1e6:.1f} M"


HEADINGS = {
    "params": "parameters",
    "bytes": "size",
    "ratio": "smaller by",
    "bytes_saved": "bytes saved",
    "calibration_change": "presence / top score",
    "latency_p50_ms": "latency, ms",
    "retraining_needed": "retraining needed",
    "images_used": "images used",
    "making_seconds": "seconds",
    "pareto": "Pareto front",
}
TEXT_COLUMNS = {
    "name", "group", "method", "precision", "retrained", "retraining_needed", "recommended", "calibration_change",
    "error", "pareto", "note", "run",
}  # fmt: skip
FORMATS: dict[str, Callable[[Any], str]] = {
    "params": _count,
    "bytes": size_text,
    "bytes_saved": size_text,
    "ratio": "{:.1f}×".format,
    "latency_p50_ms": "{:.1f}".format,
    "making_seconds": "{:.0f}".format,
    "retrained": lambda value: "yes" if value else "no",
    "retraining_needed": lambda value: "yes" if value else "no",
    "recommended": lambda value: "yes" if value else "",
    "pareto": lambda value: "yes" if value else "",
}


def _metric_headings() -> dict[str, str]:
    headings = {}
    for name, metric in METRICS.items():
        headings[metric.column] = f"{metric.title} {metric.unit}"
        headings |= {f"{name}_drop": f"{metric.short} drop, points"}
        headings |= {f"{name}_drop_interval": f"{metric.short} drop, points (95 %)"}
    return headings


def _metric_formats() -> dict[str, Callable[[Any], str]]:
    numbers = {metric.column: partial(metric.text, digits=1) for metric in METRICS.values()}
    return {**numbers, **{f"{name}_drop": lambda points: Drop(points).text() for name in METRICS}}


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return round(value, 6) if isinstance(value, float) else value


def _md_cell(value: Any, shown: Callable[[Any], str]) -> str:
    if value is None:
        return "–"
    text = shown(value)
    return text.replace("|", "\\|").replace("\n", " ")
