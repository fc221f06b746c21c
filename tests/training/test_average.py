"""The moving average of weights: its arithmetic, its checkpoints, stopping and going on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from sam3slim.checkpoints import load
from sam3slim.distill import FrozenTeacher
from sam3slim.errors import UserError
from sam3slim.training import ConceptSegmentation, GracefulStop, RandomState, WeightAverage
from tests.distill.lessons import EVERYTHING
from tests.tiny import SPEC, tiny_model
from tests.training.test_module import StopAt, loader, module, trainer

DECAY = 0.5
Weights = dict[str, Tensor]


def copied(net: torch.nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def assert_equal(left: Weights, right: Weights) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


class Recorder(lightning.Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        self.steps.append(copied(pl_module))


def by_hand(steps: list[Weights], decay: float) -> Weights:
    average = {name: value.clone() for name, value in steps[0].items()}
    for done, weights in enumerate(steps[1:], start=1):
        share = min(decay, (1 + done) / (10 + done))
        for name, value in weights.items():
            if value.is_floating_point():
                average[name] = share * average[name] + (1 - share) * value
    return average


def test_weight_average__is_what_checkpoints_hold(tmp_path: Path) -> None:
    net, recorder = module(FrozenTeacher(tiny_model(7), EVERYTHING, SPEC)), Recorder()
    average = WeightAverage(DECAY)
    fit = trainer(tmp_path, 12, average, recorder)
    fit.fit(net, loader())
    path = tmp_path / "x.ckpt"
    fit.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert_equal(content["current_model_state"], recorder.steps[-1])
    expected = by_hand(recorder.steps, DECAY)
    for name, value in content["state_dict"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(content["state_dict"][n], v) for n, v in recorder.steps[-1].items())
    # What is exported is the average.
    exported, _ = load(path)
    assert_equal({f"model.{name}": value for name, value in exported.state_dict().items()}, content["state_dict"])
    assert average._average_model is not None
    assert average._average_model.module.teacher is net.teacher
    assert not any("teacher" in name for name in average._average_model.state_dict())


@pytest.mark.parametrize("step", [0, 5])
def test_weight_average__a_resumed_run_equals_an_undisturbed_one(tmp_path: Path, step: int) -> None:
    contents = []
    torch.manual_seed(0)
    straight, fit = module(dropout=0.2), trainer(tmp_path / "a", 8, WeightAverage(DECAY))
    fit.fit(straight, loader())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(0)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        # Configured callbacks come first: the average knows the step before it is saved.
        stopping(tmp_path / "b", WeightAverage(DECAY), StopAt(step)).fit(module(dropout=0.2), loader())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.manual_seed(99)
    resumed, fit = module(dropout=0.2), trainer(tmp_path / "b", 8, WeightAverage(DECAY))
    fit.fit(resumed, loader(), ckpt_path=tmp_path / "b/last.ckpt", weights_only=True)
    fit.save_checkpoint(tmp_path / "b.ckpt")
    contents = [torch.load(tmp_path / name, weights_only=True) for name in ("a.ckpt", "b.ckpt")]
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert_equal(contents[0][key], contents[1][key])


def stopping(folder: Path, *callbacks: lightning.Callback, **options: Any) -> lightning.Trainer:
    """A trainer whose callbacks come in the order of ``runs.build_trainer``."""
    return lightning.Trainer(
        accelerator="cpu", max_steps=8, gradient_clip_val=0.1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*callbacks, RandomState(), GracefulStop(folder)], **{"limit_val_batches": 0, **options},
    )  # fmt: skip


class Watched(ConceptSegmentation):
    """Keeps the weights it is validated with, and may be told to stop meanwhile."""

    stops = False

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen = copied(self)
        if self.stops:
            os.kill(os.getpid(), signal.SIGINT)

    def on_validation_epoch_end(self) -> None:
        pass


@pytest.mark.parametrize("stops", [False, True])
def test_weight_average__validation_sees_the_average(tmp_path: Path, stops: bool) -> None:
    plain, recorder = module(), Recorder()
    net = Watched(plain.model, plain.criterion, plain.optim, plain.schedule)
    net.stops = stops
    fit = stopping(
        tmp_path, WeightAverage(DECAY), recorder, limit_val_batches=1.0, val_check_interval=8, num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    if stops:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            fit.fit(net, loader(), loader(1))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        path = tmp_path / "last.ckpt"
    else:
        fit.fit(net, loader(), loader(1))
        path = tmp_path / "after.ckpt"
        fit.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert_equal(content["state_dict"], net.seen)
    assert_equal(content["current_model_state"], recorder.steps[-1])


def test_weight_average__bad_settings() -> None:
    with pytest.raises(UserError, match=r"callbacks\.ema\.decay=1 must lie in 0\.\.1"):
        WeightAverage(1)
    sharded: Any = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(UserError, match="trainer=fsdp shards them"):
        WeightAverage().setup(sharded, module(), "fit")
