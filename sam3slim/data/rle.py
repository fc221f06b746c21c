"""Run-length masks as COCO writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

Segmentation = list[list[float]] | dict[str, Any]


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Compressed pycocotools RLE ({"size": [h, w], "counts": bytes}) of polygons or any RLE."""
    if isinstance(segmentation, list):
        return dict(mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width)))
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return dict(mask_utils.frPyObjects(segmentation, height, width))
    return {"size": [height, width], "counts": counts.encode("ascii")}


def is_whole_rle(segmentation: dict[str, Any], height: int, width: int) -> bool:
    """Whether the runs are those of a mask with something in it, of exactly height by width pixels.

    Checked here because pycocotools decodes too short runs to whatever was in memory.
    """
    return rle_runs(segmentation, height, width) is not None


def rle_runs(segmentation: dict[str, Any], height: int, width: int, *, empty: bool = False) -> NDArray[np.int64] | None:
    """The lengths of a mask's runs, of background and object in turns; None unless ``is_whole_rle``.

    Args:
        empty: also those of a mask with nothing in it.
    """
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width] or not isinstance(counts, (list, str)) or not counts:
        return None
    pixels = height * width
    if isinstance(counts, list):
        if not all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= pixels for count in counts):
            return None
        runs = np.array(counts, dtype=np.int64)
    else:
        codes = np.frombuffer(counts.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
        if codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
            return None
        runs = _runs(codes)
    whole = runs.min() >= 0 and runs.max() <= pixels and runs.sum() == pixels and (empty or runs[1::2].sum() > 0)
    return runs if whole else None


def _runs(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Run lengths from COCO's compressed string (characters minus 48).

    Five bits a character, low ones first, 0x20 = more follow, sign in the last one's 0x10; from the
    fourth number on, each is the difference to the last but one before it.
    """
    last = np.flatnonzero((codes & 0x20) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    runs = np.add.reduceat((codes & 0x1F) << np.minimum(5 * place, 55), first)
    negative = (codes[last] & 0x10) != 0
    runs[negative] -= 1 << np.minimum(5 * (place[last[negative]] + 1), 60)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
