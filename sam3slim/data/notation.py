"""In which notation a file's boxes are: COCO's, corners, or centres; in pixels or in 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam3slim.data.values import number, parsed

Boxes = NDArray[np.float64]
COCO = "x, y, width, height in pixels"
# Notation without its unit → corners (x1, y1, x2, y2) of [N, 4].
LAYOUTS = {
    "x, y, width, height": lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1),
    "x1, y1, x2, y2": lambda b: b,
    "centre x, centre y, width, height": lambda b: np.concatenate(
        [b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1
    ),
}
UNITS = ("in pixels", "in 0..1")
# detectron2's BoxMode.
MODES = {
    0: "x1, y1, x2, y2 in pixels", 1: COCO, 2: "x1, y1, x2, y2 in 0..1", 3: "x, y, width, height in 0..1",
}  # fmt: skip
KEYS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
CORNER_KEYS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
# Boxes and masks are of one object from this IoU on; the share of a file's boxes that decides.
FIT, MOST = 0.5, 0.5
ROUNDING = 0.01  # sides of the picture by which a box may stick out
FEW = 0.2  # share of boxes that may stick out in COCO's own notation
SLACK = 2.0  # pixels by which boxes and masks are rounded differently
LOOSE = 10  # times that a box may be as large as the visible part of its object


def four_numbers(value: Any) -> tuple[list[float] | None, str | None]:
    """The four numbers of a box, also as text or as an object with names; and its notation where these tell it."""
    if isinstance(value, str):
        try:
            value = parsed(value)
        except ValueError:
            return None, None
    if isinstance(value, dict):
        for keys, notation in ((KEYS, COCO), (CORNER_KEYS, MODES[0])):
            for names in keys:
                if value.keys() >= set(names):
                    return four_numbers([value[name] for name in names])[0], notation
        return None, None
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None, None
    found = [number(part) for part in value]
    return (None, None) if None in found else ([part for part in found if part is not None], None)


def corners(boxes: Boxes, sizes: Boxes, notation: str) -> Boxes:
    """(x1, y1, x2, y2) in pixels, [N, 4], of ``boxes`` [N, 4] in pictures of ``sizes`` [N, 2] (width, height)."""
    layout, unit = next((layout, unit) for layout in LAYOUTS for unit in UNITS if f"{layout} {unit}" == notation)
    with np.errstate(all="ignore"):
        found: Boxes = LAYOUTS[layout](boxes)
        return found * np.tile(sizes, 2) if unit == UNITS[1] else found


def corners_of(box: Sequence[float], size: tuple[int, int], notation: str) -> list[float]:
    """``corners`` of one box."""
    one, picture = np.array([box], dtype=np.float64), np.array([size], dtype=np.float64)
    found: list[float] = corners(one, picture, notation)[0].tolist()
    return found


def find_notation(boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]], masks: Sequence[Any]) -> str:
    """The notation in which most of a file's boxes make sense; COCO's wherever that is possible.

    Args:
        boxes: N times four numbers.
        sizes: N times (width, height).
        masks: N times (x1, y1, x2, y2) of the object's mask in pixels, or None where it has none.
    """
    if not boxes:
        return COCO
    given, pictures = np.array(boxes, dtype=np.float64), np.array(sizes, dtype=np.float64)
    known = np.array([mask is not None for mask in masks])
    if known.any():
        wanted = np.array([mask for mask in masks if mask is not None], dtype=np.float64)
        shares = {
            name: float((_iou(corners(given[known], pictures[known], name), wanted) >= FIT).mean())
            for name in (f"{layout} {unit}" for unit in UNITS for layout in LAYOUTS)
        }
        best = max(shares, key=lambda name: shares[name])
        return best if shares[COCO] < MOST <= shares[best] else COCO
    if (given.min() >= 0 and given.max() <= 1 + ROUNDING) and pictures.min() > 2:
        return _without_overflow(given, pictures, UNITS[1])
    return _without_overflow(given, pictures, UNITS[0])


def _without_overflow(boxes: Boxes, sizes: Boxes, unit: str) -> str:
    """Of the layouts the first whose boxes are boxes inside their pictures; COCO's may have some that are not."""
    names = [f"{layout} {unit}" for layout in LAYOUTS]
    outside = {name: float(_outside(corners(boxes, sizes, name), sizes).mean()) for name in names}
    if outside[names[0]] <= FEW:
        return names[0]
    return next((name for name in names[1:] if outside[name] == 0), names[0])


def _outside(boxes: Boxes, sizes: Boxes) -> NDArray[np.bool_]:
    slack = np.maximum(ROUNDING * sizes, 1.0)
    far = (boxes[:, :2] < -slack).any(axis=1) | (boxes[:, 2:] > sizes + slack).any(axis=1)
    return np.logical_or(far, (boxes[:, 2:] <= boxes[:, :2]).any(axis=1))


def _iou(first: Boxes, second: Boxes) -> NDArray[np.float64]:
    """IoU [N] of boxes [N, 4] in pairs."""
    with np.errstate(all="ignore"):
        sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
        inner = np.clip(sides, 0, None).prod(axis=1)
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
        return np.nan_to_num(inner / (areas[0] + areas[1] - inner), nan=0.0, posinf=0.0, neginf=0.0)


def fits(box: Sequence[float], mask: Sequence[float]) -> bool:
    """Whether a box (x1, y1, x2, y2) is of the object whose mask's box is ``mask``: like it, or loosely round it.

    Boxes that include hidden parts (amodal ones) contain the mask.
    """
    wide, high = box[2] - box[0], box[3] - box[1]
    if wide <= 0 or high <= 0:
        return False
    sides = [max(0.0, min(box[i + 2], mask[i + 2]) - max(box[i], mask[i])) for i in range(2)]
    inner = sides[0] * sides[1]
    area, visible = wide * high, (mask[2] - mask[0]) * (mask[3] - mask[1])
    if inner >= FIT * (area + visible - inner):
        return True
    near = all(box[i] <= mask[i] + SLACK and box[i + 2] >= mask[i + 2] - SLACK for i in range(2))
    return near and area <= LOOSE * max(visible, SLACK**2)
