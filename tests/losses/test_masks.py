from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from sam3slim.data.batch import Targets
from sam3slim.losses.masks import focal_and_dice, instance_mask_losses, semantic_losses
from sam3slim.losses.matcher import HungarianMatcher

from .conftest import MakeCase


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0)])
def test_focal_and_dice__equals_torchvision_on_upsampled_logits(alpha: float, gamma: float) -> None:
    logits, masks = torch.randn(3, 4, 4), torch.rand(3, 8, 8) > 0.5
    focal, dice = focal_and_dice(logits, masks, alpha, gamma)
    big = F.interpolate(logits[None], size=(8, 8), mode="bilinear")[0]
    wanted = sigmoid_focal_loss(big, masks.float(), alpha, gamma).mean((1, 2))
    torch.testing.assert_close(focal, wanted)
    prob = big.sigmoid()
    overlap = 2 * (prob * masks).sum((1, 2)) + 1
    torch.testing.assert_close(dice, 1 - overlap / (prob.sum((1, 2)) + masks.sum((1, 2)) + 1))


@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
def test_focal_and_dice__gradient_equals_finite_differences(gamma: float) -> None:
    logits = (3 * torch.randn(2, 3, 3, dtype=torch.float64)).requires_grad_()
    masks = torch.rand(2, 6, 6) > 0.5
    assert torch.autograd.gradcheck(lambda x: focal_and_dice(x, masks, 0.25, gamma), logits)


def test_focal_and_dice__huge_logits_have_finite_gradients() -> None:
    logits = torch.tensor([[[80.0, -80.0], [80.0, -80.0]]], requires_grad=True)
    focal, dice = focal_and_dice(logits, torch.tensor([[[True, False], [False, True]]]))
    (focal + dice).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_instance_mask_losses__sums_only_matched_pairs(make_case: MakeCase) -> None:
    outputs, targets = make_case([2, 0, 1], layers=1)
    assert outputs.pred_masks is not None
    assert targets.masks is not None
    match = HungarianMatcher()(outputs.layer_logits, outputs.layer_boxes, targets)
    focal, dice = instance_mask_losses(outputs.pred_masks, targets.masks, match)
    picked = outputs.pred_masks[match.prompt, match.query]
    wanted = focal_and_dice(picked, targets.masks[match.target])
    torch.testing.assert_close(torch.stack([focal, dice]), torch.stack([x.sum() for x in wanted]))


def test_semantic_losses__union_summed_over_prompts_with_foreground() -> None:
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 1:3], masks[2, :, 0] = True, True, True
    targets = Targets(torch.zeros(3, 4), masks, torch.tensor([1, 1, 3]))
    seg = torch.randn(5, 1, 4, 4)
    union = torch.stack([masks[0] | masks[1], masks[2]])
    wanted = focal_and_dice(seg[[1, 3], 0], union, 0.6)
    focal, dice = semantic_losses(seg, targets)
    torch.testing.assert_close(torch.stack([focal, dice]), torch.stack([x.sum() for x in wanted]))


def test_semantic_losses__empty_mask_is_left_out() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 0] = True
    seg = torch.randn(2, 1, 4, 4)
    both = semantic_losses(seg, Targets(torch.zeros(2, 4), masks, torch.tensor([0, 1])))
    alone = semantic_losses(seg, Targets(torch.zeros(1, 4), masks[:1], torch.tensor([0])))
    torch.testing.assert_close(both, alone)
