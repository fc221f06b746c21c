"""One evaluation: every batch of a data loader through the model, and mAP over all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sam3slim.data.batch import Batch, GroundTruth
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import Segmenter, TextCache, predict_batch
from sam3slim.evaluation.mean_ap import ConceptMeanAP, Metrics
from sam3slim.evaluation.postprocess import Detections


@dataclass
class EvalResult:
    """What one evaluation found.

    Attributes:
        metrics: {"bbox": {...}, "segm": {...}} as in record.json; no "segm" for boxes-only sets.
        images, prompts: how many were evaluated.
        seconds: wall time, data loading included.
        calibration: means over prompts of ``presence`` and ``top_score``, for concepts that are in the
            image and for those that are not; None where there was no such prompt.
        detections, truths: of every image, when they were asked for.
    """

    metrics: Metrics
    images: int
    prompts: int
    seconds: float
    calibration: dict[str, float | None]
    detections: list[Detections] | None = None
    truths: list[GroundTruth] | None = None


@dataclass
class Calibration:
    """Running means of presence and best score, apart for present and absent concepts."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def update(self, detections: Iterable[Detections], truths: Iterable[GroundTruth]) -> None:
        """Add images; a concept is present when it has an instance that is not a crowd region."""
        for found, truth in zip(detections, truths, strict=True):
            if found.prompts is None:
                continue
            present = torch.isin(found.prompts.labels, truth.labels[truth.iscrowd == 0])
            for name, values in (
                ("presence", found.prompts.presence),
                ("top_score", found.prompts.top_score),
            ):
                for group, mask in (("present", present), ("absent", ~present)):
                    key = f"{name}_{group}"
                    self.sums[key] = self.sums.get(key, 0.0) + float(values[mask].sum())
                    self.counts[key] = self.counts.get(key, 0) + int(mask.sum())

    def compute(self) -> dict[str, float | None]:
        """``presence_present``, ``presence_absent``, ``top_score_present``, ``top_score_absent``."""
        keys = [f"{name}_{group}" for name in ("presence", "top_score") for group in ("present", "absent")]
        return {key: self.sums[key] / self.counts[key] if self.counts.get(key) else None for key in keys}


def evaluate(
    model: Segmenter,
    dataloader: Iterable[Batch],
    *,
    progress: bool = True,
    limit: int | None = None,
    prompt_chunk: int = 32,
    top_k: int = 100,
    per_category: bool = False,
    keep_detections: bool = False,
) -> EvalResult:
    """Box and mask mAP of ``model`` on the images of ``dataloader``, with the prompts it asks.

    Args:
        model: on any device, in any mode (evaluated in eval mode, left as it was).
        dataloader: batches whose images carry their ground truth.
        progress: show a bar with the time left.
        limit: stop after that many images.
        prompt_chunk, top_k: see ``predict_batch``.
        per_category: also AP per category (see ``ConceptMeanAP``).
        keep_detections: return the detections and the ground truth too.

    Raises:
        UserError: no image at all, or the model returns NaN.
        ValueError: a batch without ground truth.
    """
    started = time.perf_counter()
    metric: ConceptMeanAP | None = None
    calibration, cache = Calibration(), TextCache()
    kept: list[Detections] = []
    kept_truths: list[GroundTruth] = []
    images = prompts = 0
    with _progress(progress, _image_count(dataloader, limit)) as advance:
        for batch in _limited(dataloader, limit):
            truths = ground_truths(batch)
            if metric is None:
                metric = ConceptMeanAP(with_masks=truths[0].rles is not None, per_category=per_category)
            found = predict_batch(
                model,
                batch,
                prompt_chunk=prompt_chunk,
                top_k=top_k,
                with_masks=metric.with_masks,
                text_cache=cache,
            )
            metric.update(found, truths)
            calibration.update(found, truths)
            if keep_detections:
                kept.extend(found)
                kept_truths.extend(truths)
            images, prompts = images + len(found), prompts + len(batch.input_ids)
            advance(len(found))
    if metric is None:
        raise UserError(f"nothing to evaluate: the data gives no image (limit={limit}); check data.root and data.split")
    return EvalResult(
        metrics=metric.compute(),
        images=images,
        prompts=prompts,
        seconds=time.perf_counter() - started,
        calibration=calibration.compute(),
        detections=kept if keep_detections else None,
        truths=kept_truths if keep_detections else None,
    )


def ground_truths(batch: Batch) -> list[GroundTruth]:
    """Ground truth of every image of ``batch``. Raises ValueError when one has none (a training batch)."""
    truths = [info.ground_truth for info in batch.images]
    found = [truth for truth in truths if truth is not None]
    if len(found) != len(truths):
        raise ValueError("a batch without ground truth: evaluate with an evaluation protocol, not 'train'")
    return found


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


@contextmanager
def _progress(show: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not show) as bar:
        task = bar.add_task("evaluating", total=total)
        yield lambda count: bar.advance(task, count)
