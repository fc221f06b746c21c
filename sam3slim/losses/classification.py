"""Is the concept in the image (presence), and is this query one of its instances (IoU-aware class score)?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3slim.losses.matcher import Match


def match_quality(logits: Tensor, match: Match, iou: Tensor, alpha: float = 0.25, minimum: float = 0.01) -> Tensor:
    """Soft class target of every query: max(p^alpha IoU^(1-alpha), minimum) where matched, else 0.

    The IoU-aware target of Align-DETR (Cai et al. 2023), without gradient. A query that serves several
    targets (one-to-many) takes the last of them, as the reference does.

    Args:
        logits: [L, P, Q] float32.
        match: M pairs.
        iou: [M] float32 IoU of each pair in 0..1.

    Returns:
        [L, P, Q] float32 in 0..1.
    """
    with torch.no_grad():
        _, prompts, queries = logits.shape
        cell = (match.layer * prompts + match.prompt) * queries + match.query
        prob = logits.flatten()[cell].sigmoid()
        quality = (prob**alpha * iou.clamp(0, 1) ** (1 - alpha)).clamp(min=minimum)
        # Writing one after the other would say the same, but in no fixed order on a GPU.
        last = match.target.new_full((logits.numel(),), -1).scatter_reduce(0, cell, match.target, "amax")
        quality = torch.where(match.target == last[cell], quality, 0.0)
        flat = torch.zeros(logits.numel(), device=logits.device, dtype=logits.dtype)
        return flat.scatter_reduce(0, cell, quality, "amax").view_as(logits)


def iou_aware_bce(
    logits: Tensor, quality: Tensor, has_target: Tensor, pos_weight: float = 10.0, gamma: float = 2.0
) -> Tensor:
    """Class loss per layer: pos_weight x BCE to ``quality`` where matched, p^gamma x BCE to 0 elsewhere.

    Prompts without an instance give 0 (presence answers for them).

    Args:
        logits: [L, P, Q] float32.
        quality: [L, P, Q] float32, from ``match_quality``.
        has_target: [P] bool.

    Returns:
        [L] float32, summed over prompts and queries.
    """
    bce = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    weight = torch.where(quality > 0, pos_weight, logits.sigmoid() ** gamma)
    return (bce * weight * has_target[:, None]).sum(dim=(1, 2))


def presence_bce(logits: Tensor, has_target: Tensor, alpha: float = 0.5) -> Tensor:
    """alpha x BCE of "the concept is in the image", summed over prompts: [L, P, 1] logits, [P] bool to [L]."""
    wanted = has_target.to(logits.dtype).expand(logits.shape[:2])
    return alpha * F.binary_cross_entropy_with_logits(logits[..., 0], wanted, reduction="none").sum(dim=1)


@torch.no_grad()
def classification_f1(logits: Tensor, quality: Tensor) -> Tensor:
    """F1 of "p > 0.5" against "matched" over the queries of a layer, [P, Q] each, to []; 0 without either."""
    said, matched = logits > 0, quality > 0
    return 2 * (said & matched).sum() / (said.sum() + matched.sum()).clamp(min=1)


@torch.no_grad()
def presence_accuracy(logits: Tensor, has_target: Tensor) -> Tensor:
    """Share of prompts whose presence p > 0.5 is right: [P, 1] logits and [P] bool to []."""
    return ((logits[..., 0] > 0) == has_target).float().mean()
