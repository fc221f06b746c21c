"""The smallest mixed precision within a budget: of mAP points, or of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sam3slim.compression.groups import GROUPS
from sam3slim.compression.mixed import Mixed
from sam3slim.errors import UserError

PrecisionPlan = Mapping[str, str]


@dataclass
class Searched:
    """The plan found, its drop (points, on the data that was searched with), its bytes, and every plan measured.

    Attributes:
        within: the budget is honoured on the data that was searched with.
        trace: one dict per measurement: ``groups``, ``drop``, ``bytes``, ``kept``.
    """

    plan: dict[str, str]
    drop: float
    bytes: int
    within: bool
    trace: list[dict[str, Any]] = field(default_factory=list)

    @property
    def method(self) -> Mixed:
        """The plan as a compression method; norms and biases are FP32 only where nothing is rounded."""
        return as_method(self.plan)


def as_method(plan: PrecisionPlan) -> Mixed:
    """A plan as ``mixed`` takes it."""
    return Mixed(dict(plan), rest="fp32" if set(plan.values()) == {"fp32"} else "fp16")


def search(
    drop_of: Callable[[Mixed], float],
    bytes_of: Callable[[Mixed], int],
    *,
    max_drop: float | None = None,
    max_bytes: int | None = None,
) -> Searched:
    """Greedy search over the groups' precisions.

    Everything starts in FP16 (in FP32 where FP16 alone breaks the budget). Each group is put into INT8 on its own; the
    groups then follow one another into INT8 in the order of points lost per byte saved, and each stays there only if
    the drop measured with all those before it is within ``max_drop``. What is in INT8 then tries INT4 in the same way.
    With ``max_bytes`` alone, they follow until the size is reached.

    Args:
        drop_of: measured drop of a plan in points of mAP.
        bytes_of: size of its weights.

    Raises:
        UserError: no budget or one below 0, or ``max_bytes`` is less than everything in INT4 takes.
    """
    _check(max_drop, max_bytes)
    result = Searched(dict.fromkeys(GROUPS, "fp16"), 0.0, 0, True)
    smallest = bytes_of(as_method(dict.fromkeys(GROUPS, "int4")))
    if max_bytes is not None and smallest > max_bytes:
        raise UserError(
            f"compress.max_bytes={max_bytes}: with every group in INT4 this model still takes {smallest} bytes; "
            "allow more, or slim the architecture"
        )
    limit = float("inf") if max_drop is None else max_drop

    def measured(plan: PrecisionPlan) -> float:
        method = as_method(plan)
        drop = drop_of(method)
        result.trace.append({"groups": dict(plan), "drop": drop, "bytes": bytes_of(method), "kept": False})
        return drop

    result.drop = measured(result.plan)
    targets: tuple[str, ...] = ("int8", "int4")
    if result.drop > limit:
        result.plan, targets = dict.fromkeys(GROUPS, "fp32"), ("fp16", "int8", "int4")
        result.drop = measured(result.plan)
    result.trace[-1]["kept"] = True
    for precision in targets:
        _lower(result, precision, measured, bytes_of, limit, max_bytes)
    result.bytes = bytes_of(result.method)
    result.within = result.drop <= limit and (max_bytes is None or result.bytes <= max_bytes)
    return result


def _lower(
    result: Searched,
    precision: str,
    measured: Callable[[PrecisionPlan], float],
    bytes_of: Callable[[Mixed], int],
    limit: float,
    max_bytes: int | None,
) -> None:
    """Move groups to ``precision``, cheapest first, as far as the budget allows or demands."""
    start = dict(result.plan)
    cost: dict[str, float] = {}

    def small_enough() -> bool:
        """What follows would only cost."""
        return max_bytes is not None and limit == float("inf") and bytes_of(as_method(result.plan)) <= max_bytes

    if small_enough():
        return
    for group in GROUPS:
        if precision == "int4" and start[group] != "int8":
            continue  # INT8 already breaks the budget there
        alone: dict[str, str] = {**start, group: precision}
        saved = bytes_of(as_method(start)) - bytes_of(as_method(alone))
        if saved > 0:
            cost[group] = (measured(alone) - result.drop) / saved
    for group in sorted(cost, key=lambda name: cost[name]):
        if small_enough():
            return
        plan: dict[str, str] = {**result.plan, group: precision}
        drop = measured(plan)
        if drop <= limit:
            result.plan, result.drop = plan, drop
            result.trace[-1]["kept"] = True


def _check(max_drop: float | None, max_bytes: int | None) -> None:
    if max_drop is None and max_bytes is None:
        raise UserError("compress=mixed with a search needs compress.max_drop (points) or compress.max_bytes")
    for key, value in (("max_drop", max_drop), ("max_bytes", max_bytes)):
        if value is not None and value < 0:
            raise UserError(f"compress.{key}={value} must be at least 0")
