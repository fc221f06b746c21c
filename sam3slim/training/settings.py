"""Which of Lightning's settings a training can take: what would crash, or do nothing, is refused before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sam3slim.errors import UserError

# Set by the run itself, or with an effect that a run here cannot have: setting → what to do instead.
REFUSED = {
    "logger": "choose logger=csv_tensorboard, logger=csv, …, or add an entry to the group: +logger.NAME._target_=…",
    "callbacks": "add an entry to the group: +callbacks.NAME._target_=…",
    "plugins": "checkpoints have their own plugin; trainer.strategy and trainer.precision choose the others",
    "default_root_dir": "set hydra.run.dir",
    "gradient_clip_val": "set optim.clip",
    "gradient_clip_algorithm": "optim.clip clips the norm of all gradients together",
    "use_distributed_sampler": "images are dealt out to the processes already; remove it",
    "fast_dev_run": "set trainer.max_steps=2 data.limit=4 data.eval_limit=4",
    "overfit_batches": "set data.limit (training images) and data.eval_limit",
    "limit_test_batches": "set data.eval_limit",
    "limit_predict_batches": "training predicts nothing; remove it",
    "barebones": "checkpoints and logs are what a run leaves; set logger=none trainer.enable_progress_bar=false",
    "enable_checkpointing": "the result is read from a checkpoint; remove it",
    "reload_dataloaders_every_n_epochs": "the loader shuffles by epoch itself; remove it",
    "sync_batchnorm": "the model has no batch norm; remove it",
    "model_registry": "results are artifacts in the run's folder; remove it",
    "enable_autolog_hparams": "the record holds all settings; remove it",
}
# Lightning's own defaults of these, as a file may repeat them.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_distributed_sampler": (False,), "fast_dev_run": (False, 0), "overfit_batches": (0, 0.0), "barebones": (False,),
    "enable_checkpointing": (True,), "reload_dataloaders_every_n_epochs": (0,), "sync_batchnorm": (False,),
}  # fmt: skip


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse settings of ``lightning.Trainer`` that a training cannot take.

    Raises:
        UserError: naming the setting, its value and a fix.
    """
    for key, instead in REFUSED.items():
        value = settings.get(key)
        if value is not None and value not in HARMLESS.get(key, ()):
            raise UserError(f"trainer.{key}={value} cannot be set: {instead}")
    _check_length(settings)
    _check_validation(settings)
    for key in ("devices", "num_nodes", "accumulate_grad_batches"):
        value = settings.get(key)
        if value in (0, "0", []) or (isinstance(value, int) and value < (-1 if key == "devices" else 1)):
            raise UserError(f"trainer.{key}={value} must be at least 1")
    batches = settings.get("limit_train_batches")
    if batches is not None and not ((isinstance(batches, int) and batches >= 1) or _is_share(batches)):
        raise UserError(
            f"trainer.limit_train_batches={batches} leaves nothing to train on; give a number of batches or a share "
            "(1.0: all), or trainer.max_steps=0 to keep the initial weights"
        )


def _check_length(settings: Mapping[str, Any]) -> None:
    steps, epochs = settings.get("max_steps", -1), settings.get("max_epochs")
    if not isinstance(steps, int) or steps < -1:
        raise UserError(f"trainer.max_steps={steps} must be a number of steps, 0 to keep the initial weights")
    if epochs is not None and (not isinstance(epochs, int) or epochs < -1 or epochs == 0):
        raise UserError(
            f"trainer.max_epochs={epochs} must be at least 1; trainer.max_steps=0 keeps the initial weights"
        )
    if steps == -1 and epochs in (None, -1):
        raise UserError(
            "trainer.max_steps=-1 has no end for the schedule to follow; give trainer.max_steps, or "
            "+trainer.max_epochs (+trainer.max_time then stops earlier)"
        )


def _check_validation(settings: Mapping[str, Any]) -> None:
    interval, epochs = settings.get("val_check_interval"), settings.get("check_val_every_n_epoch", 1)
    if epochs is None and not (isinstance(interval, int) and interval >= 1):
        raise UserError(
            f"trainer.val_check_interval={interval} must be a number of training steps, at least 1; to validate after "
            "whole epochs set trainer.val_check_interval=1.0 trainer.check_val_every_n_epoch=1"
        )
    if epochs is not None and (interval is not None and not _is_share(interval)):
        raise UserError(
            f"trainer.val_check_interval={interval} counts steps over all epochs, which needs "
            f"trainer.check_val_every_n_epoch=null; with {epochs} it is a share of an epoch, such as 1.0"
        )
    if epochs is not None and (not isinstance(epochs, int) or epochs < 1):
        raise UserError(f"trainer.check_val_every_n_epoch={epochs} must be at least 1, or null")
    for key in ("log_every_n_steps", "limit_val_batches"):
        value = settings.get(key)
        if value is not None and value < 0:
            raise UserError(f"trainer.{key}={value} must be at least 0")


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value <= 1
