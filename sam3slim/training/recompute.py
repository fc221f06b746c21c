"""Activation checkpointing: memory for time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam3slim.models import Sam3

# Stacks whose layers are called as modules. Decoder layers are called part by part, and the mask head after matching:
# the model itself recomputes them. At 1,008 px those two hold most: a decoder layer's relative position bias and
# attention map are [P, 8, 2Q + 1, 5184] each, and the mask head's pixels [P, 256, 288, 288] at every step.
STACKS = (
    "vision_encoder.backbone.layers",
    "text_encoder.text_model.encoder.layers",
    "geometry_encoder.layers",
    "detr_encoder.layers",
)


def recompute_activations(model: Sam3) -> None:
    """Keep only the inputs of the large layers, and compute them a second time in the backward pass; in place.

    Training deep nets with sublinear memory cost (Chen et al., 2016, arXiv:1604.06174). Losses and gradients stay the
    same: dropout draws the same numbers again. Without effect where no gradient is asked for, and on names of weights.
    """
    model.recompute = True
    for name in STACKS:
        stack = model.get_submodule(name)
        assert isinstance(stack, nn.ModuleList)
        for layer in stack:
            # transformers' own gradient checkpointing looks away in eval mode, in which frozen parts train others.
            layer.forward = partial(_forward, layer.forward, tuple(layer.parameters()))  # type: ignore[method-assign]


def _forward(forward: Callable[..., Any], weights: tuple[Tensor, ...], *args: Any, **kwargs: Any) -> Any:
    inputs = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *weights)):
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False)
    return forward(*args, **kwargs)
