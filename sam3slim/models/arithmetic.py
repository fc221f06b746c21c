"""Half-precision arithmetic of a model that answers: every tensor keeps its stored values, products are autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.models.fp32 import FP32_PARTS
from sam3slim.precisions import halves

MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
HALVES = halves()


def compute_in(model: nn.Module, arithmetic: str) -> None:
    """Let ``computing(model)`` run products in ``fp16``, ``bf16`` or, as before, ``fp32``; in place.

    Matrices whose values the half type holds exactly, as those of an artifact stored in it, are kept in it. All others
    keep their type: embeddings, norms and reference points, RoPE's tables, boxes' and coordinates' layers
    (``FP32_PARTS``). A matrix with a value that the half type cannot hold (70,000 in FP16) computes in FP32.
    """
    dtype = HALVES.get(arithmetic)
    for name, module in model.named_modules():
        if not isinstance(module, MATRICES):
            continue
        module.__dict__.pop("forward", None)
        tensors = [value for value in (module.weight, module.bias) if value is not None]
        # Tensor subclasses (TorchAO's INT8) have products of their own.
        if dtype is None or any(type(value.data) is not Tensor for value in tensors):
            for value in tensors:
                if value.dtype in HALVES.values():
                    value.data = value.data.float()
        elif any(float(value.detach().abs().max()) > torch.finfo(dtype).max for value in tensors):
            module.forward = partial(_wide, module)  # type: ignore[method-assign]
        elif not f"{name}.".startswith(FP32_PARTS):
            for value in tensors:
                if torch.equal(value.data.to(dtype).to(value.dtype), value.data):
                    value.data = value.data.to(dtype)
    model.arithmetic = arithmetic  # type: ignore[assignment]


def _wide(module: nn.Module, value: Tensor) -> Any:
    with torch.autocast(value.device.type, enabled=False):
        return type(module).forward(module, value.float())


@contextmanager
def computing(model: Any) -> Iterator[None]:
    """Autocast as ``compute_in`` was told; nothing for a model that was told nothing, or FP32."""
    dtype = HALVES.get(getattr(model, "arithmetic", "fp32"))
    if dtype is None:
        yield
        return
    with torch.autocast(torch.device(model.device).type, dtype):
        yield
