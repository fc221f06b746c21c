"""Linear layers fitted to given outputs, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-3  # of the inputs' mean sum of squares


class LeastSquares:
    """The change of a linear layer that brings its outputs nearest to given ones.

    Minimises Σ |x Wᵀ + b − y|² + λ (|W − W₀|² + |b − b₀|²) over all rows that were added; λ is ``ridge`` times
    the mean of the inputs' sums of squares, so directions that no data reaches stay as they were. Sums over what is
    added at once are taken in float32, their totals and the solution in float64; rows are not kept.

    Args:
        weight: W₀ [outputs, inputs].
        bias: b₀ [outputs].
        intercept: False leaves the bias as it is.
        ridge: how strongly the layer is held where it was.
    """

    def __init__(self, weight: Tensor, bias: Tensor, intercept: bool = True, ridge: float = RIDGE) -> None:
        self._weight, self._bias, self._intercept = weight.float(), bias.float(), intercept
        self._ridge = ridge
        size = weight.shape[1] + intercept
        self._inputs = weight.new_zeros(size, size, dtype=torch.float64)
        self._residuals = weight.new_zeros(size, weight.shape[0], dtype=torch.float64)

    def add(self, inputs: Tensor, wanted: Tensor, weights: Tensor | None = None) -> None:
        """Rows [..., inputs], the outputs they should have [..., outputs], and what the rows weigh [...]."""
        x = inputs.flatten(0, -2).float()
        y = wanted.flatten(0, -2).float()
        w = None if weights is None else weights.flatten().float()
        if w is not None and not bool(w.all()):  # rows that do not count need no product
            x, y, w = x[w != 0], y[w != 0], w[w != 0]
        y = y - (x @ self._weight.T + self._bias)
        if self._intercept:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        left = x.T if w is None else x.T * w
        self._inputs += left @ x
        self._residuals += left @ y

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, float64."""
        ridge = self._ridge * self._inputs.diagonal().mean()
        change = torch.linalg.solve(
            self._inputs + ridge * torch.eye(len(self._inputs)).to(self._inputs), self._residuals
        )
        weight, bias = self._weight.double(), self._bias.double()
        if not self._intercept:
            return weight + change.T, bias
        return weight + change[:-1].T, bias + change[-1]
