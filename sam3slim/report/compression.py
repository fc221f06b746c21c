"""The comparison of compression methods: one row each, the full model first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sam3slim.records import RunRecord

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
    rows = [_row("full", full, full), *(_row(method, record, full) for method, record in records)]
    if not tells_drops(full):
        return rows
    accepted = [row for row in rows[1:] if row["bytes"] and _upper(row) is not None and _upper(row) <= ACCEPTED_DROP]  # type: ignore[operator]
    if accepted:
        min(accepted, key=lambda row: row["bytes"])["recommended"] = True
    return rows


def tells_drops(full: RunRecord) -> bool:
    """Whether the full model's mask mAP (box mAP without masks) is above ``ACCEPTED_DROP`` points.

    One that finds nothing loses nothing, whatever is done to it.
    """
    metrics = full.metrics or {}
    found = (metrics.get("segm") or metrics.get("bbox") or {}).get("map")
    return found is not None and 100 * float(found) > ACCEPTED_DROP


def _row(method: str, record: RunRecord, full: RunRecord) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys((*COLUMNS, *SHOWN))
    row |= {"method": method, "recommended": False, "retraining_needed": False}
    if record.status != "finished":
        return {**row, "error": record.error or record.status}
    size, full_size = (record.artifact or {}).get("bytes"), (full.artifact or {}).get("bytes")
    latency = record.latency_ms or {}
    row |= {
        "bytes": size,
        "ratio": full_size / size if size and full_size else None,
        "latency_p50_ms": latency.get("p50"),
        "latency_p90_ms": latency.get("p90"),
        "memory_bytes": latency.get("memory_bytes"),
        "peak_memory_bytes": record.peak_memory_bytes,
    }
    before, after = _calibration(full), _calibration(record)
    row |= {key: after.get(key) for key in CALIBRATION}
    changes = [after[key] - before[key] for key in SHOWN_CALIBRATION if None not in (before.get(key), after.get(key))]
    if changes and record is not full:
        row["calibration_change"] = " / ".join(f"{round(change, 3) + 0.0:+.3f}" for change in changes)
    for kind in ("bbox", "segm"):
        row[f"{kind}_map"] = ((record.metrics or {}).get(kind) or {}).get("map")
        drop = (record.drop or {}).get(kind)
        if drop is not None:
            low, high = drop["ci95"]
            row |= {f"{kind}_drop": drop["points"], f"{kind}_drop_low": low, f"{kind}_drop_high": high}
            row["segm_drop_interval"] = f"{drop['points'] + 0.0:.2f} ({low + 0.0:.2f} to {high + 0.0:.2f})"
    return row


def _calibration(record: RunRecord) -> dict[str, Any]:
    return (record.metrics or {}).get("calibration") or {}


def _upper(row: dict[str, Any]) -> float | None:
    """Upper end of the drop's interval, of masks where there are any."""
    upper: float | None = row["segm_drop_high"] if row["segm_drop_high"] is not None else row["bbox_drop_high"]
    return upper
