"""A data set as records: categories, and images with their annotations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.data.report import DataReport
from sam3slim.data.rle import Segmentation
from sam3slim.data.segmentation import Box


@dataclass(frozen=True, slots=True)
class Category:
    """A COCO category and what it is prompted with.

    Attributes:
        phrase: what an evaluation asks.
        supercategory: "" for none.
        synonyms: other phrases, of which training also takes one.
    """

    id: int
    phrase: str
    supercategory: str = ""
    synonyms: tuple[str, ...] = ()

    @property
    def phrases(self) -> tuple[str, ...]:
        """All of them, that of evaluations first."""
        return self.phrase, *self.synonyms


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
    """One image and its annotations.

    Attributes:
        file_name: below the folder of images, as it is spelt on the disk.
        asked: categories that are known to be in the image or not; None: all are.
        unclear: of these, categories whose annotations are not exhaustive.
        entries: category → id of the file's entry for this image and this category, in SA-Co's files.
    """

    id: int
    file_name: str
    height: int
    width: int
    annotations: list[Annotation] = field(default_factory=list)
    asked: frozenset[int] | None = None
    unclear: frozenset[int] = frozenset()
    entries: dict[int, Any] | None = None


@dataclass
class CocoIndex:
    """A whole annotation file."""

    path: Path
    records: list[ImageRecord]
    categories: list[Category]
    has_masks: bool
    report: DataReport
