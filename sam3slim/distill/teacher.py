"""A frozen teacher that no checkpoint, optimiser, weight average or DDP bucket ever sees."""

from __future__ import annotations

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


def check_teacher(teacher: ModelSpec, student: ModelSpec) -> None:
    """Feature maps and masks must have equal shapes; depth, widths, queries, vocabulary and context may differ.

    Raises:
        UserError: another ``d_model`` or image geometry.
    """
    for key, left, right in (
        ("model.d_model", teacher.d_model, student.d_model),
        ("model.vit.image_size", teacher.vit.image_size, student.vit.image_size),
        ("model.vit.patch_size", teacher.vit.patch_size, student.vit.patch_size),
    ):
        if left != right:
            raise UserError(f"distill.teacher has {key}={left}, the student {right}; they must be equal")


class FrozenTeacher:
    """Holds a model outside ``nn.Module``'s registry, on the student's device, in eval mode.

    Raises:
        UserError: teacher and student cannot be compared, see ``check_teacher``.
    """

    def __init__(self, model: Sam3, spec: DistillSpec, student: ModelSpec) -> None:
        check_teacher(model.spec, student)
        self.spec = spec
        self._model = model.eval().requires_grad_(False)
        self._phrases = PhraseFeatures(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTeacher:
        """Itself: a copy of the student (a weight average) has the same teacher."""
        return self

    def losses(self, batch: Batch, student: Sam3Output, average: Average | None = None) -> dict[str, Tensor]:
        """See ``distillation_losses``."""
        return distillation_losses(self.spec, self.targets(batch), student, average)

    @torch.no_grad()
    def targets(self, batch: Batch) -> SoftTargets:
        """The teacher's answers to the batch's prompts: one pass, the vision tower once per image."""
        device = batch.pixel_values.device
        if self._model.device != device:
            self._model.to(device)  # type: ignore[arg-type]
        vision = self._model.get_vision_features(batch.pixel_values)
        fpn = tuple(vision.fpn_hidden_states[:-1]) if self.spec.fpn else ()
        if not (self.spec.memory or self.spec.answers):
            return no_answers(fpn, len(batch.phrases))
        text, mask = self._phrases(batch.phrases, device)
        output = self._model(
            vision_embeds=vision,
            text_embeds=text,
            attention_mask=mask,
            image_index=batch.image_index,
            with_masks=self.spec.masks,
        )
        return soft_targets(output, self.spec)


def no_answers(fpn: tuple[Tensor, ...], prompts: int) -> SoftTargets:
    """Maps alone, with P prompts that nothing is said about."""
    zeros = fpn[0].new_zeros(prompts)
    none = zeros[:0]
    return SoftTargets(zeros, zeros, none.reshape(0, 4), none, None, none.long(), fpn=fpn)


def soft_targets(output: Sam3Output, spec: DistillSpec) -> SoftTargets:
    """The part of a teacher's output that ``spec`` gives weight to.

    A detection is a query whose class times presence probability reaches ``spec.min_score``.
    """
    presence = output.presence_logits[:, 0].float().sigmoid()
    scores = output.pred_logits.float().sigmoid()
    sure = scores * presence[:, None] >= spec.min_score
    prompt, query = sure.nonzero(as_tuple=True)
    others = scores.masked_fill(sure, 0).sum(1) / (~sure).sum(1).clamp(min=1)
    with_masks = output.pred_masks is not None and bool(spec.mask or spec.dice)
    return SoftTargets(
        presence=presence,
        rest=others,
        boxes=output.layer_boxes[-1, prompt, query],
        scores=scores[prompt, query],
        masks=output.pred_masks[prompt, query] if with_masks and output.pred_masks is not None else None,
        prompt_index=prompt,
        semantic=output.semantic_seg[:, 0] if spec.semantic and output.semantic_seg is not None else None,
        fpn=output.fpn_hidden_states if spec.fpn else (),
        memory=output.encoder_hidden_states if spec.memory else None,
    )
