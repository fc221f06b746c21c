"""Working through prompts in parts, each of which the backward pass computes a second time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Elements of the largest tensor that a part works on: 128 MiB in bfloat16. At 1,008 px these are 4 prompts of a decoder
# layer's attention map, or 3 of the mask head's pixels; small models never split.
LARGEST = 2**26


def parts(prompts: int, elements: int) -> Iterator[slice]:
    """Slices of ``prompts`` rows whose largest tensor, ``elements`` a prompt, stays below ``LARGEST``; at least one."""
    size = max(LARGEST // max(elements, 1), 1)
    for start in range(0, max(prompts, 1), size):
        yield slice(start, min(start + size, prompts))


def recomputed(function: Callable[..., Tensor], *rows: Any, elements: int) -> Tensor:
    """``function`` of tensors with one row a prompt, of which only the arguments are kept for the backward pass.

    Training deep nets with sublinear memory cost (Chen et al., 2016, arXiv:1604.06174). Dropout draws the same numbers
    again. In parts where it is large, so that the backward pass never holds what lies between for all prompts: their
    gradients are then summed in another order.

    Args:
        function: no prompt's result depends on another prompt.
        rows: tensors [P, …], of which some but not the first may be None.
        elements: those of its largest tensor, a prompt.
    """
    split = list(parts(len(rows[0]), elements))
    run = partial(checkpoint, function, use_reentrant=False)
    if len(split) == 1:  # without slices, whose gradients would be summed in another order
        return run(*rows)
    return torch.cat([run(*(None if row is None else row[part] for row in rows)) for part in split])
