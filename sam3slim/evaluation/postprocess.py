"""Raw outputs of the prompts → scored detections per image, in original pixels.

The score of a query is sigmoid(class logit) · sigmoid(presence logit), as in SAM 3 (arXiv:2511.16719):
the presence head says whether the concept is in the image at all, the query only where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sam3slim.data.detections import Detections
from sam3slim.errors import UserError
from sam3slim.evaluation.masks import encode_masks
from sam3slim.models.outputs import Sam3Prediction


@dataclass
class Candidates:
    """The best queries of some prompts of one image, before masks are upsampled.

    Attributes:
        boxes: [N, 4] (x1, y1, x2, y2) in 0..1.
        scores: [N].
        labels: [N] int64.
        masks: [N, h, w] logits at the model's resolution, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None


@dataclass
class Picked:
    """Queries of one image that may become detections, before their masks are computed.

    Attributes:
        prompts, queries: [N] int64 each.
        scores: [N]; labels: [N] int64.
    """

    prompts: Tensor
    queries: Tensor
    scores: Tensor
    labels: Tensor


def prompt_scores(output: Sam3Prediction) -> tuple[Tensor, Tensor]:
    """Scores [P, Q] of all queries and presence [P] of all prompts, float32 in 0..1.

    Raises:
        UserError: the model returned NaN, so no ranking exists.
    """
    presence = output.presence_logits.float().sigmoid()
    scores = output.pred_logits.float().sigmoid() * presence
    if scores.isnan().any():
        raise UserError(
            "the model returns NaN scores: its weights hold NaN, or its precision is too low for its values; "
            "check the checkpoint, or use FP32"
        )
    return scores, presence.squeeze(-1)


def pick(
    scores: Tensor,
    prompts: Tensor,
    labels: Tensor,
    top_k: int,
    min_score: float = 0.0,
    keep_score: float | None = None,
) -> Picked:
    """The ``top_k`` best queries of at least ``min_score`` over the rows ``prompts`` [p] (all of one image).

    Args:
        scores: [P, Q] from ``prompt_scores``; negative: not to be picked.
        prompts: [p] int64 rows.
        labels: [p] category id of each row.
        top_k: how many to keep.
        min_score: in 0..1.
        keep_score: also pick all from this score on.
    """
    chosen = scores[prompts]
    values, flat = _best(chosen.flatten(), top_k, keep_score)
    keep = values >= min_score
    values, flat = values[keep], flat[keep]
    row = flat // chosen.shape[1]
    return Picked(prompts[row], flat % chosen.shape[1], values, labels[row])


def candidates(output: Sam3Prediction, picked: Picked) -> Candidates:
    """Boxes and masks of the queries that were picked."""
    place = picked.prompts, picked.queries
    masks = None if output.pred_masks is None else output.pred_masks[place]
    return Candidates(output.pred_boxes[place].float(), picked.scores, picked.labels, masks)


def _best(scores: Tensor, top_k: int, keep_score: float | None) -> tuple[Tensor, Tensor]:
    """The ``top_k`` best of ``scores`` [n], and all from ``keep_score`` on: values, best first, and places."""
    count = top_k if keep_score is None else max(top_k, int((scores >= keep_score).sum()))
    values, places = scores.topk(min(count, len(scores)))
    return values, places


def merge_candidates(parts: Sequence[Candidates], top_k: int, keep_score: float | None = None) -> Candidates:
    """The ``top_k`` best of several sets of candidates of one image, see ``pick``."""
    values, order = _best(torch.cat([part.scores for part in parts]), top_k, keep_score)
    masks = [part.masks for part in parts if part.masks is not None]
    return Candidates(
        boxes=torch.cat([part.boxes for part in parts])[order],
        scores=values,
        labels=torch.cat([part.labels for part in parts])[order],
        masks=torch.cat(masks)[order] if len(masks) == len(parts) else None,
    )


def finish_detections(candidates: Candidates, image_id: int, height: int, width: int) -> Detections:
    """Candidates in the pixels of a ``height`` × ``width`` image, masks as RLE."""
    scale = candidates.boxes.new_tensor([width, height, width, height])
    boxes = (candidates.boxes.clamp(0, 1) * scale).cpu()
    rles = None if candidates.masks is None else encode_masks(candidates.masks, height, width)
    return Detections(image_id, boxes, candidates.scores.cpu(), candidates.labels.cpu(), rles)


def no_detections(image_id: int, *, with_masks: bool) -> Detections:
    """The answer for an image that was asked nothing."""
    labels = torch.zeros(0, dtype=torch.int64)
    return Detections(image_id, torch.zeros(0, 4), torch.zeros(0), labels, [] if with_masks else None)
