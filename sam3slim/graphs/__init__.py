"""SAM 3 as three graphs, of ONNX or of torch.export: exported, checked against PyTorch, quantised, run."""

from sam3slim.graphs.loading import load_onnx, load_runnable
from sam3slim.graphs.onnx import export_onnx
from sam3slim.graphs.programs import ProgramSam3, export_programs
from sam3slim.graphs.runner import GraphSam3, OnnxSam3

__all__ = [
    "GraphSam3",
    "OnnxSam3",
    "ProgramSam3",
    "export_onnx",
    "export_programs",
    "load_onnx",
    "load_runnable",
]
