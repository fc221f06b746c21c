"""OpenVINO: the ONNX graphs, compiled for this CPU in FP32, bfloat16 or with INT8 weights."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sam3slim.checkpoints import LoadReport
from sam3slim.checkpoints.locating import Located
from sam3slim.checkpoints.readers import read_artifact_metadata
from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.graphs.calibration import feeds
from sam3slim.graphs.packages import require
from sam3slim.graphs.runner import GraphSam3, arrays_of
from sam3slim.runtimes.onnx_sessions import check_written, run_graphs
from sam3slim.runtimes.registry import AUTO, W8A8, W8A8_STATIC, W8A16, WEIGHTS, Opening
from sam3slim.specs import ModelSpec

EXTRA = "openvino"
# The towers' activations become INT8 with w8a8; the decoder and the heads lose too much by it. Static ranges are
# measured on so many pictures and phrases.
MOST = {"vision": 32, "text": 128}
GROUP = 128  # activations that share a scale
Feeds = Sequence[Mapping[str, NDArray[Any]]]


class OpenVinoSam3(GraphSam3):
    """``vision.onnx``, ``text.onnx`` and ``prompts.onnx`` of a folder, compiled by OpenVINO for the CPU.

    Args:
        folder: holds the graphs.
        spec: the architecture they were exported from.
        arithmetic: ``fp32``; ``bf16`` (as fast as the CPU has instructions for it); ``w8a16`` (weights in INT8 per
            output channel, symmetric, by NNCF; products in FP32); ``w8a8`` (the same weights; activations of both
            towers become INT8 as they come, 128 at a time share a scale); ``w8a8_static`` (weights and activations of
            both towers in INT8 by NNCF's post-training quantisation for transformers, with SmoothQuant
            (arXiv:2211.10438); ranges measured on ``batches``; the rest as ``w8a16``).
        threads: None: as many as torch uses now.
        batches: what ``w8a8_static`` is calibrated on: the first pictures and phrases, ``MOST``.

    Raises:
        UserError: openvino or nncf is not installed, or OpenVINO refuses a graph.
    """

    what = "ONNX graphs, run by OpenVINO"

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        *,
        arithmetic: str = "fp32",
        threads: int | None = None,
        batches: Iterable[Batch] = (),
    ) -> None:
        super().__init__(spec)
        self.computes_in = arithmetic
        given = tower_feeds(self, batches) if arithmetic == W8A8_STATIC else {}
        self.requests: dict[str, Any] = {
            name: compile_graph(
                folder / f"{name}.onnx", arithmetic, tower=name in MOST, threads=threads, feeds=given.get(name, ())
            )
            for name in self.signatures
        }
        self.eval()

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        signature = self.signatures[graph]
        found = self.requests[graph].infer(arrays_of(inputs, signature), share_inputs=True)
        return {name: torch.from_numpy(found[name]) for name in signature.outputs}


def tower_feeds(runner: GraphSam3, batches: Iterable[Batch]) -> dict[str, Feeds]:
    """The towers' inputs, one picture or phrase each: {"vision": …, "text": …}.

    Raises:
        UserError: there is no picture, or nothing is asked of them.
    """
    seen: list[Batch] = []
    for batch in batches:
        seen.append(batch)
        if sum(len(one.pixel_values) for one in seen) >= MOST["vision"]:
            break
    found: dict[str, Feeds] = {name: list(islice(feeds(runner, name, seen), most)) for name, most in MOST.items()}
    if not all(found.values()):
        raise UserError(f"{W8A8_STATIC}: the training pictures have no phrases to measure activations on; use {W8A8}")
    return found


def compile_graph(file: Path, arithmetic: str, *, tower: bool, threads: int | None = None, feeds: Feeds = ()) -> Any:
    """An ONNX file as OpenVINO's ``InferRequest``; ``tower``: ``w8a8`` quantises its activations, too.

    ``feeds`` are inputs that ``w8a8_static`` measures a tower's activations on.

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
        if arithmetic == W8A8_STATIC and tower:
            graph = _int8(graph, feeds)
        elif arithmetic in (W8A16, W8A8, W8A8_STATIC):
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
        check_written(opening, ("fp32", "bf16", W8A16, W8A8, W8A8_STATIC))
        arithmetic = "fp32" if arithmetic == AUTO else arithmetic
    elif arithmetic == AUTO:
        arithmetic = W8A16 if _stored(opening.located) == "int8_weight" else "fp32"

    def run(folder: Path, spec: ModelSpec) -> OpenVinoSam3:
        calibration = opening.calibration if arithmetic == W8A8_STATIC else None
        batches = () if calibration is None else calibration(spec)
        return OpenVinoSam3(folder, spec, arithmetic=arithmetic, batches=batches)

    return run_graphs(opening, run)


def _stored(located: Located) -> str | None:
    """The precision of an artifact's weights; other checkpoints do not tell before they are read."""
    return str(read_artifact_metadata(located.path)["precision"]) if located.kind == "artifact" else None


def _int8_weights(graph: Any) -> Any:
    nncf = _nncf()
    with contextlib.redirect_stdout(io.StringIO()):  # a table and a bar for every graph
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)


def _int8(graph: Any, feeds: Feeds) -> Any:
    nncf = _nncf()
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(graph, nncf.Dataset(feeds), subset_size=len(feeds), model_type=nncf.ModelType.TRANSFORMER)


def _nncf() -> Any:
    # NNCF would report its use to its makers.
    os.environ.setdefault("NNCF_CI", "1")
    nncf = require("nncf", EXTRA)
    nncf.set_log_level(logging.ERROR)
    return nncf
