"""COCO's and LVIS's average precision: the numbers, and the matching of detections with objects behind them.

faster-coco-eval computes both, one category at a time, so that memory does not grow with images × categories.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from scipy.sparse import csr_matrix

from sam3slim.results.samples import Samples

if TYPE_CHECKING:
    from sam3slim.data.batch import GroundTruth
    from sam3slim.data.detections import Detections

IouType = Literal["bbox", "segm"]
MAX_DETECTIONS = 100  # per image and category, COCO's
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


@dataclass
class _Category:
    """Objects and detections of one category, as COCO has them; images go by their place among all."""

    objects: list[dict[str, Any]]
    found: list[dict[str, Any]]


def average_precision(
    detections: Sequence[Detections], truths: Sequence[GroundTruth], kind: IouType
) -> tuple[dict[str, float | None], Matches]:
    """COCO's numbers (0..1, None where no object defines one), and the matching behind them.

    Equal scores count in the order of the image ids, whatever the order of the images.

    Args:
        detections, truths: one per image, in the same order.
        kind: compare boxes or masks.
    """
    pairs = sorted(zip(detections, truths, strict=True), key=lambda pair: pair[0].image_id)
    categories = _by_category(pairs, kind)
    precision, recall, matched = [], [], []
    for k in sorted(categories):
        evaluation = _evaluated(categories[k], kind)
        precision.append(evaluation.eval["precision"][:, :, 0, :, 0])
        recall.append(evaluation.eval["recall"][:, 0, :, 0])
        matched.append(_matched(evaluation))
    image_ids = np.array([item.image_id for item, _ in pairs], dtype=np.int64)
    return _numbers(precision, recall), _matches(sorted(categories), matched, image_ids)


def _numbers(precision: list[NDArray[np.float64]], recall: list[NDArray[np.float64]]) -> dict[str, float | None]:
    """COCOeval's summary of K × [T, R, A] precisions and K × [T, A] recalls; -1 where nothing is to be found."""
    curves = np.stack(precision, axis=2) if precision else np.zeros((len(IOU_THRESHOLDS), 1, 0, len(AREAS)))
    reached = np.stack(recall, axis=1) if recall else np.zeros((len(IOU_THRESHOLDS), 0, len(AREAS)))
    chosen = {"map": curves[..., 0], "map_50": curves[:1, ..., 0], "map_75": curves[5:6, ..., 0]}
    chosen |= {f"map{area}": curves[..., a] for a, area in enumerate(AREAS) if area}
    chosen[f"mar_{MAX_DETECTIONS}"] = reached[..., 0]
    return {name: float(values[values > -1].mean()) if (values > -1).any() else None for name, values in chosen.items()}


def _evaluated(category: _Category, kind: IouType) -> COCOeval_faster:
    places = sorted({row["image_id"] for row in (*category.objects, *category.found)})
    images = [{"id": place, "height": 0, "width": 0} for place in places]  # sizes are asked for; RLEs have their own
    truth, found = (_coco(images, rows) for rows in (category.objects, category.found))
    evaluation = COCOeval_faster(truth, found, kind, separate_eval=True, rle_iou_max_workers=1)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _coco(images: list[dict[str, Any]], rows: Iterable[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": list(rows), "categories": [{"id": 0}]}
    coco.createIndex()
    return coco


def _by_category(
    pairs: Sequence[tuple[Detections, GroundTruth]], kind: IouType, limit: int | None = None
) -> dict[int, _Category]:
    """Category id → what is there and what was found; mAP is over the categories that have either."""
    categories: dict[int, _Category] = defaultdict(lambda: _Category([], []))
    for place, (item, truth) in enumerate(pairs):
        columns = (xywh(truth.boxes), truth.labels.tolist(), truth.area.tolist(), truth.iscrowd.tolist())
        for n, (box, label, area, crowd) in enumerate(zip(*columns, strict=True)):
            rle = None if truth.rles is None else truth.rles[n]
            if area <= 0:  # annotated wrongly
                area = box[2] * box[3] if rle is None else float(mask_utils.area(rle))
            rows = categories[label].objects
            rows.append({
                "id": len(rows) + 1, "image_id": place, "category_id": 0, "bbox": box, "segmentation": rle,
                "area": area, "iscrowd": crowd,
            })  # fmt: skip
        count = len(item) - item.beyond
        areas = mask_utils.area(item.rles[:count]).tolist() if kind == "segm" and item.rles else None
        labels, scores = item.labels[:count].tolist(), item.scores[:count].tolist()
        for n, (box, label, score) in enumerate(zip(xywh(item.boxes[:count]), labels, scores, strict=True)):
            rows = categories[label].found
            shape: dict[str, Any] = {"bbox": box, "area": box[2] * box[3]}
            if kind == "segm":
                assert item.rles is not None
                assert areas is not None
                shape = {"bbox": box, "segmentation": item.rles[n], "area": areas[n]}
            rows.append({"id": len(rows) + 1, "image_id": place, "category_id": 0, "score": score, **shape})
    return dict(categories)


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


def xywh(boxes: Any) -> list[list[float]]:
    """Corners [N, 4] to corner and size, subtracted in the tensor's own precision."""
    sides = boxes.reshape(-1, 4).clone()
    sides[:, 2:] -= sides[:, :2]
    rows: list[list[float]] = sides.tolist()
    return rows
