"""AdamW with 8-bit moments (torchao): a quarter of the optimiser's memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit

FIELDS = ("codes", "scale", "qmap")


class PlainAdamW8bit(AdamW8bit):  # type: ignore[misc]
    """torchao's ``AdamW8bit`` (Dettmers et al., 2022, arXiv:2110.02861) with checkpoints of plain tensors.

    Moments of tensors of 4,096 entries and more are 8-bit codes with a scale for every 256. In a state dict each is a
    dict of its tensors, so that whoever reads a checkpoint (``weights_only=True``) need not know torchao.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        # torchao compiles the step for every shape: on a CPU that is minutes of a C++ compiler for nothing.
        on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        with torch.compiler.set_stance("force_eager") if on_cpu else nullcontext():
            return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = super().state_dict()
        state = {
            index: {name: _plain(value) for name, value in values.items()} for index, values in found["state"].items()
        }
        groups = [{**group, "lr": float(group["lr"])} for group in found["param_groups"]]
        return {**found, "state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = {
            index: {name: _packed(value) for name, value in values.items()}
            for index, values in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": state})
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)  # torchao fills it


def _plain(value: Any) -> Any:
    if not isinstance(value, OptimState8bit):
        return value
    return {**{name: getattr(value, name) for name in FIELDS}, "signed": value.signed}


def _packed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    tensors: list[Tensor] = [value[name] for name in FIELDS]
    return OptimState8bit(*tensors, signed=value["signed"], dtype=torch.float32)
