"""Three ONNX graphs, in FP32, in ONNX Runtime's dynamic or static INT8, or with INT4 weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from sam3slim.artifacts import ArtifactInfo
from sam3slim.checkpoints.int4 import StoredInt4
from sam3slim.compression.int4_weight import Int4Weight, int4_plan
from sam3slim.compression.int8_weight import Int8Rules, quantised_names
from sam3slim.compression.registry import Batches, register
from sam3slim.compression.rounding import check_int4_group, store_int4
from sam3slim.errors import UserError
from sam3slim.models import Sam3

if TYPE_CHECKING:
    from sam3slim.graphs.calibration import CalibrationSet


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
        for key in ("images", "prompts", "boxes"):
            if getattr(self, key) < 1:
                raise UserError(f"compress.onnx.{key}={getattr(self, key)} must be at least 1")
        changed = [k for k, v in {"images": 1, "prompts": 32, "boxes": 1}.items() if getattr(self, k) != v]
        if changed and not self.static:
            key = changed[0]
            raise UserError(
                f"compress.onnx.{key}={getattr(self, key)} is a length of static graphs; set "
                "compress.onnx.static=true, or leave it out"
            )


@dataclass(frozen=True)
class Int8Onnx:
    """The CPU's deployment format: MatMuls of the chosen weights in INT8, everything else in FP32."""

    name: ClassVar[str] = "int8_onnx"
    # Activations are quantised with the weights: none of the decoder's layers are.
    rules: Int8Rules = field(default_factory=lambda: Int8Rules(also=()))


@dataclass(frozen=True)
class Int8OnnxStatic:
    """``int8_onnx`` with scales of the activations that are fixed on unlabelled images (QDQ format).

    Attributes:
        calibration_batches: of images; scales reach over all values that are seen.
    """

    name: ClassVar[str] = "int8_onnx_static"
    needs_batches: ClassVar[bool] = True
    rules: Int8Rules = field(default_factory=lambda: Int8Rules(also=()))
    calibration_batches: int = 4

    def __post_init__(self) -> None:
        if self.calibration_batches < 1:
            raise UserError(
                f"compress.int8_onnx_static.calibration_batches={self.calibration_batches} must be at least 1"
            )


@dataclass(frozen=True)
class Int4Onnx:
    """``int4_weight`` as graphs: MatMuls with INT4 weights, the token table in INT8, the rest FP32.

    Attributes:
        group, symmetric, rules: those of ``Int4Weight``.
    """

    name: ClassVar[str] = "int4_onnx"
    group: int = 64
    symmetric: bool = True
    rules: Int8Rules = field(default_factory=Int8Rules)

    def __post_init__(self) -> None:
        check_int4_group("compress.int4_onnx.group", self.group)


@dataclass
class OnnxGraphs:
    """What will be exported when it is written; see ``CompressedTensors``.

    Attributes:
        int8: names of the weights in INT8.
        int4: weights in INT4.
        fixed: images, prompts and boxes of static graphs.
        calibration: images that fix the activations' scales.
    """

    precision: str
    int8: tuple[str, ...] = ()
    int4: Mapping[str, StoredInt4] = field(default_factory=dict)
    fixed: tuple[int, int, int] | None = None
    calibration: CalibrationSet | None = None
    method: dict[str, Any] = field(default_factory=dict)
    model: None = None

    @property
    def images_used(self) -> int:
        return self.calibration.images if self.calibration else 0

    def describe(self) -> str:
        """One line per fact a user should know."""
        static = "" if self.fixed is None else "static, {} images, {} prompts, {} boxes; ".format(*self.fixed)
        if self.precision == "fp16":
            return f"fp16: ONNX graphs, {static}products in FP16, the rest in FP32"
        weights = f"{len(self.int8) or 'no'} weights in INT8" + (f", {len(self.int4)} in INT4" if self.int4 else "")
        seen = f", activations' scales fixed on {self.images_used} images" if self.calibration else ""
        return f"{self.precision}: ONNX graphs, {static}{weights}{seen}, the rest in FP32"

    def write(self, model: Sam3, folder: str | Path, **metadata: Any) -> ArtifactInfo:
        """``export_onnx``, checked against ``model``; ``metadata`` are its other keywords."""
        # A second of imports, which the other methods have no use for.
        from sam3slim.graphs import export_onnx
        from sam3slim.graphs.modules import Lengths

        fixed = None if self.fixed is None else Lengths(*self.fixed)
        calibrated = {"calibrated": {"images": self.images_used}} if self.calibration else {}
        extra = {"method": {**self.method, **calibrated}, **(metadata.pop("extra", None) or {})}
        return export_onnx(
            model,
            folder,
            precision=self.precision,
            int8=self.int8,
            int4=self.int4,
            fixed=fixed,
            calibration=self.calibration,
            extra=extra,
            **metadata,
        )


@register(Onnx)
def onnx(model: Sam3, method: Onnx) -> OnnxGraphs:
    return OnnxGraphs(method.precision, fixed=(method.images, method.prompts, method.boxes) if method.static else None)


@register(Int8Onnx)
def int8_onnx(model: Sam3, method: Int8Onnx) -> OnnxGraphs:
    return OnnxGraphs("int8_onnx", tuple(quantised_names(model, method.rules)))


@register(Int8OnnxStatic)
def int8_onnx_static(model: Sam3, method: Int8OnnxStatic, batches: Batches | None = None) -> OnnxGraphs:
    from sam3slim.graphs.calibration import CalibrationSet

    given = [] if batches is None else [batch.to("cpu") for batch in batches(method.calibration_batches)]
    if not given:
        raise UserError(
            "compress=int8_onnx_static needs unlabelled images with a phrase, and there are none; check data.root and "
            "compress.calibration_split, or use int8_onnx"
        )
    names = tuple(quantised_names(model, method.rules))
    return OnnxGraphs("int8_onnx_static", names, calibration=CalibrationSet(given))


@register(Int4Onnx)
def int4_onnx(model: Sam3, method: Int4Onnx) -> OnnxGraphs:
    plan = int4_plan(model, Int4Weight(method.group, method.symmetric, method.rules, int8=()), "compress.int4_onnx")
    modules = dict(model.named_modules())
    tables = [key for key, kind in plan.items() if isinstance(modules[key.removesuffix(".weight")], nn.Embedding)]
    int4 = {
        key: store_int4(layer.weight.detach().cpu().float(), layer, method.group, symmetric=method.symmetric).tensor
        for key, kind in plan.items()
        if kind == "int4" and isinstance(layer := modules[key.removesuffix(".weight")], nn.Linear)
    }
    return OnnxGraphs("int4_onnx", tuple(tables), int4)
