"""The training loss of the reference recipe: every decoder layer, both branches, masks, semantic head."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn

from sam3slim.data.batch import Targets
from sam3slim.errors import UserError
from sam3slim.losses.boxes import box_l1, cxcywh_to_xyxy, iou_and_giou
from sam3slim.losses.classification import (
    classification_f1,
    iou_aware_bce,
    match_quality,
    presence_accuracy,
    presence_bce,
)
from sam3slim.losses.masks import instance_mask_losses, semantic_losses
from sam3slim.losses.matcher import HungarianMatcher, Match, OneToManyMatcher


class LayerOutputs(Protocol):
    """What the criterion reads of a model's output (L layers, P prompts, Q queries; any float dtype)."""

    @property
    def layer_logits(self) -> Tensor:
        """[L, P, Q] class logits."""

    @property
    def layer_boxes(self) -> Tensor:
        """[L, P, Q, 4] cxcywh in 0..1."""

    @property
    def layer_presence(self) -> Tensor:
        """[L, P, 1] presence logits."""

    @property
    def pred_masks(self) -> Tensor | None:
        """[P, Q, h, w] mask logits of the last layer."""

    @property
    def semantic_seg(self) -> Tensor | None:
        """[P, 1, h, w] logits."""

    @property
    def o2m_logits(self) -> Tensor | None:
        """[L, P, Q] class logits of the one-to-many branch, None when it is off."""

    @property
    def o2m_boxes(self) -> Tensor | None:
        """[L, P, Q, 4]; given whenever ``o2m_logits`` is."""

    @property
    def o2m_masks(self) -> Tensor | None:
        """[P, Q, h, w] mask logits of the one-to-many branch."""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each component in the total; ``o2m`` multiplies the whole one-to-many branch.

    Raises:
        UserError: a weight is negative or not finite.
    """

    cls: float = 20.0
    presence: float = 20.0
    bbox: float = 5.0
    giou: float = 2.0
    mask: float = 200.0
    dice: float = 10.0
    semantic_focal: float = 20.0
    semantic_dice: float = 30.0
    o2m: float = 2.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"loss weight {item.name}={value}: expected a number >= 0 (0 is off)")


@dataclass(frozen=True)
class Counts:
    """What the losses are averaged over; with several processes, those of the whole step per process.

    Divided by these, the mean of the processes' losses is the loss of one big batch.

    Attributes:
        boxes: [] float32, targets.
        prompts: [] float32.
        visible: [] float32, prompts whose targets have a pixel of mask.
    """

    boxes: Tensor
    prompts: Tensor
    visible: Tensor

    @classmethod
    def of(cls, targets: Targets, prompts: int) -> Counts:
        """Those of one process's share of the batch, on the targets' device."""
        index = targets.prompt_index
        seen = index if targets.masks is None else index[targets.masks.flatten(1).any(1)]
        numbers = (len(index), prompts, len(seen.unique()))
        return cls(*torch.tensor(numbers, dtype=torch.float32, device=index.device))

    def stacked(self) -> Tensor:
        """[3], to be summed over the processes."""
        return torch.stack([self.boxes, self.prompts, self.visible])

    @classmethod
    def per_process(cls, total: Tensor, processes: int) -> Counts:
        """Of the sum of all processes' ``stacked()``; a step without targets divides by one, as one process does."""
        return cls(*(total.clamp(min=1) / processes))


