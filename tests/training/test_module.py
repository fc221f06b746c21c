"""Training steps, checkpoints, stopping and going on."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from sam3slim.data.batch import Batch
from sam3slim.distill import FrozenTeacher
from sam3slim.errors import UserError
from sam3slim.losses import Criterion
from sam3slim.training import ConceptSegmentation, GracefulStop, OptimSpec, RandomState, ScheduleSpec
from tests.distill.lessons import EVERYTHING
from tests.tiny import SPEC, tiny_batch, tiny_model


class Batches(torch.utils.data.Dataset[Batch]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return tiny_batch(index)


class ResumableLoader(DataLoader[Batch]):
    """Goes on inside an epoch, as ``ConceptLoader`` does."""

    done = 0

    def __iter__(self) -> Any:
        start, self.done = self.done, 0
        for index in range(start, len(self)):
            self.done = index + 1
            yield tiny_batch(index)
        self.done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"] % len(self)


class StopAt(lightning.Callback):
    """Sends this process a signal while step ``step`` runs, by default the one that Ctrl-C sends."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def module(teacher: FrozenTeacher | None = None, dropout: float = 0.0, labels: bool = True) -> ConceptSegmentation:
    model = tiny_model()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = dropout
    return ConceptSegmentation(
        model,
        Criterion() if labels else None,
        OptimSpec(lr=1e-3),
        ScheduleSpec(warmup_steps=2),
        teacher=teacher,
        config={"a": 1},
    )


def trainer(folder: Path, steps: int, *callbacks: lightning.Callback) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=0.1,
        callbacks=[RandomState(), GracefulStop(folder), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )


def loader(count: int = 4) -> ResumableLoader:
    return ResumableLoader(Batches(count), batch_size=None)


def test_training_step__the_loss_falls(tmp_path: Path) -> None:
    net, batch = module(), tiny_batch()

    def loss() -> float:
        out = net.model(**batch.inputs())
        return float(net.criterion(out, batch.targets)["loss"])

    before = loss()
    trainer(tmp_path, 30).fit(net, ResumableLoader(Batches(1), batch_size=None))
    assert loss() < 0.8 * before


def test_checkpoint__primitives_only_and_no_teacher(tmp_path: Path) -> None:
    teacher = FrozenTeacher(tiny_model(7), EVERYTHING, SPEC)
    frozen = {key: value.clone() for key, value in teacher._model.state_dict().items()}
    net = module(teacher)
    fit = trainer(tmp_path, 2)
    fit.fit(net, loader())
    path = tmp_path / "x.ckpt"
    fit.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert set(content["state_dict"]) == {f"model.{key}" for key in net.model.state_dict()}
    assert content["hyper_parameters"]["model"] == net.model.spec.to_dict()
    trained = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert trained <= {id(p) for p in net.model.parameters()}
    assert trained.isdisjoint(id(p) for p in teacher._model.parameters())
    assert all(torch.equal(value, teacher._model.state_dict()[key]) for key, value in frozen.items())
    assert not any("teacher" in key for key in content["state_dict"])


def test_training_step__without_labels_every_parameter_learns(tmp_path: Path) -> None:
    net, batch = module(FrozenTeacher(tiny_model(7), EVERYTHING, SPEC), labels=False), tiny_batch()
    trainer(tmp_path, 1).fit(net, loader(1))
    net.trainer = trainer(tmp_path, 1)
    net.zero_grad()
    net.training_step(batch, 0).backward()
    for name, parameter in net.model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name


def test_module__nothing_to_learn_from() -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        module(labels=False)


@pytest.mark.parametrize(("step", "number"), [(2, signal.SIGINT), (5, signal.SIGINT), (5, signal.SIGTERM)])
def test_graceful_stop__resumed_run_equals_an_undisturbed_one(tmp_path: Path, step: int, number: int) -> None:
    torch.manual_seed(0)
    straight = module(dropout=0.2)
    trainer(tmp_path, 8).fit(straight, loader())

    torch.manual_seed(0)
    stopped = module(dropout=0.2)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer(tmp_path, 8, StopAt(step, number)).fit(stopped, loader())
    # Lightning ignores further Ctrl-C after one; give the test run its handler back.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == step + 1

    torch.manual_seed(99)
    resumed = module(dropout=0.2)
    trainer(tmp_path, 8).fit(resumed, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for (name, one), other in zip(
        straight.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_resumed__takes_rates_from_the_settings(tmp_path: Path) -> None:
    first = trainer(tmp_path, 4)
    first.fit(module(), loader())
    first.save_checkpoint(tmp_path / "x.ckpt")
    slower = module()
    slower.optim = replace(slower.optim, lr=1e-5, weight_decay=0.3)
    again = trainer(tmp_path, 8)
    again.fit(slower, loader(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    groups = again.optimizers[0].param_groups
    assert {group["initial_lr"] for group in groups} == {1e-5}
    assert max(group["lr"] for group in groups) <= 1e-5
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}


def test_graceful_stop__saves_where_nothing_is_validated(tmp_path: Path) -> None:
    saved = []
    fit = trainer(tmp_path, 5)
    fit.val_check_interval = 2
    real = fit.save_checkpoint
    fit.save_checkpoint = lambda path, **more: saved.append(fit.global_step) or real(path, **more)  # type: ignore[method-assign]
    fit.fit(module(), loader())
    assert saved == [2, 4, 5]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5


def test_training_step__nan_stops_with_a_plain_reason(tmp_path: Path) -> None:
    net = module()
    with torch.no_grad():
        net.model.mask_decoder.mask_embedder.layers[0].weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite at step 0 .*loss_mask.*lower optim\.lr"):
        trainer(tmp_path, 2).fit(net, loader())


def test_unused_parameters__are_exactly_those_without_gradient() -> None:
    net, batch = module(), tiny_batch()
    out = net.model(**batch.inputs(), one_to_many=True)
    net.criterion(out, batch.targets)["loss"].backward()
    for name, parameter in net.model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
