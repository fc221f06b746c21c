"""Box prompts drawn from annotations: which objects are shown or ruled out, and how exactly they are drawn.

A box of label 1 shows an instance of the concept, one of label 0 something that is not meant. What is wanted of the
model stays every instance of the concept, but for one that a negative box rules out.

Phrase, choice and noise are those of SAM 3's training code (github.com/facebookresearch/sam3: ``TextQueryToVisual``
shows any of the targets and may replace the phrase by "visual"; ``noise_box`` is used with a deviation of 0.1 sides and
at most 20 pixels). Negative boxes it only reads from files; here they follow the paper's interactive use, where a
negative exemplar marks a false positive (arXiv:2511.16719).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from sam3slim.errors import UserError
from sam3slim.specs import PADDED_BOX_LABEL

PROMPT_KINDS = ("text", "box", "text+box")
# From this IoU on two annotations are one object with two names ("circle", "red circle").
SAME_OBJECT = 0.5
# Rule out an instance of the concept, rather than show something else as not meant, where both can be done.
RULE_OUT = 0.5

BoxRow = tuple[tuple[float, float, float, float], int]  # (cx, cy, w, h) in 0..1, label


@dataclass(frozen=True)
class BoxSpec:
    """How often training prompts come with boxes, and how boxes are drawn (also in evaluation).

    Attributes:
        share: of the training prompts of concepts in the image, those with boxes.
        alone: share of these whose phrase is replaced by "visual", so that the boxes speak alone.
        negative: share of these with a negative box, on an instance (no longer wanted then) or on another object.
        max_boxes: most positive boxes of a prompt; their number is drawn evenly.
        noise: standard deviation of a corner's shift, in sides of the box.
        noise_limit: largest shift, in sides of the image.
    """

    share: float = 0.0
    alone: float = 0.5
    negative: float = 0.5
    max_boxes: int = 2
    noise: float = 0.1
    noise_limit: float = 0.02

    def __post_init__(self) -> None:
        for key in ("share", "alone", "negative"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"data.boxes.{key}={getattr(self, key)}: expected a share in 0..1")
        if self.max_boxes < 1:
            raise UserError(f"data.boxes.max_boxes={self.max_boxes}: expected at least 1")
        if not 0 <= self.noise <= 0.5:
            raise UserError(
                f"data.boxes.noise={self.noise}: expected 0..0.5 sides of the box (0.1 is SAM 3's, 0 draws exactly)"
            )
        if not 0 < self.noise_limit <= 1:
            raise UserError(
                f"data.boxes.noise_limit={self.noise_limit}: expected a share of the image's side in (0, 1]"
            )


@dataclass
class BoxPrompts:
    """The boxes of one sample's P prompts.

    Attributes:
        rows: P lists of boxes.
        alone: P flags: the boxes speak without the phrase.
        wanted: [T] bool: targets that no negative box rules out.
    """

    rows: list[list[BoxRow]]
    alone: list[bool]
    wanted: Tensor


def noisy_box(box: Tensor, spec: BoxSpec, rng: np.random.Generator) -> Tensor:
    """``box`` [4] (x1, y1, x2, y2) in 0..1 with its corners shifted, in the image; as it is where nothing is left."""
    if spec.noise == 0:
        return box
    side = torch.stack([box[2] - box[0], box[3] - box[1]]).repeat(2)
    shift = spec.noise * torch.as_tensor(rng.standard_normal(4), dtype=box.dtype) * side
    moved = (box + shift.clamp(-spec.noise_limit, spec.noise_limit)).clamp(0, 1)
    return moved if bool((moved[2:] > moved[:2]).all()) else box


def sample_boxes(
    spec: BoxSpec, boxes: Tensor, prompt_index: Tensor, prompts: int, rng: np.random.Generator
) -> BoxPrompts:
    """Boxes of training prompts, the same for the same generator.

    Args:
        boxes: [T, 4] targets of all prompts, (x1, y1, x2, y2) in 0..1.
        prompt_index: [T] int64.
        prompts: P.
    """
    found = BoxPrompts([[] for _ in range(prompts)], [False] * prompts, torch.ones(len(boxes), dtype=torch.bool))
    overlap = box_iou(boxes, boxes)
    for prompt in range(prompts):
        own = (prompt_index == prompt).nonzero().squeeze(1)
        with_boxes, alone, negative = (rng.random(3) < (spec.share, spec.alone, spec.negative)).tolist()
        if not with_boxes or not len(own):
            continue
        chosen: list[tuple[int, int]] = []
        if negative:
            others = (overlap[:, own].amax(1) < SAME_OBJECT).nonzero().squeeze(1)
            target = _negative(own.tolist(), others.tolist(), rng, last=not alone)
            if target is not None:
                chosen.append((target, 0))
                own = own[own != target]
                found.wanted[target] &= int(prompt_index[target]) != prompt
        least = 0 if chosen and not alone else 1
        most = min(spec.max_boxes, len(own))
        count = int(rng.integers(least, most + 1)) if most >= least else 0
        chosen += [(int(own[place]), 1) for place in rng.permutation(len(own))[:count]]
        found.rows[prompt] = [_row(noisy_box(boxes[target], spec, rng), label) for target, label in chosen]
        found.alone[prompt] = alone
    return found


def _negative(own: Sequence[int], others: Sequence[int], rng: np.random.Generator, *, last: bool) -> int | None:
    """The target that a negative box marks; None where there is none. ``last``: the only instance may be ruled out."""
    ruled_out = rng.random() < RULE_OUT
    can_rule_out = len(own) > (0 if last else 1)
    pool = own if can_rule_out and (ruled_out or not others) else others
    return int(pool[int(rng.integers(len(pool)))]) if pool else None


def example_boxes(
    spec: BoxSpec, kind: str, boxes: Tensor, prompt_index: Tensor, image: int, categories: Sequence[int]
) -> BoxPrompts:
    """One positive box for each prompt of an evaluation: any of its instances, drawn with the noise of training.

    Args:
        kind: ``box`` or ``text+box``.
        boxes: [T, 4] as in ``sample_boxes``.
        prompt_index: [T] int64.
        image, categories: ids, the prompts' categories; they alone decide choice and noise.

    Raises:
        ValueError: a prompt without an instance.
    """
    rows = []
    for prompt, category in enumerate(categories):
        rng = np.random.default_rng((image % 2**63, category % 2**63))
        own = (prompt_index == prompt).nonzero().squeeze(1)
        if not len(own):
            raise ValueError(f"prompt {prompt} has no instance to show")
        rows.append([_row(noisy_box(boxes[own[int(rng.integers(len(own)))]], spec, rng), 1)])
    return BoxPrompts(rows, [kind == "box"] * len(categories), torch.ones(len(boxes), dtype=torch.bool))


def pack_boxes(rows: Sequence[Sequence[BoxRow]]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Boxes [P, N, 4] float32 and labels [P, N] int64 of P prompts, padded with -10; None where no prompt has any."""
    most = max((len(row) for row in rows), default=0)
    if not most:
        return None, None
    boxes = torch.zeros(len(rows), most, 4)
    labels = torch.full((len(rows), most), PADDED_BOX_LABEL, dtype=torch.int64)
    for prompt, row in enumerate(rows):
        for place, (box, label) in enumerate(row):
            boxes[prompt, place] = torch.tensor(box)
            labels[prompt, place] = label
    return boxes, labels


def _row(box: Tensor, label: int) -> BoxRow:
    cx, cy, w, h = box_convert(box, "xyxy", "cxcywh").tolist()
    return (cx, cy, w, h), label
