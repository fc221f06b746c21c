"""A box's picture in fewer bins: the geometry encoder pools a box into roi x roi cells and reads each by a weight."""

from __future__ import annotations

import torch
from torch import Tensor

ROI_WEIGHT = "geometry_encoder.boxes_pool_project.weight"


def merge_bins(weight: Tensor, bins: int) -> Tensor:
    """The kernel for ``bins`` x ``bins`` cells whose answer is the same wherever features are constant on those cells.

    Every weight goes to the larger cells in the share of its own cell's area that they cover, so the sum over the
    kernel stays.

    Args:
        weight: [out, in, n, n] with n >= ``bins``, float.

    Returns:
        [out, in, bins, bins] in ``weight``'s dtype; ``weight`` itself if the sizes are equal.
    """
    count = weight.shape[-1]
    if bins == count:
        return weight
    fine = torch.arange(count, dtype=torch.float64) / count
    coarse = torch.arange(bins, dtype=torch.float64)[:, None] / bins
    overlap = (torch.minimum(fine + 1 / count, coarse + 1 / bins) - torch.maximum(fine, coarse)).clamp(min=0) * count
    shares = overlap.to(weight)
    return torch.einsum("ai,bj,ocij->ocab", shares, shares, weight)
