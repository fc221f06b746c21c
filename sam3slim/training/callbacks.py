"""Callbacks that Lightning does not have: a stop that can be resumed exactly, a clock that outlives it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback


class GracefulStop(Callback):
    """On Ctrl-C or SIGTERM finish the running step, save ``last.ckpt``, then stop.

    A signal in the middle of a step would save weights and counters that do not belong together. A validation that is
    due after the step, or that the signal comes into, still runs to its end: a run that goes on from ``last.ckpt`` does
    not repeat it, and the best weights might be among those it looks at. A second signal stops at once. With several
    processes it is enough that one is told: all stop at the same step. A run without validation
    (``limit_val_batches=0``), after which checkpoints are otherwise written, is saved here every
    ``val_check_interval`` steps and at its end.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self._asked = self._saved = False
        self._previous: dict[int, Any] = {}

    # Not in on_fit_start: Lightning then puts a SIGTERM handler of its own first, which with several processes starts a
    # broadcast in the middle of a step and saves nothing.
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._asked = self._saved = False
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if self._saved:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        # With gradient accumulation only a finished optimiser step can be resumed.
        if trainer.fit_loop._should_accumulate():
            return
        if self._stop(trainer):
            trainer.save_checkpoint(self.path)
            self._saved = True
            return
        interval = trainer.val_check_interval
        if not trainer.enable_validation and isinstance(interval, int) and trainer.global_step % interval == 0:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.path.is_file() or not trainer.enable_validation:
            trainer.save_checkpoint(self.path)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        # At once, in case there is no time for the rest. Processes may have different numbers of these batches: several
        # of them wait for the next step.
        if self._asked and not self._saved and not trainer.sanity_checking and trainer.world_size == 1:
            trainer.save_checkpoint(self.path)
            self._saved = True

    def _stop(self, trainer: lightning.Trainer) -> bool:
        """Was any process told to? All of them ask at the same steps."""
        if trainer.world_size == 1:
            return self._asked
        return bool(trainer.strategy.reduce_boolean_decision(self._asked, all=False))

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._restore()
        if self._stop(trainer):
            raise KeyboardInterrupt  # trained to the end meanwhile, but nothing that follows is wanted

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)


class FinalValidation(Callback):
    """Validates the last weights too, so that ``best.ckpt`` and ``last.ckpt`` know them.

    Lightning validates every ``val_check_interval`` steps; what is trained after the last multiple would
    never be measured, and never be saved.
    """

    def __init__(self) -> None:
        self._validated = -1

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._validated = trainer.global_step

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._validated != trainer.global_step and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True


class TrainingClock(Callback):
    """Seconds spent in ``fit`` so far, over all resumed parts of a run."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._before, self._started = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["seconds"])


class RandomState(Callback):
    """Keeps PyTorch's random state in checkpoints, every process's own, so that dropout goes on as if never stopped."""

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        # Lightning asks all processes, and keeps what the first one answers.
        own: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            own["cuda"] = torch.cuda.get_rng_state()
        states = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending = list(state_dict.get("ranks", []))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        pending, self._pending = self._pending, []
        # With another number of processes there is nothing to go on with.
        if len(pending) != trainer.world_size:
            return
        own = pending[trainer.global_rank]
        torch.set_rng_state(own["cpu"].cpu())
        if torch.cuda.is_available() and "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"].cpu())
