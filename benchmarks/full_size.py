"""SAM 3's 840 M parameters as an artifact of random weights, for benchmarks that need the size and not the answers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sam3slim.artifacts.write import write_folder
from sam3slim.models.build import state_shapes
from sam3slim.specs import ModelSpec


def random_weights() -> dict[str, Tensor]:
    """Key → FP32 tensor, 3.4 GB in all; the same ones at every call."""
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in state_shapes(ModelSpec()).items()}


def write_full_size(folder: Path) -> Path:
    """Write ``folder`` (3.4 GB); needs as much memory."""
    write_folder(folder, ModelSpec(), random_weights(), precision="fp32")
    return folder
