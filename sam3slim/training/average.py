"""An exponential moving average of the student's weights: what is validated, kept as best, and exported."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from sam3slim.errors import UserError


class WeightAverage(WeightAveraging):
    """Lightning's ``WeightAveraging`` with a decay that starts small, and exact when stopped at any moment.

    The average is ``state_dict`` in checkpoints, beside it ``current_model_state``, which training goes on from. The
    decay of update n is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ``ExponentialMovingAverage``: otherwise a
    short run's average would mostly be its first weights. The teacher is no part of it.

    Args:
        decay: share of the average that each step keeps, 0..1 without 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay} must lie in 0..1 (1 excluded), e.g. 0.999")
        # Buffers are constants (positions, some of them integers), and are copied as they are.
        super().__init__(use_buffers=False, multi_avg_fn=self._average)
        self.decay = decay
        self._swapped = False

    @torch.no_grad()
    def _average(self, averages: Any, weights: Any, updates: Tensor | int) -> None:
        done = int(updates)
        torch._foreach_lerp_(list(averages), list(weights), 1 - min(self.decay, (1 + done) / (10 + done)))

    def _swap_models(self, pl_module: lightning.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise UserError("callbacks=ema averages whole weights, and trainer=fsdp shards them; use trainer=ddp")
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Made before the model went to its device.
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Nothing: a validation that follows saves both sets of weights, and results are read from checkpoints."""

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average and the current weights where they belong, also in the middle of a validation."""
        saved = checkpoint["state_dict"]
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            checkpoint["current_model_state"], checkpoint["state_dict"] = checkpoint["state_dict"], saved
