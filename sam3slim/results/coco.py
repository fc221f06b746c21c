"""COCO's and LVIS's average precision: the numbers, and the matching of detections with objects behind them.

faster-coco-eval computes both, one category at a time, so that memory does not grow with images × categories.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from scipy.sparse import csr_matrix

from sam3slim.data.detections import LVIS_DETECTIONS, MAX_DETECTIONS, xywh
from sam3slim.results.samples import Samples

if TYPE_CHECKING:
    from sam3slim.data.batch import GroundTruth
    from sam3slim.data.detections import Detections

IouType = Literal["bbox", "segm"]
FIXED_DETECTIONS = 10_000  # of a category
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
NUMBERS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
AREAS = ("", "_small", "_medium", "_large")  # COCO's ranges, in faster-coco-eval's order


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
    detections: Sequence[Detections], truths: Sequence[GroundTruth], kind: IouType
) -> tuple[dict[str, float | None], Matches]:
    """COCO's numbers (0..1, None where no object defines one), and the matching behind them.

    Equal scores count in the order of the image ids, whatever the order of the images. Of a federated set (LVIS,
    arXiv:1908.03195) the numbers are LVIS': the 300 best detections of an image count, but for those of categories of
    which it is not known whether they are in it.

    Args:
        detections, truths: one per image, in the same order.
        kind: compare boxes or masks.
    """
    pairs = sorted(zip(detections, truths, strict=True), key=lambda pair: pair[0].image_id)
    federated = any(truth.known is not None for _, truth in pairs)
    rows = _Rows(pairs, kind, LVIS_DETECTIONS if federated else None)
    precision, recall, matched = [], [], []
    for category in rows.categories:
        objects, found = rows.of(category)
        evaluation = _evaluated(objects, found, kind, LVIS_DETECTIONS if federated else MAX_DETECTIONS)
        precision.append(evaluation.eval["precision"][:, :, 0, :, 0])
        recall.append(evaluation.eval["recall"][:, 0, :, 0])
        matched.append(_matched(evaluation))
    image_ids = np.array([item.image_id for item, _ in pairs], dtype=np.int64)
    numbers = _numbers(precision, recall)
    if federated:
        numbers[f"mar_{LVIS_DETECTIONS}"] = numbers.pop(NUMBERS[-1])
    return numbers, _matches(rows.categories, matched, image_ids)


def fixed_average_precision(
    detections: Sequence[Detections], truths: Sequence[GroundTruth], kind: IouType
) -> float | None:
    """The "fixed" AP (arXiv:2102.01066): a category's 10,000 best detections count, however many are of one image."""
    pairs = sorted(zip(detections, truths, strict=True), key=lambda pair: pair[0].image_id)
    rows = _Rows(pairs, kind, None)
    precision = []
    for category in rows.categories:
        objects, found = rows.of(category)
        found = sorted(found, key=lambda row: -row["score"])[:FIXED_DETECTIONS]
        precision.append(_evaluated(objects, found, kind, FIXED_DETECTIONS).eval["precision"][:, :, 0, :, 0])
    return _numbers(precision, [])["map"]


def _numbers(precision: list[NDArray[np.float64]], recall: list[NDArray[np.float64]]) -> dict[str, float | None]:
    """COCOeval's summary of K × [T, R, A] precisions and K × [T, A] recalls; -1 where nothing is to be found."""
    curves = np.stack(precision, axis=2) if precision else np.zeros((len(IOU_THRESHOLDS), 1, 0, len(AREAS)))
    reached = np.stack(recall, axis=1) if recall else np.zeros((len(IOU_THRESHOLDS), 0, len(AREAS)))
    by_area = (curves[..., area] for area in range(1, len(AREAS)))
    chosen = (curves[..., 0], curves[:1, ..., 0], curves[5:6, ..., 0], *by_area, reached[..., 0])
    means = [float(values[values > -1].mean()) if (values > -1).any() else None for values in chosen]
    return dict(zip(NUMBERS, means, strict=True))


