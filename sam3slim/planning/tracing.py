"""Runs one training step under the ledger: what is alive when, and whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers.models.sam3.modeling_sam3 import Sam3SinePositionEmbedding

from sam3slim.compression.fake import FakeQuantised, rounded_by
from sam3slim.distill import FrozenTeacher
from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.models.build import empty_model
from sam3slim.models.count import PARTS
from sam3slim.planning.cuda import as_on_cuda
from sam3slim.planning.fake import without_data
from sam3slim.planning.ledger import Ledger
from sam3slim.planning.step import cached_predictions, fit, make_batch, make_teacher, teacher_side
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.train import training_module
from sam3slim.specs import ModelSpec

WEIGHTS, GRADIENTS, OPTIMISER, AVERAGE = "weights", "gradients", "optimiser", "weight average"
TEACHER, PREDICTIONS, BATCH = "teacher's weights", "teacher's answers", "batch"
LOSSES, BACKWARD, ROUNDED = "losses", "backward pass", "rounded weights"
STANDING = (WEIGHTS, GRADIENTS, OPTIMISER, AVERAGE, TEACHER, BATCH)
SAVED = (*PARTS, LOSSES, PREDICTIONS, ROUNDED)


@dataclass(frozen=True)
class Trace:
    """Bytes of the storages of a training step, by what they are for.

    Attributes:
        before_backward: alive when the loss is known and the backward pass starts.
        peak: the most that was alive at once; ``at_peak`` by what it was for, ``during`` what was worked on then.
        standing: gradients and optimiser state included, alive after a step.
    """

    standing: dict[str, int]
    before_backward: dict[str, int]
    at_peak: dict[str, int]
    peak: int
    during: str


def trace(spec: TrainSpec, instances: int, teacher: ModelSpec, *, cuda: bool, data: bool = False) -> Trace:
    """Train one step, and account for it.

    Args:
        instances: objects of every prompt.
        teacher: its sizes, where there is one.
        cuda: as CUDA's autocast and attention keep tensors; False: as the CPU does.
        data: with real tensors, to compare with.
    """
    ledger = Ledger(WEIGHTS)
    rules = as_on_cuda() if cuda else nullcontext()
    with _own_tables(), nullcontext() if data else without_data(), rules, ledger:
        model = init_for_training(build_model(spec.model), 0) if data else empty_model(spec.model)
        with ledger.labelled(TEACHER):
            teaching = make_teacher(spec, teacher)
        if isinstance(teaching, FrozenTeacher):
            vars(teaching)["predictions"] = ledger.labelled(PREDICTIONS)(teaching.predictions)
        with ledger.labelled(BATCH):
            batch = make_batch(spec, instances, teacher_side(spec, teacher))
            if spec.distill.cache is not None:
                batch = replace(batch, soft=cached_predictions(spec, batch, teacher.vit.grid_size))
        with _own_tables(), _as_usual():  # a look at which weights are taught computes with data of its own
            module = training_module(spec, model, teaching)
            keys = _rounded(spec)
        if keys:
            module.rounding = _Copies(model, keys, ledger)
        _label_parts(model, ledger)
        watch = _Watch(ledger)
        with ledger.labelled(AVERAGE):
            fit(spec, module, batch, watch)
    return Trace(watch.standing, watch.before_backward, dict(ledger.at_peak), ledger.peak, ledger.peak_label)


def _rounded(spec: TrainSpec) -> list[str]:
    """Names of the weights of which ``qat`` holds a rounded copy from the forward to the end of the backward pass."""
    if (method := spec.rounding) is None:
        return []
    return rounded_by(method, build_model(spec.model, device="meta"), lambda p: torch.zeros(p.shape))[1]


class _Copies(FakeQuantised):
    """The copies alone: rounding needs data, and what it holds meanwhile, of one weight at a time, is not counted."""

    def __init__(self, model: Sam3, keys: list[str], ledger: Ledger) -> None:
        self._model, self.keys, self._ledger = model, keys, ledger
        self._own = {}

    def _rounded(self, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
        with self._ledger.labelled(ROUNDED):
            return parameter.detach().clone()


@contextmanager
def _own_tables() -> Iterator[None]:
    """transformers keeps position encodings for all models of a process: here a run's own, with or without data."""
    table = Sam3SinePositionEmbedding.build_sine_position_embedding
    fresh = staticmethod(lru_cache(maxsize=4)(table.__wrapped__))
    with patch.object(Sam3SinePositionEmbedding, "build_sine_position_embedding", fresh):
        yield


@contextmanager
def _as_usual() -> Iterator[None]:
    """Outside every mode: operators compute, and nobody counts what they make."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


class Earlier(Callback):
    """Leaves what an earlier step would have left: optimiser state, and gradients, which live until the next ones."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        for parameter in pl_module.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        trainer.optimizers[0].step()


class _Watch(Earlier):
    """Tells the ledger what is going on."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.before_backward: dict[str, int] = {}
        self.standing: dict[str, int] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        with self.ledger.labelled(OPTIMISER):
            super().on_train_start(trainer, pl_module)
        for parameter in pl_module.model.parameters():
            self._gradient(parameter)
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._gradient)
        self.ledger.forget_peak()

    def _gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.ledger.relabel([parameter.grad], GRADIENTS)

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        self.ledger.label = next(iter(PARTS))

    def on_before_backward(self, trainer: lightning.Trainer, *args: Any) -> None:
        self.before_backward = dict(self.ledger.live)
        self.ledger.label = BACKWARD

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *args: Any) -> None:
        self.ledger.label = OPTIMISER

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        self.standing = dict(self.ledger.live)


def _label_parts(model: Sam3, ledger: Ledger) -> None:
    """What a part's modules make is the part's, also when the backward pass computes it a second time.

    What is made between two parts belongs to the one that follows: the decoder's loop is no module.
    """
    follows = dict(pairwise(PARTS))

    def enter(part: str) -> None:
        outer.append(ledger.label)
        ledger.label = part

    def leave(then: str) -> None:
        before = outer.pop()
        ledger.label = then if before in PARTS and not outer else before

    outer: list[str] = []
    hooked = [(part, module) for part, prefixes in PARTS.items() for p in prefixes for module in _called(model, p)]
    for part, module in hooked:
        module.register_forward_pre_hook(lambda *_, part=part: enter(part))
        module.register_forward_hook(lambda *_, part=part: leave(str(follows.get(part, part))), always_call=True)
    model.register_forward_hook(lambda *_: setattr(ledger, "label", LOSSES if ledger.label in PARTS else ledger.label))


def _called(model: Sam3, prefix: str) -> Iterator[nn.Module]:
    """The part itself and what it consists of: some parts are called piece by piece."""
    module = getattr(model, prefix.removesuffix("."), None)
    if isinstance(module, nn.Module):
        yield module
        for child in module.children():
            yield from child if isinstance(child, nn.ModuleList) else (child,)
