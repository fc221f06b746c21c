"""Rows of the two tables: a comparison of many runs, and of one model's compression methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam3slim.report.pareto import pareto_front
from sam3slim.report.table import Row, metric_cells, times_smaller
from sam3slim.results.collect import Group, Run, machine
from sam3slim.results.costs import COSTS, Cost, by_axis
from sam3slim.results.metrics import METRICS, Metric, main_metric
from sam3slim.results.record import RunRecord

ACCEPTED_DROP = 1.0  # points; a method is recommended when the whole interval lies below
CALIBRATION = ("presence_present", "presence_absent", "top_score_present", "top_score_absent", "presence_error")
# Of phrases that are in the image: what a threshold is set on.
SHOWN_CALIBRATION = ("presence_present", "top_score_present")


def metric_columns() -> tuple[str, ...]:
    """The headline numbers."""
    return tuple(metric.column for metric in METRICS.values())


def drop_columns() -> tuple[str, ...]:
    """The drops and their intervals' ends."""
    return tuple(f"{name}_drop{end}" for name in METRICS for end in ("", "_low", "_high"))


def comparison_columns() -> tuple[str, ...]:
    """Of ``compare.csv``."""
    return (
        "group", "name", "precision", "arithmetic", "kind", "status", "image_size", "params", "flops", "bytes",
        *metric_columns(), *drop_columns(), "latency_p50_ms", "latency_p90_ms", "machine", "peak_memory_bytes",
        "seconds", "pareto", "copies", "conflict", "config_hash", "started", "run", "error",
    )  # fmt: skip


