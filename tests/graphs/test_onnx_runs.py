"""``compress=[int8_onnx]`` and ``evaluate`` of what it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sam3slim.artifacts import write_artifact
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import RunRecord, read_record
from tests import running as runs
from tests.small import small_model
from tests.tiny import SPEC
from tests.tiny_runs import data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx_runs")


@pytest.fixture(scope="module")
def compressed(root: Path) -> RunRecord:
    write_artifact(small_model(SPEC), root / "full")
    given = [f"checkpoint={root / 'full'}", *data(root), "latency=true", "limit=2", "compress=[onnx,int8_onnx]"]
    config = compose_plain("compress", given, root / "out")
    return runs.compress(config, root / "out", {}, "python compress.py")[1]


def test_compress__record_and_row(compressed: RunRecord, root: Path) -> None:
    record = read_record(root / "out/int8_onnx")
    assert record.status == "finished"
    metadata = json.loads((root / "out/int8_onnx/artifact/sam3slim.json").read_text())
    by_part = metadata["bytes_by_part"]
    assert record.artifact.to_dict() == {
        "path": str(root / "out/int8_onnx/artifact"), "bytes": metadata["bytes"], "format": "onnx",
        "precision": "int8_onnx",
        "bytes_by_part": {**by_part, "other": metadata["bytes"] - sum(by_part.values())},
    }  # fmt: skip
    assert all(size > 0 for size in metadata["bytes_by_part"].values())
    assert metadata["extra"]["method"]["rules"]["parts"] == ["vision", "text", "geometry", "encoder"]
    assert record.drop["segm"].ci95
    assert set(record.latency_ms.parts) == {"vision", "text", "prompts"}
    with (root / "out/compression.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["full", "onnx", "int8_onnx"]
    assert int(rows[2]["bytes"]) == metadata["bytes"] < int(rows[1]["bytes"])
    assert abs(float(rows[1]["segm_drop"])) < 0.01


def test_evaluate__of_the_artifact_gives_the_same(compressed: RunRecord, root: Path) -> None:
    given = [f"checkpoint={root / 'out/int8_onnx'}", *data(root), "latency=false", "limit=2"]
    record = runs.evaluate(compose_plain("evaluate", given, root / "eval"), root / "eval", {}, "python evaluate.py")
    assert record.metrics == compressed.metrics
    assert record.artifact == compressed.artifact
    assert record.model.params == compressed.model.params


def test_compress__of_graphs_is_refused(compressed: RunRecord, root: Path) -> None:
    given = [f"checkpoint={root / 'out/int8_onnx'}", *data(root), "latency=false", "compress=[fp16]"]
    with pytest.raises(UserError, match="holds ONNX graphs"):
        runs.compress(compose_plain("compress", given, root / "no"), root / "no", {}, "python compress.py")
