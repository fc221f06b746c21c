"""Folders of small records for the tests of ``compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sam3slim.results.record import RunRecord

DATA = {"name": "shapes", "root": "data/shapes", "split": "test", "protocol": "all", "images": 300, "prompts": 6900}
PARTS = {"vision": 1_000_000, "text": 600_000}
SHARES = {"vision": 0.6, "text": 0.3, "other": 0.1}


def add_run(folder: Path, name: str, **changes: Any) -> Path:
    """A finished evaluation in ``folder/name``; ``changes`` are fields of the record or one of the words below."""
    size, segm, precision = changes.pop("bytes", 10_000_000), changes.pop("segm", 0.8), changes.pop("precision", "fp32")
    if changes.get("data"):
        changes["data"] = DATA | changes["data"]
    values: dict[str, Any] = {
        "kind": "evaluate",
        "command": f"python evaluate.py checkpoint={name}",
        "config_hash": name,
        "choices": {"data": "shapes"},
        "device": "a processor",
        "model": {"name": changes.pop("family", "nano"), "params": 1_600_000, "params_by_part": PARTS},
        "artifact": {
            "path": name, "bytes": size, "format": "hf", "precision": precision,
            "bytes_by_part": {part: int(share * size) for part, share in SHARES.items()},
        },
        "data": DATA,
        "metrics": {"bbox": {"map": segm - 0.1}, "segm": {"map": segm}},
        "drop": {"segm": {"points": 1.0, "ci95": [0.5, 1.5]}, "bbox": {"points": 2.0, "ci95": [1.0, 3.0]}},
        "latency_ms": {"p50": 100.0, "p90": 120.0, "batch": 1, "prompts": 23, "threads": 1},
        "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    RunRecord.from_dict(values | changes).write(folder / name)
    return folder / name


def add_failed(folder: Path, name: str, error: str = "steps=0 must be at least 1") -> Path:
    none = dict.fromkeys(("model", "artifact", "data", "metrics", "drop", "latency_ms"))
    return add_run(folder, name, kind="train", status="failed", error=error, **none)


def add_newer(folder: Path, name: str) -> Path:
    path = add_run(folder, name) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    return path
