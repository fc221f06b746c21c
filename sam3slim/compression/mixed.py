"""A precision for every group of weights: FP32, FP16, INT8 or INT4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from sam3slim.artifacts.lazy import Convert
from sam3slim.compression.groups import (
    GRANULARITIES,
    Granularity,
    block_of,
    check_groups,
    group_of,
    weights_by_group,
    weights_by_unit,
)
from sam3slim.compression.int4_weight import planned_bytes
from sam3slim.compression.registry import register
from sam3slim.compression.rounding import check_int4_group, fits_int4, store_int4, store_int8
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.precisions import FP16, FP32, Stored

# What a group may be stored in → how its weights are made: (FP32 weight, its module).
STORES: dict[str, Callable[[Tensor, nn.Module], Stored]] = {
    "fp32": lambda weight, module: FP32.store(weight),
    "fp16": lambda weight, module: FP16.store(weight),
    "int8": store_int8,
    "int4": store_int4,
}


@dataclass(frozen=True)
class Mixed:
    """Precisions by group.

    Attributes:
        groups: group → precision, one of ``STORES``; those not named are FP16. ``vision_3`` names one block, the fourth
            layer of the tower, and goes before its group.
        granularity: of a search: a precision for every ``group``, or for every ``block`` of a tower, of the encoders
            and of the decoder.
        int4_group: weights of an INT4 row that share a scale; see ``int4_weight``. What INT4 does not fit (embeddings,
            kernels, rows that are no multiple) is INT8.
        rest: of norms, biases and small tables: ``fp16`` or ``fp32``.
    """

    name: ClassVar[str] = "mixed"
    groups: Mapping[str, str] = field(default_factory=dict)
    rest: Literal["fp32", "fp16"] = "fp16"
    int4_group: int = 64
    granularity: Granularity = "group"

    def __post_init__(self) -> None:
        check_groups("compress=mixed", map(group_of, self.groups))
        if self.granularity not in GRANULARITIES:
            raise UserError(f"compress.mixed.granularity={self.granularity} must be {' or '.join(GRANULARITIES)}")
        for group, precision in self.groups.items():
            if precision not in STORES:
                raise UserError(f"compress=mixed: groups.{group}={precision}; expected {', '.join(STORES)}")
        check_int4_group("compress.mixed.int4_group", self.int4_group)
        if self.rest not in ("fp32", "fp16"):
            raise UserError(f"compress=mixed: rest={self.rest}; expected fp32 or fp16")

    def check(self, model: nn.Module) -> None:
        """Refuse a model without a block that is named. Raises UserError."""
        blocks = [unit for unit in weights_by_unit(model, "block") if group_of(unit) != unit]
        for unit in self.groups:
            if (group := group_of(unit)) != unit and unit not in blocks:
                own = [block for block in blocks if group_of(block) == group]
                raise UserError(
                    f"compress=mixed: groups.{unit}: the {group} of this model has {len(own)} blocks"
                    + (f", {own[0]} to {own[-1]}" if own else "")
                )

    def store(self, precision: str, tensor: Tensor, module: nn.Module) -> Stored:
        """A weight of ``module``, FP32 on the CPU, in ``precision``."""
        if precision == "int4":
            return store_int4(tensor, module, self.int4_group)
        return STORES[precision](tensor, module)


@register(Mixed)
def mixed(model: Sam3, method: Mixed) -> Convert:
    precisions: dict[str, str] = {}
    for group, names in weights_by_group(model).items():
        for name in names:
            precisions[name] = method.groups.get(block_of(group, name), method.groups.get(group, "fp16"))
    modules = dict(model.named_modules())
    return lambda key, tensor: method.store(precisions.get(key, method.rest), tensor, modules[key.rpartition(".")[0]])


def smallest_bytes(model: nn.Module, int4_group: int = Mixed.int4_group) -> int:
    """Bytes of all tensors with every group in INT4. ``model`` may be on the meta device."""
    weights, modules = dict(model.named_parameters()), dict(model.named_modules())
    names = [name for group in weights_by_group(model).values() for name in group]
    fits = {name: fits_int4(weights[name], modules[name.removesuffix(".weight")], int4_group) for name in names}
    return planned_bytes(model, {name: "int4" if fit else "int8" for name, fit in fits.items()}, int4_group)
