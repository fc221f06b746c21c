"""Activation checkpointing and frozen parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.losses import Criterion
from sam3slim.models import build_model, init_for_training, part_of
from sam3slim.models.count import PARTS
from sam3slim.specs import EncoderSpec
from sam3slim.training import ConceptSegmentation, OptimSpec, ScheduleSpec, recompute_activations
from tests.tiny import SPEC, tiny_batch, tiny_model
from tests.training.test_module import loader, trainer


def step(recompute: bool) -> tuple[float, dict[str, Tensor], int, list[str]]:
    """Loss, gradients, bytes kept for the backward pass, and names of weights."""
    deep = replace(SPEC, vit=replace(SPEC.vit, depth=6), encoder=EncoderSpec(6))
    model = init_for_training(build_model(deep), 0).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    if recompute:
        recompute_activations(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    batch = tiny_batch()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = Criterion()(model(**batch.inputs()), batch.targets)["loss"]
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss), gradients, sum(kept.values()), list(model.state_dict())


def test_recompute__same_loss_and_gradients_with_less_kept() -> None:
    plain, frugal = step(False), step(True)
    assert frugal[0] == plain[0]
    assert frugal[3] == plain[3]
    assert frugal[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        assert torch.equal(frugal[1][name], gradient), name
    assert frugal[2] < 0.6 * plain[2]


def frozen_module(*parts: str) -> ConceptSegmentation:
    return ConceptSegmentation(
        tiny_model(), Criterion(), OptimSpec(lr=1e-2, freeze=parts), ScheduleSpec(warmup_steps=0)
    )


def test_freeze__the_part_stays_and_the_others_learn(tmp_path: Path) -> None:
    net = frozen_module("vision", "text")
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    fit = trainer(tmp_path, 2)
    fit.fit(net, loader())
    changed = {part_of(name) for name, value in net.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(PARTS) - {"vision", "text"}
    assert not net.model.vision_encoder.training
    assert net.model.detr_decoder.training
    assert all(not group["name"].startswith(("vision", "text")) for group in fit.optimizers[0].param_groups)


def test_freeze__bad_parts() -> None:
    with pytest.raises(
        UserError, match=r"optim.freeze: unknown part 'visoin'; parts: vision, .*; did you mean vision\?"
    ):
        OptimSpec(freeze=("visoin",))
    with pytest.raises(UserError, match="nothing is left to train"):
        OptimSpec(freeze=tuple(PARTS))
