"""SAM 3 as three ONNX graphs: exported, checked against PyTorch, quantised, run by ONNX Runtime."""

from sam3slim.onnx.export import export_onnx
from sam3slim.onnx.load import load_onnx, load_runnable
from sam3slim.onnx.runner import OnnxSam3

__all__ = ["OnnxSam3", "export_onnx", "load_onnx", "load_runnable"]
