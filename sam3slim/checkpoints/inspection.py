"""What a checkpoint holds, told without loading its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sam3slim.checkpoints import int8
from sam3slim.checkpoints.account import compare
from sam3slim.checkpoints.int8 import dtype_shares
from sam3slim.checkpoints.load_report import LoadReport, by_part, bytes_by_part
from sam3slim.checkpoints.locating import locate, weight_files
from sam3slim.checkpoints.readers import Overrides, read
from sam3slim.models.count import part_of


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's content.

    Attributes:
        report: format, architecture, and whether every tensor is there.
        params: parameters by part.
        bytes: bytes by part as stored.
        dtypes: stored type → parameters and bytes.
        other: bytes of what lies beside the image model's weights (optimizer, tracker, …).
        file_bytes: size on disk of the files with weights.
    """

    report: LoadReport
    params: dict[str, int]
    bytes: dict[str, int]
    dtypes: dict[str, dict[str, int]]
    other: dict[str, int]
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        report = self.report
        return {
            "source": str(report.source),
            "format": report.kind,
            "precision": report.precision,
            "model": report.spec.to_dict(),
            "params": {"total": sum(self.params.values()), "by_part": self.params},
            "bytes": {"total": sum(self.bytes.values()), "by_part": self.bytes, "on_disk": self.file_bytes},
            "dtypes": self.dtypes,
            "other_bytes": self.other,
            "complete": report.ok,
            "missing": report.missing,
            "unexpected": report.unexpected,
            "absent": report.absent,
            "other_weights": list(report.rivals),
            "not_loaded": report.left_out,
            "assumed": report.assumed,
            "mismatched": {key: [list(shape) for shape in shapes] for key, shapes in report.mismatched.items()},
        }


def inspect(source: str | Path, overrides: Overrides | None = None) -> Inspection:
    """Look into whatever ``load`` reads; memory-mapped, so that 10 GB take as long as 10 MB.

    Raises:
        CheckpointError: as ``load``, except that tensors which are missing or do not fit are only reported.
    """
    located = locate(source)
    raw = read(located, overrides)
    tensors = int8.unflatten(raw.tensors, raw.path, dequantize=False, as_stored=True)
    known = {key: tensor for key, tensor in tensors.items() if by_part([key]) != {"foreign": 1}}
    return Inspection(
        report=compare(raw, tensors, ()),
        params=_params_by_part(known),
        bytes=bytes_by_part(int8.flatten(known)[0]),
        dtypes=dtype_shares(known),
        other={name: size for name, size in {**raw.ignored, **raw.other}.items() if size},
        file_bytes=sum(file.stat().st_size for file in weight_files(located)),
    )


def _params_by_part(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    sizes = dict.fromkeys(by_part(tensors), 0)
    for key, tensor in tensors.items():
        sizes[part_of(key)] += tensor.numel()
    return sizes
