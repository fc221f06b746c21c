"""What an ONNX artifact's files hold, for ``sam3slim.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3slim.disk import file_sha256
from sam3slim.onnx.graphs import signatures
from sam3slim.onnx.packages import require
from sam3slim.specs import ModelSpec


def graph_files(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Graph → its inputs and outputs, and name, bytes and sha256 of its files."""
    return {
        name: {
            **signature.facts(),
            "files": [
                {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
                for file in (folder / f"{name}.onnx", folder / f"{name}.onnx.data")
                if file.is_file()
            ],
        }
        for name, signature in signatures(spec).items()
    }


def dtype_shares(folder: Path, spec: ModelSpec) -> dict[str, dict[str, int]]:
    """Storage type → numbers and bytes of the graphs' constants (weights, scales, position encodings)."""
    onnx = require("onnx")
    shares: dict[str, dict[str, int]] = {}
    for name in signatures(spec):
        graph = onnx.load(str(folder / f"{name}.onnx"), load_external_data=False).graph
        for tensor in graph.initializer:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            count = 1
            for side in tensor.dims:
                count *= side
            row = shares.setdefault(dtype.name, {"params": 0, "bytes": 0})
            row["params"] += count
            row["bytes"] += count * dtype.itemsize
    return shares
