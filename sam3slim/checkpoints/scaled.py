"""What weights stored in INT8 and in FP8 have in common: a code for each value, and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaled:
    """A weight that is ``qdata · scale``: codes on disk, float32 in memory.

    Attributes:
        qdata: codes in the shape of the weight.
        scale: float32, broadcasts to it.
    """

    qdata: Tensor
    scale: Tensor
    ENDS: ClassVar[tuple[str, str]]  # of their keys on disk

    @property
    def parts(self) -> dict[str, Tensor]:
        """End of the key on disk → tensor."""
        return dict(zip(self.ENDS, (self.qdata, self.scale), strict=True))

    @property
    def shape(self) -> torch.Size:
        return self.qdata.shape

    @property
    def dtype(self) -> torch.dtype:
        """What it is loaded as."""
        return torch.float32

    def numel(self) -> int:
        return self.qdata.numel()

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.qdata.to(device), self.scale.to(device))

    def dequantize(self) -> Tensor:
        """float32, of the same shape."""
        return self.qdata.float() * self.scale.float()
