"""The comparison of compression methods: one row each, the full model first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam3slim.report.table import metric_cells, times_smaller
from sam3slim.results.metrics import main_metric, main_value
from sam3slim.results.record import RunRecord

ACCEPTED_DROP = 1.0  # points of mask mAP; a method is recommended when the whole interval lies below
CALIBRATION = ("presence_present", "presence_absent", "top_score_present", "top_score_absent")
# Of phrases that are in the image: what a threshold is set on.
SHOWN_CALIBRATION = ("presence_present", "top_score_present")
COLUMNS = (
    "method", "bytes", "ratio", "bbox_map", "segm_map", "bbox_drop", "bbox_drop_low", "bbox_drop_high",
    "segm_drop", "segm_drop_low", "segm_drop_high", *CALIBRATION, "latency_p50_ms", "latency_p90_ms", "memory_bytes",
    "peak_memory_bytes", "retraining_needed", "recommended", "error",
)  # fmt: skip
SHOWN = (
    "method", "bytes", "ratio", "bbox_map", "segm_map", "segm_drop_interval", "calibration_change", "latency_p50_ms",
    "retraining_needed", "recommended", "error",
)  # fmt: skip


def compression_rows(full: RunRecord, records: Sequence[tuple[str, RunRecord]]) -> list[dict[str, Any]]:
    """Rows for ``write_table``: ``full`` and then (method, record), of which the best is marked.

    Recommended is the smallest method whose mask drop (box drop without masks) stays below ``ACCEPTED_DROP`` points
    with its whole 95 % interval; none is where the full model has no more than that to lose. A failed method's row
    holds its error and nothing else.
    """
    rows = [_row(method, record, full) for method, record in records]
    accepted = [row for row, (_, record) in zip(rows, records, strict=True) if row["bytes"] and _accepted(record)]
    if accepted and tells_drops(full):
        min(accepted, key=lambda row: row["bytes"])["recommended"] = True
    return [_row("full", full, full), *rows]


def _accepted(record: RunRecord) -> bool:
    drop = record.drop.get(main_metric(record).name)
    return drop is not None and drop.high is not None and drop.high <= ACCEPTED_DROP


def tells_drops(full: RunRecord) -> bool:
    """Whether the full model's mask mAP (box mAP without masks) is above ``ACCEPTED_DROP`` points.

    One that finds nothing loses nothing, whatever is done to it.
    """
    found = main_value(full)
    return found is not None and 100 * found > ACCEPTED_DROP


def _row(method: str, record: RunRecord, full: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys((*COLUMNS, *SHOWN))
    row |= {"method": method, "recommended": False, "retraining_needed": False}
    if record.status != "finished":
        return {**row, "error": record.error or record.status}
    row |= {
        "bytes": record.artifact.bytes,
        "ratio": times_smaller(record, full),
        "latency_p50_ms": record.latency_ms.p50,
        "latency_p90_ms": record.latency_ms.p90,
        "memory_bytes": record.latency_ms.memory_bytes,
        "peak_memory_bytes": record.peak_memory_bytes,
    }
    before, after = full.metrics.calibration, record.metrics.calibration
    row |= {key: after.get(key) for key in CALIBRATION}
    pairs = [(before.get(key), after.get(key)) for key in SHOWN_CALIBRATION]
    changes = [new - old for old, new in pairs if old is not None and new is not None]
    if changes and record is not full:
        row["calibration_change"] = " / ".join(f"{round(change, 3) + 0.0:+.3f}" for change in changes)
    return row | metric_cells(record)
