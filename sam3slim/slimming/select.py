"""Which units stay: by score, evenly, at random, or block by block in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Importance = Literal["magnitude", "uniform", "random"]


def choose(scores: Tensor, count: int, importance: Importance, generator: torch.Generator) -> tuple[int, ...]:
    """``count`` of the units with ``scores`` [n], increasing.

    ``magnitude`` keeps the highest scores (ties: the first), ``uniform`` an even spread, ``random`` a draw
    from ``generator`` (the control).
    """
    total = len(scores)
    if count == total:
        return tuple(range(total))
    if importance == "uniform":
        return spread(total, count)
    if importance == "random":
        order = torch.randperm(total, generator=generator)
    else:
        order = torch.argsort(scores, descending=True, stable=True)
    return tuple(sorted(order[:count].tolist()))


def spread(total: int, count: int) -> tuple[int, ...]:
    """``count`` of ``total`` units, evenly, from the middle of each of ``count`` equal stretches."""
    return tuple(int((i + 0.5) * total / count) for i in range(count))


def align(source_kinds: Sequence[str], target_kinds: Sequence[str]) -> tuple[int, ...] | None:
    """For each target block a source block of the same kind, in order and as evenly spaced as possible.

    Ideally target block i takes source block (i + 1) · n / k − 1, so the last takes the last. Among the
    increasing choices that keep kind with kind, the one nearest to the ideal (least squares) is returned;
    None if there is none.
    """
    n, k = len(source_kinds), len(target_kinds)
    # best[s]: cheapest way to place the blocks so far with the last of them on source block s.
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    last = [-1]
    for i, kind in enumerate(target_kinds):
        ideal = (i + 1) * n / k - 1
        placed: list[tuple[float, tuple[int, ...]]] = []
        ends: list[int] = []
        for s, source_kind in enumerate(source_kinds):
            before = [entry for entry, end in zip(best, last, strict=True) if end < s]
            if source_kind != kind or not before:
                continue
            cost, path = min(before)
            placed.append((cost + (s - ideal) ** 2, (*path, s)))
            ends.append(s)
        best, last = placed, ends
    if not best:
        return None
    cheapest = min(cost for cost, _ in best)
    # Floating point must not decide between equal spreads.
    return next(path for cost, path in best if math.isclose(cost, cheapest, rel_tol=1e-9, abs_tol=1e-9))
