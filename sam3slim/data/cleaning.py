"""The annotations of COCO's dict, repaired, or left out and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from sam3slim.data.notation import COCO, MODES, corners_of, find_notation, fits, four_numbers
from sam3slim.data.records import Annotation, ImageRecord
from sam3slim.data.report import DataReport
from sam3slim.data.rle import Segmentation, to_rle
from sam3slim.data.segmentation import Box, Outline, outline, respelt, scaled
from sam3slim.data.values import Ids, flag, number, short, whole
from sam3slim.errors import UserError

# Annotation tools round; a box that sticks out by less than this many pixels is clipped without a word.
CLIP_TOLERANCE = 1.0
# An annotated area may be this many times larger or smaller than the object's (parts overlap, edges are rounded).
AREA_FACTOR, AREA_SLACK = 4.0, 16.0
CROWD_KEYS = ("iscrowd", "is_crowd", "isCrowd")
UNIT_SHARE = 0.9  # of a file's polygons that lie in 0..1 where they are meant so


@dataclass(slots=True)
class _Item:
    """An annotation on its way: what its entry says, in COCO's spelling."""

    where: str
    entry: Mapping[str, Any]
    record: ImageRecord
    category: int
    crowd: bool
    segmentation: Segmentation | None
    box: list[float] | None
    outline: Outline | None = None
    reason: str = ""


def read_annotations(
    path: Path,
    raw: list[Any],
    images: tuple[Ids, Mapping[int, ImageRecord]],
    categories: tuple[Ids, Mapping[int, int]],
    report: DataReport,
) -> bool:
    """Give every image of ``images`` its annotations; whether any has a mask.

    Args:
        raw: the entries.
        images: their ids, and number → image.
        categories: their ids, and number → number of the one that is asked for.

    Raises:
        UserError: an entry that is no object, or belongs to no image or category.
    """
    items = _items(path, raw, images, categories, report)
    has_masks = any(item.segmentation is not None for item in items)
    _read_as_objects(items, report)
    _convert(items, report)
    for item in items:
        if (annotation := _clean(item, has_masks, report)) is not None:
            item.record.annotations.append(annotation)
    return has_masks


def _items(
    path: Path,
    raw: list[Any],
    images: tuple[Ids, Mapping[int, ImageRecord]],
    categories: tuple[Ids, Mapping[int, int]],
    report: DataReport,
) -> list[_Item]:
    """Every annotation with the image and category it belongs to, what it says in COCO's spelling."""
    found = []
    for entry in raw:
        if not isinstance(entry, dict):
            raise UserError(f"{path.name}: annotation entry {short(entry)} is not a JSON object")
        where = f"annotation {short(entry.get('id'))}"
        image, category = images[0][entry.get("image_id")], categories[0][entry.get("category_id")]
        if image is None:
            raise UserError(
                f"{path.name}: {where} belongs to image {short(entry.get('image_id'))}, which is not in the file's "
                "images; remove or fix it"
            )
        if category is None or category not in categories[1]:
            raise UserError(
                f"{path.name}: {where} has category {short(entry.get('category_id'))}, which is not in the file's "
                "categories"
            )
        value = next((entry[key] for key in CROWD_KEYS if key in entry), None)
        crowd = flag(value)
        if crowd is None:
            raise UserError(f"{path.name}: {where} has iscrowd {short(value)}, expected 0 or 1")
        item = _Item(where, entry, images[1][image], categories[1][category], crowd, None, None)
        _read_shape(item, report)
        found.append(item)
    return found


def _read_shape(item: _Item, report: DataReport) -> None:
    """The entry's segmentation and box, in COCO's spelling."""
    try:
        item.segmentation, rewritten = respelt(item.entry.get("segmentation"))
        if rewritten and item.segmentation is not None:
            report.note("segmentations_rewritten", item.where)
    except ValueError as error:
        item.segmentation, item.reason = [[]], str(error)
    item.box, notation = four_numbers(item.entry.get("bbox"))
    mode = whole(item.entry.get("bbox_mode")) if "bbox_mode" in item.entry else None
    notation = notation or (MODES.get(mode) if mode is not None else None)
    if item.box is not None and notation is not None and notation != COCO:
        x1, y1, x2, y2 = corners_of(item.box, (item.record.width, item.record.height), notation)
        item.box = [x1, y1, x2 - x1, y2 - y1]
        report.note("boxes_converted", f"{item.where}, {notation}")


def _read_as_objects(items: list[_Item], report: DataReport) -> None:
    """CVAT marks every mask as a crowd region: where all are, and it is CVAT that wrote them, they are objects."""
    signed = (
        isinstance(item.entry.get("attributes"), dict) and "occluded" in item.entry["attributes"] for item in items
    )
    if not all(item.crowd and isinstance(item.segmentation, dict) for item in items) or not all(signed):
        return
    for item in items:
        item.crowd = False
        report.note("crowds_read_as_objects", item.where)


