"""Three ONNX graphs, in FP32 or in ONNX Runtime's dynamic INT8."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sam3slim.artifacts import ArtifactInfo
from sam3slim.compression.int8_weight import Int8Rules, quantised_names
from sam3slim.compression.registry import register
from sam3slim.models import Sam3


@dataclass(frozen=True)
class Onnx:
    """FP32, for runtimes other than PyTorch."""

    name: ClassVar[str] = "onnx"


@dataclass(frozen=True)
class Int8Onnx:
    """The CPU's deployment format: MatMuls of the chosen weights in INT8, everything else in FP32."""

    name: ClassVar[str] = "int8_onnx"
    # Activations are quantised with the weights: none of the decoder's layers are.
    rules: Int8Rules = field(default_factory=lambda: Int8Rules(also=()))


@dataclass
class OnnxGraphs:
    """What will be exported when it is written; see ``CompressedTensors``.

    Attributes:
        int8: names of the weights in INT8.
    """

    precision: str
    int8: tuple[str, ...] = ()
    method: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """One line per fact a user should know."""
        return f"{self.precision}: ONNX graphs, {len(self.int8) or 'no'} weights in INT8, the rest in FP32"

    def write(self, model: Sam3, folder: str | Path, **metadata: Any) -> ArtifactInfo:
        """``export_onnx``, checked against ``model``; ``metadata`` are its other keywords."""
        # A second of imports, which the other methods have no use for.
        from sam3slim.graphs import export_onnx

        extra = {"method": self.method, **(metadata.pop("extra", None) or {})}
        return export_onnx(model, folder, precision=self.precision, int8=self.int8, extra=extra, **metadata)


@register(Onnx)
def onnx(model: Sam3, method: Onnx) -> OnnxGraphs:
    return OnnxGraphs("fp32")


@register(Int8Onnx)
def int8_onnx(model: Sam3, method: Int8Onnx) -> OnnxGraphs:
    return OnnxGraphs("int8_onnx", tuple(quantised_names(model, method.rules)))
