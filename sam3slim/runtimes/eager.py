"""PyTorch: the model as written, or with its layers compiled."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from sam3slim.checkpoints import LoadReport
from sam3slim.checkpoints.float8 import multiply_on
from sam3slim.checkpoints.int8 import is_quantised
from sam3slim.errors import UserError
from sam3slim.graphs import GraphSam3, load_runnable
from sam3slim.models import Sam3
from sam3slim.models.arithmetic import HALVES, compute_in
from sam3slim.models.compiled import compile_layers, require_compiler
from sam3slim.runtimes.registry import Opening

ModelT = TypeVar("ModelT", Sam3, Sam3 | GraphSam3)
# With its weights built in, a layer shares no code with its equals, and TorchDynamo stops at a number of variants.
FROZEN_VARIANTS = 1024


def open_eager(opening: Opening) -> tuple[Sam3 | GraphSam3, LoadReport]:
    """The model, or a program of torch.export."""
    model, report = load_runnable(
        opening.located.path, overrides=opening.overrides or None, expect=opening.expect, dequantize=opening.dequantize
    )
    return to_device(model, opening.device, report.precision, opening.arithmetic).eval(), report


def open_compiled(opening: Opening) -> tuple[Any, LoadReport]:
    """The model with its layers compiled when they are first called; on a CPU with the weights built into the code.

    Raises:
        UserError: inductor has no compiler here.
    """
    require_compiler(True, opening.device)
    model, report = open_eager(opening)
    if opening.device.type == "cpu":
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        # Weights are laid out for the CPU's matrix products once, and not at every call (`freezing`).
        inductor.freezing = True
        dynamo.recompile_limit = max(dynamo.recompile_limit, FROZEN_VARIANTS)
        dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, FROZEN_VARIANTS)
    compile_layers(model, True, opening.device)
    return model, report


def to_device(model: ModelT, device: torch.device, precision: str, arithmetic: str = "auto") -> ModelT:
    """``model`` on ``device``, its values as stored in ``precision``, computing there in ``arithmetic``; says which.

    ``auto`` is the half type it is stored in on a GPU, and FP32 on the CPU, where half arithmetic is seven times
    slower without AVX512-BF16. Graphs stay on the CPU, the only place they are run on.

    Raises:
        UserError: half arithmetic of INT8 weights or of graphs; FP8 weights on a GPU without FP8 products.
    """
    if arithmetic in HALVES and (isinstance(model, GraphSam3) or any(map(is_quantised, model.parameters()))):
        raise UserError(f"arithmetic={arithmetic}: quantised weights and graphs have their own; use arithmetic=auto")
    if isinstance(model, GraphSam3):
        print(f"{precision} {model.what} on the CPU")
        return model
    if arithmetic == "auto":
        arithmetic = precision if precision in HALVES and device.type == "cuda" else "fp32"
    moved: Any = model.to(device)  # type: ignore[arg-type]
    compute_in(moved, arithmetic)
    multiply_on(moved, device)
    if precision in HALVES or arithmetic in HALVES:
        print(f"stored in {precision}, computes in {arithmetic} on {device.type}")
    return moved
