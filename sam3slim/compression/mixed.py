"""A precision for every group of weights: FP32, FP16 or INT8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sam3slim.artifacts.lazy import Convert
from sam3slim.checkpoints.int8 import StoredInt8
from sam3slim.compression.groups import GROUPS, weights_by_group
from sam3slim.compression.int8_weight import quantise
from sam3slim.compression.registry import register
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.precisions import FP16, FP32, Stored

STEPS = 127.5  # between 0 and the largest weight, as torchao's symmetric scheme has it


def store_int8(weight: Tensor, module: nn.Module) -> Stored:
    """torchao's tensor where its kernels run; elsewhere INT8 is a storage format with one scale per output channel."""
    if weight.ndim == 2:
        return Stored(quantise(weight))
    # A transposed convolution has its output channels second.
    axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scale = weight.abs().amax(dim=others, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / STEPS
    return Stored(StoredInt8((weight / scale).round().clamp(-128, 127).to(torch.int8), scale))


# What a group may be stored in → how its weights are made: (FP32 weight, its module).
STORES: dict[str, Callable[[Tensor, nn.Module], Stored]] = {
    "fp32": lambda weight, module: FP32.store(weight),
    "fp16": lambda weight, module: FP16.store(weight),
    "int8": store_int8,
}


@dataclass(frozen=True)
class Mixed:
    """Precisions by group.

    Attributes:
        groups: group → precision, one of ``STORES``; those not named are FP16.
        rest: of norms, biases and small tables: ``fp16`` or ``fp32``.
    """

    name: ClassVar[str] = "mixed"
    groups: Mapping[str, str] = field(default_factory=dict)
    rest: Literal["fp32", "fp16"] = "fp16"

    def __post_init__(self) -> None:
        for group, precision in self.groups.items():
            if group not in GROUPS:
                near = get_close_matches(group, GROUPS, 1)
                hint = f"did you mean {near[0]}?" if near else f"groups: {', '.join(GROUPS)}"
                raise UserError(f"compress=mixed: unknown group {group!r}; {hint}")
            if precision not in STORES:
                raise UserError(f"compress=mixed: groups.{group}={precision}; expected {', '.join(STORES)}")
        if self.rest not in ("fp32", "fp16"):
            raise UserError(f"compress=mixed: rest={self.rest}; expected fp32 or fp16")


@register(Mixed)
def mixed(model: Sam3, method: Mixed) -> Convert:
    precisions: dict[str, str] = {}
    for group, names in weights_by_group(model).items():
        precisions |= dict.fromkeys(names, method.groups.get(group, "fp16"))
    modules = dict(model.named_modules())

    def convert(key: str, tensor: Tensor) -> Stored:
        return STORES[precisions.get(key, method.rest)](tensor, modules[key.rpartition(".")[0]])

    return convert
