"""What an ONNX artifact's files hold, for ``sam3slim.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3slim.checkpoints.locating import GRAPH_FILES, ONNX
from sam3slim.files import file_sha256
from sam3slim.graphs.modules import Lengths, signatures
from sam3slim.graphs.packages import require
from sam3slim.models import part_of
from sam3slim.models.count import PARTS
from sam3slim.specs import ModelSpec


def graph_files(folder: Path, spec: ModelSpec, format: str = ONNX, fixed: Lengths | None = None) -> dict[str, Any]:
    """Graph → its inputs and outputs, and name, bytes and sha256 of its files."""
    return {
        name: {
            **signature.metadata(),
            "files": [
                {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
                for file in (folder / f"{name}{suffix}" for suffix in GRAPH_FILES[format])
                if file.is_file()
            ],
        }
        for name, signature in signatures(spec, fixed).items()
    }


def shares(folder: Path, spec: ModelSpec) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Of the graphs' constants (weights, scales, position encodings): storage type → numbers and bytes; part → bytes.

    A constant belongs to the part it is called after, or whose node reads it first; position encodings to none.
    """
    onnx = require("onnx")
    shares: dict[str, dict[str, int]] = {}
    parts = dict.fromkeys(PARTS, 0)
    for name in signatures(spec):
        graph = onnx.load(str(folder / f"{name}.onnx"), load_external_data=False).graph
        readers: dict[str, str] = {}
        for node in graph.node:
            for value in node.input:
                readers.setdefault(value, node.name)
        for tensor in graph.initializer:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            count = 1
            for side in tensor.dims:
                count *= side
            row = shares.setdefault(dtype.name, {"params": 0, "bytes": 0})
            row["params"] += count
            row["bytes"] += count * dtype.itemsize
            part = _part(tensor.name) or _part(readers.get(tensor.name, ""))
            if part is not None:
                parts[part] += count * dtype.itemsize
    return shares, parts


def _part(name: str) -> str | None:
    try:
        return part_of(name.removeprefix("model."))
    except KeyError:
        return None
