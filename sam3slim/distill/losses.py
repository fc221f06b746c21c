"""Distillation losses: small pure functions over the outputs of student and teacher.

L decoder layers, P prompts, Q queries of the student; K detections of the teacher. All are computed in float32 and
have no gradient in the teacher. All but the class scores' are 0 for a student each of whose layers answers as the
teacher's last one does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3slim.losses import Match, box_l1, cxcywh_to_xyxy, iou_and_giou

# Of a query without a detection in the class loss, as against one with: the hard-label loss (``iou_aware_bce``) has
# the same proportion.
NEGATIVE_SHARE = 0.1
# Presence from which the semantic map of a concept is looked at: below it says nothing, and need not be kept.
PRESENT = 0.05


def spread(features: Tensor) -> Tensor:
    """Variance [] of a teacher's features over all entries."""
    return features.detach().float().var(correction=0).clamp(min=1e-6)


def feature_loss(student: Tensor, teacher: Tensor, variance: Tensor | None = None) -> Tensor:
    """Mean squared error relative to the teacher's variance, so that weights mean the same on every map.

    1 is what a constant student at the teacher's mean would score (FitNets, arXiv:1412.6550, normalised).

    Args:
        student, teacher: any equal shape, any float dtype; computed in float32.
        variance: [] ``spread`` of the features that these are a part of; None: of these.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student features {tuple(student.shape)} and teacher's {tuple(teacher.shape)} differ")
    target = teacher.detach().float()
    return (student.float() - target).square().mean() / (spread(target) if variance is None else variance)


def pyramid_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Mean ``feature_loss`` over the neck's maps [B, d_model, H, W], fine to coarse."""
    if len(student) != len(teacher):
        raise ValueError(f"student has {len(student)} feature maps, teacher {len(teacher)}")
    return torch.stack([feature_loss(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


def soft_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of yes/no answers: cross-entropy to ``target`` less the target's own entropy.

    The gradient is that of the cross-entropy (Hinton et al., arXiv:1503.02531, temperature 1).

    Args:
        logits: [...] of the student.
        target: [...] probability of the teacher.

    Returns:
        [...] float32, at least 0 up to rounding.
    """
    wanted = target.detach().float()
    entropy = -(torch.xlogy(wanted, wanted) + torch.xlogy(1 - wanted, 1 - wanted))
    return F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none") - entropy


def presence_loss(logits: Tensor, presence: Tensor) -> Tensor:
    """``soft_bce`` of the presence logits [L, P, 1] to the teacher's probability [P], mean over prompts: [L]."""
    return soft_bce(logits[..., 0], presence.expand(logits.shape[:2])).mean(dim=1)


def score_loss(
    logits: Tensor, match: Match, scores: Tensor, rest: Tensor, presence: Tensor, divisor: Tensor, gamma: float = 2.0
) -> Tensor:
    """Class scores: the teacher's for a matched query, the mean of its other queries for the rest.

    Those are weighted by |p - target|^gamma (quality focal loss; Li et al., arXiv:2006.04388), and every prompt by
    the teacher's presence: class scores mean nothing, and are not trained, where the concept is absent.

    Args:
        logits: [L, P, Q].
        match: pairs of (layer, prompt, query) and one of the K detections.
        scores: [K] class probability.
        rest: [P] mean class probability of the teacher's queries that are no detection.
        presence: [P] probability.
        divisor: [] what the sum over prompts and queries is divided by.

    Returns:
        [L].
    """
    target = rest.float()[None, :, None].expand_as(logits).contiguous()
    matched = torch.zeros_like(target, dtype=torch.bool)
    place = (match.layer, match.prompt, match.query)
    target[place] = scores.float()[match.target]
    matched[place] = True
    wrong = (logits.float().sigmoid() - target).abs()
    weight = torch.where(matched, 1.0, NEGATIVE_SHARE * wrong**gamma) * presence.float()[:, None]
    return (soft_bce(logits, target) * weight).sum(dim=(1, 2)) / divisor


def box_losses(boxes: Tensor, match: Match, wanted: Tensor, weight: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and 1 - GIoU of the matched boxes, each weighted with how sure the teacher is.

    Args:
        boxes: [L, P, Q, 4] (cx, cy, w, h).
        match: pairs of the student's queries and the K detections.
        wanted: [K, 4] (cx, cy, w, h).
        weight: [K].
        divisor: [].

    Returns:
        L1 [L] and GIoU [L].
    """
    picked = boxes[match.layer, match.prompt, match.query].float()
    target, share = wanted.float()[match.target], weight[match.target]
    _, giou = iou_and_giou(cxcywh_to_xyxy(picked), cxcywh_to_xyxy(target))
    zeros = picked.new_zeros(len(boxes))
    return (
        zeros.index_add(0, match.layer, share * box_l1(picked, target)) / divisor,
        zeros.index_add(0, match.layer, share * (1 - giou)) / divisor,
    )


def soft_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss with squares (Milletari et al. 2016), which soft targets bring to 0: [N, h, w] twice to [N]."""
    prob, wanted = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    both = torch.linalg.vecdot(prob, wanted)
    return 1 - (2 * both + 1) / (prob.square().sum(1) + wanted.square().sum(1) + 1)


def mask_losses(
    pred_masks: Tensor, match: Match, wanted: Tensor, weight: Tensor, divisor: Tensor
) -> tuple[Tensor, Tensor]:
    """``soft_bce`` (mean over pixels) and ``soft_dice`` of the matched masks at the mask head's own resolution.

    Args:
        pred_masks: [P, Q, h, w] logits of the last layer.
        match: pairs of that layer.
        wanted: [K, h, w] logits of the teacher.
        weight: [K].
        divisor: [].

    Returns:
        Two [].
    """
    picked, share = pred_masks[match.prompt, match.query].float(), weight[match.target]
    target = wanted[match.target].float().sigmoid()
    pixels = soft_bce(picked, target).mean(dim=(1, 2)) if len(picked) else picked.sum((1, 2))
    return (share * pixels).sum() / divisor, (share * soft_dice(picked, target)).sum() / divisor


def semantic_share(presence: Tensor) -> Tensor:
    """Weight [P] float32 of each prompt's semantic map: that of an absent concept (below ``PRESENT``) says nothing."""
    return torch.where(presence >= PRESENT, presence, 0.0).float()


def semantic_loss(semantic: Tensor, wanted: Tensor, presence: Tensor, divisor: Tensor | None = None) -> Tensor:
    """``soft_bce`` plus ``soft_dice`` of the semantic map, mean over prompts weighted by the teacher's presence.

    Args:
        semantic: [P, 1, h, w] logits; ``wanted`` [P, h, w] logits of the teacher.
        presence: [P].
        divisor: [] sum of ``semantic_share`` over the batch that these prompts are a part of; None: over these.
    """
    target, share = wanted.float().sigmoid(), semantic_share(presence)
    each = soft_bce(semantic[:, 0], target).mean(dim=(1, 2)) + soft_dice(semantic[:, 0], target)
    return (share * each).sum() / (share.sum() if divisor is None else divisor).clamp(min=1e-6)
