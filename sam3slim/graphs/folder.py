"""Completing an artifact of graphs: what ``sam3slim.json`` says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sam3slim.artifacts.metadata import ArtifactInfo, Origin, folder_bytes, write_metadata
from sam3slim.checkpoints.locating import ONNX
from sam3slim.graphs.contents import graph_files
from sam3slim.graphs.modules import Lengths
from sam3slim.models.count import count_params
from sam3slim.specs import ModelSpec

RUNTIMES = {ONNX: ("onnx", "onnxscript", "onnxruntime"), "torch-export": ("torchvision",)}


def complete(
    folder: Path,
    spec: ModelSpec,
    origin: Origin,
    *,
    format: str,
    precision: str,
    dtypes: Mapping[str, Mapping[str, int]],
    parts: Mapping[str, int],
    fixed: Lengths | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Write what belongs beside the graphs that lie in ``folder``; returns what ``sam3slim.json`` says.

    Args:
        dtypes: storage type → numbers and bytes.
        parts: part → bytes.
        fixed: of static graphs.
        details: what this format alone has to say.
    """
    files = graph_files(folder, spec, format, fixed)
    lengths = {} if fixed is None else {"fixed": asdict(fixed)}
    weights = {
        "precision": precision,
        "format": format,
        "params": sum(count_params(spec).values()),
        "dtypes": dict(dtypes),
        "opens_in": ["sam3slim", "onnxruntime" if format == ONNX else "torch"],
        "bytes": sum(file["bytes"] for graph in files.values() for file in graph["files"]),
        "bytes_by_part": dict(parts),
        format.replace("-", "_"): {"graphs": files, **lengths, **details},
    }
    return write_metadata(folder, spec, origin, weights, libraries=RUNTIMES[format])


def info(path: Path, metadata: Mapping[str, Any]) -> ArtifactInfo:
    """What was written, once it lies at ``path``."""
    graphs = metadata[metadata["format"].replace("-", "_")]["graphs"]
    largest = max((file for graph in graphs.values() for file in graph["files"]), key=lambda file: int(file["bytes"]))
    return ArtifactInfo(
        path, int(metadata["bytes"]), largest["sha256"], folder_bytes(path), format=metadata["format"],
        bytes_by_part=dict(metadata["bytes_by_part"]),
    )  # fmt: skip
