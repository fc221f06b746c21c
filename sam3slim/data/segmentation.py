"""Segmentations in every spelling that can only mean one thing, as COCO's, with box and area of what they cover."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from sam3slim.data.rle import Segmentation, rle_runs
from sam3slim.data.values import number, parsed, short, whole

Box = tuple[float, float, float, float]
EXPECTED = "expected polygons [[x1, y1, x2, y2, x3, y3, …], …] or an RLE {size: [height, width], counts: …}"
FAR = 1e9  # pixels; a corner beyond is no corner
# pycocotools walks along a polygon's edges, also outside the picture: this many sides of it away, they are cut.
REACH = 2


@dataclass(frozen=True, slots=True)
class Outline:
    """What a segmentation covers.

    Attributes:
        segmentation: polygons, or an RLE.
        box: (x1, y1, x2, y2) in pixels, of its corners inside the picture or of its pixels.
        area: pixels squared; of polygons the sum of theirs.
        degenerate, clipped: polygons left out, and cut at the picture's edge.
    """

    segmentation: Segmentation
    box: Box
    area: float
    degenerate: int = 0
    clipped: int = 0


def respelt(value: Any) -> tuple[Segmentation | None, bool]:
    """Polygons or an RLE as COCO spells them, None for no mask at all; and whether ``value`` was spelt otherwise.

    Raises:
        ValueError: it could mean anything; the message says what was expected.
    """
    if value is None:
        return None, False
    if isinstance(value, dict):
        found = _rle(value)
        return found, found != value
    if not isinstance(value, list):
        return (_from_text(value), True) if isinstance(value, str) else _odd(value)
    parts = [part for part in value if part not in ([], "", None)]
    if not parts:
        return None, False
    if all(isinstance(part, list) and len(part) > 2 and _plain(part) for part in parts):
        return parts, len(parts) != len(value)
    found = _polygons(parts, value)
    return found, found != value


def outline(segmentation: Segmentation, height: int, width: int) -> Outline | None:
    """What ``segmentation`` (from ``respelt``) covers of a ``height`` × ``width`` picture; None: nothing, or broken.

    An RLE without a size takes the picture's.
    """
    if isinstance(segmentation, dict):
        rle = {"size": [height, width]} | segmentation
        runs = rle_runs(rle, height, width)
        return None if runs is None else Outline(rle, _box_of_runs(runs, height), float(runs[1::2].sum()))
    kept: list[list[float]] = []
    box, area, clipped = (float(width), float(height), 0.0, 0.0), 0.0, 0
    for polygon in segmentation:
        if not _is_polygon(polygon):
            continue
        xs, ys = polygon[0::2], polygon[1::2]
        if max(xs) <= 0 or min(xs) >= width or max(ys) <= 0 or min(ys) >= height or _area(xs, ys) <= 5e-7:
            continue
        if min(xs) < -REACH * width or min(ys) < -REACH * height or max(xs) > (REACH + 1) * width or (
            max(ys) > (REACH + 1) * height
        ):  # fmt: skip
            polygon = clip_polygon(polygon, height, width)
            xs, ys = polygon[0::2], polygon[1::2]
            if len(polygon) < 6 or _area(xs, ys) <= 5e-7:
                continue
            clipped += 1
        kept.append(polygon)
        area += _area(xs, ys)
        left, top, right, low = max(0.0, min(xs)), max(0.0, min(ys)), min(width, max(xs)), min(height, max(ys))
        box = (min(box[0], left), min(box[1], top), max(box[2], right), max(box[3], low))
    return Outline(kept, box, area, len(segmentation) - len(kept), clipped) if kept else None


def clip_polygon(polygon: Sequence[float], height: int, width: int) -> list[float]:
    """The part of a polygon x1, y1, x2, y2, … inside the picture, where edges along its border may run twice.

    Sutherland and Hodgman, "Reentrant polygon clipping" (1974): one side of the picture after the other.
    """
    points = list(zip(map(float, polygon[0::2]), map(float, polygon[1::2]), strict=True))
    for axis, limit, sign in ((0, 0.0, 1), (0, float(width), -1), (1, 0.0, 1), (1, float(height), -1)):
        clipped: list[tuple[float, float]] = []
        for a, b in zip([*points[-1:], *points], points, strict=False):
            inside_a, inside_b = sign * (a[axis] - limit) >= 0, sign * (b[axis] - limit) >= 0
            if inside_a != inside_b:
                share = (limit - a[axis]) / (b[axis] - a[axis])
                other = a[1 - axis] + share * (b[1 - axis] - a[1 - axis])
                clipped.append((limit, other) if axis == 0 else (other, limit))
            if inside_b:
                clipped.append(b)
        points = clipped
    return [value for point in points for value in point]


def scaled(segmentation: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Polygons in 0..1 in the pixels of a picture."""
    return [[value * (height if i % 2 else width) for i, value in enumerate(polygon)] for polygon in segmentation]


