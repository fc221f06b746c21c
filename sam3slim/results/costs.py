"""What a model costs: what a search minimises, and the axis of a comparison's Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sam3slim.results.collect import machine
from sam3slim.results.record import RunRecord
from sam3slim.strict import SpecError


@dataclass(frozen=True)
class Cost:
    """A number of a record of which less is better.

    Attributes:
        column: of ``compare.csv`` and the page.
        title: in words.
        of: the record's number; None where it was not measured.
        axis: what must be equal where numbers are compared.
    """

    column: str
    title: str
    of: Callable[[RunRecord], float | None]
    axis: Callable[[RunRecord], str | None] = lambda record: None


COSTS = {
    "bytes": Cost("bytes", "bytes", lambda record: record.artifact.bytes),
    # The median of one whole forward: the number that the page draws and ``export --max-latency`` limits.
    "latency": Cost("latency_p50_ms", "latency", lambda record: record.latency_ms.p50, machine),
}


def check_cost(name: str | None, key: str = "cost") -> None:
    """Refuse a name that is no cost; ``key`` is what it was given as.

    Raises:
        SpecError: such a name.
    """
    if name is not None and name not in COSTS:
        raise SpecError(f"{key}={name} is not known; choose from {', '.join(COSTS)}")


def measures_latency(cost: str | None, latency: bool | None, *, eval_at_end: bool = True) -> bool:
    """Whether a training measures its model's latency: where ``latency`` says so, or else where a search minimises it.

    Raises:
        SpecError: a cost that is none, or would not be measured.
    """
    check_cost(cost)
    if cost == "latency" and latency is False:
        raise SpecError(
            "cost=latency minimises what latency=false does not measure; set latency=null (or true), or cost=bytes"
        )
    wanted = latency is True or cost == "latency"
    if wanted and not eval_at_end:
        key = "latency=true" if latency else "cost=latency"
        raise SpecError(
            f"{key} is measured when the model is evaluated, and eval_at_end=false leaves that out; set "
            f"eval_at_end=true, or {'latency=null' if latency else 'cost=bytes'}"
        )
    return wanted


def by_axis(records: Sequence[RunRecord], cost: Cost) -> list[list[int]]:
    """Indices of ``records`` whose costs compare with each other, the largest set first."""
    sets: dict[str | None, list[int]] = {}
    for index, record in enumerate(records):
        sets.setdefault(cost.axis(record), []).append(index)
    return sorted(sets.values(), key=len, reverse=True)


def named_cost(name: str | None) -> Cost:
    """The cost called ``name``; None: bytes.

    Raises:
        SpecError: a name that no cost has.
    """
    check_cost(name, "--cost")
    return COSTS[name or "bytes"]
