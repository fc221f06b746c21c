"""One table, as CSV for programs and Markdown for people."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3slim.files import atomic_path
from sam3slim.records import RunRecord

Row = Mapping[str, Any]

DEMO_COLUMNS = (
    "name", "precision", "params", "bytes", "ratio", "bbox_map", "segm_map", "segm_drop", "retrained",
)  # fmt: skip


def table_row(record: RunRecord, baseline: RunRecord, *, retrained: bool, name: str | None = None) -> dict[str, Any]:
    """One row of the demo's table from records.

    mAP in 0..1; ``segm_drop`` in points against ``baseline`` (positive: worse); ``ratio`` is how many
    times smaller than ``baseline`` it is on disk. What a record does not say is None.
    """
    model, artifact = record.model or {}, record.artifact or {}
    size, full_size = artifact.get("bytes"), (baseline.artifact or {}).get("bytes")
    segm, full_segm = _map(record, "segm"), _map(baseline, "segm")
    return {
        "name": name or model.get("name"),
        "precision": artifact.get("precision"),
        "params": model.get("params"),
        "bytes": size,
        "ratio": full_size / size if size and full_size else None,
        "bbox_map": _map(record, "bbox"),
        "segm_map": segm,
        "segm_drop": None if segm is None or full_segm is None else 100 * (full_segm - segm),
        "retrained": retrained,
    }


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


def _map(record: RunRecord, kind: str) -> float | None:
    value = ((record.metrics or {}).get(kind) or {}).get("map")
    return None if value is None else float(value)
