"""The tensors of a single file, whichever of the two formats it has."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sam3slim.checkpoints.container import find_weights
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import is_torch, refuse_pointer
from sam3slim.checkpoints.pickles import one_line, torch_load


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Memory-mapped tensors of a safetensors file, or the weights in a file of ``torch.save``."""
    if path.is_file() and is_torch(path):
        return find_weights(torch_load(path)[0], path)[0].tensors
    return read_safetensors(path)[0]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Memory-mapped tensors, and the header's metadata."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path.parent} has no {path.name}; copy the whole folder")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        refuse_pointer(path)
        raise CheckpointError(f"{path} is truncated or damaged ({one_line(error)}); copy it again") from error
