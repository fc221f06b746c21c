"""Methods that cast every tensor: to half precision, or to FP32, which leaves a training checkpoint's optimiser behind.

Half precision is a storage format: rounded once here, computed in FP32 on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam3slim.artifacts.lazy import Convert
from sam3slim.compression.registry import register
from sam3slim.models import Sam3
from sam3slim.precisions import PRECISIONS


@dataclass(frozen=True)
class Fp16:
    """IEEE half: 11 significant bits, largest value 65,504. A tensor beyond that stays FP32."""

    name: ClassVar[str] = "fp16"
    precision: ClassVar[str] = "fp16"


@dataclass(frozen=True)
class Bf16:
    """bfloat16: FP32's range, 8 significant bits. Nothing overflows."""

    name: ClassVar[str] = "bf16"
    precision: ClassVar[str] = "bf16"


@dataclass(frozen=True)
class WeightsOnly:
    """Exact: a training checkpoint loses two optimiser moments per parameter and no accuracy."""

    name: ClassVar[str] = "weights_only"
    precision: ClassVar[str] = "fp32"


@register(Fp16)
@register(Bf16)
@register(WeightsOnly)
def cast(model: Sam3, method: Fp16 | Bf16 | WeightsOnly) -> Convert:
    return lambda key, tensor: PRECISIONS[method.precision].store(tensor)