def measured_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The headline numbers that some row has."""
    return tuple(column for column in metric_columns() if any(row[column] is not None for row in rows))


def comparison_shown(metric: Metric, rows: Sequence[Row]) -> tuple[str, ...]:
    """Of ``compare.md``; ``metric`` is the one that decides."""
    several = len({row["image_size"] for row in rows} - {None}) > 1
    return (
        "name", *(["image_size"] if several else []), "precision", "params", "bytes", *measured_columns(rows),
        f"{metric.name}_drop_interval", "latency_p50_ms", "pareto", "note", "run",
    )  # fmt: skip


def group_metric(group: Group, name: str | None = None) -> Metric:
    """The metric that decides between the runs of a group: ``name`` where one of them has it."""
    records = [run.record for run in group.runs]
    has = name is not None and any(record.metrics.value(METRICS[name]) is not None for record in records)
    return main_metric(records, name if has else None)


def comparison_rows(group: Group, metric: Metric | None = None, cost: Cost = COSTS["bytes"]) -> list[dict[str, Any]]:
    """One row per run of a group; ``pareto`` marks the front of ``cost`` against ``metric`` (None: the main one)."""
    rows = [_compared(run, group.title) for run in group.runs]
    for front in fronts(group.runs, metric or group_metric(group), cost):
        for index in front:
            rows[index]["pareto"] = True
    return rows


def fronts(runs: Sequence[Run], metric: Metric, cost: Cost) -> list[list[int]]:
    """Indices of the runs on the Pareto front, by rising cost: one front of bytes, and one of every machine's latency.

    The one of most runs comes first.
    """
    records = [run.record for run in runs]
    found = []
    for same in by_axis(records, cost):
        front = pareto_front([(cost.of(records[i]), metric.score_of(records[i])) for i in same])
        found.append([same[i] for i in front])
    return [front for front in found if front]


def _compared(run: Run, group: str) -> dict[str, Any]:
    record = run.record
    row: dict[str, Any] = dict.fromkeys(comparison_columns()) | {
        "group": group,
        "name": record.name,
        "arithmetic": " ".join(filter(None, (record.artifact.runtime, record.artifact.arithmetic))) or None,
        "precision": record.artifact.precision or ("fp32" if record.kind == "train" else None),
        "image_size": record.model.image_size,
        "params": record.model.params,
        "flops": _flops(record),
        "bytes": record.artifact.bytes,
        "latency_p50_ms": record.latency_ms.p50,
        "latency_p90_ms": record.latency_ms.p90,
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


def _flops(record: RunRecord) -> int | None:
    """Operations of one image with one prompt; None in records from before they were counted."""
    known = record.model.flops
    return sum(sum(known[key].values()) for key in ("image", "prompt")) if known else None


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


def compression_columns() -> tuple[str, ...]:
    """Of ``compression.csv``."""
    return (
        "method", "bytes", "ratio", *metric_columns(), *drop_columns(), *CALIBRATION, "latency_p50_ms",
        "latency_p90_ms", "memory_bytes", "peak_memory_bytes", "retraining_needed", "images_used", "making_seconds",
        "recommended", "error",
    )  # fmt: skip


def compression_shown(metric: Metric, rows: Sequence[Row]) -> tuple[str, ...]:
    """Of ``compression.md``; ``metric`` is the one that decides."""
    made = ("images_used", "making_seconds") if any(row["images_used"] for row in rows) else ()
    return (
        "method", "bytes", "ratio", *measured_columns(rows), f"{metric.name}_drop_interval", "calibration_change",
        "latency_p50_ms", "retraining_needed", *made, "recommended", "error",
    )  # fmt: skip


def compression_rows(full: RunRecord, records: Sequence[tuple[str, RunRecord]], metric: Metric) -> list[dict[str, Any]]:
    """Rows for ``write_table``: ``full`` and then (method, record), of which the best is marked.

    Recommended is the smallest method whose drop in ``metric`` stays below ``ACCEPTED_DROP`` points with its whole
    95 % interval; none is where the full model has no more than that to lose. A failed method's row holds its error and
    nothing else.
    """
    rows = [_compressed(method, record, full) for method, record in records]
    accepted = [
        row for row, (_, record) in zip(rows, records, strict=True) if row["bytes"] and _accepted(record, metric)
    ]
    if accepted and tells_drops(full, metric):
        min(accepted, key=lambda row: row["bytes"])["recommended"] = True
    return [_compressed("full", full, full), *rows]


def _accepted(record: RunRecord, metric: Metric) -> bool:
    drop = record.drop.get(metric.name)
    return drop is not None and drop.high is not None and drop.high <= ACCEPTED_DROP


def tells_drops(full: RunRecord, metric: Metric) -> bool:
    """Whether the full model's metric is above ``ACCEPTED_DROP`` points.

    One that finds nothing loses nothing, whatever is done to it.
    """
    value = full.metrics.value(metric)
    return value is not None and metric.scale * value > ACCEPTED_DROP


def _compressed(method: str, record: RunRecord, full: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys((*compression_columns(), "calibration_change"))
    row |= {"method": method, "recommended": False, "retraining_needed": False}
    if record.status != "finished":
        return {**row, **metric_cells(RunRecord(record.kind, "")), "error": record.error or record.status}
    row |= {
        "bytes": record.artifact.bytes,
        "ratio": times_smaller(record, full),
        "latency_p50_ms": record.latency_ms.p50,
        "latency_p90_ms": record.latency_ms.p90,
        "memory_bytes": record.latency_ms.memory_bytes,
        "peak_memory_bytes": record.peak_memory_bytes,
        "images_used": record.artifact.images_used,
        "making_seconds": record.artifact.making_seconds,
    }
    before, after = full.metrics.calibration, record.metrics.calibration
    row |= {key: after.get(key) for key in CALIBRATION}
    pairs = [(before.get(key), after.get(key)) for key in SHOWN_CALIBRATION]
    changes = [new - old for old, new in pairs if old is not None and new is not None]
    if changes and record is not full:
        row["calibration_change"] = " / ".join(f"{round(change, 3) + 0.0:+.3f}" for change in changes)
    return row | metric_cells(record)
