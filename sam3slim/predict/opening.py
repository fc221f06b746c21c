"""Where prediction opens a model: the one place that knows kinds of artifacts and devices."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sam3slim.checkpoints import ARTIFACT_FILE, IMAGE_SIZE, locate, weight_files
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import graph_format, read_metadata
from sam3slim.environment import choose_device, has_bf16
from sam3slim.errors import UserError
from sam3slim.precisions import halves
from sam3slim.runtimes import check_runtime, open_runtime, runtime_named
from sam3slim.runtimes.registry import WEIGHTS, all_arithmetics, check_calibrated, default_runtime


def open_model(
    source: str | Path, device: torch.device, dtype: str, image_size: int | None = None, runtime: str | None = None
) -> Any:
    """The model of ``source`` on ``device``, computing in ``dtype``: a ``Segmenter`` in eval mode with its ``spec``.

    ``image_size`` is another side of the input than the checkpoint's own, in pixels; ``runtime`` what runs it.

    In PyTorch, INT8 weights stay INT8 on the CPU and are widened on a GPU, where half precision is the faster type.

    Raises:
        CheckpointError: no checkpoint, or a broken one.
        UserError: a size that the patch does not divide, or another than a graph's; what ``open_runtime`` refuses.
    """
    overrides = None if image_size is None else {IMAGE_SIZE: image_size}
    model, report = open_runtime(
        source, runtime, device=device, arithmetic=dtype, overrides=overrides, dequantize=device.type == "cuda"
    )
    report.tell()
    return model


def device_for(source: str | Path, name: str = "auto", runtime: str | None = None) -> torch.device:
    """``choose_device``, and the CPU for a runtime that knows no other.

    Raises:
        UserError: a device that is not there, or on which ``source`` does not run; a runtime that is not known.
        CheckpointError: ``source`` is no checkpoint.
    """
    graphs = graph_format(locate(source))
    only_cpu = graphs is not None
    if runtime is not None:
        only_cpu |= runtime_named(runtime).devices == ("cpu",)
    if only_cpu and name not in ("auto", "cpu"):
        what = f"{source} holds {graphs} graphs, which run" if graphs else f"the runtime {runtime} runs"
        raise UserError(f"device {name}: {what} on the CPU; use auto or cpu")
    return choose_device("cpu" if only_cpu else name)


def choose_dtype(name: str, device: torch.device, runtime: str | None = None, source: str | Path | None = None) -> str:
    """``auto`` is FP16 for PyTorch on a GPU, FP32 on a CPU; other runtimes and graphs follow what is stored.

    Raises:
        UserError: a type that is not known, that the runtime does not have, or that needs calibration; FP16 and
            bfloat16 in PyTorch on a CPU without instructions for them: seven times slower; a runtime that is not
            installed.
    """
    known = all_arithmetics()
    if name != "auto" and name not in known:
        raise UserError(f"dtype {name}: expected auto, {', '.join(known)}")
    graphs = None if source is None else graph_format(locate(source))
    used = runtime or default_runtime(graphs or WEIGHTS)
    check_runtime(used, name)
    check_calibrated(name)
    if runtime is not None and used not in ("eager", "compile"):
        return name
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name in halves() and device.type == "cpu" and not (name == "bf16" and has_bf16()):
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
