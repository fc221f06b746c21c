from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3slim.distill import feature_loss, pyramid_loss
from sam3slim.distill.losses import (
    NEGATIVE_SHARE,
    box_losses,
    mask_losses,
    presence_loss,
    score_loss,
    semantic_loss,
    soft_bce,
    soft_dice,
)
from sam3slim.losses import Match

ONE = torch.tensor(1.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs(*rows: tuple[int, int, int, int]) -> Match:
    """(layer, prompt, query, detection)."""
    return Match(*torch.tensor(rows, dtype=torch.int64).reshape(-1, 4).unbind(1))


def test_feature_loss__scale_free() -> None:
    teacher = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    assert feature_loss(teacher, teacher) == 0
    constant = torch.full_like(teacher, teacher.mean().item())
    torch.testing.assert_close(feature_loss(constant, teacher), torch.tensor(1.0), atol=1e-5, rtol=0)
    student = teacher + torch.randn_like(teacher)
    torch.testing.assert_close(feature_loss(student, teacher), feature_loss(student * 10, teacher * 10))


def test_feature_loss__gradient_reaches_the_student_only() -> None:
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    feature_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_losses__shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="differ"):
        feature_loss(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="1 feature maps, teacher 2"):
        pyramid_loss((torch.zeros(1),), (torch.zeros(1), torch.zeros(1)))


def test_soft_bce__zero_at_the_teacher_and_the_gradient_of_cross_entropy() -> None:
    logits = random(50) * 5
    torch.testing.assert_close(soft_bce(logits, logits.sigmoid()), torch.zeros(50), atol=1e-6, rtol=0)
    student, target = random(50, seed=1).requires_grad_(), logits.sigmoid()
    assert bool((soft_bce(student, target) > -1e-6).all())
    (ours,) = torch.autograd.grad(soft_bce(student, target).sum(), student)
    (theirs,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(student, target, reduction="sum"), student)
    torch.testing.assert_close(ours, theirs)


def test_soft_bce__certain_teacher_is_plain_cross_entropy() -> None:
    target, student = torch.tensor([0.0, 1.0]), torch.tensor([1.0, -2.0])
    expected = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    torch.testing.assert_close(soft_bce(student, target), expected)


def test_presence_loss__mean_over_prompts_per_layer() -> None:
    logits, presence = random(2, 3, 1), torch.tensor([0.1, 0.5, 0.9])
    expected = torch.stack([soft_bce(layer[:, 0], presence).mean() for layer in logits])
    torch.testing.assert_close(presence_loss(logits, presence), expected)


def test_score_loss__by_hand() -> None:
    logits, presence = random(1, 2, 3), torch.tensor([0.8, 0.0])
    scores, rest = torch.tensor([0.9]), torch.tensor([0.05, 0.5])
    found = score_loss(logits, pairs((0, 0, 1, 0)), scores, rest, presence, torch.tensor(2.0))
    prob = logits.sigmoid()
    total = soft_bce(logits[0, 0, 1], torch.tensor(0.9))
    for query in (0, 2):
        wrong = (prob[0, 0, query] - 0.05).abs()
        total = total + NEGATIVE_SHARE * wrong**2 * soft_bce(logits[0, 0, query], torch.tensor(0.05))
    torch.testing.assert_close(found, 0.8 * total[None] / 2)


def test_box_losses__a_sure_teacher_weighs_more() -> None:
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 1, 2, 4)
    wanted = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.4, 0.5, 0.2, 0.2]])
    match = pairs((0, 0, 0, 0), (0, 0, 1, 1))
    l1, giou = box_losses(boxes, match, wanted, torch.tensor([1.0, 0.5]), ONE)
    torch.testing.assert_close(l1, torch.tensor([0.2 + 0.5 * 0.1]))
    # IoU 1/2 without a gap; IoU 1/3 with hulls full, too.
    torch.testing.assert_close(giou, torch.tensor([0.5 + 0.5 * (1 - 1 / 3)]))
    exact = box_losses(wanted[None, None], match, wanted, torch.ones(2), ONE)
    torch.testing.assert_close(torch.cat(exact), torch.zeros(2), atol=1e-6, rtol=0)


def test_mask_losses__zero_at_the_teacher_and_no_pair_keeps_the_graph() -> None:
    masks = random(2, 3, 4, 4) * 4
    match = pairs((0, 0, 2, 0), (0, 1, 1, 1))
    teacher = torch.stack([masks[0, 2], masks[1, 1]])
    exact = mask_losses(masks, match, teacher, torch.ones(2), ONE)
    torch.testing.assert_close(torch.stack(exact), torch.zeros(2), atol=1e-6, rtol=0)
    worse = mask_losses(masks, match, -teacher, torch.ones(2), ONE)
    assert min(worse) > 0.5
    empty = masks.clone().requires_grad_()
    torch.stack(mask_losses(empty, pairs(), teacher[:0], torch.ones(0), ONE)).sum().backward()
    assert empty.grad is not None
    assert not empty.grad.any()


def test_soft_dice__grey_masks_can_agree() -> None:
    grey = torch.zeros(1, 4, 4)
    assert float(soft_dice(grey, torch.full((1, 4, 4), 0.5))) == pytest.approx(0, abs=1e-6)
    assert float(soft_dice(grey - 9, torch.ones(1, 4, 4))) > 0.9


def test_semantic_loss__absent_concepts_do_not_count() -> None:
    student, teacher = random(2, 1, 4, 4), random(2, 4, 4, seed=1)
    first = semantic_loss(student[:1], teacher[:1], torch.ones(1))
    torch.testing.assert_close(semantic_loss(student, teacher, torch.tensor([1.0, 0.0])), first)
    assert semantic_loss(student, teacher, torch.zeros(2)) == 0
    assert float(semantic_loss(student, student[:, 0], torch.ones(2))) == pytest.approx(0, abs=1e-6)
