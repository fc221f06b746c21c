"""What can answer prompts for a checkpoint or an artifact, behind one call: PyTorch, ONNX Runtime, OpenVINO.

from sam3slim.runtimes import open_runtime
model, report = open_runtime("assets/nano", "openvino", arithmetic="w8a8")

Light to import: a runtime's own package is imported when it opens something.
"""

from sam3slim.runtimes.registry import RUNTIMES, Opening, Runtime, check_runtime, open_runtime, register, runtime_named

__all__ = ["RUNTIMES", "Opening", "Runtime", "check_runtime", "open_runtime", "register", "runtime_named"]
