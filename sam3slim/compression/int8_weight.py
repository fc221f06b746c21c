"""INT8 weight-only: one scale per output row, activations and arithmetic stay in float.

Symmetric round-to-nearest by torchao (``Int8WeightOnlyConfig``): w ≈ q · s with q in −128..127 and
s = max|w| / 127.5 of the row. The rest of the model is stored in FP16 by ``half``'s rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sam3slim.checkpoints.int8 import int8_tensor
from sam3slim.compression.half import round_tensors
from sam3slim.compression.registry import CompressedTensors, register
from sam3slim.errors import UserError
from sam3slim.models import Sam3, part_of
from sam3slim.models.count import PARTS
from sam3slim.strict import spec_from_dict


@dataclass(frozen=True)
class Int8Rules:
    """Which weights become INT8.

    Attributes:
        parts: only these parts; decoder, mask head and scoring stay float, because a DETR decoder is what
            INT8 hurts most.
        keep_float: parameter-name patterns (``*`` wild) left float: embeddings that the model reads as
            plain tensors or that hold a few rows.
        min_columns: rows shorter than this stay FP16; an FP32 scale would eat what INT8 saves.
    """

    parts: tuple[str, ...] = ("vision", "text", "geometry", "encoder")
    keep_float: tuple[str, ...] = ("*.position_embedding.weight", "*.cls_embed.weight", "*.label_embed.weight")
    min_columns: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "keep_float", tuple(self.keep_float))
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise UserError(f"INT8 rules.parts: unknown part {unknown[0]!r}; parts: {', '.join(PARTS)}")

    def selects(self, name: str, weight: Tensor) -> bool:
        """Is the Linear or Embedding weight called ``name`` to be quantised?"""
        wide_enough = weight.ndim == 2 and weight.shape[1] >= self.min_columns
        allowed = not any(fnmatchcase(name, pattern) for pattern in self.keep_float)
        return part_of(name) in self.parts and wide_enough and allowed


def rules_of(value: Any, method: str) -> Int8Rules:
    """``value`` itself, or the rules of the plain dict that a configuration holds. Raises SpecError for a bad key."""
    return value if isinstance(value, Int8Rules) else spec_from_dict(Int8Rules, value, f"compress.{method}.rules")


@dataclass(frozen=True)
class Int8Weight:
    """Linears and the token embedding in INT8, convolutions and everything else in FP16."""

    name: ClassVar[str] = "int8_weight"
    rules: Int8Rules = field(default_factory=Int8Rules)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", rules_of(self.rules, self.name))


@register(Int8Weight)
def int8_weight(model: Sam3, method: Int8Weight) -> CompressedTensors:
    chosen = set(quantised_names(model, method.rules))
    state = model.state_dict()
    rest, overflowed, underflowed = round_tensors(
        {key: tensor for key, tensor in state.items() if key not in chosen}, torch.float16
    )
    # Same order of keys as the model, so that two artifacts can be compared line by line.
    tensors = {key: quantise(t) if key in chosen else rest[key] for key, t in state.items()}
    return CompressedTensors("int8_weight", tensors, overflowed=overflowed, underflowed=underflowed)


def quantised_names(model: nn.Module, rules: Int8Rules) -> list[str]:
    """The parameters of ``model`` that ``rules`` turn into INT8, in model order."""
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and rules.selects(f"{name}.weight", module.weight)
    ]


def quantise(weight: Tensor) -> Tensor:
    """torchao's per-row weight-only tensor of a float ``weight`` [rows, columns].

    Its zero points (all zero: symmetric) are dropped; they would cost a byte per row for nothing.
    """
    try:
        from torchao.quantization import Int8Tensor, PerRow
    except ImportError as error:
        raise UserError("compress=int8_weight needs torchao, which is not installed; pip install torchao") from error
    quantised = Int8Tensor.from_hp(weight.detach().cpu().float(), granularity=PerRow())
    return int8_tensor(quantised.qdata, quantised.scale)
