from __future__ import annotations

import torch
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from sam3slim.losses.boxes import box_l1, cxcywh_to_xyxy, iou_and_giou, xyxy_to_cxcywh


def random_xyxy(n: int, seed: int) -> torch.Tensor:
    corner, size = torch.rand(2, n, 2, generator=torch.Generator().manual_seed(seed)).unbind(0)
    return torch.cat([corner, corner + 0.05 + size], dim=-1)


def test_conversions__equal_torchvision_and_invert_each_other() -> None:
    boxes = random_xyxy(7, 0).reshape(1, 7, 4)
    torch.testing.assert_close(xyxy_to_cxcywh(boxes), box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


def test_iou_and_giou__pairwise_equals_torchvision() -> None:
    first, second = random_xyxy(9, 1), random_xyxy(5, 2)
    iou, giou = iou_and_giou(first[:, None], second[None])
    torch.testing.assert_close(iou, box_iou(first, second))
    torch.testing.assert_close(giou, generalized_box_iou(first, second))


def test_iou_and_giou__same_empty_box_gives_zero_and_no_gradient() -> None:
    box = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    iou, giou = iou_and_giou(box, box.detach())
    (iou + giou).sum().backward()
    assert iou.item() == 0 == giou.item()
    assert box.grad is not None
    assert box.grad.abs().max().item() == 0


def test_iou_and_giou__flat_box_far_away_is_finite() -> None:
    box = torch.tensor([[0.1, 0.1, 0.1, 0.4]], requires_grad=True)
    iou, giou = iou_and_giou(box, torch.tensor([[0.6, 0.6, 0.8, 0.8]]))
    giou.sum().backward()
    assert iou.item() == 0
    assert -1 <= giou.item() < 0
    assert box.grad is not None
    assert torch.isfinite(box.grad).all()


def test_box_l1__sums_four_coordinates() -> None:
    assert box_l1(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.ones(4)).item() == 4.0