def _convert(items: list[_Item], report: DataReport) -> None:
    """Boxes and polygons of a whole file in pixels, where most of them are not."""
    shapes = [item for item in items if isinstance(item.segmentation, list) and any(item.segmentation)]
    small = [item for item in shapes if _in_unit(item)]
    if small and len(small) >= UNIT_SHARE * len(shapes):
        for item in small:
            assert isinstance(item.segmentation, list)
            item.segmentation = scaled(item.segmentation, item.record.height, item.record.width)
            report.note("polygons_converted", item.where)
    for item in items:
        if item.segmentation is not None:
            item.outline = outline(item.segmentation, item.record.height, item.record.width)
    boxed = [item for item in items if item.box is not None and any(item.box)]
    notation = find_notation(
        [item.box for item in boxed if item.box is not None],
        [(item.record.width, item.record.height) for item in boxed],
        [item.outline and item.outline.box for item in boxed],
    )
    if notation == COCO:
        return
    for item in boxed:
        assert item.box is not None
        x1, y1, x2, y2 = corners_of(item.box, (item.record.width, item.record.height), notation)
        item.box = [x1, y1, x2 - x1, y2 - y1]
        report.note("boxes_converted", f"{item.where}, {notation}")


def _in_unit(item: _Item) -> bool:
    """Whether an annotation's polygons, of a picture that has more than a few pixels, lie in 0..1."""
    assert isinstance(item.segmentation, list)
    small = all(0 <= value <= 1 for polygon in item.segmentation for value in polygon)
    return small and min(item.record.height, item.record.width) > 2


def _clean(item: _Item, has_masks: bool, report: DataReport) -> Annotation | None:
    height, width = item.record.height, item.record.width
    found = item.outline
    if item.segmentation is not None:
        lost = len(item.segmentation) if isinstance(item.segmentation, list) and found is None else 0
        lost = found.degenerate if found is not None else lost
        if lost and not item.reason:
            report.note("degenerate_polygons", item.where, lost)
        if found is not None and found.clipped:
            report.note("polygons_clipped", item.where, found.clipped)
    box, outside = _inside(item.box, height, width)
    if found is not None:
        if box is None or not fits(box, found.box):
            if item.entry.get("bbox") is not None:
                report.note("boxes_from_masks", f"{item.where}, {short(item.entry['bbox'])}")
            box, outside = found.box, 0.0
    elif box is None:
        reason = item.reason or f"bbox {short(item.entry.get('bbox'))}"
        report.note("masks_dropped" if has_masks else "boxes_dropped", f"{item.where}: {reason}")
        return None
    if outside > CLIP_TOLERANCE:
        report.note("boxes_clipped", item.where)
    if has_masks and found is None:
        report.note("masks_missing", f"{item.where}{': ' if item.reason else ''}{item.reason}")
        x1, y1, x2, y2 = box
        rectangle = outline([[x1, y1, x2, y1, x2, y2, x1, y2]], height, width)
        if rectangle is None:
            return None
        return Annotation(item.category, box, rectangle.segmentation, rectangle.area, iscrowd=True)
    area = _area(item, box, report)
    return Annotation(item.category, box, found.segmentation if found else None, area, item.crowd)


def _inside(bbox: Sequence[float] | None, height: int, width: int) -> tuple[Box | None, float]:
    """(x1, y1, x2, y2) of the part in the picture, None where there is none; and how far the rest reaches out."""
    if bbox is None:
        return None, 0.0
    x, y, w, h = bbox
    box = (max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h))
    if w <= 0 or h <= 0 or box[0] >= box[2] or box[1] >= box[3]:
        return None, 0.0
    return box, max(box[0] - x, box[1] - y, x + w - box[2], y + h - box[3])


def _area(item: _Item, box: Box, report: DataReport) -> float:
    """The annotated area if it can be that of the object, else that of its mask or box."""
    size = item.outline.area if item.outline is not None else (box[2] - box[0]) * (box[3] - box[1])
    given = number(item.entry.get("area"))
    most = AREA_FACTOR * size + AREA_SLACK
    # A mask may cover little of its box, and the area be the mask's.
    least = (size - AREA_SLACK) / AREA_FACTOR if item.outline is not None else min(1.0, size / 2)
    if given is not None and 0 < given <= most and given >= least:
        return float(given)
    if item.entry.get("area") is not None:
        report.note("areas_from_masks", f"{item.where}, {short(item.entry['area'])}")
    if item.outline is None:
        return size
    return float(mask_utils.area(to_rle(item.outline.segmentation, item.record.height, item.record.width)))
