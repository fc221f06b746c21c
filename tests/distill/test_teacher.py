from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sam3slim.distill import DistillSpec, FrozenTeacher
from sam3slim.errors import UserError
from sam3slim.models import build_model
from tests.tiny import SPEC, tiny_batch, tiny_model


def test_frozen_teacher__itself_as_student_costs_nothing() -> None:
    teacher, student, batch = tiny_model(), tiny_model(), tiny_batch()
    distill = FrozenTeacher(teacher, DistillSpec("x", fpn=1.0, memory=1.0), student)
    out = student(**batch.inputs())
    losses = distill.losses(batch, out)
    assert set(losses) == {"distill_fpn", "distill_memory"}
    assert all(float(value) < 1e-9 for value in losses.values())
    other = tiny_model(seed=1)
    out = other(**batch.inputs())
    assert all(float(value) > 0.1 for value in distill.losses(batch, out).values())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (replace(SPEC, d_model=64), "model.d_model=64"),
        (replace(SPEC, vit=replace(SPEC.vit, image_size=64)), "model.vit.image_size=64"),
        (replace(SPEC, text=replace(SPEC.text, vocab_size=700)), "model.text.vocab_size=700"),
    ],
)
def test_frozen_teacher__cannot_be_compared(spec: object, key: str) -> None:
    with pytest.raises(UserError, match=key):
        FrozenTeacher(build_model(spec, device="meta"), DistillSpec("x", fpn=1.0), tiny_model())  # type: ignore[arg-type]


def test_distill_spec__contradictions() -> None:
    with pytest.raises(UserError, match=r"distill\.teacher is missing"):
        DistillSpec(None, fpn=1.0)
    with pytest.raises(UserError, match="every distillation weight is 0"):
        DistillSpec("x")
    with pytest.raises(UserError, match=r"distill\.fpn=-1"):
        DistillSpec("x", fpn=-1)


def test_losses__follow_the_batch_device() -> None:
    teacher = FrozenTeacher(tiny_model(), DistillSpec("x", fpn=1.0), tiny_model())
    maps, memory = teacher._outputs(tiny_batch())
    assert memory is None
    assert [m.shape[-1] for m in maps] == [16, 8, 4]
    assert all(isinstance(m, torch.Tensor) and not m.requires_grad for m in maps)
