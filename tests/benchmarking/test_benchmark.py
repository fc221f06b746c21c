"""A table over runtimes: rows are measured once, a failing one is a row with its reason."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.artifacts import write_artifact
from sam3slim.benchmarking import BenchmarkSpec, benchmark, job, worker
from sam3slim.checkpoints import LoadReport, load
from sam3slim.cli import main
from sam3slim.errors import UserError
from sam3slim.runtimes import RUNTIMES, Opening, Runtime
from tests.small import small_model
from tests.tiny import SPEC
from tests.tiny_runs import data


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(small_model(SPEC), tmp_path_factory.mktemp("benchmark") / "tiny").path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rows in this process instead of one of their own (seconds of imports each); their folders, in order."""
    folders: list[str] = []

    original = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if "sam3slim.benchmarking.worker" not in command:
            return original(command, **options)
        folders.append(Path(command[-1]).name)
        worker.main(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(job.subprocess, "run", run)
    # The table as it is on any machine: eager, and two toys.
    for name in list(RUNTIMES):
        if name != "eager":
            monkeypatch.delitem(RUNTIMES, name)
    return folders


def shifted(opening: Opening) -> tuple[Any, LoadReport]:
    """A runtime that answers a little differently."""
    model, report = load(opening.located.path)
    with torch.no_grad():
        model.detr_decoder.presence_head.layer3.bias += 0.25
    return model, report


def test_benchmark__rows_parity_map_and_reasons(
    artifact: Path, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "toy", Runtime("toy", "A toy", shifted, arithmetics=("fp32", "w8a8")))
    monkeypatch.setitem(RUNTIMES, "away", Runtime("away", "Away", "a:b", packages=("no_such",), extra="onnx"))
    settings = [*data(tmp_path), "limit=1"]
    spec = BenchmarkSpec(
        [str(artifact)], settings, str(tmp_path / "out"), prompts=(1, 2), repeats=2, threads=1, device="cpu",
        arithmetics=["fp32"],
    )  # fmt: skip
    eager, toy, away = benchmark(spec, progress=False)
    assert [row["status"] for row in (eager, toy, away)] == ["finished", "finished", "failed"]
    assert away["error"] == "runtime away needs no_such, which is not installed; pip install 'sam3slim[onnx]'"
    assert "parity" not in eager
    assert toy["parity"]["presence_logits"]["max_abs"] == pytest.approx(0.25, abs=1e-5)
    assert toy["parity"]["pred_logits"]["max_abs"] == 0
    assert set(toy["latency_ms"]) == {"vision", "text", "prompts_1", "prompts_2"}
    for taken in toy["latency_ms"].values():
        assert 0 < taken["p10"] <= taken["p50"] <= taken["p90"]
    assert eager["peak_memory_bytes"] > eager["bytes"] > 0
    assert toy["drop"]["segm"]["ci95"]
    with (tmp_path / "out/benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["runtime"] for row in rows] == ["eager", "toy", "away"]
    assert float(rows[0]["speedup_2"]) == 1
    assert rows[1]["max_abs_presence_logits"]
    assert rows[2]["error"] == away["error"]
    assert {rows[0]["threads"], rows[0]["repeats"]} == {"1", "2"}
    table = (tmp_path / "out/benchmark.md").read_text()
    assert "| tiny | away | fp32 | failed: runtime away needs no_such" in table
    assert "1 threads, CPU flags " in table
    # The same command again measures nothing, another one only what is new.
    assert len(measured) == 2
    assert benchmark(spec, progress=False) == [eager, toy, away]
    assert len(measured) == 2
    (tmp_path / "out/rows" / measured[1] / "result.json").write_text(
        json.dumps({"status": "failed", "error": "a kill"})
    )
    benchmark(spec, progress=False)
    assert measured[2:] == [measured[1]]


def test_benchmark__a_wrong_data_root_is_told_before_any_row(tmp_path: Path) -> None:
    spec = BenchmarkSpec(["artifact"], ["data=coco", f"data.root={tmp_path}"], str(tmp_path / "out"))
    with pytest.raises(UserError, match=f"^data.root={tmp_path} holds no annotations of the test split"):
        benchmark(spec, progress=False)
    assert not (tmp_path / "out/rows").exists()


def test_benchmark__nothing_is_compared_with_a_failed_row(
    artifact: Path, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a kernel is missing\nand more")

    monkeypatch.setattr(worker, "open_runtime", fail)
    with pytest.raises(UserError, match=r"does not run in eager fp32, .*: RuntimeError: a kernel is missing$"):
        benchmark(BenchmarkSpec([str(artifact)], out=str(tmp_path / "out"), repeats=1), progress=False)


def test_parity__a_number_that_is_none() -> None:
    ours = {"pred_logits": torch.tensor([1.0, -2.0])}
    assert worker.parity(ours, {"pred_logits": torch.tensor([1.0, -1.5])})["pred_logits"] == {
        "max_abs": 0.5, "max_rel": 0.25,
    }  # fmt: skip
    with pytest.raises(UserError, match="pred_logits hold NaN or infinity in this arithmetic"):
        worker.parity(ours, {"pred_logits": torch.tensor([1.0, float("nan")])})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--runtime", "openvno"], "runtime openvno is not known; did you mean openvino?"),
        (["--arithmetic", "w4"], "--arithmetic w4: expected fp32, "),
        (["--prompts", "1,x"], "--prompts 1,x: expected numbers"),
        (["--prompts", "0"], "--prompts 0: expected numbers from 1 on"),
        (["--repeats", "0"], "--repeats 0: expected at least 1"),
        (["data=shapes", "runtime=onnx"], "runtime=onnx: benchmark sets runtime for every row; leave it out"),
    ],
)
def test_command__bad_input(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], line: str
) -> None:
    assert main(["benchmark", str(artifact), "--out", str(tmp_path / "out"), *given]) == 2
    assert line in capsys.readouterr().err
