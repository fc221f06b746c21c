"""A frozen teacher that no checkpoint, optimiser or DDP bucket ever sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sam3slim.data.batch import Batch
from sam3slim.distill.losses import feature_loss, pyramid_loss
from sam3slim.errors import UserError
from sam3slim.models import Sam3, Sam3Output


@dataclass(frozen=True)
class DistillSpec:
    """What the student is taught beside its labels.

    Attributes:
        teacher: checkpoint of the teacher; None switches distillation off.
        fpn: weight of the neck's feature maps (same width in every model of a family: no adapter).
        memory: weight of the encoder's output, per prompt.
    """

    teacher: str | None = None
    fpn: float = 0.0
    memory: float = 0.0

    def __post_init__(self) -> None:
        for key in ("fpn", "memory"):
            if getattr(self, key) < 0:
                raise UserError(f"distill.{key}={getattr(self, key)} must be at least 0")
        if self.teacher is None and (self.fpn or self.memory):
            raise UserError("distill.teacher is missing; give a checkpoint, or distill=none")
        if self.teacher is not None and not (self.fpn or self.memory):
            raise UserError("distill.teacher is given but every distillation weight is 0; set distill.fpn")


class FrozenTeacher:
    """Holds a model outside ``nn.Module``'s registry, on the student's device, in eval mode.

    Raises:
        UserError: teacher and student cannot be compared (another ``d_model`` or image geometry).
    """

    def __init__(self, model: Sam3, spec: DistillSpec, student: Sam3) -> None:
        teacher_spec, student_spec = model.spec, student.spec
        for key, left, right in (
            ("model.d_model", teacher_spec.d_model, student_spec.d_model),
            ("model.vit.image_size", teacher_spec.vit.image_size, student_spec.vit.image_size),
            ("model.vit.patch_size", teacher_spec.vit.patch_size, student_spec.vit.patch_size),
            ("model.text.vocab_size", teacher_spec.text.vocab_size, student_spec.text.vocab_size),
            ("model.text.context_length", teacher_spec.text.context_length, student_spec.text.context_length),
        ):
            if left != right:
                raise UserError(f"distill.teacher has {key}={left}, the student {right}; they must be equal")
        self.spec = spec
        self._model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def _outputs(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor | None]:
        model = self._model.to(batch.pixel_values.device)
        vision = model.get_vision_features(batch.pixel_values)
        if not self.spec.memory:
            return tuple(vision.fpn_hidden_states[:-1]), None
        out = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            vision_embeds=vision,
            image_index=batch.image_index,
            with_masks=False,
        )
        return out.fpn_hidden_states, out.encoder_hidden_states

    def losses(self, batch: Batch, student: Sam3Output) -> dict[str, Tensor]:
        """Weighted losses by name (``distill_fpn``, ``distill_memory``), each a scalar with its graph."""
        fpn, memory = self._outputs(batch)
        losses = {}
        if self.spec.fpn:
            losses["distill_fpn"] = self.spec.fpn * pyramid_loss(student.fpn_hidden_states, fpn)
        if memory is not None:
            losses["distill_memory"] = self.spec.memory * feature_loss(student.encoder_hidden_states, memory)
        return losses
