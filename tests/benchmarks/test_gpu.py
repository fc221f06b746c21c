"""``benchmarks/gpu.py`` on a CPU with a tiny model: the path that it takes on a GPU."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sam3slim.models import build_model, init_for_training
from sam3slim.models.arithmetic import compute_in
from tests.tiny import SPEC

FOLDER = Path(__file__).parents[2] / "benchmarks"
SECTIONS = {
    "CPU and GPU agree": {"a forward", "scores, mean difference", "boxes, mean difference", "masks, mean difference"},
    "A step of each experiment": {"time of a step", "planned peak"},
    "Training": {"training", "first step"},
    "Evaluation and prediction": {"evaluation", "prediction"},
    "Latency": {"1 prompt, median", "16 prompts, median"},
}
CASES = {
    "Training": {
        f"{name}, 2 images x 3 prompts, compile={how}" for name in ("full", "slim") for how in ("false", "eager")
    },
    "Evaluation and prediction": {"evaluate, fp32", "evaluate, fp16", "predict"},
    "Latency": {"fp32", "bf16", "fp16", "int8_weight", "int8_dynamic", "fp8_dynamic"},
}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_rows

    return gpu_rows


@pytest.fixture
def recorder(rows: ModuleType) -> Any:
    found = rows.Recorder(10)
    found.begin("section", 1)
    return found


@pytest.fixture
def subjects(rows: ModuleType) -> Any:
    import gpu_subjects

    return gpu_subjects.Subjects(gpu_subjects.small_sizes(), torch.device("cpu"))


def test_gpu__every_section_measures(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "gpu.py"), "--small", "--device", "cpu", "--out", str(tmp_path)]
    # Many times what it takes, because other work may slow it down.
    subprocess.run([*command, "--minutes", "60"], check=True, stdout=subprocess.DEVNULL)
    with (tmp_path / "gpu_cpu_small.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["section", "case", "quantity", "value", "unit", "note"]
    for section, quantities in SECTIONS.items():
        assert quantities <= {row["quantity"] for row in found if row["section"] == section and row["value"]}, section
    for section, cases in CASES.items():
        assert cases == {row["case"] for row in found if row["section"] == section and row["value"]}, section
    assert not [row for row in found if row["quantity"] == "not measured"]
    for row in found:
        if not row["value"]:
            assert row["quantity"] == "measured peak"  # of CUDA
            assert row["note"]
        elif row["unit"] in ("s", "ms", "images/s", "GiB"):
            assert 0 < float(row["value"]) < float("inf"), row
    agreed = [row for row in found if row["quantity"].endswith("mean difference")]
    assert all(row["note"].endswith(": met") for row in agreed)
    # On one processor FP32 is the same, and half precision is not.
    assert all((float(row["value"]) > 0) == ("fp32" not in row["case"]) for row in agreed)
    page = (tmp_path / "gpu_cpu_small.md").read_text(encoding="utf-8")
    assert all(
        text in page for text in (*SECTIONS, f"- torch: {torch.__version__.split('+')[0]}", "- date: ", "- commit: ")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_cpu_small.csv", "gpu_cpu_small.md"]


def test_attempt__a_failure_is_a_row_and_frees_what_it_held(recorder: Any, rows: ModuleType) -> None:
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []

    def failing(error: Exception) -> Iterator[Any]:
        large = torch.ones(3)
        held.append(weakref.ref(large))
        yield rows.Measure("before", 1.0, "s")
        raise error

    outcome = recorder.attempt("large", lambda: failing(torch.OutOfMemoryError("CUDA out of memory.\n Tried to …")))
    assert outcome is rows.Outcome.OUT_OF_MEMORY
    assert recorder.attempt("odd", lambda: failing(ValueError("no such kernel"))) is rows.Outcome.FAILED
    assert recorder.attempt("next", lambda: [rows.Measure("after", float("nan"), "s")]) is rows.Outcome.DONE
    assert [(row.case, row.quantity, row.value, row.note) for row in recorder.rows] == [
        ("large", "before", 1.0, ""),
        ("large", "not measured", None, "OutOfMemoryError: CUDA out of memory. Tried to …"),
        ("odd", "before", 1.0, ""),
        ("odd", "not measured", None, "ValueError: no such kernel"),
        ("next", "after", None, "nan is not a finite number"),
    ]
    assert [reference() for reference in held] == [None, None]


def test_attempt__time_is_limited(rows: ModuleType) -> None:
    recorder = rows.Recorder(1 / 60)

    def endless() -> Iterator[Any]:
        while True:
            time.sleep(0.01)
            yield from ()

    recorder.begin("short", 0.5)
    recorder.attempt("endless", endless)
    recorder.attempt("late", lambda: [rows.Measure("seconds", 1.0, "s")])
    recorder.begin("next", 100)
    recorder.attempt("case", lambda: [rows.Measure("seconds", 1.0, "s")])
    assert [row.note.split(":")[0] for row in recorder.rows] == ["stopped after 0 s", "skipped", ""]


def test_training__fewer_images_where_memory_ends(
    recorder: Any, subjects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_training

    def fit(spec: Any, module: Any, batch: Any, steps: int, watch: Any) -> None:
        if len(batch.pixel_values) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        watch.seconds = [2.0] * steps

    monkeypatch.setattr(gpu_training, "fit", fit)
    gpu_training.throughput(recorder, subjects)
    plain = [(row.case, row.quantity, row.value, row.note) for row in recorder.rows if row.case.startswith("full")][:2]
    assert plain[0] == (
        "full, 2 images x 3 prompts, compile=false", "not measured", None, "OutOfMemoryError: CUDA out of memory"
    )  # fmt: skip
    assert plain[1][:3] == ("full, 1 images x 3 prompts, compile=false", "training", 0.5)


def test_parity__a_tolerance_that_is_not_met_and_a_case_that_fails(
    recorder: Any, subjects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_inference

    def without_bf16(model: Any, arithmetic: str) -> None:
        if arithmetic == "bf16":
            raise RuntimeError("no bfloat16 here")
        compute_in(model, arithmetic)

    monkeypatch.setattr(gpu_inference, "compute_in", without_bf16)
    monkeypatch.setitem(gpu_inference.PARITY, "fp16", ("fp16", True, 1e-9))
    gpu_inference.parity(recorder, subjects)
    notes = {row.case: row.note for row in recorder.rows if not row.quantity.endswith("largest difference")}
    assert notes["cpu, bf16"] == "RuntimeError: no bfloat16 here"
    assert notes["cpu, fp16"] == "at most 1e-09: NOT MET"
    assert notes["cpu, fp32 without TF32"] == "at most 0.0001: met"


def test_random_model__is_what_training_starts_with(rows: ModuleType) -> None:
    import gpu_subjects

    found, expected = gpu_subjects.random_model(SPEC), init_for_training(build_model(SPEC), 0)
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("arguments", "line"), [(["--minutes", "0"], "--minutes 0 must be above 0"), (["--device", "cuda:9"], "cuda:9")]
)
def test_gpu__bad_arguments(
    arguments: list[str], line: str, rows: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert line in capsys.readouterr().err
