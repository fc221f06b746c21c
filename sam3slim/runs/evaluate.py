"""``evaluate``: the mAP of any checkpoint."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from sam3slim.checkpoints import LoadReport, locate, weight_files
from sam3slim.files import ensure_writable_dir
from sam3slim.launch.run import Run
from sam3slim.models.compiled import require_compiler
from sam3slim.results.record import Artifact, RunRecord
from sam3slim.runs.measure import (
    measure,
    measured_on,
    measuring_device,
    model_summary,
    prepared_data,
    print_metrics,
    with_rest,
)
from sam3slim.runs.reference import load_reference, print_drop
from sam3slim.runs.specs import EvaluateSpec
from sam3slim.runtimes import check_runtime, open_runtime


def evaluate(spec: EvaluateSpec, run: Run, opened: tuple[Any, LoadReport] | None = None) -> RunRecord:
    """mAP of ``checkpoint`` on ``data.split``; writes ``record.json`` and the matches others are compared with.

    ``opened`` is what ``open_runtime`` has given for it already.

    Raises:
        UserError: bad input.
    """
    ensure_writable_dir(run.folder)
    with run.recording(spec.checkpoint) as record:
        device = measuring_device(spec)
        require_compiler(spec.compile, device)
        check_runtime(spec.runtime)
        spec.data.find()
        reference = load_reference(spec.reference, spec.data) if spec.reference else None
        data_of = cache(partial(prepared_data, spec))
        model, report = opened or open_runtime(
            spec.checkpoint, spec.runtime, device=measured_on(spec, device), arithmetic=spec.arithmetic,
            overrides=spec.overrides, calibration=lambda model: data_of(model).loader("train"),
        )  # fmt: skip
        print(report.render() if report.loaded else f"{report.source} ({report.kind}, {report.precision})")
        record.model, record.artifact = model_summary(model), loaded_artifact(report, spec.overrides)
        data = data_of(model.spec)
        measure(model, data, spec, record, run.folder, reference)
        print_metrics(record)
        print_drop(record)
    print(f"written: {run.folder}")
    return record


def loaded_artifact(report: LoadReport, overrides: dict[str, Any] | None) -> Artifact:
    """The record's ``artifact`` entry of a checkpoint that was loaded, with the ``overrides`` it takes to load it."""
    size = sum(file.stat().st_size for file in weight_files(locate(report.source)))
    parts = with_rest(report.bytes_by_part, size)
    return Artifact(str(report.source), size, report.kind, report.precision, parts, overrides or {})
