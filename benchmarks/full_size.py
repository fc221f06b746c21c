"""SAM 3's 840 M parameters as an artifact of random weights, for benchmarks that need the size and not the answers."""

from __future__ import annotations

from pathlib import Path

import torch

from sam3slim.checkpoints.artifact import write_folder
from sam3slim.models.shapes import state_shapes
from sam3slim.specs import ModelSpec


def write_full_size(folder: Path) -> Path:
    """Write ``folder`` (3.4 GB); needs as much memory."""
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in state_shapes(ModelSpec()).items()}
    write_folder(folder, ModelSpec(), tensors, precision="fp32")
    return folder
