"""Activation checkpointing: memory for time."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sam3slim.models import Sam3

# Where activations are large. The decoder works on a few hundred queries, and its parts are called one by one.
STACKS = ("vision_encoder.backbone.layers", "text_encoder.text_model.encoder.layers", "detr_encoder.layers")


def recompute_activations(model: Sam3) -> None:
    """Keep only the inputs of the large layers, and compute them a second time in the backward pass; in place.

    Training deep nets with sublinear memory cost (Chen et al., 2016, arXiv:1604.06174). Losses and gradients stay the
    same: dropout draws the same numbers again. Without effect in eval mode, and on names of weights.
    """
    for name in STACKS:
        stack = model.get_submodule(name)
        assert isinstance(stack, nn.ModuleList)
        for layer in stack:
            if not isinstance(layer, GradientCheckpointingLayer):
                # transformers checkpoints layers of this class; to those that are not, their class is added.
                kind = type(layer)
                layer.__class__ = type(kind.__name__, (GradientCheckpointingLayer, kind), {})
            layer.gradient_checkpointing = True  # type: ignore[assignment]
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
