"""``trainer.precision``: which there are, what this machine can do of it, and Lightning's plugin for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from sam3slim.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
ALIASES = {"32": "32-true", "None": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}  # Lightning's
HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def precision_of(trainer: Mapping[str, Any]) -> str:
    """One of ``PRECISIONS``.

    Raises:
        UserError: another one. Half-precision weights (``*-true``) lose the optimiser's small steps and round boxes.
    """
    given = str(trainer.get("precision", "32-true"))
    name = ALIASES.get(given, given)
    if name in ("bf16-true", "16-true"):
        mixed = name.replace("true", "mixed")
        raise UserError(f"trainer.precision={given} would round the weights themselves; use trainer.precision={mixed}")
    if name not in PRECISIONS:
        raise UserError(f"trainer.precision={given}: expected {', '.join(PRECISIONS)}; use trainer.precision=32-true")
    return name


def check_precision(trainer: Mapping[str, Any], device: torch.device) -> None:
    """Refuse a precision that ``device`` cannot compute in.

    Raises:
        UserError: see ``precision_of``; no bfloat16 on an old GPU, no FP16 products in this build for CPUs.
    """
    name = precision_of(trainer)
    if name == "bf16-mixed" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"trainer.precision=bf16-mixed: {torch.cuda.get_device_name(device)} has no bfloat16; "
                        "use trainer.precision=16-mixed")  # fmt: skip
    if name == "16-mixed" and device.type == "cpu" and not fp16_trains_on_cpu():
        raise UserError("trainer.precision=16-mixed: this machine's CPU build of PyTorch has no FP16 products; use "
                        "trainer.precision=bf16-mixed or 32-true")  # fmt: skip


@cache
def fp16_trains_on_cpu() -> bool:
    """Can the layers of the model be multiplied in FP16 here, forward and backward? Depends on PyTorch's build."""
    layers = (torch.nn.Conv2d(4, 4, 2), torch.nn.ConvTranspose2d(4, 4, 2), torch.nn.Linear(3, 3))
    try:
        with torch.enable_grad(), torch.autocast("cpu", torch.float16):
            found = torch.nn.Sequential(*layers)(torch.zeros(1, 4, 3, 3))
        found.float().sum().backward()
    except RuntimeError:
        return False
    return True


def precision_plugins(trainer: Mapping[str, Any], device: torch.device) -> list[MixedPrecision]:
    """What to give Lightning in place of ``precision``; nothing where it makes the same itself.

    FP16 only: on the CPU Lightning would silently train in bfloat16 instead, and it refuses FP16 together with FSDP2,
    which PyTorch's loss scaling can do (it reduces "an overflow was found" over the shares of a gradient).
    """
    if precision_of(trainer) != "16-mixed":
        return []
    return [MixedPrecision("16-mixed", device.type, torch.amp.GradScaler(device.type))]
