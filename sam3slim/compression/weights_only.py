"""The weights and nothing else: no optimiser, no scheduler, FP32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam3slim.compression.registry import Convert, Made, register
from sam3slim.models import Sam3


@dataclass(frozen=True)
class WeightsOnly:
    """Exact: a training checkpoint loses two optimiser moments per parameter and no accuracy."""

    name: ClassVar[str] = "weights_only"
    precision: ClassVar[str] = "fp32"


@register(WeightsOnly)
def weights_only(model: Sam3, method: WeightsOnly) -> Convert:
    return lambda key, tensor: Made(tensor)
