"""One module → one ONNX file whose nodes are called after the layers they come from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.environment import before_fake_tensors
from sam3slim.graphs.packages import require

OPSET = 20
SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note of the modules a node comes from
# protobuf ends at 2 GiB, and some tools earlier; beyond this many bytes the weights get a file of their own.
LARGEST_FILE = 1_500_000_000
NOISY = ("torch.onnx", "onnxscript", "onnx_ir")


def trace(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: tuple[dict[int, Any], ...],
    external_data: bool | None = None,
) -> None:
    """Export ``module`` (FP32, on the CPU, eval mode) to ``path``.

    A MatMul of ``x.y.q_proj`` is called ``x.y.q_proj/MatMul``: that is how weights are chosen for INT8.

    Args:
        examples: inputs to trace with.
        inputs, outputs: their names in the graph.
        dynamic_shapes: for each input, axis → ``torch.export.Dim``.
        external_data: weights in ``<path>.data``; None: only where one file cannot hold them.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    require("onnx")
    require("onnxscript")
    before_fake_tensors()
    with torch.no_grad(), _quiet():
        program: Any = torch.onnx.export(
            module, examples, dynamo=True, verbose=False, opset_version=OPSET, input_names=list(inputs),
            output_names=list(outputs), dynamic_shapes=dynamic_shapes, optimize=True,
        )  # fmt: skip
    _name_nodes(program.model.graph)
    if external_data is None:
        size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
        external_data = size > LARGEST_FILE
    program.save(str(path), external_data=external_data)


def _name_nodes(graph: Any) -> None:
    """Call nodes after their module, without what the exporter noted about Python's stack (half of a small file)."""
    used: dict[str, int] = {}
    for node in graph:
        scope = _scope(node.metadata_props.get(SCOPES))
        name = f"{scope}/{node.op_type}"
        used[name] = used.get(name, 0) + 1
        node.name = name if used[name] == 1 else f"{name}:{used[name]}"
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()


def _scope(scopes: str | None) -> str:
    """The innermost module in the exporter's list; the last entry is the operation, the first the graph itself."""
    names = [] if scopes is None else [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return names[-2].removeprefix("model.") if len(names) > 1 else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks (what it did not fold, which names it replaced) are not the user's business."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
