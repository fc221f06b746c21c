"""A precision for every group of weights: FP32, FP16, INT8 or INT4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from sam3slim.artifacts.lazy import Convert
from sam3slim.compression.groups import check_groups, weights_by_group
from sam3slim.compression.registry import register
from sam3slim.compression.rounding import check_int4_group, store_int4, store_int8
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
        groups: group → precision, one of ``STORES``; those not named are FP16.
        int4_group: weights of an INT4 row that share a scale; see ``int4_weight``. What INT4 does not fit (embeddings,
            kernels, rows that are no multiple) is INT8.
        rest: of norms, biases and small tables: ``fp16`` or ``fp32``.
    """

    name: ClassVar[str] = "mixed"
    groups: Mapping[str, str] = field(default_factory=dict)
    rest: Literal["fp32", "fp16"] = "fp16"
    int4_group: int = 64

    def __post_init__(self) -> None:
        check_groups("compress=mixed", self.groups)
        for group, precision in self.groups.items():
            if precision not in STORES:
                raise UserError(f"compress=mixed: groups.{group}={precision}; expected {', '.join(STORES)}")
        check_int4_group("compress.mixed.int4_group", self.int4_group)
        if self.rest not in ("fp32", "fp16"):
            raise UserError(f"compress=mixed: rest={self.rest}; expected fp32 or fp16")


@register(Mixed)
def mixed(model: Sam3, method: Mixed) -> Convert:
    precisions: dict[str, str] = {}
    for group, names in weights_by_group(model).items():
        precisions |= dict.fromkeys(names, method.groups.get(group, "fp16"))
    modules = dict(model.named_modules())

    def convert(key: str, tensor: Tensor) -> Stored:
        precision, module = precisions.get(key, method.rest), modules[key.rpartition(".")[0]]
        if precision == "int4":
            return store_int4(tensor, module, method.int4_group)
        return STORES[precision](tensor, module)

    return convert
