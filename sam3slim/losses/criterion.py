"""The training loss of the reference recipe: every decoder layer, both branches, masks, semantic head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from sam3slim.data.batch import Targets
from sam3slim.losses.boxes import box_l1, cxcywh_to_xyxy, iou_and_giou
from sam3slim.losses.classification import (
    classification_f1,
    iou_aware_bce,
    match_quality,
    presence_accuracy,
    presence_bce,
)
from sam3slim.losses.counts import Counts, Summed
from sam3slim.losses.masks import instance_mask_losses, semantic_losses
from sam3slim.losses.matcher import HungarianMatcher, Match, OneToManyMatcher
from sam3slim.losses.spec import LossSpec


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
class Matches:
    """Which predictions answer which targets, at every layer; ``many``: of the one-to-many branch, None without it."""

    one: Match
    many: Match | None

    def masks(self, layers: int, queries: int) -> tuple[Tensor, Tensor]:
        """(prompt, query) [M] each of the masks that the losses look at; the branch's queries follow the Q others."""
        pairs = [self.one.at_layer(layers - 1)]
        if self.many is not None:
            last = self.many.at_layer(layers - 1)
            pairs.append(replace(last, query=last.query + queries))
        return torch.cat([pair.prompt for pair in pairs]), torch.cat([pair.query for pair in pairs])


