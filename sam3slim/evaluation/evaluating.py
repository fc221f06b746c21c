"""One evaluation: every batch of a data loader through the model, and mAP over all of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
import torchmetrics

from sam3slim.data.agreement import label
from sam3slim.data.batch import Batch, GroundTruth
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.detections import CONFIDENT, LVIS_DETECTIONS, MAX_DETECTIONS, Detections
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import Segmenter, TextCache, predict_batch
from sam3slim.progress import progress_bar
from sam3slim.results.calibration import calibration_error
from sam3slim.results.metrics import Measured, measure_all
from sam3slim.results.samples import Samples

Pair = tuple[Detections, GroundTruth]


@dataclass
class EvalResult:
    """What one evaluation found.

    Attributes:
        measured: metric → its numbers and samples; no "segm" for boxes-only sets.
        images, prompts: how many were evaluated.
        seconds: wall time, data loading included.
        calibration: means over prompts of ``presence`` and ``top_score``, for concepts that are in the
            image and for those that are not; None where there was no such prompt.
        detections, truths: of every image.
    """

    measured: dict[str, Measured]
    images: int
    prompts: int
    seconds: float
    calibration: dict[str, float | None]
    detections: list[Detections]
    truths: list[GroundTruth]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """{"bbox": {...}, "segm": {...}} as in record.json."""
        return {name: found.numbers for name, found in self.measured.items()}

    @property
    def samples(self) -> dict[str, Samples]:
        """Of the metrics that can be resampled."""
        return {name: found.samples for name, found in self.measured.items() if found.samples is not None}


@dataclass
class ScoreCalibration:
    """Running means of presence and best score, apart for present and absent concepts; the error of presence."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    prompts: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def update(self, detections: Iterable[Detections], truths: Iterable[GroundTruth]) -> None:
        """Add images; a concept is present when it has an instance that is not a crowd region."""
        for found, truth in zip(detections, truths, strict=True):
            if found.prompts is None:
                continue
            present = torch.isin(found.prompts.labels, truth.labels[truth.iscrowd == 0])
            self.prompts.append((found.prompts.presence, present))
            for name, values in (
                ("presence", found.prompts.presence),
                ("top_score", found.prompts.top_score),
            ):
                for group, mask in (("present", present), ("absent", ~present)):
                    key = f"{name}_{group}"
                    self.sums[key] = self.sums.get(key, 0.0) + float(values[mask].sum())
                    self.counts[key] = self.counts.get(key, 0) + int(mask.sum())

    def compute(self) -> dict[str, float | None]:
        """The means, such as ``presence_present``, and ``presence_error``, see ``calibration_error``."""
        keys = [f"{name}_{group}" for name in ("presence", "top_score") for group in ("present", "absent")]
        found = {key: self.sums[key] / self.counts[key] if self.counts.get(key) else None for key in keys}
        error = None
        if self.prompts:
            presence, there = (torch.cat(values) for values in zip(*self.prompts, strict=True))
            error = calibration_error(presence, there)
        return {**found, "presence_error": error}


def evaluate(
    model: Segmenter,
    dataloader: Iterable[Batch],
    *,
    progress: bool = True,
    limit: int | None = None,
    prompt_chunk: int = 32,
    top_k: int | None = None,
    min_presence: float = 0.0,
) -> EvalResult:
    """Box and mask mAP of ``model`` on the images of ``dataloader``, with the prompts it asks.

    Args:
        model: on any device, in any mode (evaluated in eval mode, left as it was).
        dataloader: batches whose images carry their ground truth.
        progress: show a bar with the time left.
        limit: stop after that many images.
        prompt_chunk, min_presence: see ``predict_batch``.
        top_k: detections kept per image; None: those that average precision takes, 100, or 300 in a federated set.

    Raises:
        UserError: no image at all, or the model returns NaN.
        ValueError: a batch without ground truth.
    """
    started = time.perf_counter()
    calibration, cache = ScoreCalibration(), TextCache()
    metrics = ConceptMetrics()
    prompts = 0
    with progress_bar(show=progress) as bar:
        task = bar.add_task("evaluating", total=_image_count(dataloader, limit))
        for batch in _limited(dataloader, limit):
            wanted = ground_truths(batch)
            found = predict_batch(
                model,
                batch,
                prompt_chunk=prompt_chunk,
                min_presence=min_presence,
                top_k=top_k or counted_detections(wanted),
                keep_score=CONFIDENT,
                with_masks=wanted[0].rles is not None,
                text_cache=cache,
            )
            calibration.update(found, wanted)
            metrics.update(found, wanted)
            prompts += len(batch.input_ids)
            bar.advance(task, len(found))
    if not metrics.images:
        raise UserError(f"nothing to evaluate: the data gives no image (limit={limit}); check data.root and data.split")
    return EvalResult(
        measured=metrics.measure(),
        images=len(metrics.images),
        prompts=prompts,
        seconds=time.perf_counter() - started,
        calibration=calibration.compute(),
        detections=[found for found, _ in metrics.images],
        truths=[truth for _, truth in metrics.images],
    )


