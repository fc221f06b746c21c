"""Half precision as a storage format: rounded once here, computed in FP32 on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sam3slim.checkpoints.rounding import round_values
from sam3slim.compression.registry import CompressedTensors, register
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
def fp16(model: Sam3, method: Fp16) -> CompressedTensors:
    return _rounded(model, "fp16", torch.float16)


@register(Bf16)
def bf16(model: Sam3, method: Bf16) -> CompressedTensors:
    return _rounded(model, "bf16", torch.bfloat16)


def _rounded(model: Sam3, precision: str, dtype: torch.dtype) -> CompressedTensors:
    tensors, overflowed, underflowed = round_tensors(model.state_dict(), dtype)
    return CompressedTensors(precision, tensors, overflowed=overflowed, underflowed=underflowed)


def round_tensors(
    tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, int]]:
    """Round finite tensors to ``dtype``.

    Returns:
        (key → rounded tensor, or its FP32 self where a value overflows; the overflowing keys;
        key → number of non-zero values that became zero, only where there are any).
    """
    rounded: dict[str, Tensor] = {}
    overflowed: list[str] = []
    underflowed: dict[str, int] = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        half, lost = round_values(tensor, dtype)
        if half is None:
            overflowed.append(key)
            rounded[key] = tensor.float()
            continue
        rounded[key] = half
        if lost:
            underflowed[key] = lost
    return rounded, tuple(overflowed), underflowed
