"""Ground truth where nobody has annotated: what the full model finds, kept in a file so that others meet the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from sam3slim.data.coco import CocoConcepts
from sam3slim.data.detections import CONFIDENT, Detections, Rle
from sam3slim.data.records import Annotation
from sam3slim.errors import UserError
from sam3slim.files import read_json, write_json

FILE_NAME = "agreement.json"  # in the folder of the full model's run


def label(dataset: CocoConcepts, detections: Iterable[Detections]) -> None:
    """Make the detections of at least ``CONFIDENT`` the ground truth of ``dataset``, which has none; in place.

    Raises:
        UserError: there is no such detection.
    """
    found: dict[int, list[Annotation]] = {}
    for item in detections:
        columns = zip(item.labels.tolist(), item.boxes.tolist(), item.scores.tolist(), item.rles or [], strict=True)
        found[item.image_id] = [
            Annotation(category, tuple(box), _text(rle), area, iscrowd=False)
            for category, box, score, rle in columns
            if score >= CONFIDENT and (area := float(mask_utils.area(rle))) > 0
        ]
    if not any(found.values()):
        raise UserError(
            f"the full model finds nothing with a score of at least {CONFIDENT:g} in {len(found)} pictures: there is "
            f"nothing to agree with; ask for phrases that are in the pictures ({dataset.annotation_file})"
        )
    _set(dataset, found)


def write_labels(folder: Path, dataset: CocoConcepts) -> Path:
    """Keep what ``label`` has made, for ``read_labels``."""
    return write_json(folder / FILE_NAME, _content(dataset))


def read_labels(folder: Path, dataset: CocoConcepts, key: str = "reference") -> None:
    """Give ``dataset`` the ground truth that another run in ``folder`` has made of the same pictures and phrases.

    Args:
        key: of the configuration that names the folder.

    Raises:
        UserError: there is none, or it is of other pictures or phrases.
    """
    path, again = folder / FILE_NAME, "evaluate the full model on these pictures again"
    if not path.is_file():
        raise UserError(f"{key}={folder} has no {FILE_NAME}: it was not measured with data=pictures; {again}")
    content = read_json(path, again)
    try:
        images = {str(image["file_name"]): image["objects"] for image in content["images"]}
        numbers = {category.phrase: category.id for category in dataset.categories}
        if set(content["phrases"]) != set(numbers):
            raise UserError(f"{key}={folder} was asked for other phrases than {dataset.annotation_file}; {again}")
        records = {record.file_name: record for record in dataset.records}
        if other := sorted(images.keys() - records.keys()):
            raise UserError(f"{key}={folder} has seen other pictures than {dataset.folder} ({other[0]}); {again}")
        found = {records[name].id: [_annotation(item, numbers) for item in objects] for name, objects in images.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not hold what a model found ({error}); {again}") from error
    _set(dataset, found)


def _annotation(item: dict[str, Any], numbers: dict[str, int]) -> Annotation:
    rle = {"size": item["segmentation"]["size"], "counts": str(item["segmentation"]["counts"])}
    x1, y1, x2, y2 = map(float, item["box"])
    return Annotation(numbers[item["phrase"]], (x1, y1, x2, y2), rle, float(item["area"]), iscrowd=False)


def _text(rle: Rle) -> Rle:
    """As JSON has it."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _set(dataset: CocoConcepts, found: dict[int, list[Annotation]]) -> None:
    for record in dataset.records:
        record.annotations = found.get(record.id, [])
    content = json.dumps(_content(dataset), sort_keys=True)
    dataset.labelled(hashlib.sha256(content.encode()).hexdigest())


def _content(dataset: CocoConcepts) -> dict[str, Any]:
    def row(item: Annotation) -> dict[str, Any]:
        phrase = dataset.phrase_of(item.category_id)
        return {"phrase": phrase, "box": list(item.box), "area": item.area, "segmentation": item.segmentation}

    return {
        "score": CONFIDENT,
        "phrases": [category.phrase for category in dataset.categories],
        "images": [{"file_name": r.file_name, "objects": list(map(row, r.annotations))} for r in dataset.records],
    }
