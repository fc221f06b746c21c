"""COCO box and mask mAP through torchmetrics, fed with RLE masks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert

from sam3slim.data.batch import GroundTruth
from sam3slim.evaluation.postprocess import Detections, Rle

KEYS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100")
Metrics = dict[str, dict[str, Any]]


class ConceptMeanAP(MeanAveragePrecision):
    """torchmetrics' ``MeanAveragePrecision`` (pycocotools) over ``Detections`` and ``GroundTruth``.

    Crowd regions and annotated areas count as in COCO. Works in a Lightning module as any metric does
    (reset, DDP sync); ``compute`` returns what ``record.json`` holds.

    Args:
        with_masks: False for boxes-only sets: ``compute`` then has no "segm".
        per_category: add "per_category": {str(category id): AP} to each result.
    """

    def __init__(self, *, with_masks: bool = True, per_category: bool = False, **kwargs: Any) -> None:
        super().__init__(
            iou_type=("bbox", "segm") if with_masks else ("bbox",),
            backend="pycocotools",
            # torchmetrics' own defaults are rounded to float32, and then a recall of exactly 0.1 misses
            # the threshold 0.1: 0.04 point off COCO in the golden test. These are COCOeval's.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
            extended_summary=per_category,
            **kwargs,
        )
        self.with_masks = with_masks
        self.per_category = per_category

    def update(  # type: ignore[override]
        self, detections: Sequence[Detections], ground_truths: Sequence[GroundTruth]
    ) -> None:
        """Add images; ``detections[i]`` is compared with ``ground_truths[i]``.

        Raises:
            ValueError: different lengths, or masks wanted and missing.
        """
        if len(detections) != len(ground_truths):
            raise ValueError(f"{len(detections)} images detected, {len(ground_truths)} images of ground truth")
        for found, truth in zip(detections, ground_truths, strict=True):
            if self.with_masks and (found.rles is None or truth.rles is None):
                raise ValueError(
                    f"image {found.image_id} has no masks: use ConceptMeanAP(with_masks=False) for boxes only"
                )
            if _states_hold_rles():
                self._append(found, truth)
            else:
                super().update([self._dense(found)], [self._dense(truth)])

    def compute(self) -> Metrics:  # type: ignore[override]
        """{"bbox": {key: float | None}, "segm": …}: 0..1, None where no object defines the value."""
        raw = super().compute()
        prefixes = {"bbox": "bbox_", "segm": "segm_"} if self.with_masks else {"bbox": ""}
        metrics: Metrics = {}
        for kind, prefix in prefixes.items():
            metrics[kind] = {key: _value(raw[f"{prefix}{key}"]) for key in KEYS}
            if self.per_category:
                metrics[kind]["per_category"] = self._by_category(raw[f"{prefix}precision"])
        return metrics

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """Every process gets the images of all, in the order in which one process would have seen them.

        torchmetrics gathers image by image, which never ends or ends in nonsense when one process has more of them.
        """
        names = list(self._defaults)
        own = [[_moved(image, "cpu") for image in getattr(self, name)] for name in names]
        everyone: list[Any] = [None] * torch.distributed.get_world_size(process_group)
        torch.distributed.all_gather_object(everyone, own, group=process_group)
        for place, name in enumerate(names):
            # The sampler deals images out in turns: rank r has the images r, r + processes, ….
            turns = zip_longest(*(states[place] for states in everyone), fillvalue=_NOTHING)
            setattr(
                self, name, [_moved(image, self.device) for turn in turns for image in turn if image is not _NOTHING]
            )

    def _append(self, found: Detections, truth: GroundTruth) -> None:
        """What ``MeanAveragePrecision.update`` would store, without a detour over dense masks."""

        def here(value: Tensor) -> Tensor:
            return value.to(self.device)

        self.detection_box.append(here(_xywh(found.boxes)))
        self.detection_scores.append(here(found.scores))
        self.detection_labels.append(here(found.labels))
        self.groundtruth_box.append(here(_xywh(truth.boxes)))
        self.groundtruth_labels.append(here(truth.labels))
        self.groundtruth_crowds.append(here(truth.iscrowd))
        self.groundtruth_area.append(here(truth.area))
        if self.with_masks:
            assert found.rles is not None
            assert truth.rles is not None
            self.detection_mask.append(_as_state(found.rles))  # type: ignore[arg-type]
            self.groundtruth_mask.append(_as_state(truth.rles))  # type: ignore[arg-type]

    def _dense(self, item: Detections | GroundTruth) -> dict[str, Tensor]:
        values = {"boxes": item.boxes, "labels": item.labels}
        if isinstance(item, Detections):
            values["scores"] = item.scores
        else:
            values |= {"iscrowd": item.iscrowd, "area": item.area}
        values = {key: value.to(self.device) for key, value in values.items()}
        if self.with_masks:
            dense = torch.zeros(0, 1, 1, dtype=torch.bool)
            if item.rles:
                dense = torch.from_numpy(mask_utils.decode(item.rles)).permute(2, 0, 1).bool()
            values["masks"] = dense
        return values

    def _by_category(self, precision: Tensor) -> dict[str, float | None]:
        """AP per category from COCOeval's precision [T, R, K, A, M], K in the order of sorted ids."""
        if precision.numel() == 0:
            return {}
        labels = torch.cat([*self.detection_labels, *self.groundtruth_labels]).unique().tolist()
        result: dict[str, float | None] = {}
        for k, label in enumerate(labels):
            values = precision[:, :, k, 0, -1]
            values = values[values > -1]
            result[str(label)] = float(values.mean()) if values.numel() else None
        return result


