"""Fewer bits for the same architecture: a method is a config type, its handler makes the stored tensors."""

from sam3slim.compression.casts import Bf16, Fp16, WeightsOnly
from sam3slim.compression.fake import FakeQuantised, fake_method
from sam3slim.compression.fp8_dynamic import Fp8Dynamic
from sam3slim.compression.graphs import Int4Onnx, Int8Onnx, Int8OnnxStatic, Onnx, OnnxGraphs
from sam3slim.compression.groups import GROUPS, weights_by_group
from sam3slim.compression.int4_weight import Int4Weight, int4_bytes
from sam3slim.compression.int8_dynamic import Int8Dynamic, emulated
from sam3slim.compression.int8_weight import Int8Rules, Int8Weight
from sam3slim.compression.mixed import Mixed
from sam3slim.compression.recalibrated import Recalibrated
from sam3slim.compression.registry import (
    Compressed,
    CompressedTensors,
    check_methods,
    compress,
    method_from_name,
    method_names,
    needs_batches,
    needs_labels,
    register,
)
from sam3slim.compression.slim import Slim, Slimmed, rows

__all__ = [
    "GROUPS",
    "Bf16",
    "Compressed",
    "CompressedTensors",
    "FakeQuantised",
    "Fp8Dynamic",
    "Fp16",
    "Int4Onnx",
    "Int4Weight",
    "Int8Dynamic",
    "Int8Onnx",
    "Int8OnnxStatic",
    "Int8Rules",
    "Int8Weight",
    "Mixed",
    "Onnx",
    "OnnxGraphs",
    "Recalibrated",
    "Slim",
    "Slimmed",
    "WeightsOnly",
    "check_methods",
    "compress",
    "emulated",
    "fake_method",
    "int4_bytes",
    "method_from_name",
    "method_names",
    "needs_batches",
    "needs_labels",
    "register",
    "rows",
    "weights_by_group",
]
