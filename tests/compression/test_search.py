"""The budget is kept, and a fragile group stays in float."""

from __future__ import annotations

import pytest

from sam3slim.compression import GROUPS, Mixed
from sam3slim.compression.effects import Effect
from sam3slim.compression.search import MOST, Searched, ranked, search
from sam3slim.errors import UserError

SIZES = dict(zip(GROUPS, (400, 100, 300, 50, 20, 30, 40, 10, 6, 60), strict=True))
WIDTH = {"fp32": 4, "fp16": 2, "int8": 1, "int4": 0.5}
WORSE = {"fp32": 0.0, "fp16": 0.0, "int8": 1.0, "int4": 300.0}
WHOLE = ("embeddings", "convolutions")  # never INT4


def bytes_of(method: Mixed) -> int:
    width = {g: "int8" if p == "int4" and g in WHOLE else p for g, p in method.groups.items()}
    return int(sum(WIDTH[width[group]] * size for group, size in SIZES.items() if group in width))


def run(int8: dict[str, float], fp16: float = 0.0, int4: float = 100.0, **budget: float) -> Searched:
    """Drops that add up: ``int8[group]`` points for a group in INT8, ``fp16`` for each that is not FP32.

    ``int4``: as much again for each in INT4. Output errors are these drops.
    """

    def lost(group: str, precision: str) -> float:
        own = int8.get(group, 0.01) * (precision in ("int8", "int4")) + int4 * (precision == "int4")
        return own + fp16 * (precision != "fp32")

    def drop_of(method: Mixed) -> float:
        return sum(lost(group, precision) for group, precision in method.groups.items())

    effects = {
        precision: {group: Effect(lost(group, precision), bytes_of(Mixed({group: precision}))) for group in GROUPS}
        for precision in WIDTH
    }
    return search(drop_of, bytes_of, effects, **budget)  # type: ignore[arg-type]


def test_max_drop__a_fragile_group_stays_float() -> None:
    found = run({"decoder": 40.0}, max_drop=0.5)
    assert found.plan == {group: "fp16" if group == "decoder" else "int8" for group in GROUPS}
    assert found.within
    assert found.drop == pytest.approx(0.09)
    assert found.bytes == bytes_of(found.method) == sum(SIZES.values()) + SIZES["decoder"]


def test_max_drop__what_saves_most_per_point_goes_first() -> None:
    found = run({"vision": 0.4, "text": 0.4, "mask": 0.4, "encoder": 0.4}, max_drop=0.5)
    assert found.plan["vision"] == "int8"  # the largest of the four
    assert [found.plan[group] for group in ("text", "mask", "encoder")] == ["fp16"] * 3


def test_max_drop__half_precision_alone_breaks_it() -> None:
    found = run({}, fp16=0.1, max_drop=0.35)
    assert found.within
    assert sum(precision != "fp32" for precision in found.plan.values()) == 3
    assert found.plan["vision"] == "int8"


def test_max_drop__of_zero_is_honoured() -> None:
    found = run({}, max_drop=0.0)
    assert set(found.plan.values()) == {"fp16"}
    assert found.within


def test_max_bytes__cheapest_groups_until_it_fits() -> None:
    found = run({"vision": 5.0}, max_bytes=1500)
    assert found.bytes <= 1500
    assert found.plan["vision"] == "fp16"
    assert found.plan["scoring"] == "fp16" or found.bytes + 6 > 1500  # no more than needed
    with pytest.raises(UserError, match=r"max_bytes=10: with every group in INT4 this model still takes 563 bytes"):
        run({}, max_bytes=10)


def test_trace__every_measurement() -> None:
    found = run({}, max_drop=1.0)
    assert len(found.trace) <= MOST
    assert not found.trace[-1]["kept"]
    assert all(row["bytes"] == bytes_of(Mixed(row["groups"])) for row in found.trace)
    everything = run({}, int4=0.01, max_drop=1.0)
    assert [row["kept"] for row in everything.trace] == [True, True]  # FP16, then all steps at once


def test_bisection__of_many_blocks() -> None:
    """Equal blocks of which 23 steps fit, and two that break everything."""
    names = [f"vision_{i}" for i in range(60)]
    bad = {"vision_3", "vision_40"}
    cost = {name: 50.0 if name in bad else 0.1 for name in names}
    effects = {
        precision: {n: Effect(i * WORSE[precision], int(100 * width)) for i, n in enumerate(names)}
        for precision, width in WIDTH.items()
    }

    def drop_of(method: Mixed) -> float:
        return sum(cost[n] * (p == "int8") + 100 * (p == "int4") for n, p in method.groups.items())

    found = search(
        drop_of, lambda method: sum(int(100 * WIDTH[p]) for p in method.groups.values()), effects, max_drop=2.35
    )
    assert found.within
    assert len(found.trace) <= MOST
    taken = {name for name, precision in found.plan.items() if precision == "int8"}
    assert len(taken) == 23
    assert not taken & bad


def test_ranked__steps_of_a_unit_keep_their_order() -> None:
    effects = {
        "fp16": {"a": Effect(0, 200), "b": Effect(0, 200)},
        "int8": {"a": Effect(10, 100), "b": Effect(1, 200)},
        "int4": {"a": Effect(10, 50), "b": Effect(2, 150)},  # a for nothing, after what was dear
    }
    assert [(s.unit, s.precision, s.saved, s.price) for s in ranked(effects)] == [
        ("b", "int4", 50, 0.04), ("a", "int8", 100, 0.1), ("a", "int4", 50, 0.1),
    ]  # fmt: skip


def test_budget__is_needed() -> None:
    with pytest.raises(UserError, match=r"needs compress\.max_drop"):
        run({})
    with pytest.raises(UserError, match=r"max_drop=-1 must be at least 0"):
        run({}, max_drop=-1)


def test_int4__what_int8_allows_and_the_budget() -> None:
    found = run({"decoder": 40.0, "embeddings": 0.1}, int4=0.1, max_drop=1.2)
    assert found.within
    assert found.plan["decoder"] == "fp16"  # INT8 broke the budget, so INT4 is not tried
    assert all(found.plan[group] == "int8" for group in WHOLE)
    assert {found.plan[group] for group in GROUPS} == {"fp16", "int8", "int4"}
    assert not any(row["groups"]["decoder"] != "fp16" for row in found.trace if row["kept"])


def test_int4__max_bytes_takes_int8_first() -> None:
    assert "int4" not in run({}, max_bytes=1100).plan.values()
    found = run({}, int4=1.0, max_bytes=700)
    assert found.bytes <= 700
    assert found.plan["vision"] == "int4"
