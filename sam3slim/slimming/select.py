"""Which units stay: by score, evenly, at random, or block by block in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Importance = Literal["magnitude", "activation", "taylor", "uniform", "random"]
# What one placement costs: (number of the target block, source block) → anything that adds up.
Cost = Callable[[int, int], float]


def choose(scores: Tensor, count: int, importance: Importance, generator: torch.Generator) -> tuple[int, ...]:
    """``count`` of the units with ``scores`` [n], increasing.

    ``uniform`` keeps an even spread, ``random`` a draw from ``generator`` (the control); every other
    importance keeps the highest scores (ties: the first).
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


def evenly(total: int, count: int) -> Cost:
    """Target block i belongs on source block (i + 1) · n / k − 1, so the last on the last; squared distance."""
    return lambda i, s: (s - ((i + 1) * total / count - 1)) ** 2


def align(source_kinds: Sequence[str], target_kinds: Sequence[str], cost: Cost | None = None) -> tuple[int, ...] | None:
    """For each target block a source block of the same kind, in order.

    Among the increasing choices that keep kind with kind, the cheapest in sum is returned (ties: the one
    with the earliest blocks), or None if there is none. The default ``cost`` spreads them evenly.
    """
    price = cost or evenly(len(source_kinds), len(target_kinds))
    # best[s]: cheapest way to place the blocks so far with the last of them on source block s.
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    last = [-1]
    for i, kind in enumerate(target_kinds):
        placed: list[tuple[float, tuple[int, ...]]] = []
        ends: list[int] = []
        for s, source_kind in enumerate(source_kinds):
            before = [entry for entry, end in zip(best, last, strict=True) if end < s]
            if source_kind != kind or not before:
                continue
            spent, path = min(before)
            placed.append((spent + price(i, s), (*path, s)))
            ends.append(s)
        best, last = placed, ends
    if not best:
        return None
    cheapest = min(spent for spent, _ in best)
    # Floating point must not decide between equal spreads.
    return next(path for spent, path in best if math.isclose(spent, cheapest, rel_tol=1e-9, abs_tol=1e-9))
