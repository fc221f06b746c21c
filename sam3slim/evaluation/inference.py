"""From a batch to detections: the one path that evaluation, pictures and prediction share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sam3slim.data.batch import Batch, ImageInfo
from sam3slim.data.detections import Detections, PromptScores
from sam3slim.evaluation.postprocess import (
    Candidates,
    Picked,
    candidates,
    finish_detections,
    merge_candidates,
    no_detections,
    pick,
    prompt_scores,
)
from sam3slim.models.arithmetic import computing
from sam3slim.models.outputs import Sam3Output, Sam3Prediction


class Segmenter(Protocol):
    """What evaluation and prediction need of a model: ``Sam3`` has it, and so has an exported one.

    Attributes:
        device: where its inputs go.
        dtype: floating type of its inputs.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def get_vision_features(self, pixel_values: Any) -> Any: ...

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Sam3Prediction: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> Any: ...


class TextCache:
    """Text features of phrases already seen, so a fixed vocabulary passes the text tower once.

    Valid for one set of weights: make a new one for every evaluation.
    """

    def __init__(self) -> None:
        self._features: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._features)

    def features(self, model: Segmenter, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Text features [P, T, d_model] of token rows [P, T], on the model's device."""
        rows = torch.stack([input_ids, attention_mask.to(input_ids.dtype)], dim=1).cpu()
        keys = [row.numpy().tobytes() for row in rows]
        new = {key: i for i, key in enumerate(keys) if key not in self._features}
        if new:
            index = torch.tensor(list(new.values()))
            device = model.device
            text, _ = model.encode_text(input_ids[index].to(device), attention_mask[index].to(device))
            self._features.update(zip(new, text, strict=True))
        return torch.stack([self._features[key] for key in keys])


def predict_batch(
    model: Segmenter,
    batch: Batch,
    *,
    prompt_chunk: int = 32,
    top_k: int = 100,
    min_score: float = 0.0,
    min_presence: float = 0.0,
    keep_score: float | None = None,
    with_masks: bool = True,
    text_cache: TextCache | None = None,
) -> list[Detections]:
    """Detections of every image of ``batch``, in the order of ``batch.images``.

    The vision tower runs once per image and the text tower once per distinct phrase (of the whole
    evaluation, with a ``text_cache``). The model runs in eval mode, on the device and in the floating
    type of its weights, and is left as it was.

    Args:
        model: on any device.
        batch: on any device; its targets are not looked at.
        prompt_chunk: prompts that pass encoder, decoder and mask head together; bounds memory.
        top_k: detections kept per image over all its prompts (100 is COCO's limit).
        min_score: detections below it are dropped before their masks are computed.
        keep_score: detections from this score on are kept even beyond ``top_k``, see ``Detections.beyond``.
        min_presence: prompts whose presence is below it get no detection, and no mask is computed for them.
        with_masks: False skips the mask head.
        text_cache: shared by the batches of one evaluation.

    Raises:
        UserError: the model returns NaN.
    """
    if prompt_chunk < 1 or top_k < 1:
        raise ValueError(f"prompt_chunk={prompt_chunk} and top_k={top_k} must be at least 1")
    device = model.device
    cache = TextCache() if text_cache is None else text_cache
    images = len(batch.images)
    found: list[list[Candidates]] = [[] for _ in range(images)]
    asked: list[list[PromptScores]] = [[] for _ in range(images)]
    with torch.inference_mode(), eval_mode(model), computing(model):
        vision = None
        for start in range(0, len(batch.input_ids), prompt_chunk):
            part = slice(start, start + prompt_chunk)
            if vision is None:
                vision = model.get_vision_features(batch.pixel_values.to(device, model.dtype))
            image_index = batch.image_index[part].to(device)
            labels = batch.category_ids[part].to(device)
            output = model(
                vision_embeds=vision,
                text_embeds=cache.features(model, batch.input_ids[part], batch.attention_mask[part]),
                attention_mask=batch.attention_mask[part].to(device),
                image_index=image_index,
                input_boxes=None if batch.input_boxes is None else batch.input_boxes[part].to(device),
                input_boxes_labels=(
                    None if batch.input_boxes_labels is None else batch.input_boxes_labels[part].to(device)
                ),
                with_masks="asked" if with_masks else False,
            )
            scores, presence = prompt_scores(output)
            pickable = scores.masked_fill((presence < min_presence)[:, None], -1.0) if min_presence > 0 else scores
            rows_of = {i: (image_index == i).nonzero().squeeze(1) for i in image_index.unique().tolist()}
            picked = {
                i: pick(pickable, rows, labels[rows], top_k, min_score, keep_score) for i, rows in rows_of.items()
            }
            if with_masks:
                _compute_masks(output, list(picked.values()))
            for image, rows in rows_of.items():
                # Merged at once: masks of thousands of prompts would not fit.
                best = candidates(output, picked[image])
                found[image] = [merge_candidates([*found[image], best], top_k, keep_score)]
                asked[image].append(_asked(labels[rows], presence[rows], scores[rows]))
        return [_finish(found[i], asked[i], info, top_k, with_masks) for i, info in enumerate(batch.images)]


def _compute_masks(output: Sam3Prediction, picked: list[Picked]) -> None:
    """All masks that ``picked`` needs in one pass; a graph's output has its masks already."""
    if isinstance(output, Sam3Output) and output.mask_head is not None:
        prompts, queries = torch.cat([p.prompts for p in picked]), torch.cat([p.queries for p in picked])
        output.mask_head.compute(prompts, queries, semantic=False)


@contextmanager
def eval_mode(model: Segmenter) -> Iterator[None]:
    """Switch dropout and the like off for the body, then restore every module's own mode."""
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def _asked(labels: Tensor, presence: Tensor, scores: Tensor) -> PromptScores:
    return PromptScores(labels.cpu(), presence.cpu(), scores.amax(dim=1).cpu())


def _finish(
    found: list[Candidates],
    asked: list[PromptScores],
    info: ImageInfo,
    top_k: int,
    with_masks: bool,
) -> Detections:
    """The detections of one image out of ``found``, which are one set of candidates, or none."""
    if not found:
        return no_detections(info.image_id, with_masks=with_masks)
    detections = finish_detections(found[0], info.image_id, info.height, info.width)
    detections.beyond = max(len(detections) - top_k, 0)
    detections.prompts = PromptScores(
        labels=torch.cat([part.labels for part in asked]),
        presence=torch.cat([part.presence for part in asked]),
        top_score=torch.cat([part.top_score for part in asked]),
    )
    return detections
