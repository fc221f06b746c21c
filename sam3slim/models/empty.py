"""A model whose weights are about to be overwritten."""

from __future__ import annotations

from transformers.initialization import no_init_weights

from sam3slim.models.build import build_model
from sam3slim.models.sam3 import Sam3
from sam3slim.specs import ModelSpec


def empty_model(spec: ModelSpec) -> Sam3:
    """``build_model`` without drawing random weights: parameters hold whatever was in memory.

    Drawing 840 M normals takes longer than reading them. Buffers (RoPE, position ids) are computed as usual.
    """
    with no_init_weights():
        return build_model(spec)
