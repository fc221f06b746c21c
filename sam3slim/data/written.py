"""What a model found in a data set as files: COCO's results, and SA-Co's annotations with predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam3slim.data.batch import GroundTruth
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.content import read_content
from sam3slim.data.detections import CONFIDENT, Detections, xywh
from sam3slim.data.truths import CONCEPT
from sam3slim.data.values import Ids, id_key
from sam3slim.files import atomic_path

Row = dict[str, Any]


def write_results(path: Path, dataset: CocoConcepts, detections: Sequence[Detections]) -> Path:
    """COCO's results, with the ids of the set's annotation file; of SA-Co's files those of picture and phrase.

    What is kept for its score alone (``Detections.beyond``) is left out, so pycocotools finds the recorded mAP. Numbers
    are not rounded.
    """
    content = read_content(dataset.annotation_file, dataset.split)
    images, categories = (_given_ids(content[key]) for key in ("images", "categories"))
    entries = {record.id: record.entries for record in dataset.records if record.entries is not None}

    def ids(image: int, label: int) -> Row:
        if image in entries:
            return {"image_id": entries[image].get(label), "category_id": CONCEPT}
        return {"image_id": images.get(image, image), "category_id": categories.get(label, label)}

    rows = (
        {**ids(item.image_id, label), **row}
        for item in detections
        for label, row in _rows(item, len(item) - item.beyond)
    )
    return _write(path, rows)


def write_concepts(
    folder: Path, dataset: CocoConcepts, detections: Sequence[Detections], truths: Sequence[GroundTruth]
) -> list[Path]:
    """``annotations.json`` and ``predictions.json`` as SA-Co has them: an entry for each image and category asked.

    Crowd regions are marked, entries that are not annotated exhaustively too. Only detections that cgF1 counts are
    written, however many there are.
    """
    records = {record.id: record for record in dataset.records}
    images, annotations, found = list[Row](), list[Row](), list[Row]()
    for item, truth in zip(detections, truths, strict=True):
        record = records[item.image_id]
        asked = [] if item.prompts is None else item.prompts.labels.tolist()
        numbers = {label: len(images) + n for n, label in enumerate(asked, start=1)}
        for label, number in numbers.items():
            images.append({
                "id": number, "file_name": record.file_name, "height": record.height, "width": record.width,
                "text_input": dataset.phrase_of(label), "is_instance_exhaustive": int(label not in truth.unclear),
            })  # fmt: skip
        for label, row in _objects(truth):
            if label in numbers:
                own = {"id": len(annotations) + 1, "image_id": numbers[label], "category_id": CONCEPT}
                annotations.append({**own, **row})
        for label, row in _rows(item, len(item)):
            if row["score"] >= CONFIDENT:
                found.append({"image_id": numbers[label], "category_id": CONCEPT, **row})
    kinds = [{"id": CONCEPT, "name": "object"}]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": kinds}
    with atomic_path(folder / "annotations.json") as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    return [folder / "annotations.json", _write(folder / "predictions.json", found)]


def _given_ids(items: Iterable[Mapping[str, Any]]) -> dict[int, Any]:
    """The number that the reader gave an id → the id as the file has it, where the two differ."""
    given = [(key, item["id"]) for item in items if (key := id_key(item.get("id"))) is not None]
    ids = Ids(dict.fromkeys(key for key, _ in given))
    return {number: raw for key, raw in given if (number := ids[key]) is not None and number != raw}


def _rows(item: Detections, count: int) -> Iterator[tuple[int, Row]]:
    """Label and what results say of the first ``count`` detections."""
    columns = (item.labels[:count].tolist(), item.scores[:count].tolist(), xywh(item.boxes[:count]))
    for n, (label, score, box) in enumerate(zip(*columns, strict=True)):
        yield (
            label,
            {"score": score, "bbox": box, **({} if item.rles is None else {"segmentation": _text(item.rles[n])})},
        )


def _objects(truth: GroundTruth) -> Iterator[tuple[int, Row]]:
    columns = (truth.labels.tolist(), xywh(truth.boxes), truth.area.tolist(), truth.iscrowd.tolist())
    for n, (label, box, area, crowd) in enumerate(zip(*columns, strict=True)):
        mask = {} if truth.rles is None else {"segmentation": _text(truth.rles[n])}
        yield label, {"bbox": box, "area": area, "iscrowd": crowd, **mask}


def _text(rle: Mapping[str, Any]) -> Row:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _write(path: Path, rows: Iterable[Row]) -> Path:
    """A JSON list, a line for each row."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for n, row in enumerate(rows):
            file.write((",\n" if n else "\n") + json.dumps(row, allow_nan=False))
        file.write("\n]\n")
    return path
