"""The Pareto front: what nothing else beats in both cost and value."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float | None, float | None]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points no other point dominates, by rising cost.

    A point dominates another when its cost is no higher and its value no lower, and one of the two is strictly
    better. Equal points do not dominate each other: ties are all on the front, in their given order.

    Args:
        points: (cost, value), less cost and more value being better; a point with None or a number that is not
            finite is never on the front.
    """
    known = [(x, y, i) for i, (x, y) in enumerate(points) if _finite(x) and _finite(y)]
    known.sort(key=lambda point: (point[0], -point[1], point[2]))  # type: ignore[operator]
    front: list[int] = []
    best: tuple[float, float] | None = None
    for cost, value, index in known:
        assert cost is not None
        assert value is not None
        if best is None or value > best[1] or (cost, value) == best:
            best = (cost, value)
            front.append(index)
    return front


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
