"""Rounding that makes up for itself: GPTQ (Frantar et al., arXiv:2210.17323) and bias correction.

A layer's output error of rounding W to Ŵ is tr((W - Ŵ) H (W - Ŵ)ᵀ), H the inputs' second moments. GPTQ rounds column by
column and moves the columns that are left so that the error so far costs least (equations 3 to 5). Where a layer has a
bias, b + (W - Ŵ) E[x] is the best one (Nagel et al., arXiv:1906.04721, section 4.2), and what it leaves is the error
under the inputs' covariance, which therefore takes the place of H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sam3slim.checkpoints import int4
from sam3slim.checkpoints.int8 import int8_tensor
from sam3slim.compression.rounding import Grid, int4_grid, quantise

DAMPING = 0.01  # of the mean second moment, added to each
BLOCK = 128  # columns whose error is moved to the others at once
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)


class Moments:
    """First and second moments of a layer's inputs.

    Products are summed in float32 within what is added at once, their totals in float64; rows are not kept.

    Args:
        size: columns of the layer's weight.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.rows = 0
        self._products = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._sum = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor) -> None:
        """Rows [..., size]."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.rows += len(rows)
        self._products += rows.T @ rows
        self._sum += rows.sum(0)

    @property
    def mean(self) -> Tensor:
        """float64 [size]."""
        return self._sum / max(self.rows, 1)

    def second(self, *, centred: bool) -> Tensor:
        """float64 [size, size]: E[x xᵀ], or their covariance."""
        products = self._products / max(self.rows, 1)
        return products - torch.outer(self.mean, self.mean) if centred else products


@dataclass(frozen=True)
class Compensated:
    """A layer's rounded weight and its corrected bias.

    Attributes:
        stored: the weight as an artifact stores it.
        weight: what that stands for, float32 [rows, columns].
        bias: float32 [rows], or None where the layer has none.
        plain_error, error: output error of plain rounding and of this, squared, of the square of the output without its
            bias, on the inputs that the moments are of.
    """

    stored: object
    weight: Tensor
    bias: Tensor | None
    plain_error: float
    error: float


# (weight float32 [rows, columns], second moments) → the weight as stored, what it stands for, and plainly rounded
Rounder = Callable[[Tensor, Tensor], tuple[object, Tensor, Tensor]]


def compensated(weight: Tensor, bias: Tensor | None, moments: Moments, rounder: Rounder) -> Compensated:
    """``weight`` rounded for inputs of these moments, and the bias that fits."""
    weight = weight.detach().float()
    second = moments.second(centred=bias is not None)
    stored, rounded, plain = rounder(weight, second)
    if bias is not None:
        bias = (bias.detach().double() + (weight - rounded).double() @ moments.mean).float()
    # Plain rounding leaves the bias as it is, so its error has the mean's part too.
    whole = moments.second(centred=False)
    power = _error(weight, whole)
    return Compensated(
        stored, rounded, bias, _error(weight - plain, whole) / power, _error(weight - rounded, second) / power
    )


def int4_rounder(group: int, symmetric: bool) -> Rounder:
    """GPTQ on ``int4_grid``; groups reach as far as costs least."""

    def rounder(weight: Tensor, second: Tensor) -> tuple[object, Tensor, Tensor]:
        plain = int4_grid(weight, group, symmetric=symmetric)
        grid = _shrunk(weight, second.diagonal().float(), group, symmetric)
        codes = gptq(weight, grid, second)
        stored = int4.store(codes, grid.scale, None if symmetric else grid.zero)
        return stored, grid.values(codes), plain.values(plain.codes(weight))

    return rounder


def int8_rounder(weight: Tensor, second: Tensor) -> tuple[object, Tensor, Tensor]:
    """GPTQ on torchao's INT8 with its scales."""
    plain: object = quantise(weight)
    scale = plain.scale.to(weight.device)  # type: ignore[attr-defined]
    codes = gptq(weight, grid := Grid(scale, torch.zeros_like(scale), -128, 127), second)
    stored = int8_tensor(codes.to("cpu", torch.int8), scale.cpu())
    return stored, grid.values(codes), plain.dequantize().to(weight.device)  # type: ignore[attr-defined]


def gptq(weight: Tensor, grid: Grid, second: Tensor) -> Tensor:
    """Codes, float32 [rows, columns], chosen one column after another, each making up for those before it.

    The columns with the largest second moments come first; scales are those of ``grid``, whatever the order.

    Args:
        weight: float32 [rows, columns].
        second: float64 [columns, columns], see the module.
    """
    columns = weight.shape[1]
    order = second.diagonal().argsort(descending=True)
    group_of = torch.div(order * grid.scale.shape[1], columns, rounding_mode="floor")
    upper = _factor(second[order][:, order]).float()
    left, codes = weight[:, order].clone(), torch.empty_like(weight)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = left.new_empty(len(left), end - start)
        for column in range(start, end):
            group = group_of[column]
            scale, zero = grid.scale[:, group], grid.zero[:, group]
            code = (left[:, column] / scale + zero).round().clamp(grid.low, grid.high)
            codes[:, column] = code
            error = (left[:, column] - (code - zero) * scale) / upper[column, column]
            left[:, column:end] -= torch.outer(error, upper[column, column:end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return torch.empty_like(codes).index_copy_(1, order, codes)


def _factor(second: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, damped until there is one; float64."""
    damping = DAMPING * second.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    while True:
        lower, failed = torch.linalg.cholesky_ex(second + damping * eye)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        damping = 10 * damping


def _shrunk(weight: Tensor, importance: Tensor, group: int, symmetric: bool) -> Grid:
    """For every group the reach whose rounding costs least, columns weighted by ``importance`` [columns]."""
    best: Grid | None = None
    least = importance.new_empty(0)
    for shrink in SHRINKS:
        grid = int4_grid(weight, group, symmetric=symmetric, shrink=shrink)
        lost = (grid.values(grid.codes(weight)) - weight).square() * importance
        lost = lost.unflatten(1, (-1, group)).sum(-1)
        if best is None:
            best, least = grid, lost
            continue
        better = lost < least
        best = Grid(
            torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero), grid.low, grid.high
        )
        least = torch.where(better, lost, least)
    assert best is not None
    return best


def _error(difference: Tensor, second: Tensor) -> float:
    """tr(D H Dᵀ)."""
    rows = difference.double()
    return float(((rows @ second) * rows).sum().clamp(min=torch.finfo(torch.float64).tiny))
