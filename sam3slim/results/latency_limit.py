"""Whether a record's latency keeps a limit: a latency is true for the machine it was measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sam3slim.environment import describe_device
from sam3slim.results.collect import machine
from sam3slim.results.record import RunRecord

Kind = Literal["cpu", "cuda"]
UNKNOWN = 100.0  # farther from any limit than what was measured here


@dataclass(frozen=True)
class LatencyLimit:
    """``most`` milliseconds on a device of the kind ``on`` (None: any), of this machine or of ``any_machine``."""

    most: float
    on: Kind | None = None
    any_machine: bool = False

    def broken_by(self, record: RunRecord) -> dict[str, float]:
        """Why the record does not keep it → how far it is from that, as a share; {}: it does."""
        taken = record.latency_ms.p50
        if taken is None:
            return {"no latency recorded": UNKNOWN}
        if self.on is not None and kind_of(record) != self.on:
            return {f"its latency is of {record.device}, not of a {self.on} device": UNKNOWN}
        if not self.any_machine and not is_here(record):
            here = this_machine(kind_of(record), record.latency_ms.threads)
            return {
                f"its latency was measured on another machine ({record.device}; this is {here}): measure it here with "
                "evaluate.py, or add --any-machine": UNKNOWN
            }
        return (
            {f"{taken:.3g} ms > {self.most:g} ms ({machine(record)})": taken / self.most - 1}
            if taken > self.most
            else {}
        )


def kind_of(record: RunRecord) -> Kind:
    """Of the device that a record names: a CPU is told with its threads."""
    return "cpu" if "threads" in str(record.device) else "cuda"


def is_here(record: RunRecord) -> bool:
    """Whether a record's device is this machine's, with as many threads."""
    return record.device == this_machine(kind_of(record), record.latency_ms.threads)


def this_machine(kind: Kind, threads: int | None = None) -> str:
    """This machine's device as a record with that many threads would name it."""
    import torch

    if kind == "cuda" and not torch.cuda.is_available():
        return "a machine without a GPU"
    return describe_device(kind, threads)