class Criterion(nn.Module):
    """Weighted sum of all losses; class, presence and boxes on every layer, masks on the last.

    Args:
        weights: weight of each component.
        matcher: one-to-one matcher.
        o2m_matcher: one-to-many matcher, used when the outputs have that branch.
        o2m_matcher_on_aux: True matches the branch one-to-many on every layer; False only on the last one
            and one-to-one on the others.
    """

    def __init__(
        self,
        weights: LossWeights | None = None,
        matcher: HungarianMatcher | None = None,
        o2m_matcher: OneToManyMatcher | None = None,
        o2m_matcher_on_aux: bool = True,
    ) -> None:
        super().__init__()
        self.weights = weights or LossWeights()
        self.matcher = matcher or HungarianMatcher()
        self.o2m_matcher = o2m_matcher or OneToManyMatcher()
        self.o2m_matcher_on_aux = o2m_matcher_on_aux

    def forward(self, outputs: LayerOutputs, targets: Targets, counts: Counts | None = None) -> dict[str, Tensor]:
        """Compute the loss in float32 whatever the outputs' dtype.

        Args:
            outputs: see ``LayerOutputs``.
            targets: T packed instances; without masks the mask and semantic losses are left out.
            counts: what to average over; give it when the batch is one process's share. Default: this batch's own.

        Returns:
            ``loss`` [], the weighted total with its graph, and, detached, the unweighted components of the
            last layer (``loss_cls``, ``loss_presence``, ``loss_bbox``, ``loss_giou``, ``loss_mask``,
            ``loss_dice``, ``loss_semantic_focal``, ``loss_semantic_dice``; those of the one-to-many branch
            with the prefix ``o2m_``) and the metrics ``ce_f1`` and ``presence_dec_acc`` (0..1).

        Raises:
            UserError: predictions are NaN or infinite.
        """
        device = outputs.layer_logits.device
        with torch.autocast(device.type, enabled=False):
            own = torch.tensor(max(len(targets.boxes), 1), dtype=torch.float32, device=device)
            divisor = own if counts is None else counts.boxes
            losses, metrics = self._one_to_one(outputs, targets, divisor)
            many = self._one_to_many(outputs, targets, divisor)
            if counts is not None:
                own_counts = Counts.of(targets, outputs.layer_logits.shape[1])
                losses, many = (_shares(found, own_counts, counts) for found in (losses, many))
        total = self._weigh(losses)
        if many:
            total = total + self.weights.o2m * self._weigh(many)
        report = {name: value[-1].detach() for name, value in losses.items()}
        report |= {f"o2m_{name}": value[-1].detach() for name, value in many.items()}
        return {"loss": total, **report, **metrics}

    def _one_to_one(
        self, outputs: LayerOutputs, targets: Targets, divisor: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logits, boxes, presence = (
            x.float() for x in (outputs.layer_logits, outputs.layer_boxes, outputs.layer_presence)
        )
        has_target = _has_target(logits, targets)
        match = self.matcher(logits, boxes, targets)
        losses, quality = _detection(logits, boxes, targets, match, divisor, has_target)
        losses["loss_presence"] = presence_bce(presence, has_target)
        losses |= _masks(outputs.pred_masks, targets, match.at_layer(len(logits) - 1), divisor)
        if outputs.semantic_seg is not None and targets.masks is not None:
            focal, dice = semantic_losses(outputs.semantic_seg, targets)
            losses |= {"loss_semantic_focal": focal[None], "loss_semantic_dice": dice[None]}
        metrics = {
            "ce_f1": classification_f1(logits[-1], quality[-1]),
            "presence_dec_acc": presence_accuracy(presence[-1], has_target),
        }
        return losses, metrics

    def _one_to_many(self, outputs: LayerOutputs, targets: Targets, divisor: Tensor) -> dict[str, Tensor]:
        if outputs.o2m_logits is None or outputs.o2m_boxes is None:
            return {}
        logits, boxes = outputs.o2m_logits.float(), outputs.o2m_boxes.float()
        if self.o2m_matcher_on_aux:
            match = self.o2m_matcher(logits, boxes, targets)
        else:
            last = self.o2m_matcher(logits[-1:], boxes[-1:], targets).shifted(len(logits) - 1)
            match = self.matcher(logits[:-1], boxes[:-1], targets) + last if len(logits) > 1 else last
        losses, _ = _detection(logits, boxes, targets, match, divisor, _has_target(logits, targets))
        return losses | _masks(outputs.o2m_masks, targets, match.at_layer(len(logits) - 1), divisor)

    def _weigh(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {name: getattr(self.weights, name.removeprefix("loss_")) for name in losses}
        return torch.stack([weights[name] * value.sum() for name, value in losses.items()]).sum()


def _shares(losses: dict[str, Tensor], own: Counts, counts: Counts) -> dict[str, Tensor]:
    """Means over this process's prompts as shares of the mean over all; boxes and masks have been divided already."""
    prompts, visible = own.prompts / counts.prompts, own.visible.clamp(min=1) / counts.visible
    factors = {
        "loss_cls": prompts, "loss_presence": prompts, "loss_semantic_focal": visible, "loss_semantic_dice": visible
    }  # fmt: skip
    return {name: value * factors[name] if name in factors else value for name, value in losses.items()}


def _has_target(logits: Tensor, targets: Targets) -> Tensor:
    """[P] bool: the prompt has at least one instance."""
    flags = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    return flags.index_fill_(0, targets.prompt_index, True)


def _detection(
    logits: Tensor, boxes: Tensor, targets: Targets, match: Match, divisor: Tensor, has_target: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Class and box losses, [L] each, and the soft class targets [L, P, Q]."""
    picked = boxes[match.layer, match.prompt, match.query]
    wanted = targets.boxes[match.target].float()
    iou, giou = iou_and_giou(cxcywh_to_xyxy(picked), cxcywh_to_xyxy(wanted))
    quality = match_quality(logits, match, iou.detach())
    zeros = logits.new_zeros(len(logits))
    losses = {
        "loss_cls": iou_aware_bce(logits, quality, has_target),
        "loss_bbox": zeros.index_add(0, match.layer, box_l1(picked, wanted)) / divisor,
        "loss_giou": zeros.index_add(0, match.layer, 1 - giou) / divisor,
    }
    return losses, quality


def _masks(pred_masks: Tensor | None, targets: Targets, match: Match, divisor: Tensor) -> dict[str, Tensor]:
    """Mask losses of the last layer, [1] each; empty when either side has no masks."""
    if pred_masks is None or targets.masks is None:
        return {}
    focal, dice = instance_mask_losses(pred_masks, targets.masks, match)
    return {"loss_mask": focal[None] / divisor, "loss_dice": dice[None] / divisor}
