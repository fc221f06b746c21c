"""Quantised graphs for ONNX Runtime: dynamic and static INT8, and INT4 weights.

INT8: weights per output channel, activations as UINT8, with scales measured at each call (dynamic) or fixed (static).

Reduced range: weights take 7 of the 8 bits. Without VNNI a CPU adds pairs of products in 16 bits, and with all 8 bits
of the weights those sums saturate (4.8 % error instead of 0.7 %).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sam3slim.checkpoints.int4 import StoredInt4
from sam3slim.graphs.calibration import CalibrationSet
from sam3slim.graphs.packages import require
from sam3slim.graphs.runner import GraphSam3
from sam3slim.graphs.trace import LARGEST_FILE

STEPS = 127
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
Static = tuple[CalibrationSet, GraphSam3]  # images, and the FP32 graphs that run before the one in question


def quantise(
    source: Path,
    target: Path,
    weights: Collection[str],
    *,
    int4: Mapping[str, StoredInt4] | None = None,
    static: Static | None = None,
    external_data: bool | None = None,
) -> list[str]:
    """Write ``source`` (FP32) to ``target`` with the named weights in INT8.

    Matrices of MatMuls are multiplied in INT8; rows of an embedding table are only stored so, each with its own scale.

    Args:
        int4: weights that MatMuls are to have in INT4 instead: ONNX Runtime's ``MatMulNBits``, with FP32 products.
        static: fixes the activations' scales; None: they are measured at each call.
        weights: the model's names of parameters, ``….q_proj.weight``; those of other graphs are passed over.
        external_data: weights in ``<target>.data``; None: only where one file cannot hold them.

    Returns:
        The names that were found in this graph.

    Raises:
        UserError: onnx or onnxruntime is not installed.
    """
    onnx = require("onnx")
    quantization = require("onnxruntime.quantization")
    graph_model = onnx.load(str(source))
    graph = graph_model.graph
    tables = {tensor.name: tensor for tensor in graph.initializer}
    matmuls: dict[str, str] = {}
    found: list[str] = []
    for node in list(graph.node):
        weight = f"{node.name.partition('/')[0]}.weight"
        if int4 and weight in int4 and node.op_type == "MatMul" and node.input[1] in tables:
            _pack_matmul(onnx, graph_model, node, tables[node.input[1]], int4[weight])
            found.append(weight)
            continue
        if weight not in weights:
            continue
        if node.op_type == "MatMul" and node.input[1] in tables:
            matmuls[node.name] = weight
        elif node.op_type == "Gather" and node.input[0] in tables:
            _quantise_rows(onnx, graph, node, tables[node.input[0]])
            found.append(weight)
    found += matmuls.values()
    if external_data is None:
        chosen = {node.input[1] for node in graph.node if node.name in matmuls}
        # An INT8 weight takes a quarter of its bytes; what is there of scales and names fits in the margin.
        size = sum(len(t.raw_data) // (4 if t.name in chosen else 1) for t in graph.initializer)
        external_data = size > LARGEST_FILE
    if not matmuls:
        onnx.save(graph_model, str(target), save_as_external_data=external_data, location=f"{target.name}.data")
        return found
    # The exporter has already folded and optimised; otherwise the quantiser advises to do so, at every call.
    quantization.quant_utils.add_pre_process_metadata(graph_model)
    common = {
        "op_types_to_quantize": ["MatMul"], "nodes_to_quantize": list(matmuls), "per_channel": True,
        "reduce_range": True, "weight_type": quantization.QuantType.QInt8, "use_external_data_format": external_data,
    }  # fmt: skip
    with _quiet():
        if static is None:
            quantization.quantize_dynamic(graph_model, target, **common)
            return found
        _branch_off(onnx, graph, set(matmuls))
        calibration, runner = static
        reader = calibration.reader(runner, source.stem)
        quantization.quantize_static(
            graph_model, target, reader, quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            # What follows a MatMul reads floats: its result is not rounded again.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]}, **common,
        )  # fmt: skip
    return found


def _branch_off(onnx: Any, graph: Any, matmuls: Collection[str]) -> None:
    """Give the named MatMuls inputs of their own where others read the same.

    The quantiser puts a rounded tensor in the place of the original for all who read it; an Identity in between, which
    ONNX Runtime removes, leaves residual sums and float layers what they had.
    """
    constants = {tensor.name for tensor in graph.initializer}
    others = {name for node in graph.node if node.name not in matmuls for name in node.input}
    others |= {output.name for output in graph.output}
    branches: dict[str, Any] = {}
    for node in graph.node:
        if node.name not in matmuls or (name := node.input[0]) not in others or name in constants:
            continue
        if name not in branches:
            branches[name] = onnx.helper.make_node("Identity", [name], [f"{name}_int8"], name=f"{name}_int8")
            info = onnx.helper.make_tensor_value_info(f"{name}_int8", onnx.TensorProto.FLOAT, None)
            graph.value_info.append(info)
        node.input[0] = f"{name}_int8"
    for name, branch in branches.items():
        readers = (place for place, node in enumerate(graph.node) if f"{name}_int8" in node.input)
        graph.node.insert(next(readers), branch)


def _pack_matmul(onnx: Any, model: Any, node: Any, table: Any, weight: StoredInt4) -> None:
    """x [..., columns] · W [columns, rows] with W in INT4; the layout is ``StoredInt4``'s, by group."""
    rows, columns = weight.shape
    assert list(table.dims) == [columns, rows]
    groups = columns // weight.group
    packed = weight.packed.view(rows, groups, weight.group // 2).numpy()
    constants = {"int4": packed, "int4_scale": weight.scale.float().flatten().numpy()}
    if weight.zero is not None:
        constants["int4_zero"] = weight.zero.flatten().numpy()
    graph, name = model.graph, table.name
    for end, values in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(values, f"{name}_{end}"))
    # Another node may read the same table.
    if sum(value == name for other in graph.node for value in other.input) == 1:
        graph.initializer.remove(table)
    made = onnx.helper.make_node(
        "MatMulNBits", [node.input[0], *(f"{name}_{end}" for end in constants)], list(node.output), name=node.name,
        domain=CONTRIB, K=columns, N=rows, bits=4, block_size=weight.group,
    )  # fmt: skip
    place = list(graph.node).index(node)
    graph.node.remove(node)
    graph.node.insert(place, made)
    if not any(known.domain == CONTRIB for known in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser tells the root logger of every tensor that it measures at run time, which is all of them."""

    def warnings_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    root = logging.getLogger()
    root.addFilter(warnings_only)
    try:
        yield
    finally:
        root.removeFilter(warnings_only)


def _quantise_rows(onnx: Any, graph: Any, node: Any, table: Any) -> None:
    """Gather from an INT8 table and multiply with the gathered rows' scales."""
    values = onnx.numpy_helper.to_array(table)
    # Nothing is multiplied in INT8 here, so all 8 bits can be used.
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / STEPS
    stored = np.clip(np.rint(values / scale), -STEPS, STEPS).astype(np.int8)
    name, rows, result = table.name, node.input[1], node.output[0]
    graph.initializer.remove(table)
    graph.initializer.append(onnx.numpy_helper.from_array(stored, f"{name}_int8"))
    graph.initializer.append(onnx.numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
    make = onnx.helper.make_node
    replacement = [
        make("Gather", [f"{name}_int8", rows], [f"{result}_int8"], name=f"{node.name}_int8"),
        make("Cast", [f"{result}_int8"], [f"{result}_float"], name=f"{node.name}_float", to=onnx.TensorProto.FLOAT),
        make("Gather", [f"{name}_scale", rows], [f"{result}_scale"], name=f"{node.name}_scale"),
        make("Mul", [f"{result}_float", f"{result}_scale"], [result], name=f"{node.name}_dequantized"),
    ]
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, new in enumerate(replacement):
        graph.node.insert(place + offset, new)
