"""What computes in FP32 whatever ``torch.autocast`` says: boxes, and all that is made of coordinates.

bfloat16 has 8 significant bits: at 1,008 pixels the neighbours of a coordinate are 3.9 pixels away.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3SinePositionEmbedding

# Modules that ``Sam3.forward`` calls under ``full_precision``, by the start of their parameters' names.
FP32_PARTS = (
    "geometry_encoder.",
    "detr_decoder.box_head.",
    "detr_decoder.ref_point_head.",
    "detr_decoder.presence_head.",
)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Without autocast inside; nothing at all where there is none, as in an exported graph."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def as_weights(value: Tensor, module: nn.Module) -> Tensor:
    """``value`` in the type of the module's first parameter: FP32, unless a caller has cast the whole model."""
    return value.to(next(module.parameters()).dtype)


class ExactPositions(Sam3SinePositionEmbedding):
    """Sine encodings of a map's places: computed in FP32, then rounded once to the map's own type."""

    def forward(
        self, shape: torch.Size, device: torch.device | str, dtype: torch.dtype, mask: Tensor | None = None
    ) -> Tensor:
        encoded: Tensor = super().forward(shape, device, torch.float32, mask)
        return encoded.to(dtype)
