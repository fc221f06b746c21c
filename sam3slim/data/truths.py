"""Annotation files as official evaluators read them: nothing is cleaned, clipped or merged, so numbers are theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as mask_utils

from sam3slim.data.batch import GroundTruth
from sam3slim.data.cleaning import CROWD_KEYS
from sam3slim.data.content import read_content
from sam3slim.data.dialects import FEDERATED, TEXT, clean_phrase, picture_name
from sam3slim.data.notation import four_numbers
from sam3slim.data.rle import Segmentation, rle_runs, to_rle
from sam3slim.data.segmentation import REACH, outline, respelt
from sam3slim.data.values import Ids, flag, id_key, number, short, whole
from sam3slim.errors import UserError

Rle = dict[str, Any]
CONCEPT = 1  # label of everything in SA-Co's files, whose entries have a phrase each


@dataclass(frozen=True)
class Entry:
    """An image of the file; of SA-Co's, a picture with a phrase.

    Attributes:
        number: its id as int64.
        name: of the picture's file, "" where the file does not say.
        phrase: of SA-Co's.
        height, width: 0 where the file does not say.
    """

    number: int
    name: str
    phrase: str | None
    height: int
    width: int


@dataclass(frozen=True)
class Truths:
    """An annotation file.

    Attributes:
        entries: in the file's order.
        ground_truths: one per entry.
        images, labels: the file's ids of images and categories.
        names: category → its name as a phrase.
        frequency: category → ``r``, ``c`` or ``f`` (rare, common, frequent), where the file says it (LVIS).
        by_concept: SA-Co's: every entry has a phrase of its own, and there are no categories.
    """

    path: Path
    entries: list[Entry]
    ground_truths: list[GroundTruth]
    images: Ids
    labels: Ids
    names: Mapping[int, str]
    frequency: Mapping[int, str] = field(default_factory=dict)
    by_concept: bool = False

    @property
    def has_masks(self) -> bool:
        return all(truth.rles is not None for truth in self.ground_truths)

    @property
    def federated(self) -> bool:
        return any(truth.known is not None for truth in self.ground_truths)


def read_truths(path: Path, *, with_masks: bool = True) -> Truths:
    """Read COCO's, LVIS' or SA-Co's annotations.

    Boxes in 0..1, of images of more than a pixel, are read as shares of the image.

    Args:
        with_masks: False passes masks over.

    Raises:
        UserError: not such a file; an entry that is broken, or belongs to no image or category.
    """
    content = read_content(path, "test")
    images = _objects(content["images"], path, "image")
    entries, ids = _entries(images, path)
    by_concept = any(TEXT in image for image in images)
    categories = _objects(content["categories"], path, "category")
    labels = Ids(dict.fromkeys(_id(category, path, "category") for category in categories))
    annotations = _objects(content["annotations"], path, "annotation")
    places = {entry.number: place for place, entry in enumerate(entries)}
    rows: list[list[Mapping[str, Any]]] = [[] for _ in entries]
    for item in annotations:
        image = ids[item.get("image_id")]
        if image is None:
            raise UserError(
                f"{path}: annotation {short(item.get('id'))} belongs to image {short(item.get('image_id'))}, which is "
                "not in the file's images; remove or fix it"
            )
        rows[places[image]].append(item)
    masks = with_masks and any(item.get("segmentation") for item in annotations)
    reader = _Reader(path, labels, by_concept, masks, annotations)
    found = [reader.ground_truth(*one) for one in zip(entries, images, rows, strict=True)]
    numbered = {number: category for category in categories if (number := labels[category["id"]]) is not None}
    names = {number: clean_phrase(str(category.get("name") or "")) for number, category in numbered.items()}
    frequency = {n: str(category["frequency"]) for n, category in numbered.items() if category.get("frequency")}
    return Truths(path, entries, found, ids, labels, names, frequency, by_concept)


def _objects(items: Sequence[Any], path: Path, what: str) -> list[Mapping[str, Any]]:
    for item in items:
        if not isinstance(item, dict):
            raise UserError(f"{path}: {what} {short(item)} is not a JSON object")
    return list(items)


def _id(item: Mapping[str, Any], path: Path, what: str) -> int | str:
    key = id_key(item.get("id"))
    if key is None:
        raise UserError(f"{path}: {what} {short(item)} has no id; give it one")
    return key


def _entries(images: Sequence[Mapping[str, Any]], path: Path) -> tuple[list[Entry], Ids]:
    keys = [_id(image, path, "image") for image in images]
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise UserError(f"{path}: image {short(twice)} is listed twice; give every image an id of its own")
    ids, found = Ids(keys), []
    for image, key in zip(images, keys, strict=True):
        phrase = image.get(TEXT)
        one = ids[key]
        assert one is not None
        height, width = (whole(image.get(side)) or 0 for side in ("height", "width"))
        name = picture_name(image) or ""
        found.append(Entry(one, name, clean_phrase(phrase) if isinstance(phrase, str) else None, height, width))
    return found, ids


class _Reader:
    """What all images of a file share."""

    def __init__(
        self, path: Path, labels: Ids, by_concept: bool, masks: bool, annotations: Sequence[Mapping[str, Any]]
    ) -> None:
        self.path, self.labels, self.by_concept, self.masks = path, labels, by_concept, masks
        self.unit_boxes = in_unit(item.get("bbox") for item in annotations)

    def ground_truth(self, entry: Entry, image: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> GroundTruth:
        rows = [self._row(entry, item) for item in items]
        there = {label for label, *_ in rows}
        known, unclear = None, frozenset[int]()
        if self.by_concept:
            unclear = frozenset() if flag(image.get("is_instance_exhaustive", 1)) else frozenset({CONCEPT})
        elif any(key in image for key in FEDERATED):
            absent, doubtful = (self._listed(image, key) for key in FEDERATED)
            known, unclear = frozenset(absent | doubtful | there), frozenset(doubtful)
            # What is found beside the annotated objects may be right: COCO ignores it in a crowd region.
            rows += [self._everywhere(entry, label) for label in sorted(unclear)]
        boxes = torch.tensor([box for _, box, *_ in rows], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return GroundTruth(
            boxes,
            torch.tensor([label for label, *_ in rows], dtype=torch.int64),
            torch.tensor([crowd for *_, crowd in rows], dtype=torch.int64),
            torch.tensor([area for _, _, _, area, _ in rows], dtype=torch.float64),
            [rle for _, _, rle, _, _ in rows] if self.masks else None,
            known,
            unclear,
        )

    def _row(self, entry: Entry, item: Mapping[str, Any]) -> tuple[int, list[float], Rle, float, bool]:
        where = f"{self.path}: annotation {short(item.get('id'))}"
        label = CONCEPT if self.by_concept else self.labels[item.get("category_id")]
        if label is None:
            raise UserError(
                f"{where} has category {short(item.get('category_id'))}, which is not in the file's categories"
            )
        crowd = flag(next((item[key] for key in CROWD_KEYS if key in item), None))
        if crowd is None:
            raise UserError(f"{where} has another iscrowd than 0 or 1; fix it")
        rle: Rle = {}
        if self.masks:
            rle = read_mask(item.get("segmentation"), entry, where)
        box = read_box(item.get("bbox"), entry, where, unit=self.unit_boxes, rle=rle)
        area = number(item.get("area"))
        if area is None or self.unit_boxes:
            area = float(mask_utils.area(rle)) if rle else box[2] * box[3]
        return label, box, rle, float(area), crowd

    def _listed(self, image: Mapping[str, Any], key: str) -> set[int]:
        given = image.get(key) or []
        found = [self.labels[value] for value in given] if isinstance(given, list) else [None]
        if None in found:
            raise UserError(
                f"{self.path}: image {short(image.get('id'))} has {key} {short(given)}, expected a list of ids of the "
                "file's categories"
            )
        return {label for label in found if label is not None}

    def _everywhere(self, entry: Entry, label: int) -> tuple[int, list[float], Rle, float, bool]:
        height, width = entry.height, entry.width
        rle = to_rle({"size": [height, width], "counts": [0, height * width]}, height, width) if self.masks else {}
        return label, [0.0, 0.0, float(width), float(height)], rle, float(height * width), True


def in_unit(boxes: Any) -> bool:
    """Whether all of a file's boxes lie in 0..1 (and one of them has a size)."""
    found = [box for value in boxes if (box := four_numbers(value)[0]) is not None and any(box)]
    return bool(found) and all(0 <= value <= 1 + 1e-6 for box in found for value in box)


