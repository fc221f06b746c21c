"""Colours and markers, the same in every plot."""

from __future__ import annotations

from collections.abc import Sequence

from sam3slim.precisions import precision_named

OTHER_COLORS = ("#E69F00", "#999999", "#8C564B")  # to be seen on white and on black
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, GREY = "#222222", "#8a8a8a"


def precision_colors(precisions: Sequence[str]) -> dict[str, str]:
    """A colour per precision in order of first use; variants such as "int8_weight" take their kind's."""
    spare = iter(OTHER_COLORS * len(precisions))
    colors: dict[str, str] = {}
    for precision in dict.fromkeys(precisions):
        known = precision_named(precision)
        color = known.color if known else None
        colors[precision] = next(spare) if color is None or color in colors.values() else color
    return colors


def cycle(items: Sequence[str], count: int) -> list[str]:
    """The first ``count`` of ``items`` repeated."""
    return [items[i % len(items)] for i in range(count)]
