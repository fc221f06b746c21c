from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.data.batch import GroundTruth
from sam3slim.data.detections import Detections
from sam3slim.report.pictures import draw_instances, picture_grid

NAMES = {1: "circle", 2: "red circle"}
BOX = (30, 40, 70, 80)


def rle() -> dict:
    mask = np.zeros((96, 96), dtype=np.uint8, order="F")
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    return mask_utils.encode(mask)


def found(labels: list[int], scores: list[float], *, masks: bool = True) -> Detections:
    boxes = torch.tensor([BOX] * len(labels), dtype=torch.float32)
    rles = [rle() for _ in labels] if masks else None
    return Detections(0, boxes, torch.tensor(scores), torch.tensor(labels), rles)


def truth(crowd: int = 0) -> GroundTruth:
    boxes = torch.tensor([BOX], dtype=torch.float32)
    return GroundTruth(boxes, torch.tensor([1]), torch.tensor([crowd]), torch.tensor([1600.0]), [rle()])


@pytest.fixture
def black() -> Image.Image:
    return Image.new("RGB", (96, 96))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_draw_instances__small_picture_is_enlarged_with_mask_and_box_in_place(black: Image.Image) -> None:
    drawn = pixels(draw_instances(black, found([1], [0.9]), NAMES))
    assert drawn.shape == (288, 288, 3)
    assert drawn[180, 150].any()  # 60 × 50 of the original, inside the mask
    assert not drawn[40, 240].any()  # far outside
    assert drawn[180, 90].sum() > drawn[180, 150].sum()  # the outline is stronger than the overlay


def test_draw_instances__threshold_categories_and_crowds_leave_out(black: Image.Image) -> None:
    assert not pixels(draw_instances(black, found([1], [0.4]), NAMES)).any()
    assert not pixels(draw_instances(black, found([1], [0.9]), NAMES, categories={2})).any()
    assert not pixels(draw_instances(black, truth(crowd=1), NAMES)).any()
    assert pixels(draw_instances(black, truth(), NAMES)).any()


def test_draw_instances__a_category_keeps_its_colour(black: Image.Image) -> None:
    alone = pixels(draw_instances(black, found([2], [0.9]), NAMES))
    other = pixels(draw_instances(black, found([1], [0.9]), NAMES))
    assert not np.array_equal(alone[180, 150], other[180, 150])


def test_draw_instances__boxes_only_and_large_pictures_shrink() -> None:
    drawn = pixels(draw_instances(Image.new("L", (960, 480)), found([1], [0.9], masks=False), NAMES, cell=320))
    assert drawn.shape == (160, 320, 3)
    assert drawn.any()


def test_draw_instances__does_not_change_the_original(black: Image.Image) -> None:
    draw_instances(black, found([1], [0.9]), NAMES)
    assert not pixels(black).any()


def test_picture_grid__rows_and_columns(tmp_path: Path, black: Image.Image) -> None:
    columns = {"ground truth": [truth(), truth()], "nano": [found([1], [0.9]), found([], [])]}
    path = picture_grid([black, black], columns, NAMES, tmp_path / "grid.png")
    with Image.open(path) as image:
        assert image.size == (2 * (288 + 8) + 8, 26 + 2 * (288 + 8))
        cell = pixels(image)[26 + 296 : 26 + 296 + 288, 8 + 296 : 8 + 296 + 288]
    assert not cell.any()  # nothing found in the second picture


def test_picture_grid__wrong_column_is_named(tmp_path: Path, black: Image.Image) -> None:
    with pytest.raises(ValueError, match="int8"):
        picture_grid([black], {"nano": [truth()], "int8": []}, NAMES, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())
