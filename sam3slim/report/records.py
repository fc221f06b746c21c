"""Annotated pictures of a data set as it was read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sam3slim.data.images import UnreadableImage, read_image
from sam3slim.data.records import CocoIndex, ImageRecord
from sam3slim.data.rle import to_rle
from sam3slim.report.pictures import picture_grid

CELL = 480  # pixels of a picture's longer side


@dataclass
class _Drawn:
    """The annotations of one image, as ``draw_instances`` takes them."""

    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    rles: list[dict[str, Any]] | None


def draw_records(index: CocoIndex, folder: Path, path: Path, count: int) -> Path | None:
    """Write a PNG of up to ``count`` annotated images, spread over the set; None where there is none to draw.

    Raises:
        UserError: the file cannot be written.
    """
    annotated = [record for record in index.records if any(not item.iscrowd for item in record.annotations)]
    step = max(len(annotated) / max(count, 1), 1.0)
    images, drawn = [], []
    for place in range(min(count, len(annotated))):
        record = annotated[int(place * step)]
        try:
            images.append(Image.fromarray(read_image(folder / record.file_name, record.height, record.width)))
        except UnreadableImage:
            continue  # a run says which, and stops
        drawn.append(_drawn(record))
    if not images:
        return None
    names = {category.id: category.phrase for category in index.categories}
    return picture_grid(images, {index.path.name: drawn}, names, path, cell=CELL)


def phrase_counts(index: CocoIndex) -> list[tuple[str, int]]:
    """(phrase, objects) of every category, the most frequent first; crowd regions are not counted."""
    counts = Counter(item.category_id for record in index.records for item in record.annotations if not item.iscrowd)
    found = [(category.phrase, counts[category.id]) for category in index.categories]
    return sorted(found, key=lambda pair: -pair[1])


def _drawn(record: ImageRecord) -> _Drawn:
    items = record.annotations
    masks = [to_rle(item.segmentation, record.height, record.width) for item in items if item.segmentation is not None]
    return _Drawn(
        torch.tensor([item.box for item in items], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([item.category_id for item in items], dtype=torch.int64),
        torch.tensor([item.iscrowd for item in items], dtype=torch.int64),
        masks if len(masks) == len(items) else None,
    )
