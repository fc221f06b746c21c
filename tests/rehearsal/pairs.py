"""Every pair of values of any two axes, in few combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

Pair = tuple[tuple[str, str], tuple[str, str]]


def all_pairs(axes: Mapping[str, Sequence[str]], refused: Sequence[Pair] = ()) -> list[dict[str, str]]:
    """Combinations, one value an axis, in which every two values of two axes meet, but for the ``refused`` ones.

    Greedy, and always the same ones.
    """
    names = list(axes)
    every = [dict(zip(names, values, strict=True)) for values in product(*axes.values())]
    every = [one for one in every if not pairs_of(one) & set(refused)]
    missing = {pair for one in every for pair in pairs_of(one)}
    chosen = []
    while missing:
        best = max(every, key=lambda one: len(missing & pairs_of(one)))  # the first of equals
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen


def pairs_of(one: Mapping[str, str]) -> set[Pair]:
    """The pairs of values that meet in a combination."""
    return set(combinations(one.items(), 2))
