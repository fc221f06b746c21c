"""What an artifact can be written as, and how large it is then: from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sam3slim.errors import UserError
from sam3slim.files import read_json
from sam3slim.precisions import FP32, PRECISIONS, precision_named
from sam3slim.results.record import Artifact, RunRecord

Format = Literal["hf", "reference", "onnx", "torch-export"]
# Kinds of artifact that a format takes as they are.
KEPT = {"hf": ("hf", "artifact"), "onnx": ("onnx",), "torch-export": ("torch-export",), "reference": ()}
GRAPHS = ("onnx", "torch-export")


def cannot_become(artifact: Artifact, format: str) -> str | None:
    """Why the artifact of a record cannot be written as ``format``; None if it can."""
    kind = artifact.format
    if kind in KEPT[format]:
        return None
    if kind in GRAPHS:
        return f"its {'ONNX graphs' if kind == 'onnx' else 'programs'} cannot be turned into {format}"
    known = precision_named(str(artifact.precision))
    if known is not None and known.only and format not in known.only:
        return f"its INT8 products cannot be written as {format}"
    # The reference implementation reads phrases with its own tokenizer and text tower.
    text = _metadata(artifact).get("spec", {}).get("text", {}) if format == "reference" else {}
    if text.get("bank") is not None:
        return "it has a prompt bank instead of the text tower that the reference needs"
    if text.get("vocabulary") is not None:
        return "its vocabulary is trimmed, which the reference's tokenizer cannot be told"
    return None


def bytes_as(record: RunRecord, format: str) -> int | None:
    """Bytes of a record's weights as ``format``; None if the record does not say.

    What is converted is estimated from its parameters: graphs hold FP32, and the reference's format the stored types,
    INT8 weights as the FP32 numbers they stand for. Names and constants come on top.
    """
    artifact, params = record.artifact, record.model.params
    if artifact.bytes is None or artifact.format in KEPT[format]:
        return artifact.bytes
    if params is None:
        return None
    if format in GRAPHS:
        return FP32.bytes * params
    dtypes = _metadata(artifact).get("dtypes")
    if dtypes:
        packed = {precision.dtype for precision in PRECISIONS.values() if not precision.cast}
        return sum(FP32.bytes * row["params"] if name in packed else row["bytes"] for name, row in dtypes.items())
    known = precision_named(str(artifact.precision))
    return params * (known.bytes if known and known.cast else FP32.bytes)


def _metadata(artifact: Artifact) -> Mapping[str, Any]:
    """``sam3slim.json`` of the artifact, for what it may add to a record; {} where there is none or it is broken."""
    try:
        return read_json(Path(str(artifact.path)) / "sam3slim.json", "write the artifact again")
    except UserError:
        return {}