def read_box(value: Any, entry: Entry, where: str, *, unit: bool, rle: Rle) -> list[float]:
    """x, y, width, height in pixels of a ``bbox``, or of the mask where there is none.

    Raises:
        UserError: neither is there, or it is not four numbers.
    """
    if value in (None, []) and rle:
        return [float(side) for side in mask_utils.toBbox(rle)]
    box = four_numbers(value)[0]
    if box is None:
        raise UserError(f"{where} has bbox {short(value)}, expected [x, y, width, height]")
    if unit and entry.width > 1 and entry.height > 1:
        return [side * size for side, size in zip(box, (entry.width, entry.height) * 2, strict=True)]
    return [float(side) for side in box]


def read_mask(value: Any, entry: Entry, where: str) -> Rle:
    """The compressed RLE of a ``segmentation``; it may have no pixels.

    Raises:
        UserError: it is missing, broken, or of another size than the image.
    """
    try:
        segmentation, _ = respelt(value)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if segmentation is None:
        raise UserError(f"{where} has no segmentation, and others have one; add it, or use --iou bbox")
    height, width = entry.height, entry.width
    if isinstance(segmentation, dict):
        given = segmentation.get("size") or [height, width]
        height, width = given if 0 in (height, width) else (height, width)
        rle = {"size": [height, width]} | segmentation
        if rle_runs(rle, height, width, empty=True) is None:
            raise UserError(
                f"{where} has an RLE of size {short(segmentation.get('size'))} that is not a mask of its "
                f"{width}x{height} image; write it with pycocotools"
            )
        return to_rle(rle, height, width)
    if 0 in (height, width):
        raise UserError(f"{where} has polygons, and its image says no height and width; add them")
    parts: Segmentation
    farthest = max((abs(value) for polygon in segmentation for value in polygon), default=0.0)
    if farthest > REACH * max(height, width):  # pycocotools walks along every edge
        found = outline(segmentation, height, width)
        parts = [] if found is None else found.segmentation
    else:
        parts = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return to_rle(parts or {"size": [height, width], "counts": [height * width]}, height, width)
