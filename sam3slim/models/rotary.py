"""Rotary positions of maps of any size: transformers keeps those of the one size that a model was built with."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.sam3.modeling_sam3 import Sam3ViTRotaryEmbedding


class MapRotary(Sam3ViTRotaryEmbedding):
    """The angles of the map that comes, as a model built for its size has them.

    Blocks with global attention spread the positions of one window over the whole map (``Sam3ViTLayer``'s
    ``precompute_positions``), so another size means other positions. Windows always have the same.
    """

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` [B, H, W, d]; ``position_ids`` [N, 2] of the model's own size, used where N = H · W."""
        height, width = x.shape[1:3]
        if position_ids.shape[0] != height * width:
            rows, columns = torch.meshgrid(
                torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij"
            )
            places = torch.stack([columns.flatten(), rows.flatten()], dim=-1)
            position_ids = places * (self.config.window_size / width)
        angles: tuple[Tensor, Tensor] = super().forward(x, position_ids)
        return angles
