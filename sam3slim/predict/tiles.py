"""Large pictures in overlapping tiles, so that small objects are not squashed away; what tiles share is merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pycocotools import mask as mask_utils

from sam3slim.data.detections import Detections, Rle
from sam3slim.errors import UserError

LEAST_TILE = 32
SAME_IOU = 0.5  # of two masks of one phrase: the same object
PART = 0.8  # of a mask that a tile's edge has cut, inside another: a part of that object
EDGE = 2.0  # pixels from a tile's edge within which a box is cut by it


@dataclass(frozen=True)
class Place:
    """Where a tile lies in its picture, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Tiling:
    """How large pictures are cut.

    Attributes:
        tile: side of a tile in pixels of the picture.
        overlap: of neighbours: a share of the side below 1, pixels from 1 on.

    Raises:
        UserError: tiles of nothing, or not larger than their overlap.
    """

    tile: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.tile < LEAST_TILE:
            raise UserError(f"--tile {self.tile}: expected at least {LEAST_TILE} pixels, e.g. the model's own 1008")
        if not 0 <= self.overlap < self.tile:
            raise UserError(
                f"--overlap {self.overlap:g} with --tile {self.tile}: expected a share in 0..1, or fewer pixels than a "
                "tile has, e.g. --overlap 0.2"
            )

    @property
    def step(self) -> int:
        """Pixels from one tile to the next."""
        return max(1, round(self.tile - (self.overlap * self.tile if self.overlap < 1 else self.overlap)))

    def places(self, height: int, width: int) -> list[Place]:
        """The tiles of a picture after the whole of it, or none where it is not larger than a tile."""
        if max(height, width) <= self.tile:
            return []
        ys, xs = self._starts(height), self._starts(width)
        tiles = [Place(x, y, min(self.tile, width), min(self.tile, height)) for y in ys for x in xs]
        return [Place(0, 0, width, height), *tiles]

    def _starts(self, length: int) -> list[int]:
        """Where tiles begin along one side; the last one ends with the picture."""
        last = max(length - self.tile, 0)
        return [*range(0, last, self.step), last]


def merge_tiles(found: Sequence[tuple[Detections, Place]], height: int, width: int, max_per_image: int) -> Detections:
    """Detections of a picture out of those of its tiles: one per object and phrase.

    Greedy non-maximum suppression per phrase by mask IoU (boxes without masks). What an inner edge of a tile has cut
    comes last, and goes where most of it lies inside another detection.

    Args:
        found: of every tile, in its pixels, and where it lies.
    """
    image_id = found[0][0].image_id
    whole = [_moved(detections, place, height, width) for detections, place in found]
    cut = torch.cat([_is_cut(detections, place, height, width) for detections, place in found])
    boxes, scores, labels = (torch.cat([getattr(one, key) for one in whole]) for key in ("boxes", "scores", "labels"))
    masked = all(one.rles is not None for one in whole)
    rles = [rle for one in whole for rle in one.rles or ()] if masked else None
    kept: list[int] = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1).tolist()
        rows.sort(key=lambda row: (bool(cut[row]), -float(scores[row])))
        kept += _suppressed(rows, cut, boxes if rles is None else None, rles)
    kept.sort(key=lambda row: -float(scores[row]))
    kept = kept[:max_per_image]
    index = torch.tensor(kept, dtype=torch.int64)
    return Detections(
        image_id, boxes[index], scores[index], labels[index], None if rles is None else [rles[row] for row in kept]
    )


def _suppressed(rows: list[int], cut: torch.Tensor, boxes: torch.Tensor | None, rles: list[Rle] | None) -> list[int]:
    """``rows`` without those that show what an earlier one shows."""
    shapes = [_xywh(boxes[row]) for row in rows] if boxes is not None else [rles[row] for row in rows]  # type: ignore[index]
    if boxes is not None:
        shapes = np.asarray(shapes, dtype=np.float64)  # type: ignore[assignment]
    plain = mask_utils.iou(shapes, shapes, [0] * len(rows))
    inside = mask_utils.iou(shapes, shapes, [1] * len(rows))  # [a, b]: share of a that lies in b
    kept: list[int] = []
    for i in range(len(rows)):
        same = any(plain[i][j] >= SAME_IOU for j in kept)
        part = bool(cut[rows[i]]) and any(inside[i][j] >= PART for j in kept)
        if not (same or part):
            kept.append(i)
    return [rows[i] for i in kept]


def _xywh(box: torch.Tensor) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _is_cut(found: Detections, place: Place, height: int, width: int) -> torch.Tensor:
    """[N] bool: the box reaches an edge of the tile that is none of the picture's."""
    left, top, right, bottom = found.boxes.unbind(1)
    return (
        ((left <= EDGE) & (place.x > 0))
        | ((top <= EDGE) & (place.y > 0))
        | ((right >= place.width - EDGE) & (place.x + place.width < width))
        | ((bottom >= place.height - EDGE) & (place.y + place.height < height))
    )


def _moved(found: Detections, place: Place, height: int, width: int) -> Detections:
    """Detections of a tile in its picture's pixels."""
    if (place.width, place.height) == (width, height):
        return found
    boxes = found.boxes + found.boxes.new_tensor([place.x, place.y, place.x, place.y])
    rles = None if found.rles is None else [_placed(rle, place, height, width) for rle in found.rles]
    return replace(found, boxes=boxes, rles=rles)


def _placed(rle: Rle, place: Place, height: int, width: int) -> Rle:
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[place.y : place.y + place.height, place.x : place.x + place.width] = mask_utils.decode(rle)
    placed: Rle = mask_utils.encode(mask)
    return placed
