"""``torch.compile`` of the layers that a model repeats; what lies between them runs as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from sysconfig import get_path
from typing import Any, Literal

import torch
from torch import nn

from sam3slim.errors import UserError

# True is inductor. The last two compile nothing faster: they tell whether a fault lies in tracing or in inductor.
Compile = bool | Literal["max-autotune-no-cudagraphs", "aot_eager", "eager"]
BACKENDS = ("aot_eager", "eager")
# Equal layers share their compiled code, so that 32 blocks take two compilations and not 32. Necks, heads and the loop
# around the decoder's layers are left out: they are little of the work, or branch on what they are given.
STACKS = (
    "vision_encoder.backbone.layers",
    "text_encoder.text_model.encoder.layers",
    "geometry_encoder.layers",
    "detr_encoder.layers",
    "detr_decoder.layers",
)
# TorchDynamo counts all modules as one function and stops at 8: six kinds of layers, each for training and for
# evaluation, for one prompt, a number of prompts, and any number of them.
VARIANTS = 64


def compile_layers(
    model: nn.Module, how: Compile, device: torch.device | str = "cpu", stacks: Sequence[str] | None = None
) -> int:
    """Let every layer of ``stacks`` (default: ``STACKS``) be compiled when it is first called, in place.

    Names of weights, checkpoints, hooks and copies of the model (a weight average) stay as they are: compiled code is
    held beside a module's own and is no part of its state. A decoder layer whose parts are called one by one (the
    one-to-many branch) runs as written.

    Args:
        how: True for inductor; or inductor's mode, or another backend; False compiles nothing.
        device: where the model will run.

    Returns:
        How many layers those are.

    Raises:
        UserError: inductor has no compiler for ``device``.
    """
    if not how:
        return 0
    import torch._dynamo.config as dynamo

    require_compiler(how, torch.device(device))
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    # DDP sends gradients between the layers as it is; cutting a layer at its buckets cannot be where it is recomputed.
    dynamo.optimize_ddp = False
    options: dict[str, Any] = {"backend": how} if how in BACKENDS else {"mode": None if how is True else how}
    count = 0
    for name in stacks or STACKS:
        if name.startswith("text_encoder.") and not hasattr(model, "text_encoder"):
            continue  # a prompt bank
        stack = model.get_submodule(name)
        assert isinstance(stack, nn.ModuleList)
        for layer in stack:
            layer.compile(**options)
        count += len(stack)
    return count


@contextmanager
def compiled(model: nn.Module, how: Compile, device: torch.device | str = "cpu") -> Iterator[None]:
    """``compile_layers`` for the body; after it the layers run as written, and can be exported."""
    compile_layers(model, how, device)
    try:
        yield
    finally:
        for module in model.modules() if how else ():
            module._compiled_call_impl = None


def require_compiler(how: Compile, device: torch.device) -> None:
    """Raise UserError, naming what is missing, where inductor could not compile for ``device``; starts nothing."""
    if not how or how in BACKENDS:
        return
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                f"compile={_shown(how)} needs Triton on a GPU, and it is not installed or does not know this card; "
                "pip install triton, or set compile=false"
            )
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise UserError(
            f"compile={_shown(how)} needs a C++ compiler, and none was found; install g++, name one in the environment "
            "variable CXX, or set compile=false"
        ) from error
    if not (Path(get_path("include")) / "Python.h").is_file():
        raise UserError(
            f"compile={_shown(how)} needs Python's header files, and {get_path('include')} has no Python.h; install "
            "python3-dev, or set compile=false"
        )


def _shown(how: Compile) -> str:
    return str(how).lower() if isinstance(how, bool) else how
