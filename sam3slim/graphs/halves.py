"""FP16 graphs for GPUs: products in FP16, all else in FP32, as autocast computes.

Attention is written out in these graphs (two products and a softmax, which stays FP32). One fused operation in FP16 is
what breaks SAM 3 in TensorRT: cosine 0.058 of its features, 0.999 written out (DART, arXiv:2603.11441).
"""

from __future__ import annotations

from pathlib import Path

from sam3slim.errors import UserError
from sam3slim.graphs.packages import require
from sam3slim.graphs.trace import LARGEST_FILE
from sam3slim.models.fp32 import FP32_PARTS

PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
HALF_TOLERANCE = 5e-2  # of outputs in FP16: absolute below 1, a share of the largest above
LARGEST = 65504.0  # FP16's


def halve(source: Path, target: Path, *, external_data: bool | None = None) -> None:
    """Write ``source`` (FP32) to ``target`` with products and their weights in FP16; inputs and outputs stay FP32.

    What computes in FP32 under autocast (``FP32_PARTS``: boxes, coordinates, presence) does so here.

    Args:
        external_data: weights in ``<target>.data``; None: only where one file cannot hold them.

    Raises:
        UserError: onnx or onnxruntime is not installed, or a weight that FP16 cannot hold.
    """
    onnx = require("onnx")
    converter = require("onnxruntime.transformers.float16")
    model = onnx.load(str(source))
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS]
    kept = [node.name for node in nodes if f"{node.name.partition('/')[0]}.".startswith(FP32_PARTS)]
    halved = {name for node in nodes if node.name not in kept for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in halved and abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) > LARGEST:
            raise UserError(f"{tensor.name} has a weight beyond FP16's {LARGEST:g}; use compress.onnx.precision=fp32")
    made = converter.convert_float_to_float16(
        model, keep_io_types=True, op_block_list=sorted({node.op_type for node in model.graph.node} - set(PRODUCTS)),
        node_block_list=kept,
    )  # fmt: skip
    large = sum(len(tensor.raw_data) for tensor in made.graph.initializer) > LARGEST_FILE
    onnx.save(
        made, str(target), save_as_external_data=large if external_data is None else external_data,
        location=f"{target.name}.data",
    )  # fmt: skip
