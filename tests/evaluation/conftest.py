"""A model of a few thousand weights, and batches made without any file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from sam3slim.data.batch import Batch, GroundTruth, ImageInfo, Targets
from sam3slim.models import Sam3, build_model
from tests.tiny import SPEC


@pytest.fixture(scope="session")
def shared_model() -> Sam3:
    torch.manual_seed(0)
    model = build_model(SPEC)
    with torch.no_grad():  # N(0, 0.02) makes all outputs nearly equal
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


@pytest.fixture
def model(shared_model: Sam3) -> Sam3:
    return shared_model.eval()


def rectangle_rle(box: tuple[int, int, int, int], height: int, width: int) -> dict:
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask_utils.encode(mask)


def make_truth(
    boxes: list[tuple[int, int, int, int]],
    labels: list[int],
    *,
    size: tuple[int, int] = (40, 60),
    crowd: list[int] | None = None,
    masks: bool = True,
) -> GroundTruth:
    """Rectangles whose masks are their boxes."""
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return GroundTruth(
        boxes=values,
        labels=torch.tensor(labels, dtype=torch.int64),
        iscrowd=torch.tensor(crowd or [0] * len(labels), dtype=torch.int64),
        area=(values[:, 2] - values[:, 0]) * (values[:, 3] - values[:, 1]),
        rles=[rectangle_rle(box, *size) for box in boxes] if masks else None,
    )


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """``make_batch([prompts of image 0, …])``: category c is asked with a phrase of its own."""

    def make(asked: list[list[int]], *, masks: bool = True, first_id: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(first_id)
        categories = [category for row in asked for category in row]
        input_ids = torch.full((len(categories), 8), 599)
        attention_mask = torch.zeros(len(categories), 8, dtype=torch.int64)
        for row, category in enumerate(categories):
            input_ids[row, :3] = torch.tensor([598, 10 + category, 599])
            attention_mask[row, :3] = 1
        images = [
            ImageInfo(first_id + i, f"{i}.png", 40, 60, make_truth([(5, 5, 25, 30)], [1], masks=masks))
            for i in range(len(asked))
        ]
        return Batch(
            pixel_values=torch.randn(len(asked), 3, 32, 32, generator=generator),
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_index=torch.tensor([i for i, row in enumerate(asked) for _ in row], dtype=torch.int64),
            category_ids=torch.tensor(categories, dtype=torch.int64),
            targets=Targets(torch.zeros(0, 4), None, torch.zeros(0, dtype=torch.int64)),
            phrases=[f"thing {category}" for category in categories],
            images=images,
        )

    return make
