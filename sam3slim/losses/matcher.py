"""Which query answers which target: one-to-one (Hungarian) and one-to-many.

Both work on all decoder layers at once and on packed targets: the score of target t is computed only against
the queries of its own prompt, so nothing is padded and one transfer to the CPU serves every layer and prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sam3slim.data.batch import Targets
from sam3slim.errors import UserError
from sam3slim.losses.boxes import box_l1, cxcywh_to_xyxy, iou_and_giou


@dataclass(frozen=True)
class Match:
    """M matched pairs over all layers, packed; every field is [M] int64 on the predictions' device.

    Attributes:
        layer: decoder layer of the prediction, non-decreasing.
        prompt: prompt of the prediction (and of the target).
        query: query of the prediction.
        target: row of the packed targets.
    """

    layer: Tensor
    prompt: Tensor
    query: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.layer)

    def at_layer(self, layer: int) -> Match:
        """Only the pairs of one decoder layer."""
        keep = self.layer == layer
        return Match(self.layer[keep], self.prompt[keep], self.query[keep], self.target[keep])

    def shifted(self, layers: int) -> Match:
        """The same pairs, ``layers`` decoder layers further down."""
        return Match(self.layer + layers, self.prompt, self.query, self.target)

    def __add__(self, other: Match) -> Match:
        return Match(
            torch.cat([self.layer, other.layer]),
            torch.cat([self.prompt, other.prompt]),
            torch.cat([self.query, other.query]),
            torch.cat([self.target, other.target]),
        )


@dataclass(frozen=True)
class HungarianMatcher:
    """The cheapest one-to-one assignment per prompt and layer (DETR; Carion et al. 2020, eq. 1).

    cost = cost_class x focal class cost + cost_bbox x L1 - cost_giou x GIoU, the class cost being
    alpha (1-p)^gamma (-log p) - (1-alpha) p^gamma (-log(1-p)) as in Deformable DETR.
    """

    cost_class: float = 2.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Match:
        """Match every layer on its own.

        Args:
            logits: [L, P, Q] float32 class logits.
            boxes: [L, P, Q, 4] float32 cxcywh in 0..1.
            targets: T packed instances.

        Returns:
            min(targets, Q) pairs for each prompt and layer, ordered by layer, then target.

        Raises:
            UserError: a prediction is NaN or infinite.
        """
        if len(targets.boxes) == 0:
            return _to_match(np.zeros((3, 0), dtype=np.int64), targets.prompt_index)
        cost = self.costs(logits, boxes, targets).cpu().numpy()
        prompts = targets.prompt_index.cpu().numpy()
        _require_finite(bool(np.isfinite(cost).all()), logits, boxes)
        edges = np.flatnonzero(np.diff(prompts, prepend=-1, append=-1))
        rows: list[np.ndarray] = []
        for layer, layer_cost in enumerate(cost):
            for start, end in pairwise(edges):
                target, query = linear_sum_assignment(layer_cost[start:end])
                rows.append(np.stack([np.full_like(query, layer), query, target + start]))
        return _to_match(np.concatenate(rows, axis=1), targets.prompt_index)

    def costs(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """[L, T, Q]: cost of giving target t to each query of its prompt (shapes as in ``__call__``)."""
        prob = logits.sigmoid()
        positive = self.alpha * (1 - prob) ** self.gamma * F.softplus(-logits)
        negative = (1 - self.alpha) * prob**self.gamma * F.softplus(logits)
        predicted = boxes[:, targets.prompt_index]
        wanted = targets.boxes[:, None]
        _, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
        return (
            self.cost_class * (positive - negative)[:, targets.prompt_index]
            + self.cost_bbox * box_l1(predicted, wanted)
            - self.cost_giou * giou
        )


@dataclass(frozen=True)
class OneToManyMatcher:
    """Up to ``topk`` queries per target, those that score above ``threshold`` (DAC-DETR; Hu et al. 2023).

    score = alpha x p + (1 - alpha) x IoU. As in the reference, a query may serve several targets.
    """

    alpha: float = 0.3
    threshold: float = 0.4
    topk: int = 4

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Match:
        """Match every layer on its own; arguments and errors as for ``HungarianMatcher``.

        Returns:
            0 to ``topk`` pairs per target and layer, ordered by layer, then target, then falling score.
        """
        index = targets.prompt_index
        predicted = cxcywh_to_xyxy(boxes)[:, index]
        iou, _ = iou_and_giou(predicted, cxcywh_to_xyxy(targets.boxes)[:, None])
        score = self.alpha * logits.sigmoid()[:, index] + (1 - self.alpha) * iou
        _require_finite(bool(torch.isfinite(score).all()), logits, boxes)
        best, queries = score.topk(min(self.topk, score.shape[-1]), dim=-1)
        keep = best > self.threshold
        layer, target, _ = keep.nonzero(as_tuple=True)
        return Match(layer, index[target], queries[keep], target)


def _to_match(rows: np.ndarray, prompt_index: Tensor) -> Match:
    layer, query, target = torch.from_numpy(rows).to(prompt_index.device).unbind(0)
    return Match(layer, prompt_index[target], query, target)


def _require_finite(finite: bool, logits: Tensor, boxes: Tensor) -> None:
    if finite:
        return
    broken = [name for name, x in (("logits", logits), ("boxes", boxes)) if not bool(torch.isfinite(x).all())]
    what = f"predicted {' and '.join(broken)}" if broken else "target boxes"
    fix = "training has diverged, lower the learning rate" if broken else "check the annotations"
    raise UserError(f"{what} are NaN or infinite, expected finite numbers; {fix}")
