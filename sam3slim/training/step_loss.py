"""The loss of a training step: against labels and teacher, of all prompts or of some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from sam3slim.data.batch import Batch
from sam3slim.data.soft import SoftTargets
from sam3slim.distill import DistillSpec, Totals, image_losses, match_detections, prompt_losses
from sam3slim.losses import Counts, Criterion, Match, Matches
from sam3slim.models import Sam3, Sam3Output


class StepLoss:
    """The losses of a batch, as a mean over the whole of it.

    Args:
        criterion: against labels; needs ``counts``.
        distill: what a teacher teaches; needs ``soft`` and ``totals``.
        max_prompts: prompts that pass through encoder, decoder, mask head and losses together. More are taken in equal
            parts, each of which is computed again in the backward pass (Chen et al., 2016, arXiv:1604.06174): memory
            is a part's, gradients are the whole batch's. The towers run once. None: all together.
    """

    def __init__(
        self,
        model: Sam3,
        *,
        criterion: Criterion | None = None,
        counts: Counts | None = None,
        distill: DistillSpec | None = None,
        soft: SoftTargets | None = None,
        totals: Totals | None = None,
        one_to_many: bool = False,
        max_prompts: int | None = None,
    ) -> None:
        self.model, self.one_to_many, self.max_prompts = model, one_to_many, max_prompts
        self.criterion, self.counts = criterion, counts
        self.distill, self.soft, self.totals = distill, soft, totals

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` [] with its graph, and the detached components by name, as criterion and teacher call them."""
        split = list(equal_parts(len(batch.input_ids), self.max_prompts))
        if len(split) == 1:
            outputs = self.model(**batch.inputs(), one_to_many=self.one_to_many, with_masks="asked")
            fpn, found = outputs.fpn_hidden_states, self._of(outputs, batch, self.soft, {})
        else:
            fpn, found = self._in_parts(batch, split)
        if self.distill is not None and self.soft is not None:
            for name, value in image_losses(self.distill, self.soft, fpn).items():
                found |= {"loss": found["loss"] + value, name: value.detach()}
        return found

    def _in_parts(self, batch: Batch, split: list[slice]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        vision = self.model.get_vision_features(batch.pixel_values)
        text, _ = self.model.encode_text(batch.input_ids, batch.attention_mask)
        found: dict[str, Tensor] = {}
        for prompts in split:
            part = _Part(self, batch.part(prompts), vision, self.soft and self.soft.part(prompts))
            values = checkpoint(part, text[prompts], *vision.fpn_hidden_states, use_reentrant=False)
            share = (prompts.stop - prompts.start) / len(batch.input_ids)
            for name, value in values.items():
                own = value * share if name in Criterion.METRICS else value
                found[name] = found[name] + own if name in found else own
        return tuple(vision.fpn_hidden_states[:-1]), found

    def _of(
        self, outputs: Sam3Output, batch: Batch, soft: SoftTargets | None, known: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Of prompts and their outputs; ``known``: matches of an earlier time, filled in at the first."""
        if not known:
            known["labels"] = None if self.criterion is None else self.criterion.match(outputs, batch.targets)
            known["soft"] = None
            if self.distill is not None and self.distill.predictions and soft is not None:
                known["soft"] = match_detections(soft, outputs)
        matches: Matches | None = known["labels"]
        soft_match: Match | None = known["soft"]
        self._ask(outputs, batch, matches, soft, soft_match)
        losses: dict[str, Tensor] = {}
        if self.criterion is not None:
            losses = self.criterion(outputs, batch.targets, self.counts, matches)
        loss = losses.pop("loss", torch.zeros((), device=outputs.layer_logits.device))
        if self.distill is not None and soft is not None:
            assert self.totals is not None
            for name, value in prompt_losses(self.distill, soft, outputs, self.totals, soft_match).items():
                loss = loss + value
                losses[name] = value.detach()
        return {"loss": loss, **losses}

    @staticmethod
    def _ask(
        outputs: Sam3Output,
        batch: Batch,
        matches: Matches | None,
        soft: SoftTargets | None,
        soft_match: Match | None,
    ) -> None:
        """Run the mask head once for every mask that a loss will look at."""
        layers, _, queries = outputs.layer_logits.shape
        asked = []
        if matches is not None and batch.targets.masks is not None:
            asked.append(matches.masks(layers, queries))
        if soft_match is not None and soft is not None and soft.masks is not None:
            last = soft_match.at_layer(layers - 1)
            asked.append((last.prompt, last.query))
        if asked and outputs.mask_head is not None:
            prompt, query = (torch.cat(index) for index in zip(*asked, strict=True))
            outputs.mask_head.compute(prompt, query)


class _Part:
    """The losses of some prompts as a function of what has a gradient; called again, it matches as the first time."""

    def __init__(
        self, whole: StepLoss, batch: Batch, vision: Sam3VisionEncoderOutput, soft: SoftTargets | None
    ) -> None:
        self.whole, self.batch, self.vision, self.soft = whole, batch, vision, soft
        self.known: dict[str, Any] = {}

    def __call__(self, text: Tensor, *fpn: Tensor) -> dict[str, Tensor]:
        inputs = self.batch.inputs()
        for name in ("pixel_values", "input_ids"):
            inputs.pop(name)
        vision = Sam3VisionEncoderOutput(fpn_hidden_states=fpn, fpn_position_encoding=self.vision.fpn_position_encoding)  # type: ignore[arg-type]
        outputs = self.whole.model(
            **inputs, vision_embeds=vision, text_embeds=text, one_to_many=self.whole.one_to_many, with_masks="asked"
        )
        return self.whole._of(outputs, self.batch, self.soft, self.known)


def equal_parts(prompts: int, most: int | None) -> Iterator[slice]:
    """As few slices of ``prompts`` as have at most ``most`` each, as equal as can be; at least one."""
    count = max(-(-prompts // most), 1) if most else 1
    for number in range(count):
        yield slice(prompts * number // count, prompts * (number + 1) // count)
