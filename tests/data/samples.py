"""Helpers that build annotations and specs for the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam3slim.data.shapes import ShapesSpec

CocoWriter = Callable[..., Path]
TINY = ShapesSpec(image_size=48, train_images=12, val_images=4, test_images=3)


def square(left: float, top: float, side: float = 10) -> dict[str, Any]:
    """Box and polygon of an axis-aligned square."""
    right, low = left + side, top + side
    return {"bbox": [left, top, side, side], "segmentation": [[left, top, right, top, right, low, left, low]]}


def crowd(left: int, top: int, side: int = 10, height: int = 30, width: int = 40) -> dict[str, Any]:
    """A crowd region as uncompressed RLE (column by column)."""
    counts = [left * height + top]
    for _ in range(side - 1):
        counts += [side, height - side]
    counts += [side, width * height - sum(counts) - side]
    return {
        "bbox": [left, top, side, side],
        "segmentation": {"size": [height, width], "counts": counts},
        "iscrowd": 1,
    }
