"""INT4 weight-only: one scale per group of neighbours in a row, activations and arithmetic stay in float.

w ≈ (q - z) · s with q in 0..15 and an FP16 scale s. Symmetric: z = 8 and s = max|w| / 7.5 of the group; otherwise the
codes reach from the group's smallest weight to its largest. What is more fragile, or has no rows of whole groups, is
stored in INT8, and the rest in FP16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from sam3slim.artifacts.lazy import Convert
from sam3slim.compression.compensate import check_compensation, compensated_model
from sam3slim.compression.gptq import int4_rounder, int8_rounder
from sam3slim.compression.groups import check_groups, weights_by_group
from sam3slim.compression.int8_weight import Int8Rules, quantised_names
from sam3slim.compression.registry import Batches, needs_batches, register
from sam3slim.compression.rounding import (
    INT4_GROUPS,
    check_int4_group,
    fits_int4,
    output_channels,
    store_int4,
    store_int8_or_half,
)
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.precisions import FP16, FP32, Stored


@dataclass(frozen=True)
class Int4Weight:
    """Linears of the towers and encoders and the decoder's feed-forward layers in INT4.

    Attributes:
        group: weights that share a scale.
        symmetric: False stores a zero per group too, four bits of it.
        rules: which Linears become INT4; embeddings that they choose become INT8.
        int8: groups of weights (``compression.groups``) whose other weights become INT8.
        compensate: ``gptq`` rounds so that layers make up for it, on unlabelled images; see ``compression.gptq``.
        calibration_batches: of images, for that.
    """

    name: ClassVar[str] = "int4_weight"
    group: int = 64
    symmetric: bool = True
    rules: Int8Rules = field(default_factory=Int8Rules)
    int8: tuple[str, ...] = ("neck", "embeddings", "decoder", "convolutions")
    compensate: Literal["none", "gptq"] = "none"
    calibration_batches: int = 8

    def __post_init__(self) -> None:
        check_int4_group("compress.int4_weight.group", self.group)
        check_compensation("compress.int4_weight", self.compensate, self.calibration_batches)
        check_groups("compress.int4_weight.int8", self.int8)

    def check(self, model: nn.Module) -> None:
        """Refuse a model without a row of whole groups. Raises UserError."""
        int4_plan(model, self)


def int4_plan(
    model: nn.Module, method: Int4Weight, key: str = "compress.int4_weight"
) -> dict[str, Literal["int4", "int8"]]:
    """Weight → how ``method`` stores it, in model order; the others are FP16. Also of a model on the meta device.

    Args:
        key: of the method, for messages.

    Raises:
        UserError: no row can be cut into groups.
    """
    modules = dict(model.named_modules())
    weights = dict(model.named_parameters())
    chosen = quantised_names(model, method.rules)
    plan: dict[str, Literal["int4", "int8"]] = {
        name: "int4" if fits_int4(weights[name], modules[name.removesuffix(".weight")], method.group) else "int8"
        for name in chosen
    }
    if "int4" not in plan.values():
        widths = Counter(weights[name].shape[1] for name in chosen)
        raise UserError(
            f"{key}.group={method.group} divides no row of the chosen weights (lengths: "
            f"{', '.join(map(str, sorted(widths))) or 'none'}); choose another of "
            f"{', '.join(map(str, INT4_GROUPS))}, or other rules.parts"
        )
    for group, names in weights_by_group(model).items():
        kept = [] if group not in method.int8 else [name for name in names if not method.rules.keeps_float(name)]
        plan |= {name: "int8" for name in kept if name not in plan}
    return plan


@register(Int4Weight)
def int4_weight(model: Sam3, method: Int4Weight, batches: Batches | None = None) -> Convert:
    plan = int4_plan(model, method)
    modules = dict(model.named_modules())

    def convert(key: str, tensor: Tensor) -> Stored:
        module = modules[key.rpartition(".")[0]]
        if plan.get(key) == "int4":
            return store_int4(tensor, module, method.group, symmetric=method.symmetric)
        return store_int8_or_half(tensor, module, method.rules.min_columns) if key in plan else FP16.store(tensor)

    if not needs_batches(method):
        return convert
    int4 = int4_rounder(method.group, method.symmetric)
    weights, narrow = dict(model.named_parameters()), method.rules.min_columns
    rounders = {
        name: int4 if kind == "int4" else int8_rounder
        for name, kind in plan.items()
        if weights[name].ndim == 2 and weights[name].shape[1] >= narrow
    }
    return compensated_model(model, rounders, convert, batches, method.calibration_batches)


def int4_bytes(model: nn.Module, method: Int4Weight) -> int:
    """Bytes of all tensors that ``method`` makes of ``model``, which may be on the meta device."""
    plan = int4_plan(model, method)
    return planned_bytes(model, plan, method.group, symmetric=method.symmetric, min_columns=method.rules.min_columns)


def planned_bytes(
    model: nn.Module, plan: Mapping[str, str], group: int, *, symmetric: bool = True, min_columns: int = 0
) -> int:
    """Bytes of all tensors of ``model``, those of ``plan`` as INT4 in groups or as INT8, the others as FP16.

    Args:
        min_columns: of INT8; see ``Int8Rules``.
    """
    modules = dict(model.named_modules())
    total = 0
    for key, weight in model.state_dict().items():
        count = weight.numel()
        channels = output_channels(weight, modules[key.rpartition(".")[0]])
        if plan.get(key) == "int4":
            rows, groups = channels, weight.shape[1] // group
            total += count // 2 + rows * groups * FP16.bytes + (0 if symmetric else rows * ((groups + 1) // 2))
        elif key in plan and count >= min_columns * channels:
            total += count + channels * FP32.bytes
        else:
            total += FP16.bytes * count
    return total
