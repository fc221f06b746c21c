"""INT8 products: weights as ``int8_weight`` stores them, activations quantised as they come.

torchao's ``Int8DynamicActivationInt8WeightConfig``, the GPU format: x ≈ x_q · s with one symmetric scale per token
(row of x), y = (x_q · w_qᵀ) · s · s_w with an integer product. On CPUs torchao's kernel is 30 times slower than
FP32, so ``emulated`` computes the same integers in float there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sam3slim.artifacts.lazy import Convert
from sam3slim.checkpoints.int8 import is_dynamic
from sam3slim.compression.int8_weight import Int8Rules, quantised_names, store_int8
from sam3slim.compression.registry import register
from sam3slim.models import Sam3, part_of
from sam3slim.models.count import check_parts

LOW, HIGH = -128, 127
SMALLEST_SCALE = torch.finfo(torch.float32).eps  # torchao's


@dataclass(frozen=True)
class DynamicProducts:
    """``int8_weight``, and products in few bits in the Linears of ``activations``.

    Attributes:
        activations: parts whose Linears quantise their inputs: the towers, where the arithmetic is.
    """

    name: ClassVar[str]
    rules: Int8Rules = field(default_factory=Int8Rules)
    activations: tuple[str, ...] = ("vision", "text")

    def __post_init__(self) -> None:
        check_parts(f"{self.name}.activations", self.activations)


@dataclass(frozen=True)
class Int8Dynamic(DynamicProducts):
    """INT8 products."""

    name: ClassVar[str] = "int8_dynamic"


@register(Int8Dynamic)
def int8_dynamic(model: Sam3, method: Int8Dynamic) -> Convert:
    chosen = set(quantised_names(model, method.rules))
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return store_int8(chosen, {key for key in chosen & linears if part_of(key) in method.activations})


@contextmanager
def emulated(model: nn.Module) -> Iterator[int]:
    """For the body, every Linear with a dynamic INT8 weight computes the kernel's integers in FP32.

    Products of two INT8 values and their sums below 2²⁴ are exact in FP32; longer sums differ from the kernel's by
    float rounding (test: relative difference below 1e-5 on real layers).

    Yields:
        How many Linears those are.
    """
    chosen = [m for m in model.modules() if isinstance(m, nn.Linear) and is_dynamic(m.weight)]
    try:
        for module in chosen:
            module.forward = _Emulated(module)  # type: ignore[method-assign, assignment]
        yield len(chosen)
    finally:
        for module in chosen:
            module.__dict__.pop("forward", None)


class _Emulated:
    """Forward of one Linear, x [..., columns] → [..., rows] in x's type."""

    def __init__(self, module: nn.Linear) -> None:
        weight: Any = module.weight
        self.qdata, self.scale, self.bias = weight.qdata.float(), weight.scale.flatten(), module.bias

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.float()
        largest = rows.abs().amax(dim=-1, keepdim=True)
        scale = (largest / ((HIGH - LOW) / 2)).clamp(min=SMALLEST_SCALE)
        # torchao multiplies with the inverse instead of dividing: a tie must fall to the same side.
        integers = (rows * (1.0 / scale)).round().clamp(LOW, HIGH)
        y = functional.linear(integers, self.qdata) * scale * self.scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)
