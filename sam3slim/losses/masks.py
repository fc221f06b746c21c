"""Mask losses: focal and dice, for matched instances and for the union of a prompt's instances."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sam3slim.data.batch import Targets
from sam3slim.losses.matcher import Match
from sam3slim.parts import parts

TENSORS = 8  # of the masks' size that the backward pass of focal and dice loss needs


def focal_and_dice(
    logits: Tensor, masks: Tensor, alpha: float = 0.25, gamma: float = 2.0, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Focal loss (Lin et al. 2017, eq. 5; mean over pixels) and dice loss (Milletari et al. 2016, plus 1).

    Computed again in the backward pass, some masks at a time: at 1,008 px a pair would keep 36 MB.

    Args:
        logits: [N, h, w] float32, upsampled here to the masks' size (bilinear, align_corners=False).
        masks: [T, H, W] bool.
        index: [N] int64, which of the masks each is compared with; None: T = N, one with one.

    Returns:
        focal [N] and dice [N] float32.
    """
    if len(logits) == 0:
        return logits.sum((1, 2)), logits.sum((1, 2))
    if index is None:
        index = torch.arange(len(masks), device=masks.device)
    found = [
        checkpoint(
            _focal_and_dice, logits[part], masks, index[part], alpha, gamma,
            use_reentrant=False, preserve_rng_state=False,
        )
        for part in parts(len(logits), TENSORS * masks.shape[-2] * masks.shape[-1])
    ]  # fmt: skip
    focal, dice = zip(*found, strict=True)
    return torch.cat(focal), torch.cat(dice)


def _focal_and_dice(logits: Tensor, masks: Tensor, index: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    if logits.shape[-2:] != masks.shape[-2:]:
        # As N channels of one image: the backward on CPU is twice as fast as for N images.
        logits = F.interpolate(logits[None], size=masks.shape[-2:], mode="bilinear", align_corners=False)[0]
    x, inside = logits.flatten(1), masks[index].flatten(1)
    wanted = inside.to(x.dtype)
    prob = x.sigmoid()
    wrong = (prob - wanted).abs()  # 1 - p_t
    bce = F.binary_cross_entropy_with_logits(x, wanted, reduction="none")
    balance = torch.where(inside, alpha, 1 - alpha)
    focal = (balance * bce * wrong**gamma).mean(1)
    dice = 1 - (2 * torch.linalg.vecdot(prob, wanted) + 1) / (prob.sum(1) + wanted.sum(1) + 1)
    return focal, dice


def instance_mask_losses(
    pred_masks: Tensor, masks: Tensor, match: Match, alpha: float = 0.25, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Focal and dice summed over matched pairs (divide by the number of targets yourself).

    Args:
        pred_masks: [P, Q, h, w] float logits of the layer that ``match`` belongs to.
        masks: [T, H, W] bool.
        match: M pairs of one layer.

    Returns:
        focal [] and dice [] float32.
    """
    # Only matched masks are cast and upsampled: they are a small part of P x Q.
    picked = pred_masks[match.prompt, match.query].float()
    focal, dice = focal_and_dice(picked, masks, alpha, gamma, match.target)
    return focal.sum(), dice.sum()


def semantic_losses(
    semantic_seg: Tensor, targets: Targets, alpha: float = 0.6, gamma: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Focal and dice of the semantic head against the union of each prompt's masks.

    Summed over the prompts that have a foreground; the others are left to the presence head.

    Args:
        semantic_seg: [P, 1, h, w] float logits.
        targets: packed instances with masks.

    Returns:
        focal [] and dice [] float32; 0 (with a zero gradient) when no prompt has an instance.
    """
    assert targets.masks is not None, "semantic_losses needs target masks"
    prompts, group = torch.unique_consecutive(targets.prompt_index, return_inverse=True)
    size = targets.masks.shape[-2:]
    union = torch.zeros((len(prompts), *size), device=targets.masks.device, dtype=torch.float32)
    union = union.index_add_(0, group, targets.masks.to(union.dtype)) > 0
    focal, dice = focal_and_dice(semantic_seg[prompts, 0].float(), union, alpha, gamma)
    visible = union.flatten(1).any(1)
    return (focal * visible).sum(), (dice * visible).sum()
