"""Every key of a file and of the model accounted for, before anything is allocated."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from sam3slim.checkpoints.load_report import CheckpointError, LoadReport, bytes_by_part
from sam3slim.checkpoints.names import lora_text, merge_advice
from sam3slim.checkpoints.readers import RawCheckpoint
from sam3slim.models.build import state_shapes
from sam3slim.models.count import part_of


def require_all(raw: RawCheckpoint, tensors: Mapping[str, Tensor], allow_fresh: Collection[str] = ()) -> LoadReport:
    """``compare``, and CheckpointError unless everything fits."""
    report = compare(raw, tensors, allow_fresh)
    if not report.ok:
        error = CheckpointError(report.problem())
        error.report = report
        raise error
    return report


def compare(raw: RawCheckpoint, tensors: Mapping[str, Tensor], allow_fresh: Collection[str]) -> LoadReport:
    """Account for every key of the file and of the model; nothing is allocated."""
    wanted = state_shapes(raw.spec)
    report = LoadReport(
        raw.path, raw.kind, raw.precision, raw.spec, ignored=dict(raw.ignored),
        bytes_by_part=bytes_by_part(raw.tensors), absent=raw.absent, rivals=raw.rivals, left_out=raw.left_out,
        assumed=raw.assumed,
    )  # fmt: skip
    if raw.adapter:
        report.adapter = f"it holds {lora_text(raw.adapter)} beside its weights; {merge_advice(raw.path, alone=False)}"
    report.unexpected = list(raw.unexpected)
    for key, tensor in tensors.items():
        if key not in wanted:
            report.unexpected.append(key)
        elif tensor.shape != wanted[key]:
            report.mismatched[key] = (tuple(tensor.shape), tuple(wanted[key]))
        else:
            report.loaded.append(key)
    report.missing = [key for key in wanted if key not in tensors]
    report.fresh = [key for key in report.missing if part_of(key) in allow_fresh]
    return report
