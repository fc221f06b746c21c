"""A narrower residual stream that keeps directions instead of channels.

Layer norms stand between the stream and its readers, so it cannot be turned freely (SliceGPT, arXiv:2401.15024,
section 3, turns them into RMS norms first). Here they stay: the mean over channels is carried along as the mean over
fewer channels, and everything else as coordinates whose mean is zero, so that a norm of the narrow stream takes away
what the norm of the wide one took away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class NormMoments:
    """Second moments of what the layer norms hand on: rows without their mean, at unit length; totals in float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, stream: Tensor, weight: float = 1.0) -> None:
        """Rows [..., width] of the stream."""
        rows = stream.flatten(0, -2)
        rows = rows - rows.mean(dim=1, keepdim=True)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.total += weight * (rows.T @ rows)


def principal_map(moments: Tensor, width: int) -> tuple[Tensor, float]:
    """The map from a wide stream to a narrow one, and the share of its variance that is kept.

    Args:
        moments: of ``NormMoments`` [wide, wide].
        width: of the narrow stream, at least 2.

    Returns:
        [width, wide] float64 with orthonormal rows, and 0..1. The vector of ones is mapped to a multiple of ones; its
        complement to vectors of mean zero.
    """
    wide = len(moments)
    values, vectors = torch.linalg.eigh(moments)
    kept = vectors[:, -(width - 1) :]
    # Orthonormal coordinates of mean zero (Helmert), in which the kept directions are written down.
    steps = torch.arange(1, width, dtype=torch.float64, device=moments.device)
    helmert = torch.tril(torch.ones(width - 1, width, dtype=torch.float64, device=moments.device))
    helmert[torch.arange(width - 1), torch.arange(1, width)] = -steps
    helmert /= (steps * (steps + 1)).sqrt()[:, None]
    ones = torch.full((width, wide), 1 / math.sqrt(width * wide), dtype=torch.float64, device=moments.device)
    return helmert.T @ kept.T + ones, float(values[-(width - 1) :].sum() / values.sum())
