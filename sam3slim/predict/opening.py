"""Where prediction opens a model: the one place that knows kinds of artifacts and devices."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch

from sam3slim.checkpoints import ARTIFACT_FILE, IMAGE_SIZE, load, locate, weight_files
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import graph_format, read_metadata
from sam3slim.environment import choose_device
from sam3slim.errors import UserError
from sam3slim.graphs import GraphSam3, load_runnable
from sam3slim.models import Sam3
from sam3slim.models.arithmetic import compute_in
from sam3slim.precisions import arithmetics


def open_model(source: str | Path, device: torch.device, dtype: str, image_size: int | None = None) -> Sam3 | GraphSam3:
    """The model behind ``source``, in eval mode on ``device``, computing in ``dtype`` (one of ``arithmetics()``).

    ``image_size`` is another side of the input than the checkpoint's own, in pixels.

    INT8 weights stay INT8 on the CPU and are widened on a GPU, where half precision is the faster type. Graphs run as
    they are, on the CPU.

    Raises:
        CheckpointError: no checkpoint, or a broken one.
        UserError: a size that the patch does not divide, or another than a graph's.
    """
    overrides = None if image_size is None else {IMAGE_SIZE: image_size}
    if graph_format(locate(source)) is not None:
        return load_runnable(source, overrides=overrides)[0]
    model, _ = load(source, overrides=overrides, dequantize=device.type == "cuda")
    moved: Sam3 = model.to(device)  # type: ignore[arg-type]
    compute_in(moved, dtype)
    return moved.eval()


def device_for(source: str | Path, name: str = "auto") -> torch.device:
    """``choose_device``, and the CPU for graphs.

    Raises:
        UserError: a device that is not there, or on which ``source`` does not run.
        CheckpointError: ``source`` is no checkpoint.
    """
    graphs = graph_format(locate(source))
    if graphs is not None and name not in ("auto", "cpu"):
        raise UserError(f"device {name}: {source} holds {graphs} graphs, which run on the CPU; use auto or cpu")
    return choose_device("cpu" if graphs is not None else name)


def choose_dtype(name: str, device: torch.device) -> str:
    """``auto`` is fp16 on a GPU, fp32 on a CPU. Raises UserError for half types on a CPU: seven times slower."""
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in arithmetics():
        raise UserError(f"dtype {name}: expected auto, {', '.join(arithmetics())}")
    if name != "fp32" and device.type == "cpu":
        raise UserError(f"dtype {name} is seven times slower than fp32 on a CPU; use auto or fp32")
    return name


def identity(source: str | Path) -> str:
    """What tells these weights from others: an artifact's own sha256, else path, size and time of its files.

    Raises:
        CheckpointError: no checkpoint.
    """
    located = locate(source)
    if located.kind == "artifact":
        # A damaged artifact is refused, with the fix, when it is opened.
        with suppress(CheckpointError, KeyError):
            return f"sha256:{read_metadata(located.path / ARTIFACT_FILE)['sha256']}"
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(located)]
    return "files:" + json.dumps(files)
