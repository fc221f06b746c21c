"""Which hidden neurons of an MLP should stay, judged by what the layer behind them can make of those that do."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sam3slim.slimming.least_squares import RIDGE

AT_ONCE = 256  # inputs are removed in groups of at most a 256th of those that are left


def best_inputs(batches: Iterable[tuple[Tensor, Tensor, Tensor | None]], count: int) -> Tensor:
    """The ``count`` inputs from which a linear layer with a bias makes its outputs best; increasing indices, int64.

    Backward elimination: the inputs whose removal costs least are removed, and the layer is fitted again to those that
    are left (Optimal Brain Surgeon's update, Hassibi and Stork 1992, equations 5 and 6, for the squared error of a
    linear layer, as SparseGPT, arXiv:2301.00774, uses it).

    Args:
        batches: inputs [..., n], outputs that are wanted [..., outputs], and weights [...] of the rows or None.
    """
    moments: Tensor | None = None
    targets: Tensor | None = None
    for inputs, wanted, weights in batches:
        x = inputs.flatten(0, -2).float()
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        left = x.T if weights is None else x.T * weights.flatten().float()
        new_moments, new_targets = (left @ x).double(), (left @ wanted.flatten(0, -2).float()).double()
        moments = new_moments if moments is None else moments + new_moments
        targets = new_targets if targets is None else targets + new_targets
    assert moments is not None
    assert targets is not None
    # The bias fits the means whatever stays.
    mean = moments[:-1, -1:] / moments[-1, -1]
    targets = targets[:-1] - mean * targets[-1]
    moments = moments[:-1, :-1] - mean * moments[-1, :-1]
    left_over = torch.arange(len(moments), device=moments.device)
    moments.diagonal().add_(RIDGE * moments.diagonal().mean())
    inverse = torch.linalg.inv(moments)
    weight = inverse @ targets
    while len(left_over) > count:
        group = min(max(len(left_over) // AT_ONCE, 1), len(left_over) - count)
        cost = weight.square().sum(dim=1) / inverse.diagonal()
        order = cost.argsort(stable=True)
        gone, stay = order[:group], order[group:].sort().values
        change = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, stay]).T
        weight = weight[stay] - change @ weight[gone]
        inverse = inverse[stay][:, stay] - change @ inverse[gone][:, stay]
        left_over = left_over[stay]
    return left_over
