"""Masks at the picture's size are what interpolating all of it gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from torch import Tensor
from torch.nn import functional as F

from sam3slim.evaluation import masks
from sam3slim.evaluation.masks import encode_masks


def blobs(count: int, size: int) -> Tensor:
    """Discs of all sizes with a rough edge."""
    torch.manual_seed(size)
    ys, xs = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    centre, radius = torch.rand(count, 2, 1, 1), torch.rand(count, 1, 1) * 0.5
    distance = ((xs - centre[:, 0]) ** 2 + (ys - centre[:, 1]) ** 2).sqrt()
    return 20 * (radius - distance) + torch.randn(count, size, size)


def expected(logits: Tensor, height: int, width: int) -> np.ndarray:
    full = F.interpolate(logits[:, None], (height, width), mode="bilinear", align_corners=False)
    return np.asarray((full[:, 0] > 0).numpy())


@pytest.mark.parametrize("size", [1, 6, 32, 72])
@pytest.mark.parametrize(("height", "width"), [(13, 17), (97, 64), (240, 320), (5, 5), (1, 40), (72, 72)])
def test_encode_masks__equals_interpolating_the_whole_picture(size: int, height: int, width: int) -> None:
    logits = torch.cat([blobs(12, size), torch.randn(4, size, size), torch.full((1, size, size), 3.0)])
    rles = encode_masks(logits, height, width)
    assert [rle["size"] for rle in rles] == [[height, width]] * len(logits)
    assert np.array_equal(mask_utils.decode(rles).transpose(2, 0, 1), expected(logits, height, width))


def test_encode_masks__single_pixels_and_nothing_above_zero() -> None:
    logits = torch.full((6, 8, 8), -1.0)
    for n, (y, x) in enumerate([(0, 0), (7, 7), (0, 7), (3, 4)]):
        logits[n, y, x] = 2.0
    logits[5] = 0.0
    found = mask_utils.decode(encode_masks(logits, 30, 40)).transpose(2, 0, 1)
    assert np.array_equal(found, expected(logits, 30, 40))
    assert found[:4].any(axis=(1, 2)).all()
    assert not found[4:].any()


def test_encode_masks__in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MAX_UPSAMPLED_PIXELS", 2 * 13 * 17)
    logits = torch.randn(5, 6, 6)
    assert np.array_equal(mask_utils.decode(encode_masks(logits, 13, 17)).transpose(2, 0, 1), expected(logits, 13, 17))


def test_encode_masks__half_precision_and_none() -> None:
    logits = blobs(3, 16)
    assert encode_masks(logits.half(), 40, 40) == encode_masks(logits.half().float(), 40, 40)
    assert encode_masks(torch.zeros(0, 6, 6), 13, 17) == []
