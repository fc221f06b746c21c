"""Losses of a batch: masks of the matched queries alone, and prompts in parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sam3slim.distill import FrozenTeacher, Totals
from sam3slim.losses import Counts, Criterion
from sam3slim.models import Sam3
from sam3slim.training import recompute_activations
from sam3slim.training.step_loss import StepLoss, equal_parts
from tests.distill.lessons import EVERYTHING, phrase_batch
from tests.tiny import SPEC, tiny_batch, tiny_model
from tests.training.gradients import assert_same_gradients


def lesson(model: Sam3, kind: str, max_prompts: int | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of one batch."""
    batch = phrase_batch()
    labels, soft, totals = kind != "teacher", None, None
    if kind != "labels":
        soft = FrozenTeacher(tiny_model(7), EVERYTHING, SPEC).targets(batch)
        totals = Totals.of(soft)
    found = StepLoss(
        model,
        criterion=Criterion() if labels else None,
        counts=Counts.per_process(Counts.of(batch.targets, 3).stacked(), 1),
        distill=None if soft is None else EVERYTHING,
        soft=soft,
        totals=totals,
        one_to_many=labels,
        max_prompts=max_prompts,
    ).losses(batch)
    found["loss"].backward()
    return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", ["labels", "teacher", "labels+teacher"])
@pytest.mark.parametrize("most", [1, 2])
def test_losses__in_parts_as_together(kind: str, most: int, recompute: bool) -> None:
    models = tiny_model().train(), tiny_model().train()
    if recompute:
        recompute_activations(models[1])
    whole, parts = lesson(models[0], kind), lesson(models[1], kind, most)
    assert parts[0].keys() == whole[0].keys()
    for name in whole[0].keys() - {"ce_f1", "presence_dec_acc"}:
        torch.testing.assert_close(parts[0][name], whole[0][name], rtol=1e-5, atol=1e-7, msg=name)
    assert_same_gradients(parts[1], whole[1])


def test_losses__parts_pass_the_towers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model().train(), []
    model.vision_encoder.register_forward_hook(lambda *_: calls.append("vision"))
    model.text_encoder.register_forward_hook(lambda *_: calls.append("text"))
    model.mask_decoder.pixel_decoder.register_forward_hook(lambda *_: calls.append("pixels"))
    lesson(model, "labels+teacher", 1)
    assert sorted(calls) == ["pixels"] * 6 + ["text", "vision"]  # 3 parts, each twice


def test_losses__pixel_decoder_runs_once_for_labels_and_teacher() -> None:
    model, calls = tiny_model().train(), []
    model.mask_decoder.pixel_decoder.register_forward_hook(lambda *_: calls.append(1))
    lesson(model, "labels+teacher")
    assert len(calls) == 1


def test_losses__of_asked_masks_as_of_all() -> None:
    """The mask head on matched queries gives the loss and the gradients of the mask head on all."""
    batch, gradients, losses = tiny_batch(), [], []
    for with_masks in (True, "asked"):
        model = tiny_model().train()
        loss = Criterion()(model(**batch.inputs(), one_to_many=True, with_masks=with_masks), batch.targets)["loss"]
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    assert_same_gradients(gradients[1], gradients[0])


def test_losses__no_target_at_all() -> None:
    batch = tiny_batch()
    empty = batch.targets.part(slice(9, 10))
    counts = Counts.per_process(Counts.of(empty, 3).stacked(), 1)
    lesson = StepLoss(tiny_model().train(), criterion=Criterion(), counts=counts, one_to_many=True, max_prompts=2)
    found = lesson.losses(replace(batch, targets=empty))
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    assert found["loss_mask"] == 0


def test_equal_parts__few_and_equal() -> None:
    assert list(equal_parts(10, 4)) == [slice(0, 3), slice(3, 6), slice(6, 10)]
    assert list(equal_parts(4, 4)) == [slice(0, 4)]
    assert list(equal_parts(7, None)) == [slice(0, 7)]
    assert list(equal_parts(0, 4)) == [slice(0, 0)]
