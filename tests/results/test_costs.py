"""Bytes and latency as costs."""

from __future__ import annotations

import pytest

from sam3slim.results.costs import COSTS, by_axis, measures_latency
from sam3slim.results.record import Artifact, Latency, RunRecord
from sam3slim.strict import SpecError


@pytest.mark.parametrize(
    ("cost", "latency", "wanted"),
    [(None, None, False), (None, False, False), ("bytes", None, False), ("bytes", True, True), (None, True, True),
     ("latency", None, True), ("latency", True, True)],
)  # fmt: skip
def test_measures_latency__where_something_needs_it(cost: str | None, latency: bool | None, wanted: bool) -> None:
    assert measures_latency(cost, latency) is wanted
    if wanted:
        key = "latency=true" if latency else "cost=latency"
        with pytest.raises(SpecError, match=f"{key} is measured when .*set eval_at_end=true"):
            measures_latency(cost, latency, eval_at_end=False)


def test_measures_latency__refuses_what_cannot_be() -> None:
    with pytest.raises(SpecError, match="cost=latency minimises what latency=false does not measure; set latency=null"):
        measures_latency("latency", False)
    with pytest.raises(SpecError, match="cost=flops is not known; choose from bytes, latency"):
        measures_latency("flops", None)


def test_costs__latencies_of_different_machines_share_no_axis() -> None:
    records = [
        RunRecord("train", "c", device=device, artifact=Artifact(bytes=9), latency_ms=Latency(p50, threads=1))
        for device, p50 in (("a, 1 threads", 5.0), ("b, 1 threads", 3.0), ("a, 1 threads", 4.0))
    ]
    assert by_axis(records, COSTS["latency"]) == [[0, 2], [1]]
    assert by_axis(records, COSTS["bytes"]) == [[0, 1, 2]]
    assert [COSTS["latency"].of(record) for record in records] == [5.0, 3.0, 4.0]
