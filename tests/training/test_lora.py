"""LoRA: matrices train beside weights that stay, and the result is a plain model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.checkpoints import inspect, load
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.models import Sam3, part_of
from sam3slim.planning import plan_memory
from sam3slim.results.record import RunRecord
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.train import training_module
from sam3slim.strict import spec_from_dict
from sam3slim.training import LoraSpec, add_lora
from sam3slim.training.lora import is_matrix, plain_name
from tests.tiny import OVERRIDES, tiny_batch, tiny_model
from tests.tiny_runs import evaluate, segm, train

LORA = "optim.lora={rank:4,alpha:8}"


def randomised(model: Sam3, spec: LoraSpec) -> Sam3:
    """``model`` with matrices of which none is zero."""
    add_lora(model, spec)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_matrix(name):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def saved(model: Sam3, path: Path, spec: LoraSpec) -> Path:
    """As a training's checkpoint has it."""
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    hyper = {"model": model.spec.to_dict(), "lora": spec.metadata}
    torch.save({"state_dict": state, "hyper_parameters": hyper}, path)
    return path


@pytest.mark.parametrize("spec", [LoraSpec(4), LoraSpec(4, alpha=16, rslora=True), LoraSpec(2, targets=("*.fc1",))])
def test_load__what_was_trained_beside_the_weights_is_in_them(tmp_path: Path, spec: LoraSpec) -> None:
    """No layer's weight is read past its matrices, which peft could not know of."""
    model, batch = randomised(tiny_model(), spec), tiny_batch()
    merged, report = load(saved(model, tmp_path / "x.ckpt", spec))
    assert report.ok
    assert inspect(tmp_path / "x.ckpt").report.ok
    with torch.no_grad():
        found, wanted, plain = (net(**batch.inputs()) for net in (merged, model, tiny_model()))
    torch.testing.assert_close(found.pred_logits, wanted.pred_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pred_masks, wanted.pred_masks, rtol=1e-4, atol=1e-4)
    assert (found.pred_logits - plain.pred_logits).abs().max() > 1e-2


def test_add_lora__changes_nothing_yet() -> None:
    model, batch = tiny_model(), tiny_batch()
    add_lora(model, LoraSpec(4, dropout=0.5))
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch.inputs()).pred_logits, tiny_model()(**batch.inputs()).pred_logits)


def spec_of(*overrides: str) -> TrainSpec:
    given = [*OVERRIDES, "init=checkpoint", "init.checkpoint=x", *overrides]
    return spec_from_dict(TrainSpec, compose_plain("train", given), "")


def trains(*overrides: str) -> dict[str, bool]:
    """Parameter → whether it trains."""
    module = training_module(spec_of(*overrides), tiny_model())
    return {name: parameter.requires_grad for name, parameter in module.model.named_parameters()}


def test_module__only_matrices_train() -> None:
    found = trains(LORA)
    assert all(is_matrix(name) for name, on in found.items() if on)
    # Those whose weight would not train without LoRA do not train with it: no loss reaches them.
    plain = {name: on for name, on in trains().items()}
    assert {plain_name(name) for name in found} == plain.keys()
    assert all(on == plain[plain_name(name)] for name, on in found.items() if is_matrix(name))
    assert sum(found.values()) > 40


def test_module__frozen_and_full_parts() -> None:
    found = trains("optim.lora={rank:4,full:[scoring,mask]}", "optim.freeze=[text]")
    parts: dict[str, set[bool]] = {}
    for name, on in found.items():
        if on:
            parts.setdefault(part_of(name), set()).add(is_matrix(name))
    assert "text" not in parts
    assert parts["scoring"] == parts["mask"] == {False}
    assert parts["vision"] == parts["decoder"] == {True}


def test_module__gradients_reach_every_matrix() -> None:
    module = training_module(spec_of(LORA, "activation_checkpointing=true"), tiny_model())
    out = module.model(**tiny_batch().inputs(), one_to_many=True)
    assert module.criterion is not None
    module.criterion(out, tiny_batch().targets)["loss"].backward()
    for name, parameter in module.model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name


