"""Predictions of any model: COCO's results, SA-Co's, and what ``sam3slim predict`` writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sam3slim.data.detections import Detections, PromptScores
from sam3slim.data.dialects import clean_phrase, picture_name
from sam3slim.data.truths import CONCEPT, Entry, Rle, Truths, in_unit, read_box, read_mask
from sam3slim.data.values import id_key, number, short
from sam3slim.errors import UserError
from sam3slim.files import read_json_value

EXPECTED = (
    "expected COCO's results, [{image_id, category_id, score, bbox and/or segmentation}, …], or the detections.json of "
    "sam3slim predict"
)


@dataclass(frozen=True)
class Predictions:
    """A file of predictions beside its annotations.

    Attributes:
        detections: one per entry of the annotations, best first; equal scores in the file's order.
        has_masks: whether they have masks; without any detection, whether the annotations have.
        missing: entries whose picture the file says nothing of, and detections of nothing that is annotated; only known
            of files that list their pictures.
    """

    path: Path
    detections: list[Detections]
    has_masks: bool
    missing: tuple[int, int] = (0, 0)


def read_predictions(path: Path, truths: Truths, *, with_masks: bool = True) -> Predictions:
    """Read predictions of the entries of ``truths``.

    Raises:
        UserError: not such a file, or a prediction that is broken or of no entry.
    """
    content = read_json_value(path, EXPECTED)
    rows: Any = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no predictions; {EXPECTED}")
    own = _ByName(path, content, truths) if isinstance(content, dict) else None
    places = {entry.number: place for place, entry in enumerate(truths.entries)}
    masks = with_masks and truths.has_masks and (any(row.get("segmentation") for row in rows) or not rows)
    reader = _Reader(path, truths, masks, unit=in_unit(row.get("bbox") for row in rows))
    found: list[list[tuple[float, int, list[float], Rle]]] = [[] for _ in truths.entries]
    beside = 0
    for position, row in enumerate(rows):
        where = f"{path}: prediction {position}"
        image, label = reader.of(row, where) if own is None else own.of(row, where)
        if image is None:
            beside += 1
        else:
            found[places[image]].append(reader.read(row, truths.entries[places[image]], label, where))
    asked = sorted(truths.names) if not truths.by_concept else [CONCEPT]
    prompts = PromptScores(torch.tensor(asked), torch.zeros(len(asked)), torch.zeros(len(asked)))
    pairs = zip(truths.entries, found, strict=True)
    detections = [_detections(entry.number, items, prompts, masks) for entry, items in pairs]
    return Predictions(path, detections, masks, (0 if own is None else own.missing, beside))


def _detections(
    image: int, items: Iterable[tuple[float, int, list[float], Rle]], prompts: PromptScores, masks: bool
) -> Detections:
    ordered = sorted(items, key=lambda item: -item[0])  # stable
    boxes = torch.tensor([box for _, _, box, _ in ordered], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        image,
        boxes,
        torch.tensor([score for score, *_ in ordered], dtype=torch.float64),
        torch.tensor([label for _, label, *_ in ordered], dtype=torch.int64),
        [rle for *_, rle in ordered] if masks else None,
        prompts,
    )


@dataclass(frozen=True)
class _Reader:
    """Of results that go by the annotations' ids."""

    path: Path
    truths: Truths
    masks: bool
    unit: bool

    def of(self, row: Mapping[str, Any], where: str) -> tuple[int, int]:
        """Image and category of a result."""
        image = self.truths.images[row.get("image_id")]
        if image is None:
            raise UserError(
                f"{where} is of image {short(row.get('image_id'))}, which {self.truths.path} does not list; give the "
                "annotations that were predicted on"
            )
        if self.truths.by_concept:
            return image, CONCEPT
        label = self.truths.labels[row.get("category_id")]
        if label is None:
            raise UserError(
                f"{where} has category {short(row.get('category_id'))}, which is not among the categories of "
                f"{self.truths.path}; give the annotations that were predicted on"
            )
        return image, label

    def read(self, row: Mapping[str, Any], entry: Entry, label: int, where: str) -> tuple[float, int, list[float], Rle]:
        score = number(row.get("score"))
        if score is None:
            raise UserError(f"{where} has score {short(row.get('score'))}, expected a number; {EXPECTED}")
        rle: Rle = read_mask(row.get("segmentation"), entry, where) if self.masks else {}
        box = read_box(row.get("bbox"), entry, where, unit=self.unit, rle=rle)
        return float(score), label, box, rle


class _ByName:
    """Of files with pictures and phrases of their own, which are found by name."""

    def __init__(self, path: Path, content: Mapping[str, Any], truths: Truths) -> None:
        self.truths = truths
        for key in ("images", "categories"):
            if not isinstance(content.get(key), list):
                raise UserError(f"{path} holds no list of {key}; {EXPECTED}")
        self._pictures = {id_key(image.get("id")): picture_name(image) or "" for image in content["images"]}
        self._phrases = {id_key(one.get("id")): clean_phrase(str(one.get("name"))) for one in content["categories"]}
        self._entries: dict[tuple[str, str | None], int] = {}
        entries: dict[str, set[str]] = defaultdict(set)
        for entry in truths.entries:
            entries[Path(entry.name).name].add(entry.name)
            self._entries[entry.name, entry.phrase] = entry.number
        self._names = {entry.name for entry in truths.entries}
        # By the last part of a name where no other has it.
        self._spelt = {last: names.pop() for last, names in entries.items() if len(names) == 1}
        self._labels = {name: label for label, name in truths.names.items()}
        predicted = {self._name(name) for name in self._pictures.values()}
        if not predicted & self._names:
            raise UserError(
                f"none of the {len(predicted)} pictures of {path} is among those of {truths.path} "
                f"({short(next(iter(self._pictures.values()), ''))} beside {short(truths.entries[0].name)}); give the "
                "annotations of the pictures that were predicted on"
            )
        self.missing = sum(entry.name not in predicted for entry in truths.entries)

    def _name(self, name: str) -> str:
        return name if name in self._names else self._spelt.get(Path(name).name, name)

    def of(self, row: Mapping[str, Any], where: str) -> tuple[int | None, int]:
        """Image and category of a detection; no image where nothing is annotated of it."""
        picture, phrase = (
            known.get(id_key(row.get(key)))
            for known, key in ((self._pictures, "image_id"), (self._phrases, "category_id"))
        )
        if picture is None or phrase is None:
            raise UserError(f"{where} has an image_id or a category_id that its file does not list; {EXPECTED}")
        name = self._name(picture)
        if self.truths.by_concept:
            return self._entries.get((name, phrase)), CONCEPT
        if phrase not in self._labels:
            return None, 0
        return self._entries.get((name, None)), self._labels[phrase]
