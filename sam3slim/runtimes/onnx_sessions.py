"""ONNX Runtime: the graphs of an artifact, or those of a checkpoint, which are made first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sam3slim.checkpoints import IMAGE_SIZE, LoadReport, load
from sam3slim.checkpoints.readers import read_artifact_metadata
from sam3slim.compression.int8_weight import Int8Rules, quantised_names
from sam3slim.errors import UserError
from sam3slim.files import scratch_folder
from sam3slim.graphs.loading import load_graphs
from sam3slim.graphs.onnx import plain_model, quantise_graphs, trace_graphs
from sam3slim.graphs.runner import GraphSam3, OnnxSam3
from sam3slim.runtimes.registry import AUTO, W8A8, WEIGHTS, Opening
from sam3slim.specs import ModelSpec

GraphT = TypeVar("GraphT", bound=GraphSam3)


def open_onnx(opening: Opening) -> tuple[GraphSam3, LoadReport]:
    """Sessions on the CPU; ``w8a8`` are the weights of ``compress=[int8_onnx]`` in ONNX Runtime's dynamic INT8.

    Raises:
        UserError: graphs in another arithmetic than they were written in.
    """
    if opening.kind != WEIGHTS:
        check_written(opening, ("fp32",))
    runner, report = run_graphs(opening, OnnxSam3, int8=opening.arithmetic == W8A8)
    if opening.kind == WEIGHTS:
        runner.computes_in = W8A8 if opening.arithmetic == W8A8 else "fp32"
    return runner, report


def run_graphs(
    opening: Opening, run: Callable[[Path, ModelSpec], GraphT], *, int8: bool = False
) -> tuple[GraphT, LoadReport]:
    """What ``run`` makes of a folder of graphs: an artifact's own, or a checkpoint's in FP32, in a temporary folder.

    Args:
        int8: quantise a checkpoint's graphs for ONNX Runtime.

    Raises:
        UserError: an artifact's graphs at another image size.
    """
    if opening.kind != WEIGHTS:
        if IMAGE_SIZE in opening.overrides:
            raise UserError(
                f"image_size={opening.overrides[IMAGE_SIZE]}: the graphs of {opening.located.path} have their size "
                "built in; leave it out, or export the model again at that size"
            )
        return load_graphs(opening.located, opening.expect, run)
    model, report = load(
        opening.located.path, overrides=opening.overrides or None, expect=opening.expect, dequantize=True
    )
    print("making ONNX graphs of the checkpoint (sam3slim export --format onnx keeps them) …", flush=True)
    with scratch_folder() as work:
        folder = work / "fp32"
        folder.mkdir()
        model = plain_model(model, "ONNX")
        trace_graphs(model, folder)
        if int8:
            names = quantised_names(model, Int8Rules(also=()))
            (work / "int8").mkdir()
            quantise_graphs(folder, folder := work / "int8", names)
        del model
        return run(folder, report.spec), report


def check_written(opening: Opening, floats: tuple[str, ...]) -> None:
    """Graphs with INT8 products keep them; those in FP32 can compute in any of ``floats``.

    Raises:
        UserError: anything else was asked for.
    """
    written = str(read_artifact_metadata(opening.located.path)["precision"])
    if opening.arithmetic != AUTO and (opening.arithmetic not in floats or written != "fp32"):
        raise UserError(
            f"the graphs of {opening.located.path} are written in {written} and cannot compute in "
            f"{opening.arithmetic} here; use auto, or give the checkpoint they were made from"
        )
