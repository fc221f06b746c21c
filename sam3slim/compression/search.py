"""The smallest mixed precision within a budget: of mAP points, or of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sam3slim.compression.effects import Effect
from sam3slim.compression.mixed import Mixed
from sam3slim.errors import UserError

PrecisionPlan = Mapping[str, str]
MOST = 40  # measurements


@dataclass
class Searched:
    """The plan found, its drop (points, on the data that was searched with), its bytes, and every plan measured.

    Attributes:
        within: the budget is honoured on the data that was searched with.
        method: the plan as a compression method.
        trace: one dict per measurement: ``groups``, ``drop``, ``bytes``, ``kept``.
    """

    plan: dict[str, str]
    drop: float
    bytes: int
    within: bool
    method: Mixed
    trace: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One unit to the next lower precision.

    Attributes:
        saved: bytes.
        price: output error per byte saved, no less than that of the unit's steps before.
    """

    unit: str
    precision: str
    saved: int
    price: float


def as_method(plan: PrecisionPlan, method: Mixed) -> Mixed:
    """``method`` with a plan; norms and biases are FP32 only where nothing is rounded."""
    return replace(method, groups=dict(plan), rest="fp32" if set(plan.values()) == {"fp32"} else "fp16")


def search(
    drop_of: Callable[[Mixed], float],
    bytes_of: Callable[[Mixed], int],
    effects: Mapping[str, Mapping[str, Effect]],
    *,
    method: Mixed | None = None,
    max_drop: float | None = None,
    max_bytes: int | None = None,
) -> Searched:
    """Lower the precision of unit after unit, in the order of output error per byte saved, as far as a budget allows.

    Everything starts in FP16 (in FP32 where FP16 alone breaks the budget). A step puts one unit from FP16 into INT8, or
    from there into INT4. How many steps of that order keep ``max_drop`` is found by bisection; the unit whose step
    breaks it stays as it is, and the steps behind are tried on, twice as many at once each time that some are kept.
    With ``max_bytes`` alone, as many steps are taken as it needs.

    Args:
        drop_of: measured drop of a plan in points of mAP; called at most ``MOST`` times.
        bytes_of: size of its weights.
        effects: precision → unit → its effect there.
        method: how INT4 is stored.

    Raises:
        UserError: no budget or one below 0, or ``max_bytes`` is less than everything in INT4 takes.
    """
    _check(max_drop, max_bytes)
    method = method or Mixed()
    units = list(effects["fp16"])

    def of(precision: str) -> dict[str, str]:
        return dict.fromkeys(units, precision)

    smallest = bytes_of(as_method(of("int4"), method))
    if max_bytes is not None and smallest > max_bytes:
        raise UserError(
            f"compress.max_bytes={max_bytes}: with every {method.granularity} in INT4 this model still takes "
            f"{smallest} bytes; allow more, or slim the architecture"
        )
    walk = _Walk(drop_of, bytes_of, method, float("inf") if max_drop is None else max_drop)
    ladder = ["fp16", "int8", "int4"]
    if not walk.keeps(of("fp16")):
        ladder = ["fp32", *ladder]
        walk.plan = of("fp32")
        walk.measure(walk.plan)
        walk.trace[-1]["kept"] = True
    steps = ranked({precision: effects[precision] for precision in ladder})
    if max_drop is None:
        assert max_bytes is not None
        walk.shrink(steps, max_bytes)
    else:
        walk.lower(steps)
    found = as_method(walk.plan, method)
    size = bytes_of(found)
    within = walk.drop <= walk.limit and (max_bytes is None or size <= max_bytes)
    return Searched(walk.plan, walk.drop, size, within, found, walk.trace)


def ranked(effects: Mapping[str, Mapping[str, Effect]]) -> list[Step]:
    """All steps that save bytes, cheapest first; those of one unit in their order.

    Args:
        effects: precision → unit → its effect, in falling precision.
    """
    first, *lower = effects.values()
    steps: list[Step] = []
    for unit, before in first.items():
        price = 0.0
        for precision, found in zip(list(effects)[1:], lower, strict=True):
            after = found[unit]
            if (saved := before.bytes - after.bytes) > 0:
                price = max(price, (after.error - before.error) / saved)
                steps.append(Step(unit, precision, saved, price))
                before = after
    return sorted(steps, key=lambda step: step.price)


@dataclass
class _Walk:
    """A plan on its way down, and everything that was measured."""

    drop_of: Callable[[Mixed], float]
    bytes_of: Callable[[Mixed], int]
    method: Mixed
    limit: float
    plan: dict[str, str] = field(default_factory=dict)
    drop: float = 0.0
    trace: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, plan: PrecisionPlan) -> float:
        method = as_method(plan, self.method)
        self.drop = self.drop_of(method)
        self.trace.append({"groups": dict(plan), "drop": self.drop, "bytes": self.bytes_of(method), "kept": False})
        return self.drop

    def keeps(self, plan: dict[str, str]) -> bool:
        """Measure ``plan``, and take it if it is within the limit."""
        before = self.drop
        if self.measure(plan) > self.limit:
            self.drop = before
            return False
        self.plan = plan
        self.trace[-1]["kept"] = True
        return True

    def shrink(self, steps: Sequence[Step], max_bytes: int) -> None:
        """As many steps as ``max_bytes`` needs."""
        size, taken = self.bytes_of(as_method(self.plan, self.method)), 0
        while size > max_bytes:
            size -= steps[taken].saved
            taken += 1
        # Names of more tensors, which steps do not count, make the file larger.
        while (
            taken < len(steps) and self.bytes_of(as_method(_after(self.plan, steps[:taken]), self.method)) > max_bytes
        ):
            taken += 1
        if taken:
            self.keeps(_after(self.plan, steps[:taken]))

    def lower(self, steps: Sequence[Step]) -> None:
        """As many steps as the limit allows."""
        left, size = list(steps), len(steps)
        breaks: int | None = None  # the fewest of ``left`` that are known to break the limit
        while left and len(self.trace) < MOST:
            if breaks == 1:
                # No further step of that unit is cheaper.
                left, breaks, size = [step for step in left if step.unit != left[0].unit], None, 1
                continue
            size = min(size, len(left))
            if self.keeps(_after(self.plan, left[:size])):
                left = left[size:]
                breaks = breaks - size if breaks else None
                size = 2 * size if breaks is None else max(breaks // 2, 1)
            else:
                breaks, size = size, max(size // 2, 1)


def _after(plan: PrecisionPlan, steps: Iterable[Step]) -> dict[str, str]:
    return {**plan, **{step.unit: step.precision for step in steps}}


def _check(max_drop: float | None, max_bytes: int | None) -> None:
    if max_drop is None and max_bytes is None:
        raise UserError("compress=mixed with a search needs compress.max_drop (points) or compress.max_bytes")
    for key, value in (("max_drop", max_drop), ("max_bytes", max_bytes)):
        if value is not None and value < 0:
            raise UserError(f"compress.{key}={value} must be at least 0")
