"""The Pareto front, by hand and by its definition."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from sam3slim.report.pareto import Point, pareto_front

# Few values, so that ties are common.
POINTS = st.lists(st.tuples(st.none() | st.integers(0, 6).map(float), st.none() | st.integers(0, 6).map(float)))


def dominates(a: Point, b: Point) -> bool:
    assert a[0] is not None and a[1] is not None and b[0] is not None and b[1] is not None  # noqa: PT018
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(POINTS)
def test_front__is_what_nothing_dominates(points: list[Point]) -> None:
    known = [i for i, point in enumerate(points) if None not in point]
    expected = {i for i in known if not any(dominates(points[j], points[i]) for j in known)}
    front = pareto_front(points)
    assert set(front) == expected
    assert len(front) == len(expected)
    assert [points[i][0] for i in front] == sorted(points[i][0] or 0.0 for i in front)


def test_front__ties() -> None:
    assert pareto_front([(1, 5), (1, 5), (1, 4), (2, 5), (2, 6)]) == [0, 1, 4]


def test_front__empty_and_unknown() -> None:
    assert pareto_front([]) == []
    assert pareto_front([(None, 1.0), (1.0, math.nan), (math.inf, 9.0)]) == []
