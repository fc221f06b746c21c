"""Rounding to half precision with an account of what it loses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


@dataclass
class Rounding:
    """What rounding did to a checkpoint's tensors.

    Attributes:
        overflowed: keys left as they were, because a value lies beyond the type's range (65,504 in FP16).
        underflowed: key → how many of its non-zero values became zero, where there are any.
    """

    overflowed: list[str] = field(default_factory=list)
    underflowed: dict[str, int] = field(default_factory=dict)

    def describe(self) -> list[str]:
        """One line per kind of loss; none where nothing was lost."""
        lines = []
        if self.overflowed:
            names = ", ".join(self.overflowed[:3]) + (", …" if len(self.overflowed) > 3 else "")
            lines.append(f"{len(self.overflowed)} tensors overflow FP16 and stay FP32: {names} (bf16 would hold them)")
        if self.underflowed:
            worst = max(self.underflowed, key=lambda key: self.underflowed[key])
            total = sum(self.underflowed.values())
            lines.append(f"{total:,} values became zero ({self.underflowed[worst]:,} of them in {worst})")
        return lines

    def facts(self) -> dict[str, object]:
        """JSON-able account for ``sam3slim.json``."""
        return {
            "overflowed": list(self.overflowed),
            "underflowed": {"tensors": len(self.underflowed), "values": sum(self.underflowed.values())},
        }


def round_values(tensor: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> tuple[Tensor | None, int]:
    """``tensor`` in half precision and the number of non-zero values that became zero; None where one overflows.

    Args:
        out: memory to round into, of ``tensor``'s shape and ``dtype``; fresh memory costs more than rounding does.
    """
    half = tensor.to(dtype) if out is None else out.copy_(tensor)
    if not tensor.numel():
        return half, 0
    # aminmax hands NaN on, and is 20 times faster than isfinite on half precision; so are bits without their sign.
    low, high = half.aminmax()
    if not (low.isfinite() and high.isfinite()):
        return None, 0
    nonzero = int(np.count_nonzero(half.view(torch.int16).numpy() << 1))
    return half, int(torch.count_nonzero(tensor)) - nonzero
