"""All distillation losses of a step, weighted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sam3slim.data.batch import Targets
from sam3slim.data.soft import SoftTargets
from sam3slim.distill.losses import (
    box_losses,
    feature_loss,
    mask_losses,
    presence_loss,
    pyramid_loss,
    score_loss,
    semantic_loss,
)
from sam3slim.distill.spec import DistillSpec
from sam3slim.losses import HungarianMatcher
from sam3slim.models import Sam3Output

Average = Callable[[Tensor], Tensor]


def distillation_losses(
    spec: DistillSpec, taught: SoftTargets, student: Sam3Output, average: Average | None = None
) -> dict[str, Tensor]:
    """Weighted losses by name (``distill_fpn``, …), each a scalar with its graph, those of weight 0 left out.

    The student's queries are matched with the teacher's detections as with labels, at every decoder layer
    (Hungarian on score, L1 and GIoU), so that teacher and student need not have the same queries.

    Args:
        taught: what the weights in ``spec`` need.
        average: mean of a number over the processes; None with one process.
    """
    losses = {}
    with torch.autocast(student.layer_logits.device.type, enabled=False):
        if spec.fpn:
            losses["fpn"] = pyramid_loss(student.fpn_hidden_states, taught.fpn)
        if spec.memory:
            assert taught.memory is not None
            losses["memory"] = feature_loss(student.encoder_hidden_states, taught.memory)
        if spec.answers:
            losses |= _answers(taught, student, average)
    weighted = {name: getattr(spec, name) * value for name, value in losses.items() if getattr(spec, name)}
    return {f"distill_{name}": value for name, value in weighted.items()}


def _answers(taught: SoftTargets, student: Sam3Output, average: Average | None) -> dict[str, Tensor]:
    logits, boxes = student.layer_logits.float(), student.layer_boxes.float()
    weight = taught.weight
    divisor = weight.sum() if average is None else average(weight.sum())
    divisor = divisor.clamp(min=1)
    match = HungarianMatcher()(logits, boxes, Targets(taught.boxes.float(), None, taught.prompt_index))
    scores = score_loss(logits, match, taught.scores, taught.rest, taught.presence, divisor)
    bbox, giou = box_losses(boxes, match, taught.boxes, weight, divisor)
    losses = {
        "presence": presence_loss(student.layer_presence, taught.presence).sum(),
        "scores": scores.sum(),
        "bbox": bbox.sum(),
        "giou": giou.sum(),
    }
    if taught.masks is not None and student.pred_masks is not None:
        last = match.at_layer(len(logits) - 1)
        losses["mask"], losses["dice"] = mask_losses(student.pred_masks, last, taught.masks, weight, divisor)
    if taught.semantic is not None and student.semantic_seg is not None:
        losses["semantic"] = semantic_loss(student.semantic_seg, taught.semantic, taught.presence)
    return losses
