"""Where prediction opens a model: the one place that knows kinds of artifacts and devices."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sam3slim.checkpoints import ARTIFACT_FILE, load, locate, weight_files
from sam3slim.checkpoints.locate import graph_format
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.models.arithmetic import compute_in
from sam3slim.onnx import GraphSam3, load_runnable

DTYPES = ("fp32", "fp16")


def open_model(source: str | Path, device: torch.device, dtype: str) -> Sam3 | GraphSam3:
    """The model behind ``source``, in eval mode on ``device``, computing in ``dtype`` (one of ``DTYPES``).

    INT8 weights stay INT8 on the CPU and are widened on a GPU, where half precision is the faster type. Graphs run as
    they are, on the CPU.

    Raises:
        CheckpointError: no checkpoint, or a broken one.
    """
    if graph_format(locate(source)) is not None:
        return load_runnable(source)[0]
    model, _ = load(source, dequantize=device.type == "cuda")
    moved: Sam3 = model.to(device)  # type: ignore[arg-type]
    compute_in(moved, dtype)
    return moved.eval()


def choose_device(name: str = "auto", source: str | Path | None = None) -> torch.device:
    """``auto`` is the GPU if there is one, and the CPU for graphs.

    Raises:
        UserError: a device that is not there, or on which ``source`` does not run.
        CheckpointError: ``source`` is no checkpoint.
    """
    graphs = None if source is None else graph_format(locate(source))
    if graphs is not None and name not in ("auto", "cpu"):
        raise UserError(f"device {name}: {source} holds {graphs} graphs, which run on the CPU; use auto or cpu")
    if graphs is not None:
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name} is not a device; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: no such CUDA device here; use auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> str:
    """``auto`` is fp16 on a GPU, fp32 on a CPU. Raises UserError for fp16 on a CPU, which is seven times slower."""
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in DTYPES:
        raise UserError(f"dtype {name}: expected auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise UserError("dtype fp16 is seven times slower than fp32 on a CPU; use auto or fp32")
    return name


def identity(source: str | Path) -> str:
    """What tells these weights from others: an artifact's own sha256, else path, size and time of its files.

    Raises:
        CheckpointError: no checkpoint.
    """
    located = locate(source)
    if located.kind == "artifact":
        try:
            return f"sha256:{json.loads((located.path / ARTIFACT_FILE).read_text(encoding='utf-8'))['sha256']}"
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a damaged artifact is told, with the fix, when it is opened
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(located)]
    return "files:" + json.dumps(files)
