"""A callback that fails the training it watches."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# Without box prompts the geometry encoder has one token, which attends to itself whatever its query and key are: their
# gradients are zero but for rounding, and biases do not decay.
ALONE = ("*geometry_encoder.layers.*.self_attn.[qk]_proj.bias",)


class Watch(lightning.Callback):
    """Finite losses, clipped gradients, and parameters that an optimiser step has changed.

    Args:
        clip: greatest norm of the gradients of a step.
        scale: FP16's loss scale to start with; None: PyTorch's, which the first steps halve until nothing overflows.
    """

    def __init__(self, clip: float, scale: float | None = None) -> None:
        self.clip, self.scale, self.clipped = clip, scale, 0
        self._first: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._first = {name: value.detach().clone() for name, value in trained(pl_module)}
        assert self._first
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and self.scale is not None:
            scaler._init_scale = self.scale

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        assert math.isfinite(float(outputs["loss"]))
        if trainer.fit_loop._should_accumulate():
            return
        gradients = [value.grad for _, value in trained(pl_module) if value.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if bool(torch.isfinite(norm)):  # FP16's loss scale starts too high, and such steps are skipped
            assert float(norm) <= self.clip * 1.001
            self.clipped += 1

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert self.clipped >= 2
        still = [name for name, value in trained(pl_module) if torch.equal(whole(value), whole(self._first[name]))]
        still = [name for name in still if not any(fnmatchcase(name, pattern) for pattern in ALONE)]
        assert not still, f"not trained: {still}"


def trained(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