_NOTHING = object()


def _moved(image: Any, device: torch.device | str) -> Any:
    """One image's boxes, labels or scores there; masks are no tensors and stay."""
    return image.to(device) if isinstance(image, Tensor) else image


def _xywh(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "xyxy", "xywh") if boxes.numel() else boxes.reshape(0, 4)


def _as_state(rles: Sequence[Rle]) -> tuple[tuple[tuple[int, ...], bytes], ...]:
    return tuple((tuple(rle["size"]), rle["counts"]) for rle in rles)


def _value(number: Tensor) -> float | None:
    """COCOeval says -1 where there was nothing to measure."""
    value = float(number)
    return None if value < 0 else value


@cache
def _states_hold_rles() -> bool:
    """Does this torchmetrics keep masks as ((h, w), counts) and boxes as xywh, so that RLEs can be appended?

    Its states are not public API; asked once through the public ``update``, so another version costs
    speed (dense masks), not correctness.
    """
    mask = torch.zeros(1, 3, 4, dtype=torch.bool)
    mask[0, 1, 1:3] = True
    boxes, labels = torch.tensor([[1.0, 1.0, 3.0, 2.0]]), torch.tensor([7])
    probe = MeanAveragePrecision(iou_type=("bbox", "segm"), backend="pycocotools")
    target = {"boxes": boxes, "labels": labels, "masks": mask, "iscrowd": labels, "area": labels}
    probe.update([{"boxes": boxes, "labels": labels, "masks": mask, "scores": torch.ones(1)}], [target])
    rle = mask_utils.encode(mask[0].numpy().astype("uint8", order="F"))
    masks, xywh = [_as_state([rle])], [[1.0, 1.0, 2.0, 1.0]]
    try:
        return bool(
            probe.detection_mask == masks
            and probe.groundtruth_mask == masks
            and [box.tolist() for box in (*probe.detection_box, *probe.groundtruth_box)] == [xywh, xywh]
            and [len(probe.detection_scores), len(probe.detection_labels)] == [1, 1]
            and [len(probe.groundtruth_crowds), len(probe.groundtruth_area), len(probe.groundtruth_labels)] == [1, 1, 1]
        )
    except AttributeError:
        return False
