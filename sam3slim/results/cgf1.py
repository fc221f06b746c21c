"""cgF1, the measure of SAM 3 (arXiv:2511.16719, section 5): does a model find a concept where it is, and only there.

An entry is one image asked for one concept. Only detections with a score of at least 0.5 count, however many there are,
as the user of a phrase sees them.

* IL_MCC, image level: Matthews' correlation of "something was found" with "something is there", over entries.
* pmF1, positive micro F1: of detections and objects, matched for the largest sum of IoU, over the entries that have
  objects, at IoU thresholds 0.5, 0.55, …, 0.95.
* cgF1 = pmF1 · IL_MCC, at a threshold or as the mean over thresholds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from scipy.optimize import linear_sum_assignment

from sam3slim.data.detections import CONFIDENT, xywh
from sam3slim.results.coco import IOU_THRESHOLDS, IouType
from sam3slim.results.samples import Samples

if TYPE_CHECKING:
    from sam3slim.data.batch import GroundTruth
    from sam3slim.data.detections import Detections

# What the official evaluator adds to denominators: of detections, and of images.
EPSILON, EPSILON_IMAGE = 1e-4, 1e-6
THRESHOLDS = {"": slice(None), "_50": 0, "_75": 5}  # ending of a number's name → thresholds it is the mean over
Shapes = list[Any]  # boxes (x, y, w, h) or RLEs


@dataclass(frozen=True)
class ConceptCounts(Samples):
    """Counts of I images (over their entries), at T = 10 IoU thresholds.

    Attributes:
        hits: [I, T] int64 matched objects of entries that have objects.
        found, wanted: [I] int64 detections and objects of these entries.
        invented: [I] int64 detections of the other entries.
        local_f1: [I, T] float64 sum of F1 over the entries with objects and detections.
        entries: [I, 4] int64 entries where something is there and found, not there but found, there but not found,
            and neither.
        annotated: [I, A] int64 objects by annotator.
    """

    hits: NDArray[np.int64]
    found: NDArray[np.int64]
    wanted: NDArray[np.int64]
    invented: NDArray[np.int64]
    local_f1: NDArray[np.float64]
    entries: NDArray[np.int64]
    annotated: NDArray[np.int64]

    def values(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """cgF1 over choices of images, see ``Samples``; NaN where no entry has an object, or all have."""
        there = self.entries.T @ counts
        defined = (there[0] + there[2] > 0) & (there[1] + there[3] > 0)
        f1 = _f1(self.hits.T @ counts, self.found @ counts, self.wanted @ counts)
        return np.where(defined, f1.mean(axis=0) * _correlation(there), np.nan)

    def objects(self) -> tuple[bytes, bytes]:
        return self.entries.sum(axis=1).tobytes(), self.annotated.tobytes()

    def numbers(self) -> dict[str, float]:
        """The official evaluator's numbers, 0..1.

        Returns:
            ``cgf1``, ``precision``, ``recall`` and ``f1`` over all entries, ``macro_f1`` (mean of the F1 of entries
            with objects and detections), ``pmf1`` and ``pm_precision``, each as the mean over IoU thresholds and, with
            ``_50`` and ``_75``, at one; ``il_precision``, ``il_recall``, ``il_f1``, ``il_fpr`` and ``il_mcc`` of
            images.
        """
        hits, found, wanted = self.hits.sum(axis=0), self.found.sum(), self.wanted.sum()
        everything = found + self.invented.sum()
        both, invented, missed, neither = there = self.entries.sum(axis=0)
        correlation = float(_correlation(there))
        f1 = _f1(hits, found, wanted)
        by_threshold = {
            "cgf1": f1 * correlation,
            "precision": hits / (everything + EPSILON),
            "recall": hits / (wanted + EPSILON),
            "f1": _f1(hits, everything, wanted),
            "macro_f1": self.local_f1.sum(axis=0) / max(both, 1),
            "pmf1": f1,
            "pm_precision": hits / (found + EPSILON),
        }
        precision, recall = both / (both + invented + EPSILON_IMAGE), both / (both + missed + EPSILON_IMAGE)
        return {
            **{
                name + ending: float(np.mean(values[at]))
                for ending, at in THRESHOLDS.items()
                for name, values in by_threshold.items()
            },
            "il_precision": float(precision),
            "il_recall": float(recall),
            "il_f1": float(2 * precision * recall / (precision + recall + EPSILON_IMAGE)),
            "il_fpr": float(invented / (invented + neither + EPSILON_IMAGE)),
            "il_mcc": correlation,
        }

    @property
    def has_both(self) -> bool:
        """Whether some entries have objects and some have none: IL_MCC says nothing of others."""
        both, invented, missed, neither = self.entries.sum(axis=0)
        return bool(both + missed and invented + neither)


def _f1(hits: Any, found: Any, wanted: Any) -> NDArray[np.float64]:
    precision, recall = hits / (found + EPSILON), hits / (wanted + EPSILON)
    result: NDArray[np.float64] = 2 * precision * recall / (precision + recall + EPSILON)
    return result


def _correlation(entries: NDArray[np.int64]) -> NDArray[np.float64]:
    """Matthews' correlation coefficient of [4, …] counts of entries."""
    both, invented, missed, neither = np.asarray(entries, dtype=np.float64)
    product = (both + invented) * (both + missed) * (neither + invented) * (neither + missed)
    result: NDArray[np.float64] = (both * neither - invented * missed) / (np.sqrt(product) + EPSILON_IMAGE)
    return result


