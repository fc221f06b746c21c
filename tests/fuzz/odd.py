"""Odd JSON values, and where in a JSON value they can be put."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tests.data.plain_set import H, W

Rng = np.random.Generator


def odd_value(rng: Rng) -> Any:
    values: list[Any] = [
        None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 2**31, 2**63,
        2**64, -(2**63) - 1, 10**300, "", " ", "0", "1", "abc", "\ud800", "\0", "ä" * 300, "1e400", "[1, 2]", "{}",
        "b'abc'", [], {}, [[]], [None], [[[]]], {"": None}, [0, 0, 0, 0], [-5, -5, 10, 10], [1e9, 1e9, 1, 1], [1, 2],
        [[1, 2], [3, 4]], {"size": [H, W], "counts": "abc"}, {"size": [H, W], "counts": [1, 2]},
        {"size": [10**9, 10**9], "counts": [10**18]}, {"counts": "o" * 200}, [1] * 5000, ["a"] * 100, "x" * 100_000,
        [[0, 0, 1e300, 0, 5, 1e300]], {"x": 1}, [[10**400, 1, 2, 3, 4, 5]],
    ]  # fmt: skip
    if rng.random() < 0.05:
        deep: Any = []
        for _ in range(int(rng.integers(10, 400))):
            deep = [deep]
        return deep
    return values[int(rng.integers(len(values)))]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, numbers of a list only up to the third."""
    found = [at] if at else []
    if isinstance(value, dict):
        for key, part in value.items():
            found += places(part, (*at, key))
    elif isinstance(value, list):
        for place, part in list(enumerate(value))[:8]:
            found += places(part, (*at, place))
    return found


def spoiled(rng: Rng, content: Any) -> Any:
    """A copy of ``content`` with one to four places odd, lost, repeated or under another name."""
    content = copy.deepcopy(content)
    for _ in range(int(rng.integers(1, 5))):
        everywhere = places(content)
        if not everywhere:
            break
        at = everywhere[int(rng.integers(len(everywhere)))]
        holder = content
        for step in at[:-1]:
            holder = holder[step]
        how = rng.random()
        if how < 0.65:
            holder[at[-1]] = odd_value(rng)
        elif how < 0.8:
            del holder[at[-1]]
        elif isinstance(holder, list):
            holder.insert(0, copy.deepcopy(holder[at[-1]]))
        else:
            holder[str(at[-1]).upper()] = holder.pop(at[-1])
    return content


def broken_bytes(rng: Rng, data: bytes, cut: float) -> bytes:
    """``data`` with up to five other bytes, and with the probability ``cut`` without its end."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        raw[int(rng.integers(len(raw)))] = int(rng.integers(256))
    return bytes(raw[: int(rng.integers(1, len(raw)))]) if rng.random() < cut else bytes(raw)