def _odd(value: Any) -> Any:
    raise ValueError(f"segmentation is {short(value)}, {EXPECTED}")


def _from_text(text: str) -> Segmentation | None:
    text = text.strip()
    if not text:
        return None
    if text[0] in "[{":
        return respelt(parsed(text))[0]
    return {"counts": text}


def _rle(value: dict[str, Any]) -> Segmentation | None:
    """An RLE whose size and counts are of the types that COCO gives them."""
    if not value:
        return None
    if "all_points_x" in value and "all_points_y" in value:  # the VGG annotator's
        xs, ys = value["all_points_x"], value["all_points_y"]
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            _odd(value)
        return [_numbers([part for pair in zip(xs, ys, strict=True) for part in pair], value)]
    if "counts" not in value:
        _odd(value)
    found: dict[str, Any] = {"counts": _counts(value["counts"])}
    if value.get("size") is not None:
        size = value["size"]
        sides = [whole(side) for side in size] if isinstance(size, list) else []
        if len(sides) != 2 or None in sides:
            _odd({"size": size})
        found = {"size": sides} | found
    return found


def _counts(counts: Any) -> list[int] | str:
    if isinstance(counts, str):
        if re.match(r"b(['\"]).*\1$", counts, re.DOTALL):  # Python's text of bytes
            try:
                given = parsed(counts)
            except ValueError:
                return counts
            return str(given, "ascii", "replace") if isinstance(given, bytes) else counts
        return _counts(parsed(counts)) if counts.startswith("[") and counts.endswith("]") and "," in counts else counts
    if not isinstance(counts, list):
        _odd({"counts": counts})
    runs = [whole(count) for count in counts]
    if None in runs:
        _odd({"counts": counts})
    return [run for run in runs if run is not None]


def _plain(polygon: list[Any]) -> bool:
    return all(type(value) in (int, float) for value in polygon)


def _polygons(parts: list[Any], given: Any) -> Segmentation:
    """Polygons of parts that are flat lists, pairs of points, points as objects, or text of these; RLEs are joined."""
    if all(isinstance(part, str) for part in parts) and all(number(part) is not None for part in parts):
        return [_numbers(parts, given)]
    parts = [parsed(part) if isinstance(part, str) else part for part in parts]
    if all(isinstance(part, (int, float)) or part is None for part in parts) or all(map(_is_point, parts)):
        return [_flat(parts, given)]
    if all(isinstance(part, dict) and "counts" in part for part in parts):
        return _joined([_rle(part) for part in parts], given)
    return [_flat(part, given) for part in parts]


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return {"x", "y"} <= value.keys()
    return isinstance(value, list) and len(value) == 2 and all(number(part) is not None for part in value)


def _flat(polygon: Any, given: Any) -> list[float]:
    if not isinstance(polygon, list):
        return list(_odd(given))
    if polygon and all(map(_is_point, polygon)):
        pairs = [(point["x"], point["y"]) if isinstance(point, dict) else point for point in polygon]
        return _numbers([value for pair in pairs for value in pair], given)
    return _numbers(polygon, given)


def _numbers(values: list[Any], given: Any) -> list[float]:
    found = [number(value) for value in values]
    if None in found:
        # What is a number at least in type is a broken corner, which costs this polygon alone.
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            return []
        _odd(given)
    return [value for value in found if value is not None]


def _joined(rles: Sequence[Any], given: Any) -> Segmentation:
    """Several RLEs of one object as one."""
    if len(rles) == 1:
        return dict(rles[0])
    sizes = {tuple(rle.get("size", ())) for rle in rles}
    size = sizes.pop()
    if sizes or len(size) != 2 or min(size) < 1 or any(rle_runs(rle, *size) is None for rle in rles):
        _odd(given)
    whole_mask = mask_utils.merge([_compressed(rle, *size) for rle in rles])
    return {"size": list(size), "counts": whole_mask["counts"].decode("ascii")}


def _compressed(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    if isinstance(rle["counts"], list):
        return dict(mask_utils.frPyObjects(rle, height, width))
    return {"size": [height, width], "counts": rle["counts"].encode("ascii")}


def _is_polygon(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(value, (int, float)) and -FAR < value < FAR for value in polygon)
    )


def _area(xs: Sequence[float], ys: Sequence[float]) -> float:
    corners = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in corners)) / 2


def _box_of_runs(runs: np.ndarray, height: int) -> Box:
    """The box of an RLE's pixels; runs go down the columns."""
    ends = np.cumsum(runs)[1::2]
    sizes = runs[1::2]
    starts, last = (ends - sizes)[sizes > 0], ends[sizes > 0] - 1
    one_column = starts // height == last // height
    top = np.where(one_column, starts % height, 0).min()
    low = np.where(one_column, last % height, height - 1).max()
    return float(starts.min() // height), float(top), float(last.max() // height + 1), float(low + 1)
