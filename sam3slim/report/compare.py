"""The comparison of many runs: one row each, as CSV, Markdown, plots and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3slim.files import atomic_path
from sam3slim.report.collect import Collected, Group, Run, learning_curves, machine
from sam3slim.report.pareto import pareto_front
from sam3slim.report.table import metric_cells, to_markdown, write_table

COLUMNS = (
    "group", "name", "precision", "arithmetic", "kind", "status", "params", "bytes", "bbox_map", "segm_map",
    "segm_drop", "segm_drop_low", "segm_drop_high", "bbox_drop", "bbox_drop_low", "bbox_drop_high", "latency_p50_ms",
    "latency_p90_ms", "machine", "peak_memory_bytes", "seconds", "pareto", "copies", "conflict", "config_hash",
    "started", "run", "error",
)  # fmt: skip
SHOWN = (
    "name", "precision", "params", "bytes", "bbox_map", "segm_map", "segm_drop_interval", "latency_p50_ms", "pareto",
    "note", "run",
)  # fmt: skip


def comparison_rows(group: Group) -> list[dict[str, Any]]:
    """One row per run of a group; ``pareto`` marks the front of bytes against mask mAP (box mAP without masks)."""
    rows = [_row(run, group.title) for run in group.runs]
    metric = best_metric(rows)
    for index in pareto_front([(row["bytes"], row[metric]) for row in rows]):
        rows[index]["pareto"] = True
    return rows


def best_metric(rows: Sequence[dict[str, Any]]) -> str:
    """``segm_map`` where any row has one, else ``bbox_map``."""
    return "segm_map" if any(row["segm_map"] is not None for row in rows) else "bbox_map"


def write_comparison(
    found: Collected, folder: str | Path, galleries: Mapping[int, Mapping[str, Any]] | None = None
) -> list[Path]:
    """Write ``compare.csv``, ``compare.md``, ``compare_N.png`` per group with mAP, and ``compare.html``.

    Args:
        galleries: number of a group → its pictures, as ``predict.gallery.Gallery.to_dict`` gives them.

    Returns their paths. Raises UserError when the folder cannot be written to.
    """
    from sam3slim.report.fronts import plot_fronts
    from sam3slim.report.page import write_page

    folder = Path(folder)
    tables = [comparison_rows(group) for group in found.groups]
    csv_path, _ = write_table([row for rows in tables for row in rows], folder, columns=COLUMNS, stem="compare")
    written = [csv_path, _write_markdown(found, tables, folder / "compare.md")]
    for number, (group, rows) in enumerate(zip(found.groups, tables, strict=True), 1):
        if group.data:
            written.append(plot_fronts(rows, folder / f"compare_{number}.png", title=group.title))
    return [*written, write_page(page_data(found, tables, galleries or {}), folder / "compare.html")]


def page_data(
    found: Collected, tables: Sequence[Sequence[dict[str, Any]]], galleries: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the page shows, as JSON values.

    Returns:
        {"groups": [{"title", "measured", "runs": [row, …], "gallery"}, …], "unread": [line, …]}
    """
    groups = []
    for number, (group, rows) in enumerate(zip(found.groups, tables, strict=True)):
        runs = [row | _details(run) for row, run in zip(rows, group.runs, strict=True)]
        groups.append({
            "title": group.title, "measured": bool(group.data), "runs": runs, "gallery": galleries.get(number),
        })  # fmt: skip
    return {"groups": groups, "unread": found.unread}


def _row(run: Run, group: str) -> dict[str, Any]:
    record = run.record
    artifact, latency = record.artifact, record.latency_ms
    row: dict[str, Any] = dict.fromkeys((*COLUMNS, *SHOWN))
    row |= {
        "group": group,
        "name": record.name,
        "arithmetic": artifact.arithmetic,
        "precision": artifact.precision or ("fp32" if record.kind == "train" else None),
        "params": record.model.params,
        "bytes": artifact.bytes,
        "latency_p50_ms": latency.p50,
        "latency_p90_ms": latency.p90,
        "machine": machine(record),
        "pareto": False,
        "copies": run.copies,
        "conflict": run.conflict,
        "run": str(run.folder),
        "note": _note(run),
    }
    for key in ("kind", "status", "error", "peak_memory_bytes", "seconds", "config_hash", "started"):
        row[key] = getattr(record, key)
    return row | metric_cells(record)


def _note(run: Run) -> str:
    notes = []
    if run.record.status != "finished":
        notes.append(f"{run.record.status}: {run.record.error or 'no reason recorded'}")
    training = run.record.training
    if training.retrained is False:
        notes.append("not retrained")
    untrained = [part for part, why in training.not_trained.items() if why != "optim.freeze"]
    if untrained:
        notes.append(f"not trained: {', '.join(untrained)}")
    if run.conflict:
        notes.append("same configuration as another run, other numbers")
    if run.copies > 1:
        notes.append(f"{run.copies} equal runs, the last is shown")
    return "; ".join(notes)


def _details(run: Run) -> dict[str, Any]:
    record = run.record
    curves = {
        name: [[int(step), float(f"{value:.4g}")] for step, value in points]
        for name, points in learning_curves(run.folder).items()
    }
    return {
        "command": record.command,
        "choices": record.choices,
        "parts": {
            "params": record.model.params_by_part,
            "bytes": record.artifact.bytes_by_part,
        },
        "curves": curves,
    }


def _write_markdown(found: Collected, tables: Sequence[Sequence[dict[str, Any]]], path: Path) -> Path:
    texts = ["# Comparison of runs\n"]
    if len(found.groups) > 1:
        texts.append("Each section has its own data or protocol; numbers of different sections do not compare.\n")
    for group, rows in zip(found.groups, tables, strict=True):
        texts.append(f"## {group.title}\n\n{to_markdown(rows, SHOWN)}")
    if found.unread:
        texts.append("## Not read\n\n" + "\n".join(f"- {line}" for line in found.unread) + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(texts), encoding="utf-8")
    return path
