"""Random weights of SAM 3's sizes, for benchmarks that need the size and not the answers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sam3slim.artifacts.write import write_folder
from sam3slim.models import Sam3
from sam3slim.models.build import empty_model, state_shapes
from sam3slim.specs import ModelSpec


def random_weights() -> dict[str, Tensor]:
    """Key → FP32 tensor, 3.4 GB in all; the same ones at every call."""
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in state_shapes(ModelSpec()).items()}


def random_model(spec: ModelSpec, generator: torch.Generator) -> Sam3:
    """A model of ``spec`` on the CPU, every parameter drawn from ``generator``."""
    model = empty_model(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    return model


def write_full_size(folder: Path) -> Path:
    """Write ``folder`` (3.4 GB); needs as much memory."""
    write_folder(folder, ModelSpec(), random_weights(), precision="fp32")
    return folder
