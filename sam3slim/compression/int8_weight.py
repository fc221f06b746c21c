"""INT8 weight-only: one scale per output row, activations and arithmetic stay in float.

Symmetric round-to-nearest by torchao (``Int8WeightOnlyConfig``): w ≈ q · s with q in −128..127 and
s = max|w| / 127.5 of the row. The rest of the model is stored in FP16.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from torch import Tensor, nn

from sam3slim.artifacts.lazy import Convert
from sam3slim.compression.compensate import check_compensation, compensated_model
from sam3slim.compression.gptq import int8_rounder
from sam3slim.compression.groups import weights_by_group
from sam3slim.compression.registry import Batches, needs_batches, register
from sam3slim.compression.rounding import quantise
from sam3slim.models import Sam3, part_of
from sam3slim.models.count import check_parts
from sam3slim.precisions import FP16, Stored


@dataclass(frozen=True)
class Int8Rules:
    """Which weights become INT8.

    Attributes:
        parts: all of these parts; attention and heads of the decoder, mask head and scoring stay float, because a
            DETR decoder is what INT8 hurts most.
        also: parameter-name patterns (``*`` wild) in other parts: the decoder's feed-forward layers, half of its
            weights.
        keep_float: parameter-name patterns (``*`` wild) left float: embeddings that the model reads as
            plain tensors or that hold a few rows.
        min_columns: rows shorter than this stay FP16; an FP32 scale would eat what INT8 saves.
    """

    parts: tuple[str, ...] = ("vision", "text", "geometry", "encoder")
    also: tuple[str, ...] = ("detr_decoder.layers.*.mlp.*",)
    keep_float: tuple[str, ...] = ("*.position_embedding.weight", "*.cls_embed.weight", "*.label_embed.weight")
    min_columns: int = 16

    def __post_init__(self) -> None:
        check_parts("INT8 rules.parts", self.parts)

    def selects(self, name: str, weight: Tensor) -> bool:
        """Is the Linear or Embedding weight called ``name`` to be quantised?"""
        wide_enough = weight.ndim == 2 and weight.shape[1] >= self.min_columns
        wanted = part_of(name) in self.parts or any(fnmatchcase(name, pattern) for pattern in self.also)
        return wanted and wide_enough and not self.keeps_float(name)

    def keeps_float(self, name: str) -> bool:
        """Is the weight called ``name`` one of ``keep_float``?"""
        return any(fnmatchcase(name, pattern) for pattern in self.keep_float)


@dataclass(frozen=True)
class Int8Weight:
    """Linears and the token embedding in INT8, convolutions and everything else in FP16.

    Attributes:
        compensate: ``gptq`` rounds so that layers make up for it, on unlabelled images; see ``compression.gptq``.
        calibration_batches: of images, for that.
    """

    name: ClassVar[str] = "int8_weight"
    rules: Int8Rules = field(default_factory=Int8Rules)
    compensate: Literal["none", "gptq"] = "none"
    calibration_batches: int = 8

    def __post_init__(self) -> None:
        check_compensation("compress.int8_weight", self.compensate, self.calibration_batches)


@register(Int8Weight)
def int8_weight(model: Sam3, method: Int8Weight, batches: Batches | None = None) -> Convert:
    names = quantised_names(model, method.rules)
    plain = store_int8(set(names))
    if not needs_batches(method):
        return plain
    return compensated_model(model, dict.fromkeys(names, int8_rounder), plain, batches, method.calibration_batches)


def store_int8(chosen: Collection[str], dynamic: Collection[str] = ()) -> Convert:
    """``chosen`` weights in INT8, the rest in FP16; ``dynamic`` ones quantise their activations too."""

    def convert(key: str, tensor: Tensor) -> Stored:
        return Stored(quantise(tensor, dynamic=key in dynamic)) if key in chosen else FP16.store(tensor)

    return convert


def quantised_names(model: nn.Module, rules: Int8Rules) -> list[str]:
    """The parameters of ``model`` that ``rules`` turn into INT8, in model order.

    Of embeddings only those that are looked up: queries and reference points are read as plain tensors.
    """
    looked_up = weights_by_group(model)["embeddings"]
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or f"{name}.weight" in looked_up)
        and rules.selects(f"{name}.weight", module.weight)
    ]
