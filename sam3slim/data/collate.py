"""Samples → one batch, each phrase tokenised once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sam3slim.data.batch import Batch, Sample, Targets
from sam3slim.data.boxes import pack_boxes
from sam3slim.data.soft import SoftTargets
from sam3slim.specs import TextSpec
from sam3slim.text.phrases import encode_phrases, tokenizer_of

LookUp = Callable[[Sequence[Sample]], SoftTargets]


class Collate:
    """Packs samples; picklable, so worker processes can hold their own.

    Args:
        text: the model's text tower.
        soft: looks up what a teacher says of samples; picklable.
    """

    def __init__(self, text: TextSpec | None = None, soft: LookUp | None = None) -> None:
        self.text, self.soft = text or TextSpec(), soft
        tokenizer_of(self.text)  # a missing merge file is told now, not from a worker
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """``samples`` as a batch; prompts and targets keep the samples' order."""
        counts = torch.tensor([len(sample.phrases) for sample in samples])
        first_prompt = torch.cumsum(counts, 0) - counts
        masks = [sample.masks for sample in samples if sample.masks is not None]
        phrases = [phrase for sample in samples for phrase in sample.phrases]
        input_ids, attention_mask = self._tokens(phrases)
        rows = [row for sample in samples for row in sample.box_prompts or [[] for _ in sample.phrases]]
        boxes, box_labels = pack_boxes(rows)
        second = [sample.teacher_image for sample in samples if sample.teacher_image is not None]
        targets = Targets(
            boxes=torch.cat([sample.boxes for sample in samples]),
            masks=torch.cat(masks) if len(masks) == len(samples) else None,
            prompt_index=torch.cat(
                [sample.prompt_index + first for sample, first in zip(samples, first_prompt, strict=True)]
            ),
        )
        return Batch(
            pixel_values=torch.stack([sample.image for sample in samples]),
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
            category_ids=torch.tensor([i for sample in samples for i in sample.category_ids], dtype=torch.int64),
            targets=targets,
            phrases=phrases,
            images=[sample.info for sample in samples],
            soft=None if self.soft is None else self.soft(samples),
            input_boxes=boxes,
            input_boxes_labels=box_labels,
            teacher_pixels=torch.stack(second) if second else None,
        )

    def _tokens(self, phrases: list[str]) -> tuple[Tensor, Tensor]:
        new = sorted({phrase for phrase in phrases if phrase not in self._known})
        if new:
            ids, mask = encode_phrases(self.text, new)
            self._known.update({phrase: (ids[row], mask[row]) for row, phrase in enumerate(new)})
        if not phrases:
            empty = torch.zeros(0, self.text.context_length, dtype=torch.int64)
            return empty, empty.clone()
        rows = [self._known[phrase] for phrase in phrases]
        return torch.stack([ids for ids, _ in rows]), torch.stack([mask for _, mask in rows])
