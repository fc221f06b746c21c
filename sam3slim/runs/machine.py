"""What the configured trainer asks of this machine, before anything is loaded."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.strategies import StrategyRegistry

from sam3slim.errors import UserError
from sam3slim.files import size_text
from sam3slim.models import count_params
from sam3slim.runs.initial import training_device
from sam3slim.runs.specs import TrainSpec
from sam3slim.training import check_precision

ON_CPU = "trainer=cpu or trainer=cpu_ddp, or add trainer.accelerator=cpu trainer.devices=2"

EXTRAS = ("mlflow", "wandb")  # loggers whose package has their name


def check_machine(spec: TrainSpec) -> None:
    """Refuse a model, an accelerator, devices, a strategy, a precision or a logger that cannot be had here.

    Raises:
        UserError: names the key, and a setting that works.
    """
    trainer = spec.trainer
    _check_memory(spec)
    _check_strategy(trainer.get("strategy", "auto"))
    accelerator = str(trainer.get("accelerator", "auto"))
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator}: there is no GPU here; use {ON_CPU}")
    device, devices = training_device(spec), trainer.get("devices", "auto")
    if device.type == "cpu":
        _check_processes(devices)
    else:
        _check_gpus(devices, torch.cuda.device_count())
    check_precision(trainer, device)
    for name in spec.logger or {}:
        if name in EXTRAS and find_spec(name) is None:
            raise UserError(
                f"logger={name} needs a package that is missing; pip install 'sam3slim[{name}]', or use logger=csv"
            )


def _check_memory(spec: TrainSpec) -> None:
    """The weights alone, before memory is asked for them; what a step needs depends on more (``inspect --memory``)."""
    params = sum(count_params(spec.model).values())
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    if there is not None and 4 * params > there:
        raise UserError(
            f"model={spec.model.name} has {params:,} parameters, which are {size_text(4 * params)} in FP32, and this "
            f"machine has {size_text(there)} of memory; choose smaller sizes (sam3slim inspect shows "
            "what they take)"
        )


def _check_strategy(strategy: Any) -> None:
    if not isinstance(strategy, str) or strategy == "auto":
        return
    if "fsdp" in strategy or "deepspeed" in strategy:
        raise UserError(f"trainer.strategy={strategy}: weights are shared out by FSDP2 here; use trainer=fsdp")
    if strategy not in StrategyRegistry.available_strategies():
        raise UserError(f"trainer.strategy={strategy} is unknown; use auto, ddp or ddp_fork, or trainer=fsdp")


def _check_processes(devices: Any) -> None:
    """On the CPU ``devices`` is a number of processes."""
    if devices != "auto" and not (isinstance(devices, int) and devices > 0) and not str(devices).isdecimal():
        raise UserError(f"trainer.devices={devices}: on the CPU, the number of processes; use trainer.devices=2")


def _check_gpus(devices: Any, found: int) -> None:
    wanted = devices if isinstance(devices, list) else []
    many = devices if isinstance(devices, int) else len(wanted)
    if many > found or any(number >= found for number in wanted):
        raise UserError(f"trainer.devices={devices}: {found} GPUs are here; use trainer.devices=-1 for all")
