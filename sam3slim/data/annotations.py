"""COCO JSON → checked and cleaned records.

What makes the file meaningless (not COCO, dangling ids, nameless categories) stops in one line; what
spoils single annotations (a box outside the image, a polygon without area) is clipped or dropped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from sam3slim.data.rle import Segmentation, is_whole_rle, to_rle
from sam3slim.errors import UserError
from sam3slim.files import read_json

Box = tuple[float, float, float, float]
# Annotation tools round; a box that sticks out by less than this many pixels is clipped without a word.
CLIP_TOLERANCE = 1.0


@dataclass
class DataReport:
    """What was read and what had to be repaired or left out."""

    images: int = 0
    annotations: int = 0
    categories: int = 0
    crowd_regions: int = 0
    images_without_annotations: int = 0
    boxes_clipped: int = 0
    boxes_dropped: int = 0
    degenerate_polygons: int = 0
    masks_dropped: int = 0
    images_missing: int = 0
    images_unreadable: int = 0

    @property
    def problems(self) -> dict[str, int]:
        """The counts of what was repaired or left out, without zeros."""
        names = [item.name for item in fields(self)][5:]
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def summary(self) -> str:
        """One line."""
        line = f"{self.images} images, {self.annotations} annotations, {self.categories} categories"
        line += f", {self.crowd_regions} crowd regions"
        line += f", {self.images_without_annotations} images without annotations"
        if self.problems:
            line += "; " + ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in self.problems.items())
        return line


@dataclass(frozen=True, slots=True)
class Category:
    """A COCO category and the phrase it is prompted with."""

    id: int
    phrase: str
    supercategory: str = ""


@dataclass(frozen=True, slots=True)
class Annotation:
    """A cleaned annotation: box (x1, y1, x2, y2) in pixels inside the image, area in pixels squared.

    ``segmentation`` is a list of polygons, an RLE dict, or None in a boxes-only set.
    """

    category_id: int
    box: Box
    segmentation: Segmentation | None
    area: float
    iscrowd: bool


@dataclass(slots=True)
class ImageRecord:
    """One image and its annotations."""

    id: int
    file_name: str
    height: int
    width: int
    annotations: list[Annotation] = field(default_factory=list)


@dataclass
class CocoIndex:
    """A whole annotation file."""

    path: Path
    records: list[ImageRecord]
    categories: list[Category]
    has_masks: bool
    report: DataReport


def load_index(path: Path) -> CocoIndex:
    """Read, check and clean a COCO annotation file.

    Raises:
        UserError: not JSON, not COCO, an id that leads nowhere, a category without a name.
    """
    content = _read_coco(path)
    records = _image_records(path, content["images"])
    categories = _categories(path, content["categories"])
    known = {category.id for category in categories}
    report = DataReport(images=len(records), categories=len(categories))
    raw = content["annotations"]
    has_masks = any(isinstance(item, dict) and item.get("segmentation") for item in raw)
    for item in raw:
        if not isinstance(item, dict):
            raise UserError(f"{path.name}: annotation entry {str(item)[:80]} is not a JSON object")
        where = f"{path.name}: annotation {item.get('id')}"
        image_id, category_id = item.get("image_id"), item.get("category_id")
        record = records.get(image_id) if isinstance(image_id, int) else None
        if record is None:
            raise UserError(f"{where} belongs to image {image_id}, which is not in the file's images; remove or fix it")
        if not isinstance(category_id, int) or category_id not in known:
            raise UserError(f"{where} has category {category_id}, which is not in the file's categories")
        if (annotation := _clean(item, record, has_masks, report)) is not None:
            record.annotations.append(annotation)
    kept = [annotation for record in records.values() for annotation in record.annotations]
    report.annotations = len(kept)
    report.crowd_regions = sum(annotation.iscrowd for annotation in kept)
    report.images_without_annotations = sum(not record.annotations for record in records.values())
    return CocoIndex(path, list(records.values()), categories, has_masks, report)


def category_phrases(path: Path) -> list[str]:
    """The phrases of a COCO annotation file's categories, each once; the annotations are not looked at.

    Raises:
        UserError: not JSON, not COCO, a category without a name.
    """
    categories = _categories(path, _read_coco(path)["categories"])
    return list(dict.fromkeys(category.phrase for category in categories))


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, "give a COCO annotation file")


# File suffix → reader of annotations in another format, as COCO's dict of images, annotations and categories.
FORMATS: dict[str, Callable[[Path], dict[str, Any]]] = {}


def _read_coco(path: Path) -> dict[str, Any]:
    content = FORMATS.get(path.suffix, _read_json)(path)
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(f"{path} is not a COCO annotation file: no list {', '.join(missing)} in it")
    if not content["images"]:
        raise UserError(f"{path} lists no images")
    return content


def _image_records(path: Path, items: list[Any]) -> dict[Any, ImageRecord]:
    records: dict[Any, ImageRecord] = {}
    for item in items:
        try:
            record = ImageRecord(int(item["id"]), str(item["file_name"]), int(item["height"]), int(item["width"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path.name}: image {str(item)[:80]} needs whole numbers id, height, width and a file_name"
            ) from error
        if record.id in records or min(record.height, record.width) < 1:
            raise UserError(f"{path.name}: image {record.id} is listed twice or has no pixels; fix its entry")
        records[record.id] = record
    return records


def _categories(path: Path, items: list[Any]) -> list[Category]:
    categories: dict[Any, Category] = {}
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        phrase = " ".join(name.replace("_", " ").lower().split()) if isinstance(name, str) else ""
        if not phrase:
            raise UserError(
                f"{path.name}: category {str(item)[:80]} has no name; its phrase is the prompt, so give one"
            )
        if not isinstance(item.get("id"), int) or item["id"] in categories:
            raise UserError(f"{path.name}: category {name!r} needs an id of its own (a whole number)")
        categories[item["id"]] = Category(item["id"], phrase, str(item.get("supercategory") or ""))
    if not categories:
        raise UserError(f"{path.name} lists no categories; their names are the prompts")
    return list(categories.values())


def _clean(item: dict[str, Any], record: ImageRecord, has_masks: bool, report: DataReport) -> Annotation | None:
    height, width = record.height, record.width
    segmentation = _clean_segmentation(item.get("segmentation"), height, width, report) if has_masks else None
    if has_masks and segmentation is None:
        report.masks_dropped += 1
        return None
    bbox = item.get("bbox")
    if bbox is None and segmentation is not None:
        bbox = [float(value) for value in mask_utils.toBbox(to_rle(segmentation, height, width))]
    box = _clean_box(bbox, height, width, report)
    if box is None:
        report.boxes_dropped += 1
        return None
    area = (box[2] - box[0]) * (box[3] - box[1])
    if _is_number(item.get("area")):
        area = float(item["area"])
    elif segmentation is not None:
        area = float(mask_utils.area(to_rle(segmentation, height, width)))
    return Annotation(item["category_id"], box, segmentation, area, bool(item.get("iscrowd", 0)))


def _clean_box(bbox: Any, height: int, width: int, report: DataReport) -> Box | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        return None
    x, y, w, h = bbox
    box = (max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h))
    if w <= 0 or h <= 0 or box[0] >= box[2] or box[1] >= box[3]:
        return None
    outside = max(box[0] - x, box[1] - y, x + w - box[2], y + h - box[3])
    report.boxes_clipped += outside > CLIP_TOLERANCE
    return box


def _clean_segmentation(segmentation: Any, height: int, width: int, report: DataReport) -> Segmentation | None:
    if isinstance(segmentation, dict):
        return segmentation if is_whole_rle(segmentation, height, width) else None
    if not isinstance(segmentation, list):
        return None
    kept = [polygon for polygon in segmentation if _has_area(polygon, height, width)]
    report.degenerate_polygons += len(segmentation) - len(kept)
    return kept or None


def _has_area(polygon: Any, height: int, width: int) -> bool:
    """Whether a flat list x, y, … encloses an area that reaches into the image."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    if not all(_is_number(value) for value in polygon):
        return False
    xs, ys = polygon[0::2], polygon[1::2]
    if max(xs) <= 0 or min(xs) >= width or max(ys) <= 0 or min(ys) >= height:
        return False
    corners = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in corners)) > 1e-6


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
