"""Half precision as a storage format: rounded once here, computed in FP32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sam3slim.checkpoints.rounding import round_values
from sam3slim.compression.registry import Convert, Made, register
from sam3slim.models import Sam3


@dataclass(frozen=True)
class Fp16:
    """IEEE half: 11 significant bits, largest value 65,504. A tensor beyond that stays FP32."""

    name: ClassVar[str] = "fp16"


@dataclass(frozen=True)
class Bf16:
    """bfloat16: FP32's range, 8 significant bits. Nothing overflows."""

    name: ClassVar[str] = "bf16"


@register(Fp16)
def fp16(model: Sam3, method: Fp16) -> Convert:
    return lambda key, tensor: to_half(tensor, torch.float16)


@register(Bf16)
def bf16(model: Sam3, method: Bf16) -> Convert:
    return lambda key, tensor: to_half(tensor, torch.bfloat16)


def to_half(tensor: Tensor, dtype: torch.dtype) -> Made:
    """A finite FP32 tensor rounded to ``dtype``, or as it is where a value overflows."""
    half, lost = round_values(tensor, dtype)
    return Made(tensor, overflowed=True) if half is None else Made(half, underflowed=lost)
