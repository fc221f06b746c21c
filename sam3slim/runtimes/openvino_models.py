"""OpenVINO: the ONNX graphs, compiled for this CPU in FP32, bfloat16 or with INT8 weights."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam3slim.checkpoints import LoadReport
from sam3slim.checkpoints.locating import Located
from sam3slim.checkpoints.readers import read_artifact_metadata
from sam3slim.errors import UserError
from sam3slim.graphs.packages import require
from sam3slim.graphs.runner import GraphSam3, arrays_of
from sam3slim.runtimes.onnx_sessions import check_written, run_graphs
from sam3slim.runtimes.registry import AUTO, W8A8, W8A16, WEIGHTS, Opening
from sam3slim.specs import ModelSpec

EXTRA = "openvino"
# The towers' activations become INT8 with w8a8; the decoder and the heads lose too much by it.
TOWERS = ("vision", "text")
GROUP = 128  # activations that share a scale


class OpenVinoSam3(GraphSam3):
    """``vision.onnx``, ``text.onnx`` and ``prompts.onnx`` of a folder, compiled by OpenVINO for the CPU.

    Args:
        folder: holds the graphs.
        spec: the architecture they were exported from.
        arithmetic: ``fp32``; ``bf16`` (as fast as the CPU has instructions for it); ``w8a16`` (weights in INT8 per
            output channel, symmetric, by NNCF; products in FP32); ``w8a8`` (the same weights; activations of both
            towers become INT8 as they come, 128 at a time share a scale).
        threads: None: as many as torch uses now.

    Raises:
        UserError: openvino or nncf is not installed, or OpenVINO refuses a graph.
    """

    what = "ONNX graphs, run by OpenVINO"

    def __init__(self, folder: Path, spec: ModelSpec, *, arithmetic: str = "fp32", threads: int | None = None) -> None:
        super().__init__(spec)
        self.computes_in = arithmetic
        self.requests: dict[str, Any] = {
            name: compile_graph(folder / f"{name}.onnx", arithmetic, tower=name in TOWERS, threads=threads)
            for name in self.signatures
        }
        self.eval()

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        signature = self.signatures[graph]
        found = self.requests[graph].infer(arrays_of(inputs, signature), share_inputs=True)
        return {name: torch.from_numpy(found[name]) for name in signature.outputs}


def compile_graph(file: Path, arithmetic: str, *, tower: bool, threads: int | None = None) -> Any:
    """An ONNX file as OpenVINO's ``InferRequest``; ``tower``: ``w8a8`` quantises its activations, too.

    Raises:
        UserError: openvino or nncf is not installed, or OpenVINO refuses the graph.
    """
    core = _core()
    options = {
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
        # Left to itself, OpenVINO computes in bfloat16 wherever the CPU can.
        "INFERENCE_PRECISION_HINT": "bf16" if arithmetic == "bf16" else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if arithmetic == W8A8 and tower else 0,
    }  # fmt: skip
    try:
        graph = core.read_model(file)
        if arithmetic in (W8A16, W8A8):
            graph = _int8_weights(graph)
        return core.compile_model(graph, "CPU", options).create_infer_request()
    except RuntimeError as error:
        line = str(error).strip().splitlines()[-1][:160]
        raise UserError(f"OpenVINO refuses {file} ({line}); use the runtime onnx, or write it again") from error


@cache
def _core() -> Any:
    # One for the process: where the CPU has AVX-512, a Core gives the thread another stack for signals and takes it
    # back at its end. Several that do not end in reverse order leave a freed one, and the next signal (a data
    # loader's process that ends is one) is a crash.
    return require("openvino", EXTRA).Core()


def open_openvino(opening: Opening) -> tuple[OpenVinoSam3, LoadReport]:
    """``auto`` keeps what is stored: FP32, or INT8 weights (``int8_weight``) as W8A16."""
    arithmetic = opening.arithmetic
    if opening.kind != WEIGHTS:
        check_written(opening, ("fp32", "bf16", W8A16, W8A8))
        arithmetic = "fp32" if arithmetic == AUTO else arithmetic
    elif arithmetic == AUTO:
        arithmetic = W8A16 if _stored(opening.located) == "int8_weight" else "fp32"
    return run_graphs(opening, partial(OpenVinoSam3, arithmetic=arithmetic))


def _stored(located: Located) -> str | None:
    """The precision of an artifact's weights; other checkpoints do not tell before they are read."""
    return str(read_artifact_metadata(located.path)["precision"]) if located.kind == "artifact" else None


def _int8_weights(graph: Any) -> Any:
    # NNCF would report its use to its makers.
    os.environ.setdefault("NNCF_CI", "1")
    nncf = require("nncf", EXTRA)
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # a table and a bar for every graph
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
