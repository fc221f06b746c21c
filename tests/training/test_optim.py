from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.losses import Criterion
from sam3slim.models import build_model, part_of
from sam3slim.runs.specs import TrainSpec
from sam3slim.slimming import inherit
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import ConceptSegmentation, OptimSpec, ScheduleSpec, build_optimizer, param_groups
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
    assert [root.factor(step, 1000) for step in (0, 50, 100, 400)] == pytest.approx([0, 0.5, 1, 0.5])
    assert ScheduleSpec("constant", warmup_steps=0).factor(0, 10) == 1.0


def reference(step: int, total: int, warmup: int, timescale: int, cooldown: int) -> float:
    """Multiplier of the reference's scheduler: the product of decay, warm-up and cooldown."""
    decay = ((step + timescale - warmup) / timescale) ** -0.5 if step > warmup else 1.0
    return decay * min(1.0, step / warmup) * min(1.0, (total - step) / cooldown)


def test_schedule__inverse_sqrt_is_the_reference_s(shared_dir: Path) -> None:
    golden = json.loads((shared_dir / "reference/optim_reference.json").read_text())["schedule"]
    spec = spec_from_dict(ScheduleSpec, compose_plain("train", ["schedule=inverse_sqrt"])["schedule"], "schedule")
    own = (spec.warmup_steps, spec.timescale, spec.cooldown_steps)
    assert own == tuple(golden[key] for key in ("warmup_steps", "timescale", "cooldown_steps"))
    for steps in ((20, 20, 20), (10, 40, 5)):
        warmup, timescale, cooldown = steps
        spec = ScheduleSpec("inverse_sqrt", warmup, timescale, cooldown)
        wanted = [reference(step, 100, *steps) for step in range(101)]
        assert [spec.factor(step, 100) for step in range(101)] == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["cosine", "inverse_sqrt", "constant"])
def test_schedule__cooldown_ends_linearly_at_zero(kind: Any) -> None:
    spec, plain = (ScheduleSpec(kind, warmup_steps=2, cooldown_steps=n, min_lr_ratio=0.5) for n in (4, 0))
    assert [spec.factor(s, 20) for s in range(17)] == [plain.factor(s, 20) for s in range(17)]
    shares = [spec.factor(s, 20) / plain.factor(s, 20) for s in range(16, 22)]
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])


def test_build_optimizer__refuses_a_schedule_longer_than_the_training() -> None:
    schedule = ScheduleSpec("inverse_sqrt", warmup_steps=20, cooldown_steps=20)
    with pytest.raises(UserError, match=r"schedule.cooldown_steps=20 do not fit into 39 steps .*cooldown_steps=3$"):
        build_optimizer(tiny_model(), OptimSpec(), schedule, 39)
    build_optimizer(tiny_model(), OptimSpec(), schedule, 40)


def test_schedule__tells_of_a_warm_up_that_never_ends(capsys: pytest.CaptureFixture[str]) -> None:
    ScheduleSpec(warmup_steps=200).check_fits(201)
    assert not capsys.readouterr().out
    ScheduleSpec(warmup_steps=200).check_fits(200)
    assert "schedule.warmup_steps=20 would be a tenth" in capsys.readouterr().out


def test_train__refuses_a_schedule_longer_than_the_training_before_it_starts() -> None:
    given = ["schedule=inverse_sqrt", "trainer.max_steps=30"]
    with pytest.raises(UserError, match=r"schedule.warmup_steps=20 and .* do not fit into 30 steps"):
        spec_from_dict(TrainSpec, compose_plain("train", given), "")
    fixed = compose_plain("train", [*given, "schedule.warmup_steps=3", "schedule.cooldown_steps=3"])  # as it says
    assert spec_from_dict(TrainSpec, fixed, "").schedule.cooldown_steps == 3


def test_param_groups__adamw_reference_is_the_reference_s(shared_dir: Path) -> None:
    """Learning rate and weight decay of each of the 1,459 parameters that are trained."""
    golden = json.loads((shared_dir / "reference/optim_reference.json").read_text())
    wanted = {name: (g["lr"], g["weight_decay"]) for g in golden["groups"] for name in g["parameters"]}
    spec = spec_from_dict(OptimSpec, compose_plain("train", ["optim=adamw_reference"])["optim"], "optim")
    model = build_model(ModelSpec(), device="meta")
    module = ConceptSegmentation(model, Criterion(), spec, ScheduleSpec(), boxes=True)
    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in param_groups(model, spec)
        for parameter in group["params"]  # type: ignore[attr-defined]
    }
    assert len(wanted) == 1459
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        assert values == pytest.approx(wanted[name], rel=1e-12), name
    assert (list(spec.betas), spec.clip) == (golden["optimizer"]["betas"], golden["optimizer"]["clip_grad_norm"])


def test_param_groups__adamw_has_the_groups_of_earlier_checkpoints() -> None:
    """A resumed optimiser finds its state by place: tower and decay, in the order of the model's parameters."""
    model = tiny_model()
    spec = spec_from_dict(OptimSpec, compose_plain("train", ["optim=adamw"])["optim"], "optim")
    assert spec == OptimSpec()
    places: dict[tuple[str, bool], list[int]] = {}
    for name, parameter in model.named_parameters():
        tower = part_of(name) if part_of(name) in ("vision", "text") else "rest"
        places.setdefault((tower, parameter.ndim > 1), []).append(id(parameter))
    groups = param_groups(model, spec)
    assert [[id(p) for p in group["params"]] for group in groups] == list(places.values())  # type: ignore[attr-defined]
    assert [group["name"] for group in groups] == [
        f"{tower}/{'decay' if decays else 'no_decay'}/0.0003" for tower, decays in places
    ]


@pytest.mark.parametrize("key", ["layer_decay_exempt", "decay_too"])
def test_param_groups__pattern_of_no_parameter(key: str) -> None:
    with pytest.raises(UserError, match=rf"optim.{key} has \*.pos_embed, which no parameter of this model matches"):
        param_groups(tiny_model(), OptimSpec(**{key: ("*.pos_embed",)}))  # type: ignore[arg-type]


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
        (lambda: OptimSpec(layer_decay_start=-1), "optim.layer_decay_start=-1"),
        (lambda: OptimSpec(weight_decay=-1), "optim.weight_decay=-1"),
        (lambda: OptimSpec(betas=(0.9, 1.0)), "optim.betas"),
        (lambda: ScheduleSpec(warmup_steps=-1), "schedule.warmup_steps=-1"),
        (lambda: ScheduleSpec(cooldown_steps=-1), "schedule.cooldown_steps=-1"),
        (lambda: ScheduleSpec(timescale=0), "schedule.timescale=0"),
        (lambda: ScheduleSpec(min_lr_ratio=2), "schedule.min_lr_ratio=2"),
    ],
)
def test_specs__bad_values(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]


def test_param_groups__a_rate_of_its_own_for_the_box_encoder() -> None:
    model = tiny_model()
    own = {id(p) for p in model.geometry_encoder.parameters()}
    groups = param_groups(model, OptimSpec(lr=1e-4, lr_geometry=3e-3))
    for group in groups:
        parameters = group["params"]
        assert isinstance(parameters, list)
        assert {id(p) in own for p in parameters} == {group["lr"] == 3e-3}
    plain = param_groups(model, OptimSpec(lr=1e-4))
    assert [str(group["name"]).split("/")[0] for group in plain].count("geometry") == 0
