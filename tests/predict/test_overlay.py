"""Pictures with detections drawn on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.data.detections import Detections
from sam3slim.errors import UserError
from sam3slim.predict.overlay import SIDE, preview, write_overlay


def half(height: int, width: int) -> Detections:
    """One detection: the left half of the picture."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, : width // 2] = 1
    box = torch.tensor([[0.0, 0.0, width // 2, height]])
    rles = [mask_utils.encode(np.asfortranarray(mask))]
    return Detections(1, box, torch.tensor([0.9]), torch.tensor([1]), rles)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((40, 32), (40, 32)), ((2048, 1024), (1024, 512)), ((1000, 3000), (341, 1024)), ((1, 3000), (1, 1024))],
)
def test_write_overlay__at_most_the_longest_side(tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]) -> None:
    width, height = size
    image = preview(np.full((height, width, 3), 128, dtype=np.uint8))
    path = tmp_path / "deep/a.png.jpg"
    write_overlay(path, image, half(height, width), {1: "red"}, height, width)
    with Image.open(path) as drawn:
        assert (drawn.format, drawn.size) == ("JPEG", shown)
        assert max(drawn.size) <= SIDE
    assert [file.name for file in path.parent.iterdir()] == ["a.png.jpg"]


@pytest.mark.parametrize("size", [(200, 160), (2000, 1600)])
def test_write_overlay__the_mask_is_where_it_was_found(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    image = preview(np.full((height, width, 3), 128, dtype=np.uint8))
    write_overlay(tmp_path / "a.jpg", image, half(height, width), {1: "red"}, height, width)
    with Image.open(tmp_path / "a.jpg") as drawn:
        pixels = np.asarray(drawn).astype(int)
    middle = pixels[pixels.shape[0] // 2 :, :, :]
    quarter, edge = pixels.shape[1] // 4, pixels.shape[1] // 2 + pixels.shape[1] // 10
    assert np.abs(middle[:, edge:] - 128).max() < 12  # untouched but for JPEG
    assert np.abs(middle[:-20, quarter] - 128).max(axis=1).min() > 20


def test_write_overlay__boxes_alone_and_nothing(tmp_path: Path) -> None:
    pixels = np.full((32, 40, 3), 128, dtype=np.uint8)
    none = Detections(1, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), None)
    write_overlay(tmp_path / "none.jpg", preview(pixels), none, {}, 32, 40)
    with Image.open(tmp_path / "none.jpg") as drawn:
        assert np.abs(np.asarray(drawn).astype(int) - 128).max() <= 2
    boxed = Detections(1, torch.tensor([[5.0, 5.0, 30.0, 25.0]]), torch.ones(1), torch.ones(1, dtype=torch.int64), None)
    write_overlay(tmp_path / "box.jpg", preview(pixels), boxed, {1: "red"}, 32, 40)
    with Image.open(tmp_path / "box.jpg") as drawn:
        assert np.abs(np.asarray(drawn).astype(int) - 128).max() > 40


def test_write_overlay__no_place(tmp_path: Path) -> None:
    (tmp_path / "overlays").write_text("a file")
    image = preview(np.zeros((32, 40, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=r"overlays: .*; "):
        write_overlay(tmp_path / "overlays/a.jpg", image, half(32, 40), {1: "red"}, 32, 40)
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*a\.jpg: .*; use --no-overlays, or another --out$"):
        write_overlay(tmp_path / "a.jpg", image, half(32, 40), {1: "red"}, 32, 40)
