"""Augmentation moves image, boxes and masks together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from sam3slim.data.transforms import AugmentSpec, Fields, normalise, transform
from sam3slim.errors import UserError

SIDE = 32


def fields_with(*boxes: tuple[int, int, int, int]) -> Fields:
    """White rectangles on black, with their boxes and masks."""
    image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
    for mask, (left, top, right, low) in zip(masks, boxes, strict=True):
        image[:, top:low, left:right] = 255
        mask[top:low, left:right] = 1
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(SIDE, SIDE)),  # type: ignore[call-overload]
        "masks": tv_tensors.Mask(masks),
        "labels": torch.arange(len(boxes)),
    }


def apply(fields: Fields, spec: AugmentSpec, seed: int = 0) -> Fields:
    step = transform(SIDE, spec)
    assert step is not None
    torch.manual_seed(seed)
    return step(fields)


def test_transform__nothing_to_do() -> None:
    assert transform(SIDE, None) is None
    assert transform(SIDE, AugmentSpec(flip=0.0)) is None
    assert transform(SIDE, AugmentSpec(flip=1.0), flip=False) is None


def test_transform__flip() -> None:
    out = apply(fields_with((2, 4, 10, 20)), AugmentSpec(flip=1.0))
    assert out["boxes"].tolist() == [[22, 4, 30, 20]]
    assert out["image"][0, 4:20, 22:30].min() == 255
    assert out["masks"][0, 4:20, 22:30].min() == 1


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 2.0), (0.3, 3.0)])
def test_transform__scale_jitter_keeps_masks_on_pixels_and_boxes_tight(scale: tuple[float, float]) -> None:
    kept = 0
    for seed in range(15):
        out = apply(fields_with((2, 4, 12, 20), (18, 15, 30, 31)), AugmentSpec(flip=0.0, scale=scale), seed)
        assert out["image"].shape == (3, SIDE, SIDE)
        assert len(out["boxes"]) == len(out["masks"]) == len(out["labels"])
        kept += len(out["labels"])
        for box, mask in zip(out["boxes"], out["masks"], strict=True):
            left, top, right, low = (int(value) for value in box)
            assert mask[top:low, left:right].sum() == mask.sum() > 0
            assert mask[top:low, left:right].float().mean() > 0.9
            assert out["image"][0][mask.bool()].float().mean() > 128
    assert kept > 5


def test_transform__dropped_object_takes_its_label() -> None:
    for seed in range(40):
        out = apply(fields_with((0, 0, 4, 4), (14, 14, 30, 30)), AugmentSpec(flip=0.0, scale=(2.0, 2.0)), seed)
        if out["labels"].tolist() == [1]:
            assert len(out["masks"]) == 1
            return
    pytest.fail("no crop left the first object out")


def test_transform__image_without_objects() -> None:
    out = apply(fields_with(), AugmentSpec(scale=(0.5, 2.0), photometric=1.0))
    assert out["boxes"].shape == (0, 4)
    assert out["masks"].shape == (0, SIDE, SIDE)


def test_transform__photometric_leaves_geometry() -> None:
    before = fields_with((2, 4, 12, 20))
    before["image"] = tv_tensors.Image(torch.full((3, SIDE, SIDE), 120, dtype=torch.uint8))
    out = apply(before, AugmentSpec(flip=0.0, photometric=1.0))
    assert not torch.equal(out["image"], before["image"])
    assert torch.equal(out["masks"], before["masks"])


def test_normalise__range() -> None:
    assert normalise(torch.tensor([[[0, 255]]] * 3, dtype=torch.uint8))[0, 0].tolist() == [-1, 1]


@pytest.mark.parametrize("bad", [{"flip": 1.5}, {"photometric": -1}, {"scale": (2.0, 1.0)}, {"scale": (1.0,)}])
def test_spec__bad_value_names_its_key(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"data\.augment\.{next(iter(bad))}="):
        AugmentSpec(**bad)


@pytest.mark.parametrize("seed", range(6))
def test_mirror__as_torchvision_would_and_says_so(seed: int) -> None:
    ours = apply(fields_with((2, 4, 10, 12)), AugmentSpec(flip=0.5), seed)
    torch.manual_seed(seed)
    theirs = v2.RandomHorizontalFlip(0.5)(fields_with((2, 4, 10, 12)))
    for key in ("image", "boxes", "masks"):
        assert torch.equal(ours[key], theirs[key])
    assert bool(ours.get("mirrored")) == (int(ours["boxes"][0, 0]) != 2)


def test_augment_spec__views_that_come_again() -> None:
    assert AugmentSpec(flip=0.5).views == (False, True)
    assert AugmentSpec(flip=0.0).views == (False,)
    assert AugmentSpec(photometric=0.1).views is None
    assert AugmentSpec(scale=(0.9, 1.0)).views is None
