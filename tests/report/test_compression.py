"""Rows of the compression table: which method is recommended, and what a failed one shows."""

from __future__ import annotations

from typing import Any

from sam3slim.report.rows import compression_columns, compression_rows, compression_shown, tells_drops
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import Drop, RunRecord


def record(size: int, drop: tuple[float, float, float] | None = None, **changes: Any) -> RunRecord:
    values: dict[str, Any] = {"artifact": {"bytes": size}, "metrics": {"segm": {"map": 0.5}, "bbox": {"map": 0.4}}}
    if drop is not None:
        points, low, high = drop
        values["drop"] = {kind: {"points": points, "ci95": [low, high]} for kind in ("bbox", "segm")}
    return RunRecord.from_dict({"kind": "compress", "command": "x", **values, **changes})


FULL = record(1000)


def recommended(*records: tuple[str, RunRecord]) -> list[str]:
    return [row["method"] for row in compression_rows(FULL, records, METRICS["segm"]) if row["recommended"]]


def test_recommended__the_smallest_whose_whole_interval_is_small() -> None:
    fp16 = ("fp16", record(500, (0.0, -0.1, 0.1)))
    int8 = ("int8", record(250, (0.6, 0.2, 0.9)))
    unsure = ("int4", record(125, (0.6, -0.5, 1.7)))
    assert recommended(fp16, int8, unsure) == ["int8"]
    assert recommended(fp16, unsure) == ["fp16"]
    assert recommended(unsure) == []


def test_rows__ratio_drop_and_failure() -> None:
    failed = record(1, status="failed", error="out of memory")
    rows = compression_rows(FULL, [("int8", record(250, (0.6, 0.2, 0.9))), ("onnx", failed)], METRICS["segm"])
    shown = compression_shown(METRICS["segm"], rows)
    assert all({*compression_columns(), *shown} <= row.keys() for row in rows)
    assert "cgf1" not in shown  # nothing has measured it
    assert rows[0]["ratio"] == 1
    assert (rows[1]["ratio"], rows[1]["segm_drop_interval"]) == (4, "0.60 (0.20 to 0.90)")
    assert (rows[2]["error"], rows[2]["bytes"], rows[2]["segm_map"]) == ("out of memory", None, None)


def test_recommended__boxes_only_sets_go_by_boxes() -> None:
    boxes = record(250, metrics={"bbox": {"map": 0.4}})
    boxes.drop = {"bbox": Drop(0.1, (0.0, 0.2))}
    rows = compression_rows(FULL, [("int8", boxes)], METRICS["bbox"])
    assert [row["method"] for row in rows if row["recommended"]] == ["int8"]


def test_recommended__none_where_the_full_model_has_nothing_to_lose() -> None:
    nothing = record(1000, metrics={"segm": {"map": 0.01}, "bbox": {"map": 0.4}})
    rows = compression_rows(nothing, [("int8", record(250, (0.0, 0.0, 0.0)))], METRICS["segm"])
    assert [row["recommended"] for row in rows] == [False, False]
    assert not tells_drops(nothing, METRICS["segm"])
    assert not tells_drops(record(1000, metrics={"bbox": {"map": 0.0}}), METRICS["bbox"])
    assert tells_drops(FULL, METRICS["segm"])
