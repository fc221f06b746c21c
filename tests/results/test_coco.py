from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam3slim.data.batch import GroundTruth
from sam3slim.data.detections import Detections
from sam3slim.evaluation import ConceptMetrics
from sam3slim.results.coco import NUMBERS, IouType, average_precision
from sam3slim.results.metrics import measure_all
from tests.evaluation.conftest import make_truth, rectangle_rle
from tests.processes import run_two

SIZE = (120, 160)
KINDS: tuple[IouType, ...] = ("bbox", "segm")
Box = tuple[int, int, int, int]


def found_like(truth: GroundTruth, image_id: int = 0, score: float = 0.9) -> Detections:
    """Exactly the ground truth that is not a crowd."""
    keep = [i for i, crowd in enumerate(truth.iscrowd.tolist()) if not crowd]
    rles = None if truth.rles is None else [truth.rles[i] for i in keep]
    return Detections(image_id, truth.boxes[keep], torch.full((len(keep),), score), truth.labels[keep], rles)


def detect(boxes: list[Box], labels: list[int], scores: list[float], size: tuple[int, int] = (40, 60)) -> Detections:
    rles = [rectangle_rle(box, *size) for box in boxes]
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(0, values, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), rles)


def random_set(seed: int, images: int = 12) -> tuple[list[Detections], list[GroundTruth]]:
    """Rectangles of all COCO sizes, some detected with jitter, some missed, some invented, some crowds."""
    rng = np.random.default_rng(seed)

    def box() -> Box:
        w, h = rng.integers(5, 110), rng.integers(5, 100)
        x, y = rng.integers(0, SIZE[1] - w), rng.integers(0, SIZE[0] - h)
        return int(x), int(y), int(x + w), int(y + h)

    def jitter(b: Box) -> Box:
        x1, y1, x2, y2 = (int(v + rng.integers(-3, 4)) for v in b)
        x1, y1 = max(x1, 0), max(y1, 0)
        return x1, y1, min(max(x2, x1 + 2), SIZE[1]), min(max(y2, y1 + 2), SIZE[0])

    detections, truths = [], []
    for image in range(images):
        boxes = [box() for _ in range(rng.integers(0, 7))]
        labels = [int(rng.integers(1, 5)) for _ in boxes]
        truths.append(make_truth(boxes, labels, size=SIZE, crowd=[int(rng.random() < 0.15) for _ in boxes]))
        found = [(jitter(b), label) for b, label in zip(boxes, labels, strict=True) if rng.random() < 0.8]
        found += [(box(), int(rng.integers(1, 7))) for _ in range(rng.integers(0, 4))]
        item = detect([b for b, _ in found], [label for _, label in found], rng.random(len(found)).tolist(), SIZE)
        item.image_id = image
        detections.append(item)
    return detections, truths


