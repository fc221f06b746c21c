"""Three ONNX graphs, in FP32 or in ONNX Runtime's dynamic INT8."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from sam3slim.artifacts import ArtifactInfo
from sam3slim.compression.int8_weight import Int8Rules, quantised_names
from sam3slim.compression.registry import register
from sam3slim.errors import UserError
from sam3slim.models import Sam3


@dataclass(frozen=True)
class Onnx:
    """For runtimes other than PyTorch.

    Attributes:
        precision: ``fp16``: products in FP16, softmax and coordinates in FP32.
        static: every call has the same lengths, as TensorRT wants: ``images``, ``prompts``, and ``boxes`` per prompt.
    """

    name: ClassVar[str] = "onnx"
    precision: Literal["fp32", "fp16"] = "fp32"
    static: bool = False
    images: int = 1
    prompts: int = 32
    boxes: int = 1

    def __post_init__(self) -> None:
        changed = [k for k, v in {"images": 1, "prompts": 32, "boxes": 1}.items() if getattr(self, k) != v]
        if changed and not self.static:
            key = changed[0]
            raise UserError(
                f"compress.onnx.{key}={getattr(self, key)} is a length of static graphs; set "
                "compress.onnx.static=true, or leave it out"
            )
        for key in ("images", "prompts", "boxes"):
            if getattr(self, key) < 1:
                raise UserError(f"compress.onnx.{key}={getattr(self, key)} must be at least 1")


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
        fixed: images, prompts and boxes of static graphs.
    """

    precision: str
    int8: tuple[str, ...] = ()
    fixed: tuple[int, int, int] | None = None
    method: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """One line per fact a user should know."""
        static = "" if self.fixed is None else "static, {} images, {} prompts, {} boxes; ".format(*self.fixed)
        if self.precision == "fp16":
            return f"fp16: ONNX graphs, {static}products in FP16, the rest in FP32"
        return f"{self.precision}: ONNX graphs, {static}{len(self.int8) or 'no'} weights in INT8, the rest in FP32"

    def write(self, model: Sam3, folder: str | Path, **metadata: Any) -> ArtifactInfo:
        """``export_onnx``, checked against ``model``; ``metadata`` are its other keywords."""
        # A second of imports, which the other methods have no use for.
        from sam3slim.graphs import export_onnx
        from sam3slim.graphs.modules import Lengths

        fixed = None if self.fixed is None else Lengths(*self.fixed)
        extra = {"method": self.method, **(metadata.pop("extra", None) or {})}
        return export_onnx(
            model, folder, precision=self.precision, int8=self.int8, fixed=fixed, extra=extra, **metadata
        )


@register(Onnx)
def onnx(model: Sam3, method: Onnx) -> OnnxGraphs:
    return OnnxGraphs(method.precision, fixed=(method.images, method.prompts, method.boxes) if method.static else None)


@register(Int8Onnx)
def int8_onnx(model: Sam3, method: Int8Onnx) -> OnnxGraphs:
    return OnnxGraphs("int8_onnx", tuple(quantised_names(model, method.rules)))