def concept_counts(
    detections: Sequence[Detections], annotators: Sequence[Sequence[GroundTruth]], kind: IouType
) -> ConceptCounts:
    """Count every image's entries.

    Its entries are the concepts it was asked for (``Detections.prompts``; all that the set annotates or finds, where
    that is not known), as far as all annotators know whether they are there and have annotated them exhaustively. Crowd
    regions are no objects. Of several annotators the one counts whose F1 of the entry is best.

    Args:
        detections: one per image.
        annotators: for each annotator one ground truth per image, in the order of ``detections``.
        kind: compare boxes or masks.
    """
    count = len(detections)
    every = {label for item in detections for label in item.labels.tolist()}
    every |= {label for truths in annotators for truth in truths for label in truth.labels.tolist()}
    result = ConceptCounts(
        image_ids=np.array([item.image_id for item in detections], dtype=np.int64),
        hits=_zeros(count, len(IOU_THRESHOLDS)),
        found=_zeros(count),
        wanted=_zeros(count),
        invented=_zeros(count),
        local_f1=np.zeros((count, len(IOU_THRESHOLDS))),
        entries=_zeros(count, 4),
        annotated=_zeros(count, len(annotators)),
    )
    for i, (item, *truths) in enumerate(zip(detections, *annotators, strict=True)):
        asked = every if item.prompts is None else set(item.prompts.labels.tolist())
        for truth in truths:
            asked = (asked if truth.known is None else asked & truth.known) - truth.unclear
        found, objects = _found(item, kind), [_objects(truth, kind) for truth in truths]
        for label in asked:
            _add(result, i, found.get(label, []), [there.get(label, []) for there in objects], kind)
    return result


def _zeros(*shape: int) -> NDArray[np.int64]:
    return np.zeros(shape, dtype=np.int64)


def _add(result: ConceptCounts, i: int, found: Shapes, objects: Sequence[Shapes], kind: IouType) -> None:
    """Count one entry of image ``i``."""
    scored = [(*_local_f1(found, there, kind), there) for there in objects]
    # The first of the best, as the official evaluator.
    f1, hits, there = max(scored, key=lambda one: float(one[0].mean()))
    result.annotated[i] += [len(one) for one in objects]
    result.entries[i, (0 if found else 2) if there else (1 if found else 3)] += 1
    if there:
        result.hits[i] += hits
        result.found[i] += len(found)
        result.wanted[i] += len(there)
        if found:
            result.local_f1[i] += f1
    else:
        result.invented[i] += len(found)


def _local_f1(found: Shapes, there: Shapes, kind: IouType) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """F1 and hits of one entry, [T]: objects and detections are matched for the largest sum of IoU."""
    hits = np.zeros(len(IOU_THRESHOLDS), dtype=np.int64)
    if not found and not there:
        return np.ones(len(IOU_THRESHOLDS)), hits
    if found and there:
        shapes = (np.array(found), np.array(there)) if kind == "bbox" else (found, there)
        iou = mask_utils.iou(*shapes, [0] * len(there))
        matched = iou[linear_sum_assignment(iou, maximize=True)] if iou.size > 1 else iou.ravel()
        hits = (matched >= IOU_THRESHOLDS[:, None]).sum(axis=1)
    return _f1(hits, len(found), len(there)), hits


def _found(item: Detections, kind: IouType) -> dict[int, Shapes]:
    keep = (item.scores >= CONFIDENT).nonzero().squeeze(1)
    shapes = xywh(item.boxes[keep]) if kind == "bbox" else [(item.rles or [])[n] for n in keep.tolist()]
    return _by_label(zip(item.labels[keep].tolist(), shapes, strict=True))


def _objects(truth: GroundTruth, kind: IouType) -> dict[int, Shapes]:
    keep = (truth.iscrowd == 0).nonzero().squeeze(1)
    shapes = xywh(truth.boxes[keep]) if kind == "bbox" else [(truth.rles or [])[n] for n in keep.tolist()]
    return _by_label(zip(truth.labels[keep].tolist(), shapes, strict=True))


def _by_label(pairs: Iterator[tuple[int, Any]]) -> dict[int, Shapes]:
    shapes: dict[int, Shapes] = defaultdict(list)
    for label, shape in pairs:
        shapes[label].append(shape)
    return shapes