def plain_coco(detections: list[Detections], truths: list[GroundTruth], kind: str) -> COCOeval:
    annotations = []
    for image, truth in enumerate(truths):
        for i, box in enumerate(truth.boxes.tolist()):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": int(truth.labels[i]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "segmentation": truth.rles[i],
                "area": float(truth.area[i]), "iscrowd": int(truth.iscrowd[i]),
            })  # fmt: skip
    results = [
        {"image_id": image, "category_id": int(d.labels[i]), "score": float(d.scores[i])}
        | ({"segmentation": d.rles[i]} if kind == "segm" else {"bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]})
        for image, d in enumerate(detections)
        for i, b in enumerate(d.boxes.tolist())
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = {
            "info": {}, "annotations": annotations, "categories": [{"id": i} for i in range(1, 8)],
            "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(truths))],
        }  # fmt: skip
        truth_set.createIndex()
        evaluation = COCOeval(truth_set, truth_set.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def measured(detections: list[Detections], truths: list[GroundTruth], kind: str) -> dict[str, Any]:
    return measure_all(detections, truths)[kind].numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision__equals_plain_pycocotools(seed: int, kind: IouType) -> None:
    detections, truths = random_set(seed)
    golden = plain_coco(detections, truths, kind)
    # Whatever the order of the images, COCOeval goes by their ids.
    order = np.random.default_rng(seed).permutation(len(truths))
    numbers, matches = average_precision([detections[n] for n in order], [truths[n] for n in order], kind)
    assert 0.02 < golden.stats[0] < 0.98  # the data are neither trivial nor hopeless
    for key, expected in zip(NUMBERS, golden.stats[[0, 1, 2, 3, 4, 5, 8]], strict=True):
        assert numbers[key] == (None if expected == -1 else pytest.approx(expected, abs=1e-9)), key
    by_category = matches.per_category()
    for k, category in enumerate(golden.params.catIds):
        precision = golden.eval["precision"][:, :, k, 0, -1]
        expected = precision[precision > -1].mean() if (precision > -1).any() else None
        assert by_category.get(category) == (None if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize("kind", KINDS)
def test_average_precision__perfect_detections_give_one(kind: str) -> None:
    _, truths = random_set(3)
    assert measured([found_like(truth, i) for i, truth in enumerate(truths)], truths, kind)["map"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_average_precision__detections_in_a_crowd_are_ignored(kind: str) -> None:
    boxes: list[Box] = [(2, 2, 20, 20), (30, 2, 58, 38)]
    wrong = detect([*boxes[:1], (32, 4, 50, 30), (33, 8, 52, 36)], [1, 1, 1], [0.5, 0.9, 0.8])
    for crowd, expected in (([0, 1], 1.0), ([0, 0], None)):
        value = measured([wrong], [make_truth(boxes, [1, 1], crowd=crowd)], kind)["map"]
        assert value == pytest.approx(1.0) if expected else value < 0.7


def test_average_precision__annotated_area_decides_the_size_group() -> None:
    truth = make_truth([(2, 2, 20, 20)], [1])
    truth.area[:] = 50.0**2  # says "medium", its pixels say "small"
    result = measured([found_like(truth)], [truth], "segm")
    assert result["map_medium"] == pytest.approx(1.0)
    assert result["map_small"] is None
    truth.area[:] = 0  # says nothing
    assert measured([found_like(truth)], [truth], "segm")["map_small"] == pytest.approx(1.0)


def test_measure_all__boxes_only_has_no_segm() -> None:
    truth = make_truth([(2, 2, 20, 20)], [1], masks=False)
    result = measure_all([found_like(truth)], [truth])
    assert list(result) == ["bbox"]
    assert result["bbox"].numbers["map"] == pytest.approx(1.0)
    assert result["bbox"].numbers["map_large"] is None


def test_average_precision__nothing_detected_is_zero_and_nothing_annotated_is_none() -> None:
    nothing = detect([], [], [])
    assert measured([nothing], [make_truth([(2, 2, 20, 20)], [1])], "segm")["map"] == 0.0
    assert measured([detect([(2, 2, 20, 20)], [1], [0.5])], [make_truth([], [])], "segm")["map"] is None
    assert measured([nothing], [make_truth([], [])], "segm")["map"] is None


def test_measure_all__lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        measure_all([detect([], [], [])], [])


def part(rank: int, processes: int, folder: Path, images: int) -> None:
    """One process of an evaluation: its images, dealt out in turns."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    metrics, (detections, truths) = ConceptMetrics(), random_set(0, images)
    metrics.update(detections[rank::processes], truths[rank::processes])
    (folder / f"{rank}.json").write_text(json.dumps(metrics.compute()))


def test_concept_metrics__processes_with_unequal_numbers_of_images(tmp_path: Path) -> None:
    run_two(part, 2, tmp_path, 5)
    expected = {name: item.numbers for name, item in measure_all(*random_set(0, 5)).items()}
    assert 0.1 < expected["segm"]["map"] < 0.9
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def test_measure_all__says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    measure_all(*random_set(0))
    assert caplog.records == []
