"""Box formats and box losses.

Overlaps are computed element by element with broadcasting instead of with ``torchvision.ops.box_iou``:
targets of different prompts are never compared, so the full cross product is wasted work, and torchvision
divides 0 by 0 for boxes without area.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Areas are fractions of the image; one pixel of a 1008 x 1008 input is 1e-6.
_MIN_AREA = 1e-9


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] (centre x, centre y, width, height) to (x1, y1, x2, y2)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    half = size * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] (x1, y1, x2, y2) to (centre x, centre y, width, height)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019, eq. 2) of boxes that broadcast against each other.

    Pairwise values come from ``iou_and_giou(a[:, None], b[None])``.

    Args:
        first: [..., 4] xyxy.
        second: [..., 4] xyxy, broadcastable with ``first``.

    Returns:
        IoU in 0..1 and GIoU in -1..1, both [...]. Two boxes without area have IoU 0 and a zero IoU gradient.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    inter = _area((high - low).clamp(min=0))
    union = _area(first[..., 2:] - first[..., :2]) + _area(second[..., 2:] - second[..., :2]) - inter
    iou = _ratio(inter, union)
    hull_low = torch.minimum(first[..., :2], second[..., :2])
    hull_high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = _area(hull_high - hull_low)
    return iou, iou - _ratio(hull - union, hull)


def box_l1(predicted: Tensor, target: Tensor) -> Tensor:
    """Sum over the four coordinates of the absolute difference: [..., 4] and [..., 4] to [...]."""
    return (predicted - target).abs().sum(-1)


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    # Masking the numerator too keeps the gradient of a vanishing area at 0 instead of 1 / _MIN_AREA.
    return torch.where(whole > _MIN_AREA, part, 0.0) / whole.clamp(min=_MIN_AREA)