def agreed(result: EvalResult, dataset: CocoConcepts) -> EvalResult:
    """``result`` measured against itself, where ``dataset`` has no ground truth: from now on it is what was found.

    Raises:
        UserError: the model has found nothing.
    """
    if not dataset.by_model or dataset.labels_sha256:
        return result
    label(dataset, result.detections)
    records = {record.id: record for record in dataset.records}
    truths = [dataset.ground_truth(records[found.image_id]) for found in result.detections]
    calibration = ScoreCalibration()
    calibration.update(result.detections, truths)
    measured = measure_all(result.detections, truths)
    return replace(result, measured=measured, truths=truths, calibration=calibration.compute())


def ground_truths(batch: Batch) -> list[GroundTruth]:
    """Ground truth of every image of ``batch``. Raises ValueError when one has none (a training batch)."""
    truths = [info.ground_truth for info in batch.images]
    found = [truth for truth in truths if truth is not None]
    if len(found) != len(truths):
        raise ValueError("a batch without ground truth: evaluate with an evaluation protocol, not 'train'")
    return found


class ConceptMetrics(torchmetrics.Metric):
    """Every registered metric over the images of all processes, as a torchmetrics ``Metric``.

    COCO's numbers need whole detections, which are gathered as objects: torchmetrics' own states are tensors.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.images: list[Pair] = []

    def update(self, found: Sequence[Detections], truths: Sequence[GroundTruth]) -> None:
        """Add images, each with what was found and what is there."""
        self.images += zip(found, truths, strict=True)

    def compute(self) -> dict[str, dict[str, Any]]:
        """Metric → its numbers; {} where no process has seen an image."""
        return {name: found.numbers for name, found in self.measure().items()}

    def measure(self) -> dict[str, Measured]:
        """``compute`` with the samples that drops are computed from."""
        pairs = _gathered(self.images)
        return measure_all([found for found, _ in pairs], [truth for _, truth in pairs]) if pairs else {}

    def reset(self) -> None:
        """Forget the images."""
        super().reset()
        self.images = []


def _gathered(items: list[Pair]) -> list[Pair]:
    """Every process's items, one per image, in the order in which one process would have seen them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    everyone: list[list[Pair]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, items)
    # The sampler deals images out in turns: rank r has the images r, r + processes, ….
    return [item for turn in zip_longest(*everyone) for item in turn if item is not None]


def counted_detections(truths: Iterable[GroundTruth]) -> int:
    """Detections of an image that average precision takes: COCO's number, or LVIS' in a federated set."""
    return LVIS_DETECTIONS if any(truth.known is not None for truth in truths) else MAX_DETECTIONS


def first_images(batch: Batch, count: int) -> Batch:
    """The first ``count`` images of ``batch`` with their prompts and targets."""
    prompts = batch.image_index < count
    targets = batch.targets
    kept = prompts[targets.prompt_index]
    return replace(
        batch,
        pixel_values=batch.pixel_values[:count],
        input_ids=batch.input_ids[prompts],
        attention_mask=batch.attention_mask[prompts],
        image_index=batch.image_index[prompts],
        category_ids=batch.category_ids[prompts],
        input_boxes=None if batch.input_boxes is None else batch.input_boxes[prompts],
        input_boxes_labels=None if batch.input_boxes_labels is None else batch.input_boxes_labels[prompts],
        # Prompts are sorted by image, so those kept are the first and keep their numbers.
        targets=replace(
            targets,
            boxes=targets.boxes[kept],
            masks=None if targets.masks is None else targets.masks[kept],
            prompt_index=targets.prompt_index[kept],
        ),
        phrases=batch.phrases[: int(prompts.sum())],
        images=batch.images[:count],
    )


def _limited(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    seen = 0
    for batch in batches:
        if limit is not None and seen + len(batch.images) > limit:
            batch = first_images(batch, limit - seen)
        if batch.images:
            yield batch
        seen += len(batch.images)
        if limit is not None and seen >= limit:
            return


def _image_count(dataloader: Iterable[Batch], limit: int | None) -> int | None:
    """Images to come, when the loader can tell."""
    dataset = getattr(dataloader, "dataset", None)
    total = len(dataset) if isinstance(dataset, Sized) else None
    if limit is None or total is None:
        return limit if total is None else total
    return min(total, limit)
