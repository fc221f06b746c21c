"""Which detection hit what, image by image: enough to compute mAP again over any choice of images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.sparse import csr_matrix

from sam3slim.data.batch import GroundTruth
from sam3slim.errors import UserError
from sam3slim.evaluation.postprocess import Detections
from sam3slim.files import atomic_path

Kind = Literal["bbox", "segm"]
MAX_DETECTIONS = 100  # per image, COCO's
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Matches:
    """COCO's matching of all detections of one kind (D of them, I images, K categories, T = 10 IoU thresholds).

    Attributes:
        image_ids: [I] int64, the order of the columns of ``positives``.
        category_ids: [K] int64.
        positives: [K, I] int64 objects to be found (crowd regions are none).
        category, image: [D] int64 index of each detection's category and image; by category, then falling score.
        hit, ignored: [D, T] bool: matched an object; matched a crowd region.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    positives: NDArray[np.int64]
    category: NDArray[np.int64]
    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]

    def map(self) -> float | None:
        """COCO's mAP (0..1); None when no image has an object."""
        value = float(self.maps(np.ones((len(self.image_ids), 1), dtype=np.int64))[0])
        return None if np.isnan(value) else value

    def maps(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """mAP over R choices of images: [R] for ``counts`` [I, R], how often each image is taken; NaN without objects.

        Counting an image twice equals listing it twice: equal detections lie side by side, and between them the
        precision envelope does not change.
        """
        weights = counts.astype(np.float64)
        wanted = self.positives @ weights  # [K, R]
        edges = np.searchsorted(self.category, np.arange(len(self.category_ids) + 1))
        total, categories = np.zeros(counts.shape[1]), (wanted > 0).sum(axis=0)
        for k in range(len(self.category_ids)):
            part = slice(edges[k], edges[k + 1])
            for t in range(len(IOU_THRESHOLDS)):
                total += self._average_precision(part, t, weights, wanted[k])
        with np.errstate(invalid="ignore"):
            return np.where(categories > 0, total / (categories * len(IOU_THRESHOLDS)), np.nan)

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

    def save(self, path: str | Path) -> Path:
        """Write a compressed ``.npz``, atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **self.__dict__)
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> Matches:
        """Read what ``save`` wrote. Raises UserError when it is something else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return Matches(**{name: arrays[name] for name in Matches.__dataclass_fields__})
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} does not hold matches ({error}); evaluate the model again") from error


def match(detections: Sequence[Detections], truths: Sequence[GroundTruth], kind: Kind) -> Matches:
    """Match detections with ground truth as COCOeval does, greedily by score at ten IoU thresholds.

    Args:
        detections, truths: one per image, in the same order.
        kind: compare boxes or masks.
    """
    coco, found = _as_coco(detections, truths, kind)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        evaluation = COCOeval(coco, coco.loadRes(found) if found else _nothing(coco), kind)
        evaluation.params.imgIds = [item.image_id for item in detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
    image_ids = np.array(evaluation.params.imgIds, dtype=np.int64)
    category_ids = np.array(evaluation.params.catIds, dtype=np.int64)
    positives = np.zeros((len(category_ids), len(image_ids)), dtype=np.int64)
    category, image, score, hit, ignored = [], [], [], [], []
    for number, result in enumerate(evaluation.evalImgs):
        if result is None:
            continue
        k, i = divmod(number, len(image_ids))
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


def _as_coco(detections: Sequence[Detections], truths: Sequence[GroundTruth], kind: Kind) -> tuple[COCO, list[Any]]:
    """Ground truth as a COCO object, detections as its result list."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for item, truth in zip(detections, truths, strict=True):
        images.append({"id": item.image_id, "height": 0, "width": 0})  # asked for, not needed with RLEs
        for n in range(len(truth.labels)):
            x1, y1, x2, y2 = truth.boxes[n].tolist()
            annotations.append({
                "id": len(annotations) + 1, "image_id": item.image_id, "category_id": int(truth.labels[n]),
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(truth.area[n]), "iscrowd": int(truth.iscrowd[n]),
                **({"segmentation": truth.rles[n]} if truth.rles is not None else {}),
            })  # fmt: skip
        for n in range(len(item.labels)):
            x1, y1, x2, y2 = item.boxes[n].tolist()
            place: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            if kind == "segm":
                assert item.rles is not None
                place = {"segmentation": item.rles[n]}
            found.append({
                "image_id": item.image_id, "category_id": int(item.labels[n]), "score": float(item.scores[n]), **place,
            })  # fmt: skip
    # mAP is over the categories that are there or were found, as torchmetrics has it.
    known = {row["category_id"] for row in (*annotations, *found)}
    coco = COCO()
    coco.dataset = {
        "info": {}, "images": images, "annotations": annotations, "categories": [{"id": n} for n in sorted(known)],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco, found
