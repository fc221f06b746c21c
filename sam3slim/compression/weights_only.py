"""The weights and nothing else: no optimiser, no scheduler, FP32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sam3slim.compression.registry import CompressedTensors, register
from sam3slim.models import Sam3


@dataclass(frozen=True)
class WeightsOnly:
    """Exact: a training checkpoint loses two optimiser moments per parameter and no accuracy."""

    name: ClassVar[str] = "weights_only"


@register(WeightsOnly)
def weights_only(model: Sam3, method: WeightsOnly) -> CompressedTensors:
    tensors = {key: t.detach().to("cpu", torch.float32) for key, t in model.state_dict().items()}
    return CompressedTensors("fp32", tensors)
