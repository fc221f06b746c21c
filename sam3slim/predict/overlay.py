"""A picture with its detections drawn on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.data.detections import Detections, Rle
from sam3slim.errors import UserError
from sam3slim.files import atomic_path
from sam3slim.report.pictures import draw_instances

# Longer side of an overlay; drawing a hundred masks at a camera's resolution would take longer than finding them.
SIDE = 1024


def preview(pixels: NDArray[np.uint8]) -> Image.Image:
    """[height, width, 3] RGB as a picture whose longer side is at most ``SIDE``."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    return image


def write_overlay(
    path: Path, image: Image.Image, found: Detections, names: Mapping[int, str], height: int, width: int
) -> None:
    """Write a JPEG of ``image``, a ``preview``, with the detections of the ``height`` × ``width`` picture.

    Raises:
        UserError: the folder cannot be written to.
    """
    scale = found.boxes.new_tensor([image.width / width, image.height / height]).repeat(2)
    rles = found.rles
    if rles is not None and image.size != (width, height):
        rles = [_resize(rle, image.size) for rle in rles]
    small = replace(found, boxes=found.boxes * scale, rles=rles)
    drawn = draw_instances(image, small, names, min_score=0.0, cell=max(image.size))
    try:
        with atomic_path(path) as temporary:
            drawn.save(temporary, format="JPEG", quality=90)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; use --no-overlays, or another --out"
        ) from error


def _resize(rle: Rle, size: tuple[int, int]) -> Rle:
    """The mask at (width, height) ``size``, nearest pixels."""
    mask = mask_utils.decode(rle)
    rows = ((np.arange(size[1]) + 0.5) * mask.shape[0] / size[1]).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * mask.shape[1] / size[0]).astype(np.int64)
    resized: Rle = mask_utils.encode(np.asfortranarray(mask[np.ix_(rows, columns)]))
    return resized
