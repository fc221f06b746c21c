"""What a training shows while it runs: steps of how many, the time left, the last loss and mAP."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import Progress, TaskID

from sam3slim.progress import progress_bar

EVERY = 10  # steps until the loss is shown again; reading it waits for a GPU


class StepProgress(ProgressBar):
    """A bar on the terminal, and a line after every validation, which stays (in a log file too).

    Lightning's bars count epochs, of which nobody knows the number where steps are given.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._started = 0.0
        self._first = 0

    def disable(self) -> None:
        self._shown = False

    def enable(self) -> None:
        self._shown = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started, self._first = time.perf_counter(), trainer.global_step
        self._bar = progress_bar(show=self._shown)
        self._bar.start()
        self._task = self._bar.add_task("training", total=_total(trainer), completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *_: Any
    ) -> None:
        if self._bar is None or self._bar.disable:
            return
        self._bar.update(self._task, completed=trainer.global_step)
        loss = trainer.progress_bar_metrics.get("train/loss") if trainer.global_step % EVERY == 0 else None
        if loss is not None:
            self._bar.update(self._task, description=f"training, loss {float(loss):.3f}")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        found = trainer.callback_metrics.get("val/map")
        if not self._shown or trainer.sanity_checking or found is None:
            return
        step, total, passed = trainer.global_step, _total(trainer), time.perf_counter() - self._started
        done = step - self._first
        left = f", about {_clock(passed / done * (total - step))} left" if total and done and step < total else ""
        name = getattr(pl_module, "metric", None) or "val/map"
        line = f"step {step} of {total or '?'}: {name} {float(found):.3f} after {_clock(passed)}{left}"
        print(line, flush=True)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _total(trainer: lightning.Trainer) -> int | None:
    steps = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    return int(steps) if steps != float("inf") else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
