from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.models import build_model
from sam3slim.slimming import inherit
from sam3slim.training import OptimSpec, ScheduleSpec, build_optimizer, param_groups
from tests.tiny import SPEC, tiny_model


def lr_of(name: str, spec: OptimSpec, depth: int = 4) -> tuple[float, float]:
    """Learning rate and weight decay that a parameter gets."""
    vit = replace(SPEC.vit, depth=depth)
    model = build_model(replace(SPEC, vit=vit))
    wanted = dict(model.named_parameters())[name]
    for group in param_groups(model, spec):
        if any(parameter is wanted for parameter in group["params"]):  # type: ignore[attr-defined]
            return float(group["lr"]), float(group["weight_decay"])  # type: ignore[arg-type]
    raise AssertionError(name)


def test_param_groups__every_trainable_parameter_once() -> None:
    model = tiny_model()
    model.text_encoder.requires_grad_(False)
    grouped = [id(p) for group in param_groups(model, OptimSpec()) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_param_groups__towers_and_layer_decay() -> None:
    spec = OptimSpec(lr=8e-5, lr_vision=2.5e-5, lr_text=5e-6, layer_decay=0.9, weight_decay=0.1)
    assert lr_of("detr_encoder.layers.0.mlp.fc1.weight", spec) == (8e-5, 0.1)
    assert lr_of("detr_encoder.layers.0.mlp.fc1.bias", spec) == (8e-5, 0.0)
    assert lr_of("detr_encoder.layers.0.layer_norm1.weight", spec) == (8e-5, 0.0)
    assert lr_of("text_projection.weight", spec) == (5e-6, 0.1)
    assert lr_of("vision_encoder.neck.fpn_layers.0.proj1.weight", spec) == (2.5e-5, 0.1)
    for block, above in ((3, 0), (2, 1), (0, 3)):
        lr, _ = lr_of(f"vision_encoder.backbone.layers.{block}.mlp.fc1.weight", spec)
        assert lr == pytest.approx(2.5e-5 * 0.9**above)
    lr, _ = lr_of("vision_encoder.backbone.embeddings.patch_embeddings.projection.weight", spec)
    assert lr == pytest.approx(2.5e-5 * 0.9**4)


def test_param_groups__layer_decay_counts_the_blocks_that_were_kept() -> None:
    """A student that inherited blocks 0 and 3 of four decays from its own last block."""
    spec = replace(SPEC, vit=replace(SPEC.vit, depth=4, num_global_blocks=2))
    target = replace(SPEC, vit=replace(SPEC.vit, depth=2, num_global_blocks=1))
    student, _ = inherit(build_model(spec), target, importance="magnitude", depth="even", seed=0)
    rates = {}
    for group in param_groups(student, OptimSpec(lr=1.0, layer_decay=0.5)):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            rates[id(parameter)] = group["lr"]
    blocks = [student.vision_encoder.backbone.layers[i].mlp.fc1.weight for i in (0, 1)]
    assert [rates[id(block)] for block in blocks] == [0.5, 1.0]
    assert len(rates) == sum(parameter.requires_grad for parameter in student.parameters())


def test_schedule__shapes() -> None:
    cosine = ScheduleSpec("cosine", warmup_steps=10, min_lr_ratio=0.1)
    assert [cosine.factor(s, 110) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert cosine.factor(10, 110) == 1.0
    assert cosine.factor(60, 110) == pytest.approx(0.55)
    assert cosine.factor(110, 110) == pytest.approx(0.1)
    assert cosine.factor(500, 110) == pytest.approx(0.1)
    root = ScheduleSpec("inverse_sqrt", warmup_steps=100)
    assert root.factor(400, 1000) == pytest.approx(0.5)
    assert ScheduleSpec("constant", warmup_steps=0).factor(0, 10) == 1.0


def test_build_optimizer__first_step_is_warm_up() -> None:
    optimizer, scheduler = build_optimizer(tiny_model(), OptimSpec(lr=1e-3), ScheduleSpec(warmup_steps=4), 10)
    assert {group["lr"] for group in optimizer.param_groups} == {2.5e-4}
    scheduler.step()
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4}
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimSpec(lr=0), "optim.lr=0"),
        (lambda: OptimSpec(layer_decay=1.5), "optim.layer_decay=1.5"),
        (lambda: OptimSpec(weight_decay=-1), "optim.weight_decay=-1"),
        (lambda: OptimSpec(betas=(0.9, 1.0)), "optim.betas"),
        (lambda: ScheduleSpec(warmup_steps=-1), "schedule.warmup_steps=-1"),
        (lambda: ScheduleSpec(min_lr_ratio=2), "schedule.min_lr_ratio=2"),
    ],
)
def test_specs__bad_values(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]