@pytest.mark.parametrize(
    ("override", "message", "instead"),
    [
        ("optim.lora={rank:0}", "optim.lora.rank=0 must be at least 1, e.g. 16", "optim.lora={rank:16}"),
        ("optim.lora={rank:4,alpha:0}", "alpha=0 must be above 0, e.g. 4", "optim.lora={rank:4,alpha:4}"),
        ("optim.lora={rank:4,dropout:1}", "dropout=1 must lie in 0..1", "optim.lora={rank:4,dropout:0.9}"),
        ("optim.lora={rnak:4}", "unknown key optim.lora.rnak; did you mean optim.lora.rank?", "optim.lora={rank:4}"),
        ("optim.lora={}", "optim.lora.rank is missing; add it", "optim.lora={rank:4}"),
        ("optim.lora={rank:4,full:[visoin]}", "did you mean vision?", "optim.lora={rank:4,full:[vision]}"),
        ("optim.lora=16", "must be a group of keys, got 16; write optim.lora={rank: 16}", "optim.lora={rank: 16}"),
        ("optim.lora={rank:4,full:[text]} optim.freeze=[text]", "both name text; take it out", "optim.lora={rank:4}"),
        ("optim.lora={rank:4} trainer=fsdp", "use trainer=ddp", "optim.lora={rank:4}"),
        ("optim.lora={rank:4} init=scratch", "set optim.lora=null", "optim.lora=null"),
    ],
)  # fmt: skip
def test_settings__one_line(override: str, message: str, instead: str) -> None:
    words = [override] if ": 16" in override else override.split()
    with pytest.raises(UserError) as caught:
        spec_of(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    spec_of(instead)


@pytest.mark.parametrize(
    ("spec", "freeze", "message"),
    [
        (LoraSpec(4, targets=("*.qproj",)), (), "has *.qproj, which no linear layer of this model matches"),
        (LoraSpec(4, targets=("text_*",)), ("text",), "all of these layers lie in parts that are frozen"),
    ],
)
def test_add_lora__no_layer(spec: LoraSpec, freeze: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        add_lora(tiny_model(), spec, freeze)
    assert message in str(caught.value)
    add_lora(tiny_model(), replace(spec, targets=("*.q_proj",)), freeze)


def test_add_lora__without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'sam3slim\[lora\]'"):
        add_lora(tiny_model(), LoraSpec(4))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def base(root: Path) -> Path:
    return train(root, "base", "trainer.max_steps=0", "eval_at_end=false")[1]


def start_from(base: Path) -> list[str]:
    return ["init=checkpoint", f"init.checkpoint={base}"]


@pytest.fixture(scope="module")
def trained(root: Path, base: Path) -> tuple[RunRecord, Path]:
    return train(root, "lora", *start_from(base), LORA, "optim.lr=0.01")


def test_train__the_artifact_is_a_plain_model(trained: tuple[RunRecord, Path], base: Path, root: Path) -> None:
    record, out = trained
    before, after = load(base)[0].state_dict(), load(out / "artifact")[0].state_dict()
    assert before.keys() == after.keys()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed
    assert all(key.endswith(".weight") and before[key].ndim == 2 for key in changed)
    for key in changed:
        assert torch.linalg.matrix_rank((after[key] - before[key]).double(), atol=1e-5) <= 4, key
    assert 0 < record.training.trained_params < 0.5 * record.model.params
    assert segm(evaluate(out / "checkpoints/best.ckpt", root, "again")) == segm(record)
    saved_names = torch.load(out / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert any(is_matrix(name) for name in saved_names)
    metadata = json.loads((out / "artifact/sam3slim.json").read_text())
    assert metadata["spec"] == load(base)[0].spec.to_dict()


def test_train__a_resumed_run_ends_in_the_same_weights(trained: tuple[RunRecord, Path], base: Path, root: Path) -> None:
    given = [*start_from(base), LORA, "optim.lr=0.01"]
    train(root, "resumed", *given, "trainer.max_steps=2", "schedule.kind=constant", "eval_at_end=false")
    straight = train(root, "straight", *given, "schedule.kind=constant", "eval_at_end=false")[1]
    again = train(root, "resumed", *given, "schedule.kind=constant", "resume=auto", "eval_at_end=false")[1]
    for name, value in load(straight / "checkpoints/last.ckpt")[0].state_dict().items():
        assert torch.equal(value, load(again / "checkpoints/last.ckpt")[0].state_dict()[name]), name
    with pytest.raises(UserError, match=r"optim\.lora is LoraSpec.*rank=4.* and None here"):
        train(root, "resumed", *start_from(base), "resume=auto")
    with pytest.raises(UserError, match=r"optim\.lora is .*rank=4.*rank=8"):
        train(root, "resumed", *start_from(base), "optim.lora={rank:8,alpha:8}", "resume=auto")


def test_train__with_an_average_and_a_teacher(base: Path, root: Path) -> None:
    lora = "optim.lora={rank:2,targets:[vision_encoder.*]}"
    given = [*start_from(base), lora, "callbacks=ema", "distill=features", f"distill.teacher={base}"]
    record, out = train(root, "average", *given, "eval_at_end=false")
    assert load(out)[1].ok
    untrained = record.training.not_trained
    assert untrained["decoder"] == "optim.lora.targets names none of its layers"


def test_memory__planned_with_matrices_alone() -> None:
    plain, lora = standing(), standing(LORA)
    assert lora["gradients"] < 0.7 * plain["gradients"]


def standing(*overrides: str) -> dict[str, Any]:
    given = [*OVERRIDES, "init=checkpoint", "init.checkpoint=x", "data.batch_size=1", "data.max_prompts=2", *overrides]
    return dict(plan_memory(given, device="cpu").plan.standing)
