"""Pictures with instances drawn on them, side by side: ground truth and one column per model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_utils

from sam3slim.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

# Okabe and Ito's palette without black and grey.
COLORS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
MASK_OPACITY, EDGE_OPACITY = 0.3, 0.9
FONT_SIZE = 12
GAP, HEADER = 8, 26
PAPER, INK = (255, 255, 255), (30, 30, 30)
Box = tuple[float, float, float, float]


class Instances(Protocol):
    """What can be drawn: ``GroundTruth`` (no scores) and ``Detections`` both can."""

    boxes: Tensor
    labels: Tensor
    rles: list[dict[str, Any]] | None


def draw_instances(
    image: Image.Image,
    instances: Instances,
    names: Mapping[int, str],
    *,
    categories: Collection[int] | None = None,
    min_score: float = 0.5,
    cell: int = 320,
) -> Image.Image:
    """``image`` with masks, boxes, phrases and scores drawn over it.

    Args:
        image: in the pixels of ``instances``.
        instances: those with a score below ``min_score`` are left out; crowd regions too.
        names: category id → phrase.
        categories: draw only these categories (say the most specific phrases); None draws all.
        cell: the longer side of the result is at most this; small images are enlarged by a whole factor.

    Returns:
        RGB image.
    """
    keep = _shown(instances, categories, min_score)
    colors = {label: COLORS[i % len(COLORS)] for i, label in enumerate(sorted(categories or names))}
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    if instances.rles is not None:
        for i in reversed(keep):  # the best on top
            mask = mask_utils.decode(instances.rles[i]).astype(bool)
            color = np.array(colors[int(instances.labels[i])], dtype=np.float32)
            weight = (mask * MASK_OPACITY + _edge(mask) * (EDGE_OPACITY - MASK_OPACITY))[..., None]
            pixels = (1 - weight) * pixels + weight * color
    canvas, scale = _fit(Image.fromarray(pixels.round().astype(np.uint8)), cell)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    boxes = {i: tuple(scale * value for value in instances.boxes[i].tolist()) for i in keep}
    for i in reversed(keep):
        draw.rectangle(boxes[i], outline=colors[int(instances.labels[i])], width=2)
    taken: list[Box] = []
    scores = getattr(instances, "scores", None)
    for i in keep:
        label = int(instances.labels[i])
        text = names.get(label, str(label)) + ("" if scores is None else f" {float(scores[i]):.2f}")
        _write(draw, text, boxes[i], canvas.size, colors[label], font, taken)
    return canvas


def picture_grid(
    images: Sequence[Image.Image],
    columns: Mapping[str, Sequence[Instances]],
    names: Mapping[int, str],
    path: str | Path,
    *,
    categories: Collection[int] | None = None,
    min_score: float = 0.5,
    cell: int = 320,
) -> Path:
    """Write a PNG: one row per image, one titled column per entry of ``columns``.

    Args:
        images: the originals.
        columns: title → what to draw on each image, in the order of ``images``; say "ground truth", "nano",
            "nano_slim", "nano_slim int8".
        names, categories, min_score, cell: see ``draw_instances``.

    Raises:
        ValueError: no image, no column, or a column of another length than ``images``.
        UserError: the folder cannot be written to.
    """
    wrong = [title for title, column in columns.items() if len(column) != len(images)]
    if not images or not columns or wrong:
        raise ValueError(f"{len(images)} images and {len(columns)} columns, of wrong length: {', '.join(wrong)}")
    drawn = [
        [
            draw_instances(image, column[row], names, categories=categories, min_score=min_score, cell=cell)
            for column in columns.values()
        ]
        for row, image in enumerate(images)
    ]
    width = max(picture.width for pictures in drawn for picture in pictures)
    heights = [pictures[0].height for pictures in drawn]
    size = (len(columns) * (width + GAP) + GAP, HEADER + sum(heights) + GAP * len(heights))
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE + 3)
    for i, title in enumerate(columns):
        draw.text((GAP + i * (width + GAP) + width / 2, HEADER / 2), title, INK, font, anchor="mm")
    top = HEADER
    for pictures, height in zip(drawn, heights, strict=True):
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (GAP + i * (width + GAP) + (width - picture.width) // 2, top))
        top += height + GAP
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return Path(path)


def _shown(instances: Instances, categories: Collection[int] | None, min_score: float) -> list[int]:
    """Positions to draw, best first."""
    scores = getattr(instances, "scores", None)
    crowds = getattr(instances, "iscrowd", None)
    keep = [
        i
        for i, label in enumerate(instances.labels.tolist())
        if (categories is None or label in categories)
        and (scores is None or float(scores[i]) >= min_score)
        and (crowds is None or not int(crowds[i]))
    ]
    return keep if scores is None else sorted(keep, key=lambda i: -float(scores[i]))


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of ``mask`` [h, w] bool with a neighbour outside it."""
    around = np.pad(mask, 1, mode="edge")
    inside = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    edge: np.ndarray = mask & ~inside
    return edge


def _fit(image: Image.Image, cell: int) -> tuple[Image.Image, float]:
    """Enlarged by a whole factor, or shrunk, until the longer side fits ``cell``; and the factor."""
    longer = max(image.size)
    scale = float(cell // longer) if longer <= cell else cell / longer
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return image.resize(size, method), scale


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: tuple[float, ...],
    size: tuple[int, int],
    color: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    taken: list[Box],
) -> None:
    """Write ``text`` above its box, or at the next free line below, inside the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(box[0], 0), max(size[0] - width, 0))
    lowest = max(size[1] - height, 0)
    places = [box[1] - height, box[3], *(box[1] + k * height for k in range(8))]
    inside = [y for y in places if 0 <= y <= lowest] or [min(max(box[1], 0), lowest)]
    free = [y for y in inside if not any(_overlap((x, y, x + width, y + height), other) for other in taken)]
    y = (free or inside)[0]
    taken.append((x, y, x + width, y + height))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 3 - left, y + 2 - top), text, _ink_on(color), font)


def _ink_on(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever reads better."""
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if luminance > 130 else (255, 255, 255)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