def _evaluated(
    objects: Iterable[dict[str, Any]], found: Iterable[dict[str, Any]], kind: IouType, limit: int
) -> COCOeval_faster:
    """One category's evaluation, of at most ``limit`` detections an image."""
    given = [list(objects), list(found)]
    # Sizes are asked for; RLEs have their own.
    images = [{"id": n, "height": 0, "width": 0} for n in sorted({row["image_id"] for rows in given for row in rows})]
    evaluation = COCOeval_faster(
        *(_coco(images, rows) for rows in given), kind, separate_eval=True, rle_iou_max_workers=1
    )
    evaluation.params.maxDets = [limit]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _coco(images: list[dict[str, Any]], rows: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": rows, "categories": [{"id": 0}]}
    coco.createIndex()
    return coco


Row = dict[str, Any]


class _Rows:
    """Objects and detections of all images by category, as COCO has them; images go by their place.

    Args:
        limit: detections per image, over all categories.
    """

    def __init__(self, pairs: Sequence[tuple[Detections, GroundTruth]], kind: IouType, limit: int | None) -> None:
        self._objects: dict[int, list[tuple[int, Row]]] = defaultdict(list)
        self._found: dict[int, list[tuple[int, Row]]] = defaultdict(list)
        for place, (item, truth) in enumerate(pairs):
            for label, row in _objects(truth):
                self._objects[label].append((place, row))
            for label, row in _detections(item, kind, limit):
                if truth.known is None or label in truth.known:
                    self._found[label].append((place, row))
        # mAP is over the categories that are there or were found.
        self.categories = sorted(self._objects.keys() | self._found.keys())

    def of(self, category: int) -> tuple[list[Row], list[Row]]:
        """The category's objects and detections."""
        objects, found = (
            [{**row, "id": number, "image_id": place, "category_id": 0} for number, (place, row) in enumerate(rows, 1)]
            for rows in (self._objects.get(category, []), self._found.get(category, []))
        )
        return objects, found


def _objects(truth: GroundTruth) -> Iterator[tuple[int, Row]]:
    """Label and row of every annotation."""
    columns = (truth.labels.tolist(), xywh(truth.boxes), truth.area.tolist(), truth.iscrowd.tolist())
    for n, (label, box, area, crowd) in enumerate(zip(*columns, strict=True)):
        rle = None if truth.rles is None else truth.rles[n]
        if area <= 0:  # annotated wrongly
            area = box[2] * box[3] if rle is None else float(mask_utils.area(rle))
        yield label, {"bbox": box, "segmentation": rle, "area": area, "iscrowd": crowd}


def _detections(item: Detections, kind: IouType, limit: int | None) -> Iterator[tuple[int, Row]]:
    """Label and row of every detection that average precision takes, best first."""
    count = len(item) - item.beyond if limit is None else min(len(item) - item.beyond, limit)
    boxes = xywh(item.boxes[:count])
    shapes: Iterable[Row] = ({"bbox": box, "area": box[2] * box[3]} for box in boxes)
    if kind == "segm":
        rles = (item.rles or [])[:count]
        areas = [float(mask_utils.area(rle)) for rle in rles]  # one by one: pycocotools 2.0.11 fails at 256 together
        shapes = ({"bbox": b, "segmentation": rle, "area": a} for b, rle, a in zip(boxes, rles, areas, strict=True))
    scores = item.scores[:count].tolist()
    for label, score, shape in zip(item.labels[:count].tolist(), scores, shapes, strict=True):
        yield label, {**shape, "score": score}


@dataclass
class _Matched:
    """One category's share of ``Matches``; arrays without its place among the categories."""

    wanted: list[tuple[int, int]]
    image: list[NDArray[np.int64]]
    score: list[NDArray[np.float64]]
    hit: list[NDArray[np.bool_]]
    ignored: list[NDArray[np.bool_]]


def _matched(evaluation: COCOeval_faster) -> _Matched:
    """What ``evaluate`` left for objects of all sizes: by image, then falling score."""
    found = _Matched([], [], [], [], [])
    # The evaluations of one category: by area (all sizes first), then image. They show themselves only to pickle: the
    # matched object's id by threshold and detection, the reverse, scores, whether an object is ignored, and whether a
    # detection is, by threshold and detection.
    for place, result in zip(evaluation.params.imgIds, evaluation._evalImgs_cpp, strict=False):
        match, _, scores, left_out, ignored, *_ = result.__getstate__()
        shape = (len(IOU_THRESHOLDS), len(scores))
        found.wanted.append((int(place), left_out.count(False)))
        found.image.append(np.full(len(scores), place, dtype=np.int64))
        found.score.append(np.array(scores))
        found.hit.append(np.array(match, dtype=np.int64).reshape(shape).T > 0)
        found.ignored.append(np.array(ignored, dtype=bool).reshape(shape).T)
    return found


def _matches(category_ids: Sequence[int], matched: Sequence[_Matched], image_ids: NDArray[np.int64]) -> Matches:
    positives = np.zeros((len(category_ids), len(image_ids)), dtype=np.int64)
    parts = []
    for k, one in enumerate(matched):
        for place, count in one.wanted:
            positives[k, place] = count
        score = np.concatenate([np.zeros(0), *one.score])
        order = np.argsort(-score, kind="stable")  # as COCOeval's merge sort: equal scores stay in the images' order
        none = np.zeros((0, len(IOU_THRESHOLDS)), dtype=bool)
        parts.append((
            np.full(len(order), k), np.concatenate([np.zeros(0, dtype=np.int64), *one.image])[order],
            np.concatenate([none, *one.hit])[order], np.concatenate([none, *one.ignored])[order],
        ))  # fmt: skip
    empty = (np.zeros(0, dtype=np.int64),) * 2 + (np.zeros((0, len(IOU_THRESHOLDS)), dtype=bool),) * 2
    category, image, hit, ignored = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return Matches(image_ids, np.array(category_ids, dtype=np.int64), positives, category, image, hit, ignored)
