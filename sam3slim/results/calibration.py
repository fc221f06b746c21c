"""How far probabilities are from frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15


def calibration_error(probabilities: Tensor, there: Tensor) -> float:
    """Expected calibration error (Guo et al., arXiv:1706.04599, equation 3), in 0..1: 15 bins of equal width.

    Args:
        probabilities: [N] in 0..1; there: [N], 0 or 1.
    """
    places = (probabilities * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, places, probabilities.double() - there.double())
    return float(gaps.abs().sum()) / max(len(probabilities), 1)
