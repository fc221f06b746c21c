"""COCO box and mask average precision: its numbers and its matching of detections with objects, from one pass."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.sparse import csr_matrix

from sam3slim.results.samples import Samples

if TYPE_CHECKING:
    from sam3slim.data.batch import GroundTruth
    from sam3slim.data.detections import Detections

Kind = Literal["bbox", "segm"]
MAX_DETECTIONS = 100  # per image, COCO's
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Name → its place among COCOeval's statistics.
NUMBERS = {"map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5, "mar_100": 8}


@dataclass(frozen=True)
class Matches(Samples):
    """COCO's matching of all detections of one kind (D of them, I images, K categories, T = 10 IoU thresholds).

    Attributes:
        image_ids: [I] int64, the order of the columns of ``positives``.
        category_ids: [K] int64.
        positives: [K, I] int64 objects to be found (crowd regions are none).
        category, image: [D] int64 index of each detection's category and image; by category, then falling score.
        hit, ignored: [D, T] bool: matched an object; matched a crowd region.
    """

    category_ids: NDArray[np.int64]
    positives: NDArray[np.int64]
    category: NDArray[np.int64]
    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]

    def values(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """mAP over choices of images, see ``Samples``.

        Counting an image twice equals listing it twice: equal detections lie side by side, and between them the
        precision envelope does not change.
        """
        found, wanted = self._by_category(counts)
        categories = (wanted > 0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return np.where(categories > 0, found.sum(axis=0) / categories, np.nan)

    def per_category(self) -> dict[int, float | None]:
        """Category id → AP; None where no image has an object of it."""
        found, wanted = self._by_category(np.ones((len(self.image_ids), 1), dtype=np.int64))
        values = [float(ap) if count > 0 else None for ap, count in zip(found[:, 0], wanted[:, 0], strict=True)]
        return dict(zip(self.category_ids.tolist(), values, strict=True))

    def objects(self) -> dict[int, bytes]:
        """Category → its objects by image, for those that have any: others are there where something was found."""
        rows = zip(self.category_ids.tolist(), self.positives, strict=True)
        return {category: row.tobytes() for category, row in rows if row.any()}

    def _by_category(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """AP and number of objects, [K, R] each; AP is 0 where there are no objects."""
        weights = counts.astype(np.float64)
        wanted = self.positives @ weights
        edges = np.searchsorted(self.category, np.arange(len(self.category_ids) + 1))
        found = np.zeros(wanted.shape)
        for k in range(len(self.category_ids)):
            part = slice(edges[k], edges[k + 1])
            for t in range(len(IOU_THRESHOLDS)):
                found[k] += self._average_precision(part, t, weights, wanted[k])
        return found / len(IOU_THRESHOLDS), wanted

    def _average_precision(
        self, part: slice, threshold: int, weights: NDArray[np.float64], wanted: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """AP [R] of one category at one IoU threshold, 0 where nothing is wanted (COCOeval.accumulate with weights).

        Recall grows only at hits, and precision peaks there, so only hits are points of the curve.
        """
        counted = ~self.ignored[part, threshold]
        hit = self.hit[part, threshold] & counted
        places, image = np.flatnonzero(hit), self.image[part]
        if len(places) == 0:
            return np.zeros(weights.shape[1])
        misses = np.flatnonzero(~hit & counted)
        misses = misses[misses < places[-1]]
        before = csr_matrix(  # row k: misses between hit k − 1 and hit k, by image
            (np.ones(len(misses)), (np.searchsorted(places, misses), image[misses])), shape=(len(places), len(weights))
        )
        hits = np.cumsum(weights[image[places]], axis=0)  # [hits, R]
        precision = hits / (hits + np.cumsum(before @ weights, axis=0) + np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        recall = hits / np.maximum(wanted, 1)
        reached = np.searchsorted(RECALLS, recall, side="right")
        steps = np.diff(reached, axis=0, prepend=0)
        found: NDArray[np.float64] = (steps * envelope).sum(axis=0) / len(RECALLS)
        return np.where(wanted > 0, found, 0.0)


def average_precision(
    detections: Sequence[Detections], truths: Sequence[GroundTruth], kind: Kind
) -> tuple[dict[str, float | None], Matches]:
    """COCO's numbers (0..1, None where no object defines one), and the matching behind them.

    Args:
        detections, truths: one per image, in the same order.
        kind: compare boxes or masks.
    """
    pairs = sorted(zip(detections, truths, strict=True), key=lambda pair: pair[0].image_id)  # COCOeval's order
    coco, found = _as_coco(pairs, kind)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        evaluation = COCOeval(coco, coco.loadRes(found) if found else _nothing(coco), kind)
        evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # In float32, as every record has them.
    stats = {name: float(np.float32(evaluation.stats[place])) for name, place in NUMBERS.items()}
    numbers = {name: None if value < 0 else value for name, value in stats.items()}
    return numbers, _matches(evaluation, np.array([item.image_id for item, _ in pairs], dtype=np.int64))


def _matches(evaluation: COCOeval, image_ids: NDArray[np.int64]) -> Matches:
    """What ``evaluate`` left for objects of all sizes."""
    category_ids = np.array(evaluation.params.catIds, dtype=np.int64)
    images, areas = len(image_ids), len(evaluation.params.areaRng)
    positives = np.zeros((len(category_ids), images), dtype=np.int64)
    category, image, score, hit, ignored = [], [], [], [], []
    for k in range(len(category_ids)):
        first = k * areas * images  # by category, then area (all sizes first), then image
        for i, result in enumerate(evaluation.evalImgs[first : first + images]):
            if result is None:
                continue
            positives[k, i] = np.count_nonzero(np.asarray(result["gtIgnore"]) == 0)
            size = len(result["dtScores"])
            category.append(np.full(size, k))
            image.append(np.full(size, i))
            score.append(np.asarray(result["dtScores"]))
            hit.append(np.asarray(result["dtMatches"]).reshape(len(IOU_THRESHOLDS), size).T > 0)
            ignored.append(np.asarray(result["dtIgnore"]).reshape(len(IOU_THRESHOLDS), size).T > 0)
    empty = np.zeros((0, len(IOU_THRESHOLDS)), dtype=bool)
    categories = np.concatenate([np.zeros(0, dtype=np.int64), *category])
    # Stable, as COCOeval's merge sort: equal scores stay in the order of images.
    order = np.lexsort((-np.concatenate([np.zeros(0), *score]), categories))
    return Matches(
        image_ids, category_ids, positives, categories[order],
        np.concatenate([np.zeros(0, dtype=np.int64), *image])[order],
        np.concatenate([empty, *hit])[order], np.concatenate([empty, *ignored])[order],
    )  # fmt: skip


def _nothing(coco: COCO) -> COCO:
    """A result set without detections, which ``loadRes`` cannot make."""
    empty = COCO()
    empty.dataset = {**coco.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _as_coco(pairs: Sequence[tuple[Detections, GroundTruth]], kind: Kind) -> tuple[COCO, list[Any]]:
    """Ground truth as a COCO object, detections as its result list; images are named by their place."""
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for place, (item, truth) in enumerate(pairs):
        columns = (_xywh(truth.boxes), truth.labels.tolist(), truth.area.tolist(), truth.iscrowd.tolist())
        for n, (box, label, area, crowd) in enumerate(zip(*columns, strict=True)):
            rle = None if truth.rles is None else truth.rles[n]
            if area <= 0:  # annotated wrongly
                area = box[2] * box[3] if rle is None else float(mask_utils.area(rle))
            annotations.append({
                "id": len(annotations) + 1, "image_id": place, "category_id": label, "bbox": box, "segmentation": rle,
                "area": area, "iscrowd": crowd,
            })  # fmt: skip
        for n, (box, label, score) in enumerate(
            zip(_xywh(item.boxes), item.labels.tolist(), item.scores.tolist(), strict=True)
        ):
            shape = {"bbox": box} if kind == "bbox" else {"segmentation": (item.rles or [])[n]}
            found.append({"image_id": place, "category_id": label, "score": score, **shape})
    # mAP is over the categories that are there or were found.
    known = {row["category_id"] for row in (*annotations, *found)}
    coco = COCO()
    coco.dataset = {
        "info": {}, "annotations": annotations, "categories": [{"id": n} for n in sorted(known)],
        # Sizes are asked for, and not needed with RLEs.
        "images": [{"id": place, "height": 0, "width": 0} for place in range(len(pairs))],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco, found


def _xywh(boxes: Any) -> list[list[float]]:
    """Corners [N, 4] to corner and size, subtracted in the tensor's own precision."""
    sides = boxes.reshape(-1, 4).clone()
    sides[:, 2:] -= sides[:, :2]
    rows: list[list[float]] = sides.tolist()
    return rows
