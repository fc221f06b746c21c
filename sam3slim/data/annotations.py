"""Annotation files → checked and cleaned records.

What makes the file meaningless (not COCO, dangling ids, nameless categories) stops in one line; what spoils single
annotations (a box outside the image, a polygon without area) is repaired or left out, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3slim.data.cleaning import read_annotations
from sam3slim.data.content import read_content
from sam3slim.data.dialects import FEDERATED, as_coco
from sam3slim.data.entries import Same, SizeOf, image_records, read_categories
from sam3slim.data.records import Annotation, Category, CocoIndex, ImageRecord
from sam3slim.data.report import DataReport
from sam3slim.data.values import Ids, short
from sam3slim.errors import UserError

__all__ = [
    "Annotation",
    "Category",
    "CocoIndex",
    "DataReport",
    "ImageRecord",
    "category_phrases",
    "index_of",
    "load_index",
]


def load_index(
    path: Path,
    split: str = "train",
    *,
    phrases: Mapping[str, Sequence[str]] | None = None,
    same: Same | None = None,
) -> CocoIndex:
    """Read, check and clean a COCO annotation file, or one of another layout; see ``index_of``.

    Raises:
        UserError: not an annotation file, or what ``index_of`` refuses.
    """
    return index_of(read_content(path, split), path, phrases=phrases, same=same)


def index_of(
    content: Mapping[str, Any],
    path: Path,
    *,
    size_of: SizeOf | None = None,
    phrases: Mapping[str, Sequence[str]] | None = None,
    same: Same | None = None,
) -> CocoIndex:
    """Check and clean COCO's dict of images, annotations and categories.

    Args:
        content: from ``read_content``.
        path: where it is from, for messages.
        size_of: (height, width) of the picture of a file name, for images whose entries say none.
        phrases: a category's name as a phrase → the phrases it is asked for with instead.
        same: what tells phrases apart for the model; two categories with equal values become one. Default: the words.

    Raises:
        UserError: an id that leads nowhere, a category without a name, an image without a size.
    """
    report = DataReport(content.get("layout", "COCO"))
    for picture in content.get("unreadable", ()):
        report.note("images_unreadable", short(picture))
    content = as_coco(content, path, report)
    images, records = image_records(path, content["images"], size_of, report)
    categories, numbers, parents = read_categories(path, content, phrases or {}, same, report)
    has_masks = read_annotations(path, content["annotations"], (images, records), (numbers, parents), report)
    index = CocoIndex(path, list(records.values()), categories, has_masks, report)
    _count(index)
    _federate(index, content["images"], numbers, parents)
    return index


def category_phrases(path: Path, split: str = "train", phrases: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """The phrases of an annotation file's categories, each once; the annotations are hardly looked at.

    Raises:
        UserError: not an annotation file, a category without a name.
    """
    report = DataReport()
    content = as_coco(read_content(path, split), path, report)
    categories, _, _ = read_categories(path, content, phrases or {}, None, report)
    return list(dict.fromkeys(phrase for category in categories for phrase in category.phrases))


def _federate(index: CocoIndex, entries: list[Any], numbers: Ids, parents: Mapping[int, int]) -> None:
    """For which categories each image is annotated, where the file says it (LVIS, SA-Co)."""
    if not any(key in entry for entry in entries for key in FEDERATED):
        return
    for entry, record in zip(entries, index.records, strict=True):
        absent, unclear = (_listed(index.path, entry, key, numbers, parents) for key in FEDERATED)
        there = {annotation.category_id for annotation in record.annotations}
        record.asked, record.unclear = frozenset(absent | unclear | there), frozenset(unclear)
        index.report.federated += 1
        if isinstance(given := entry.get("entries"), dict):
            record.entries = {}
            for category, number in given.items():
                record.entries.setdefault(parents[category], number)
        height, width = record.height, record.width
        for category in sorted(unclear):
            # An object may be anywhere: COCO ignores what is found in a crowd region.
            mask = {"size": [height, width], "counts": [0, height * width]} if index.has_masks else None
            box, area = (0.0, 0.0, float(width), float(height)), float(height * width)
            record.annotations.append(Annotation(category, box, mask, area, iscrowd=True))


def _listed(path: Path, entry: Mapping[str, Any], key: str, numbers: Ids, parents: Mapping[int, int]) -> set[int]:
    given = entry.get(key) or []
    found = [numbers[value] for value in given] if isinstance(given, list) else [None]
    if any(number not in parents for number in found):
        raise UserError(
            f"{path.name}: image {short(entry.get('id'))} has {key} {short(given)}, expected a list of ids of the "
            "file's categories"
        )
    return {parents[number] for number in found if number is not None}


def _count(index: CocoIndex) -> None:
    """The numbers of the report."""
    report, kept = index.report, [annotation for record in index.records for annotation in record.annotations]
    there = {annotation.category_id for annotation in kept}
    report.images, report.annotations, report.categories = len(index.records), len(kept), len(index.categories)
    report.crowd_regions = sum(annotation.iscrowd for annotation in kept)
    report.images_without_annotations = sum(not record.annotations for record in index.records)
    report.unannotated = [category.phrase for category in index.categories if category.id not in there]
