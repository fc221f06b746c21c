"""A frozen teacher that no checkpoint, optimiser, weight average or DDP bucket ever sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sam3slim.data.batch import Batch
from sam3slim.data.soft import SoftTargets
from sam3slim.distill.phrases import PhraseFeatures
from sam3slim.distill.spec import DistillSpec
from sam3slim.distill.total import Average, distillation_losses
from sam3slim.errors import UserError
from sam3slim.models import Sam3, Sam3Output
from sam3slim.specs import ModelSpec

PROMPTS = 32  # that a teacher is asked together beside a student: they pass through encoder and decoder at once


def check_teacher(teacher: ModelSpec, student: ModelSpec) -> None:
    """Maps must be equally wide: those of another size are resized, and all else may differ.

    Raises:
        UserError: another ``d_model``.
    """
    if teacher.d_model != student.d_model:
        raise UserError(
            f"distill.teacher has model.d_model={teacher.d_model}, the student {student.d_model}; they must be equal: "
            f"set model.d_model={teacher.d_model}, or choose a teacher of the student's family"
        )


class FrozenTeacher:
    """Holds a model outside ``nn.Module``'s registry, on the student's device, in eval mode.

    Raises:
        UserError: teacher and student cannot be compared, see ``check_teacher``.
    """

    def __init__(self, model: Sam3, spec: DistillSpec, student: ModelSpec) -> None:
        check_teacher(model.spec, student)
        self.spec, self._patch = spec, student.vit.patch_size
        self._model = model.eval().requires_grad_(False)
        self._phrases = PhraseFeatures(model)

    @property
    def model_spec(self) -> ModelSpec:
        """The teacher's sizes."""
        return self._model.spec

    @property
    def model(self) -> Sam3:
        """The teacher itself, in eval mode, on the device where it was last asked."""
        return self._model

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        """Itself: a copy of the student (a weight average) has the same teacher."""
        return self

    def losses(self, batch: Batch, student: Sam3Output, average: Average | None = None) -> dict[str, Tensor]:
        """See ``distillation_losses``."""
        return distillation_losses(self.spec, self.targets(batch), student, average)

    def targets(self, batch: Batch) -> SoftTargets:
        """The teacher's answers to the batch's prompts, on maps of the student's size."""
        pixels = batch.pixel_values if batch.teacher_pixels is None else batch.teacher_pixels
        found = self.predictions(
            pixels, batch.phrases, batch.image_index, PROMPTS,
            input_boxes=batch.input_boxes, input_boxes_labels=batch.input_boxes_labels,
        )  # fmt: skip
        return found.resized(batch.pixel_values.shape[-1] // self._patch)

    @torch.no_grad()
    def predictions(
        self,
        pixel_values: Tensor,
        phrases: Sequence[str],
        image_index: Tensor,
        chunk: int | None = None,
        *,
        input_boxes: Tensor | None = None,
        input_boxes_labels: Tensor | None = None,
    ) -> SoftTargets:
        """The teacher's answers: one pass, the vision tower once per image; maps are of its own size.

        Args:
            pixel_values: [B, 3, S, S] normalised; the teacher follows it to its device.
            phrases: P of them.
            image_index: [P] int64, the image each is asked of.
            chunk: prompts that pass encoder, decoder and mask head together; None: all.
            input_boxes, input_boxes_labels: box prompts, as for ``Sam3.forward``.
        """
        device = pixel_values.device
        if self._model.device != device:
            self._model.to(device)  # type: ignore[arg-type]
        vision = self._model.get_vision_features(pixel_values)
        fpn = tuple(vision.fpn_hidden_states[:-1]) if self.spec.fpn else ()
        if not (self.spec.memory or self.spec.predictions):
            return SoftTargets.nothing(pixel_values.new_zeros(len(phrases)), fpn)
        parts = []
        for start in range(0, len(phrases), chunk or max(len(phrases), 1)):
            part = slice(start, start + (chunk or len(phrases)))
            text, mask = self._phrases(phrases[part], device)
            output = self._model(
                vision_embeds=vision,
                text_embeds=text,
                attention_mask=mask,
                image_index=image_index[part],
                input_boxes=None if input_boxes is None else input_boxes[part],
                input_boxes_labels=None if input_boxes_labels is None else input_boxes_labels[part],
                with_masks="asked" if self.spec.masks else False,
            )
            parts.append(soft_targets(output, self.spec))
        return replace(SoftTargets.join(parts) if len(parts) > 1 else parts[0], fpn=fpn)


class CachedTeacher:
    """A teacher that has already been asked: its answers come with the batch."""

    def __init__(self, spec: DistillSpec, student: ModelSpec) -> None:
        self.spec, self._patch = spec, student.vit.patch_size

    def losses(self, batch: Batch, student: Sam3Output, average: Average | None = None) -> dict[str, Tensor]:
        """See ``distillation_losses``."""
        return distillation_losses(self.spec, self.targets(batch), student, average)

    def targets(self, batch: Batch) -> SoftTargets:
        """The teacher's answers to the batch's prompts, on maps of the student's size."""
        if batch.soft is None:
            raise ValueError("the batch comes without a teacher's answers: ConceptData.teach was not called")
        return batch.soft.resized(batch.pixel_values.shape[-1] // self._patch)


def soft_targets(output: Sam3Output, spec: DistillSpec) -> SoftTargets:
    """The part of a teacher's output that ``spec`` gives weight to, without the neck's maps.

    A detection is a query whose class times presence probability reaches ``spec.min_score``.
    """
    presence = output.presence_logits[:, 0].float().sigmoid()
    scores = output.pred_logits.float().sigmoid()
    sure = scores * presence[:, None] >= spec.min_score
    prompt, query = sure.nonzero(as_tuple=True)
    others = scores.masked_fill(sure, 0).sum(1) / (~sure).sum(1).clamp(min=1)
    with_masks = output.pred_masks is not None and bool(spec.mask or spec.dice)
    if with_masks and spec.semantic and output.mask_head is not None:
        output.mask_head.compute(prompt, query)  # one pass of the pixel decoder for both
    return SoftTargets(
        presence=presence,
        rest=others,
        boxes=output.layer_boxes[-1, prompt, query],
        scores=scores[prompt, query],
        masks=output.pred_masks[prompt, query] if with_masks and output.pred_masks is not None else None,
        prompt_index=prompt,
        semantic=output.semantic_seg[:, 0] if spec.semantic and output.semantic_seg is not None else None,
        memory=output.encoder_hidden_states if spec.memory else None,
    )