class Criterion(nn.Module):
    """Weighted sum of all losses; class, presence and boxes on every layer, masks on the last.

    Args:
        spec: weights and settings; the default is the reference's shipped configuration.
        matcher: one-to-one matcher.
        o2m_matcher: one-to-many matcher, used when the outputs have that branch.
    """

    METRICS: ClassVar = ("ce_f1", "presence_dec_acc")  # beside the losses: means, which do not add up

    def __init__(
        self,
        spec: LossSpec | None = None,
        matcher: HungarianMatcher | None = None,
        o2m_matcher: OneToManyMatcher | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec or LossSpec()
        self.matcher = matcher or HungarianMatcher()
        self.o2m_matcher = o2m_matcher or OneToManyMatcher()

    @torch.no_grad()
    def match(self, outputs: LayerOutputs, targets: Targets) -> Matches:
        """Match predictions with targets, in float32 whatever the outputs' dtype.

        Raises:
            UserError: predictions are NaN or infinite.
        """
        with torch.autocast(outputs.layer_logits.device.type, enabled=False):
            one = self.matcher(outputs.layer_logits.float(), outputs.layer_boxes.float(), targets)
            if outputs.o2m_logits is None or outputs.o2m_boxes is None:
                return Matches(one, None)
            return Matches(one, self._match_many(outputs.o2m_logits.float(), outputs.o2m_boxes.float(), targets))

    def _match_many(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Match:
        if self.spec.o2m_matcher_on_aux:
            return self.o2m_matcher(logits, boxes, targets)
        last = self.o2m_matcher(logits[-1:], boxes[-1:], targets).shifted(len(logits) - 1)
        return self.matcher(logits[:-1], boxes[:-1], targets) + last if len(logits) > 1 else last

    def forward(
        self, outputs: LayerOutputs, targets: Targets, counts: Counts | None = None, matches: Matches | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss in float32 whatever the outputs' dtype.

        Args:
            outputs: see ``LayerOutputs``.
            targets: T packed instances; without masks the mask and semantic losses are left out.
            counts: what to average over; give it when these prompts are a share of a step. Default: their own.
            matches: what ``match`` returned, if it was asked.

        Returns:
            ``loss`` [], the weighted total with its graph, and, detached, the unweighted components of the
            last layer (``loss_cls``, ``loss_presence``, ``loss_bbox``, ``loss_giou``, ``loss_mask``,
            ``loss_dice``, ``loss_semantic_focal``, ``loss_semantic_dice``; those of the one-to-many branch
            with the prefix ``o2m_``) and the metrics ``ce_f1`` and ``presence_dec_acc`` (0..1).

        Raises:
            UserError: predictions are NaN or infinite.
        """
        device = outputs.layer_logits.device
        matches = matches or self.match(outputs, targets)
        with torch.autocast(device.type, enabled=False):
            if counts is None:
                counts = Counts.per_process(Counts.of(targets, outputs.layer_logits.shape[1]).stacked().to(device), 1)
            one, metrics = self._one_to_one(outputs, targets, matches.one)
            losses = {name: value.mean(counts) for name, value in one.items()}
            many = {
                name: value.mean(counts) for name, value in self._one_to_many(outputs, targets, matches.many).items()
            }
        total = self._weigh(losses)
        if many and self.spec.o2m:
            total = total + self.spec.o2m * self._weigh(many)
        report = {name: value[-1].detach() for name, value in losses.items()}
        report |= {f"o2m_{name}": value[-1].detach() for name, value in many.items()}
        return {"loss": total, **report, **metrics}

    def _one_to_one(
        self, outputs: LayerOutputs, targets: Targets, match: Match
    ) -> tuple[dict[str, Summed], dict[str, Tensor]]:
        logits, boxes, presence = (
            x.float() for x in (outputs.layer_logits, outputs.layer_boxes, outputs.layer_presence)
        )
        has_target = _has_target(logits, targets)
        losses, quality = self._detection(logits, boxes, targets, match, has_target)
        losses["loss_presence"] = Summed(presence_bce(presence, has_target), "prompts")
        losses |= _masks(outputs.pred_masks, targets, match.at_layer(len(logits) - 1))
        if outputs.semantic_seg is not None and targets.masks is not None:
            focal, dice = semantic_losses(outputs.semantic_seg, targets)
            losses["loss_semantic_focal"] = Summed(focal[None], "visible")
            losses["loss_semantic_dice"] = Summed(dice[None], "visible")
        metrics = {
            "ce_f1": classification_f1(logits[-1], quality[-1]),
            "presence_dec_acc": presence_accuracy(presence[-1], has_target),
        }
        return losses, metrics

    def _one_to_many(self, outputs: LayerOutputs, targets: Targets, match: Match | None) -> dict[str, Summed]:
        if match is None or outputs.o2m_logits is None or outputs.o2m_boxes is None:
            return {}
        logits, boxes = outputs.o2m_logits.float(), outputs.o2m_boxes.float()
        losses, _ = self._detection(logits, boxes, targets, match, _has_target(logits, targets))
        return losses | _masks(outputs.o2m_masks, targets, match.at_layer(len(logits) - 1))

    def _detection(
        self, logits: Tensor, boxes: Tensor, targets: Targets, match: Match, has_target: Tensor
    ) -> tuple[dict[str, Summed], Tensor]:
        """Class and box losses, [L] each, and the soft class targets [L, P, Q]."""
        picked = boxes[match.layer, match.prompt, match.query]
        wanted = targets.boxes[match.target].float()
        iou, giou = iou_and_giou(cxcywh_to_xyxy(picked), cxcywh_to_xyxy(wanted))
        quality = match_quality(logits, match, iou.detach())
        zeros = logits.new_zeros(len(logits))
        queries = max(logits.shape[-1], self.spec.pad_n_queries)
        losses = {
            "loss_cls": Summed(iou_aware_bce(logits, quality, has_target), "prompts", queries),
            "loss_bbox": Summed(zeros.index_add(0, match.layer, box_l1(picked, wanted)), "boxes"),
            "loss_giou": Summed(zeros.index_add(0, match.layer, 1 - giou), "boxes"),
        }
        return losses, quality

    def _weigh(self, losses: dict[str, Tensor]) -> Tensor:
        weights = {name: getattr(self.spec, name.removeprefix("loss_")) for name in losses}
        # What has weight 0 is left out: with a gradient of zeros, weight decay would shrink what only it teaches.
        weighted = [weights[name] * value.sum() for name, value in losses.items() if weights[name]]
        return torch.stack(weighted).sum() if weighted else next(iter(losses.values())).new_zeros(())


def _has_target(logits: Tensor, targets: Targets) -> Tensor:
    """[P] bool: the prompt has at least one instance."""
    flags = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    return flags.index_fill_(0, targets.prompt_index, True)


def _masks(pred_masks: Tensor | None, targets: Targets, match: Match) -> dict[str, Summed]:
    """Mask losses of the last layer, [1] each; empty when either side has no masks."""
    if pred_masks is None or targets.masks is None:
        return {}
    focal, dice = instance_mask_losses(pred_masks, targets.masks, match)
    return {"loss_mask": Summed(focal[None], "boxes"), "loss_dice": Summed(dice[None], "boxes")}
