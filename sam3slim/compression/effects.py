"""What lower precisions of one unit of weights do to a model's outputs, on a few images: what a search ranks units by.

Measuring mAP of every unit in every precision would take hundreds of evaluations. The error of the outputs takes one
forward pass of a few images for each, from the first part of the model that the unit is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sam3slim.checkpoints.int8 import dtype_shares, is_quantised
from sam3slim.compression.mixed import Mixed
from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.evaluation.postprocess import prompt_scores
from sam3slim.models import Sam3, part_of
from sam3slim.progress import progress_bar

PROMPTS = 8  # that pass the mask head together
BEST = 10  # queries of a prompt whose boxes and masks are compared
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Effect:
    """Of one unit in one precision.

    Attributes:
        error: of the model's outputs against those in FP32, relative and squared, see ``Effects``; 0: equal.
        bytes: that the unit takes.
    """

    error: float
    bytes: int


Keep = Callable[[str, Callable[[], Any]], Any]  # (name, work) → what the work gives, or gave in an interrupted call


def anew(_: str, work: Callable[[], Any]) -> Any:
    return work()


class Effects:
    """Measures them; each unit by itself, the rest of the model stays FP32.

    The error is the sum of three: squared differences of the scores s of all queries, over their squares; of the best
    queries' boxes, over their sides' squares; and of their masks (probabilities), over their squares. Boxes and masks
    count with the score of the FP32 model, as detections do in mAP.

    Args:
        model: FP32; left as it was.
        units: unit → names of its weights.
        method: how a precision is stored.
        batches: unlabelled images and phrases, one batch at least.

    Raises:
        UserError: no prompts, or outputs that are NaN.
    """

    def __init__(
        self, model: Sam3, units: Mapping[str, Sequence[str]], method: Mixed, batches: Sequence[Batch]
    ) -> None:
        self.model, self.units, self.method = model, units, method
        self.batches = [batch.to(model.device) for batch in batches if len(batch.input_ids)]
        if not self.batches:
            raise UserError("a search needs images with a phrase, and there are none; check data.root and data.limit")
        self.images = sum(len(batch.pixel_values) for batch in self.batches)
        with torch.no_grad(), eval_mode(model):
            # What a unit behind the towers reads is the same every time.
            self._vision = [self._look(batch) for batch in self.batches]
            self._text = [self._read(batch) for batch in self.batches]
            self._full = [_Outputs(*found) for found in self._outputs([], None)]

    def of(self, precision: str, keep: Keep = anew) -> dict[str, Effect]:
        """Unit → what ``precision`` does; see ``files.Kept`` for ``keep``."""
        found: dict[str, Effect] = {}
        with progress_bar() as progress, torch.no_grad(), eval_mode(self.model):
            task = progress.add_task(f"output errors in {precision.upper()}", total=len(self.units))
            for unit, names in self.units.items():
                found[unit] = Effect(**keep(f"{unit} in {precision}", partial(self._effect, precision, names)))
                progress.advance(task)
        return found

    def _effect(self, precision: str, names: Sequence[str]) -> dict[str, Any]:
        with self._rounded(precision, names) as size:
            if precision == "fp32":
                return asdict(Effect(0.0, size))
            outputs = zip(self._outputs(names, self._full), self._full, strict=True)
            errors = [full.error(*found) for found, full in outputs]
            lost, whole = torch.stack([e[0] for e in errors]).sum(0), torch.stack([e[1] for e in errors]).sum(0)
            return asdict(Effect(float((lost / whole.clamp(min=TINY)).sum()), size))

    @contextmanager
    def _rounded(self, precision: str, names: Sequence[str]) -> Iterator[int]:
        """The model with some weights rounded, and their bytes."""
        stored: dict[str, Any] = {}
        before: dict[str, Tensor] = {}
        try:
            for name in names:
                parameter, module = self.model.get_parameter(name), self.model.get_submodule(name.rpartition(".")[0])
                tensor = self.method.store(precision, parameter.detach().cpu(), module).tensor
                stored[name], before[name] = tensor, parameter.data
                values = tensor.dequantize() if is_quantised(tensor) else tensor.float()
                parameter.data = values.to(parameter.device)
            yield sum(row["bytes"] for row in dtype_shares(stored).values())
        finally:
            for name, values in before.items():
                self.model.get_parameter(name).data = values

    def _look(self, batch: Batch) -> Any:
        return self.model.get_vision_features(batch.pixel_values)

    def _read(self, batch: Batch) -> Tensor:
        return self.model.encode_text(batch.input_ids, batch.attention_mask)[0]

    def _outputs(
        self, names: Sequence[str], full: Sequence[_Outputs] | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """For some prompts at a time: scores [P, Q]; queries [M], boxes [M, 4] and masks of the best.

        Args:
            names: weights that are not as they were.
            full: whose best queries are taken; None: these.
        """
        changed = {part_of(name) for name in names}
        count = 0
        for batch, vision, text in zip(self.batches, self._vision, self._text, strict=True):
            vision = self._look(batch) if "vision" in changed else vision
            text = self._read(batch) if "text" in changed else text
            for start in range(0, len(batch.input_ids), PROMPTS):
                part = batch.part(slice(start, start + PROMPTS))
                output = self.model(
                    vision_embeds=vision, text_embeds=text[start : start + PROMPTS], attention_mask=part.attention_mask,
                    image_index=part.image_index, input_boxes=part.input_boxes,
                    input_boxes_labels=part.input_boxes_labels, with_masks="asked",
                )  # fmt: skip
                scores = prompt_scores(output)[0]
                best = full[count].best if full else scores.topk(min(BEST, scores.shape[1])).indices.flatten()
                count += 1
                prompts = torch.arange(len(scores), device=scores.device).repeat_interleave(len(best) // len(scores))
                masks = output.pred_masks
                yield (
                    scores, best, output.pred_boxes[prompts, best],
                    None if masks is None else masks[prompts, best].sigmoid(),
                )  # fmt: skip


@dataclass(frozen=True)
class _Outputs:
    """Of the full model, for some prompts."""

    scores: Tensor
    best: Tensor
    boxes: Tensor
    masks: Tensor | None

    def error(self, scores: Tensor, _: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """(squared differences, what they are relative to) of scores, boxes and masks, float64 [3] each."""
        weight = self.scores.gather(1, self.best.view(len(self.scores), -1)).flatten()
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        lost = [(scores - self.scores).square().sum(), (weight * (boxes - self.boxes).square().sum(-1)).sum()]
        whole = [self.scores.square().sum(), (weight * 2 * sides.square().sum(-1)).sum()]
        if masks is not None and self.masks is not None:
            lost.append((weight * (masks - self.masks).square().flatten(1).sum(-1)).sum())
            whole.append((weight * self.masks.square().flatten(1).sum(-1)).sum())
        return torch.stack(lost).double(), torch.stack(whole).double()
