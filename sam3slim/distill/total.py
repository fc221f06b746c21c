"""All distillation losses of a step, weighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    semantic_share,
    spread,
)
from sam3slim.distill.spec import DistillSpec
from sam3slim.losses import HungarianMatcher, Match
from sam3slim.models import Sam3Output

Average = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Totals:
    """What the losses are divided by: numbers of the whole batch, also where a part of its prompts is looked at.

    Attributes:
        detections: [] sum of the detections' weights; with several processes, the mean of theirs.
        prompts: how many.
        semantic: [] sum of the prompts' ``semantic_share``.
        memory: [] variance of the teacher's encoder output; None where it is not taught.
    """

    detections: Tensor
    prompts: int
    semantic: Tensor
    memory: Tensor | None

    @classmethod
    def of(cls, soft: SoftTargets, average: Average | None = None) -> Totals:
        """``average``: mean of a number over the processes; None with one process."""
        weight = soft.weight.sum()
        return cls(
            detections=(weight if average is None else average(weight)).clamp(min=1),
            prompts=len(soft.presence),
            semantic=semantic_share(soft.presence).sum(),
            memory=None if soft.memory is None else spread(soft.memory),
        )


def distillation_losses(
    spec: DistillSpec, soft: SoftTargets, student: Sam3Output, average: Average | None = None
) -> dict[str, Tensor]:
    """Weighted losses by name (``distill_fpn``, …), each a scalar with its graph, those of weight 0 left out.

    Args:
        soft: what the weights in ``spec`` need.
        average: mean of a number over the processes; None with one process.
    """
    totals = Totals.of(soft, average)
    return image_losses(spec, soft, student.fpn_hidden_states) | prompt_losses(spec, soft, student, totals)


def image_losses(spec: DistillSpec, soft: SoftTargets, fpn: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The losses of the images' maps, as ``distillation_losses`` returns them."""
    if not spec.fpn:
        return {}
    with torch.autocast(fpn[0].device.type, enabled=False):
        return {"distill_fpn": spec.fpn * pyramid_loss(fpn, soft.fpn)}


def match_detections(soft: SoftTargets, student: Sam3Output) -> Match:
    """The student's queries matched with the teacher's detections as with labels, at every decoder layer.

    Hungarian on score, L1 and GIoU, so that teacher and student need not have the same queries.
    """
    targets = Targets(soft.boxes.float(), None, soft.prompt_index)
    with torch.autocast(student.layer_logits.device.type, enabled=False):
        return HungarianMatcher()(student.layer_logits.float(), student.layer_boxes.float(), targets)


def prompt_losses(
    spec: DistillSpec, soft: SoftTargets, student: Sam3Output, totals: Totals, match: Match | None = None
) -> dict[str, Tensor]:
    """The losses of the prompts' answers, as ``distillation_losses`` returns them.

    Args:
        totals: of the batch that these prompts are a part of: the parts' losses then add up to the batch's.
        match: what ``match_detections`` returned, if it was asked.
    """
    losses = {}
    with torch.autocast(student.layer_logits.device.type, enabled=False):
        if spec.memory:
            assert soft.memory is not None
            share = len(soft.presence) / max(totals.prompts, 1)
            losses["memory"] = share * feature_loss(student.encoder_hidden_states, soft.memory, totals.memory)
        if spec.predictions:
            losses |= _predictions(soft, student, totals, match or match_detections(soft, student))
    weighted = {name: getattr(spec, name) * value for name, value in losses.items() if getattr(spec, name)}
    return {f"distill_{name}": value for name, value in weighted.items()}


def _predictions(soft: SoftTargets, student: Sam3Output, totals: Totals, match: Match) -> dict[str, Tensor]:
    logits, boxes = student.layer_logits.float(), student.layer_boxes.float()
    weight, divisor = soft.weight, totals.detections
    scores = score_loss(logits, match, soft.scores, soft.rest, soft.presence, divisor)
    bbox, giou = box_losses(boxes, match, soft.boxes, weight, divisor)
    share = len(soft.presence) / max(totals.prompts, 1)
    losses = {
        "presence": share * presence_loss(student.layer_presence, soft.presence).sum(),
        "scores": scores.sum(),
        "bbox": bbox.sum(),
        "giou": giou.sum(),
    }
    if soft.masks is not None and student.pred_masks is not None:
        last = match.at_layer(len(logits) - 1)
        losses["mask"], losses["dice"] = mask_losses(student.pred_masks, last, soft.masks, weight, divisor)
    if soft.semantic is not None and student.semantic_seg is not None:
        losses["semantic"] = semantic_loss(student.semantic_seg, soft.semantic, soft.presence, totals.semantic)
    return losses
