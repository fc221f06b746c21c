"""What a training step holds on each card, from a traced step: standing memory, saved tensors, peak, what fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sam3slim.errors import UserError
from sam3slim.models import build_model
from sam3slim.planning.tracing import GRADIENTS, OPTIMISER, SAVED, STANDING, WEIGHTS, Trace
from sam3slim.runs.specs import TrainSpec
from sam3slim.training.sharded import STACKS

GIB = 2**30
CARDS = (16.0, 24.0, 40.0, 80.0)
# Of a card: CUDA's context, the libraries' workspaces, and a share for gaps between the allocator's blocks.
CONTEXT, GAPS = 1 * GIB, 0.03
BUCKETS, GATHERED = "DDP buckets", "gathered layers"
ASSUMED_DEVICES = 8


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one card.

    Attributes:
        standing: held all the time: weights, gradients, optimiser state, teacher, batch, copies of several processes.
        saved: alive when the backward pass starts, by part of the model; what it needs.
        temporary: what the peak is above the two: gradients of activations, layers computed a second time.
        peak: the most that is alive at once.
        at_peak: the peak by what it is for; ``during``: what is being computed then.
        processes: those that share.
    """

    standing: dict[str, int]
    saved: dict[str, int]
    temporary: int
    peak: int
    at_peak: dict[str, int]
    during: str
    processes: int

    @property
    def needed(self) -> int:
        """The peak, with what a card needs beside tensors."""
        return math.ceil(self.peak * (1 + GAPS)) + CONTEXT

    def fits(self, cards: Sequence[float] = CARDS) -> dict[float, bool]:
        """By size of card in GB, which its maker counts as GiB."""
        return {card: self.needed <= card * GIB for card in cards}

    def to_dict(self, cards: Sequence[float] = CARDS) -> dict[str, Any]:
        """Plain numbers, bytes."""
        return {**vars(self), "needed": self.needed, "fits": {f"{card:g}": ok for card, ok in self.fits(cards).items()}}


def make_plan(spec: TrainSpec, found: Trace) -> MemoryPlan:
    """The plan of one process of those that ``trainer`` starts."""
    standing = {name: found.standing.get(name, 0) for name in STANDING}
    saved = {name: found.before_backward.get(name, 0) for name in SAVED}
    kind, processes = strategy(spec.trainer)
    at_peak, extra = dict(found.at_peak), 0
    if kind == "ddp" and processes > 1:
        extra = at_peak[BUCKETS] = standing[BUCKETS] = _bucket_bytes(spec.trainer, standing)
    elif kind == "fsdp" and processes > 1:
        whole, gathered = sum(at_peak.values()), _gathered_bytes(spec)
        for sizes in (standing, at_peak):
            for name in (WEIGHTS, GRADIENTS, OPTIMISER):
                sizes[name] = math.ceil(sizes.get(name, 0) / processes)
        at_peak[GATHERED] = standing[GATHERED] = gathered
        extra = sum(at_peak.values()) - whole
    peak = found.peak + extra
    # Gradients of the step before are gone when the peak comes, or are part of it.
    temporary = peak - sum(standing.values()) - sum(saved.values())
    return MemoryPlan(standing, saved, temporary, peak, at_peak, found.during, processes)


def strategy(trainer: Mapping[str, Any]) -> tuple[str, int]:
    """("ddp" | "fsdp" | "one", processes); ``devices=-1``, all of a node, counts as 8."""
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list):
        devices = len(devices)
    devices = ASSUMED_DEVICES if str(devices) in ("-1", "auto") else int(devices)
    chosen = trainer.get("strategy", "auto")
    name = str(chosen["_target_"] if isinstance(chosen, dict) else chosen).lower()
    if devices * nodes == 1:
        return "one", 1
    return ("fsdp" if "shard" in name or "fsdp" in name else "ddp"), devices * nodes


def _bucket_bytes(trainer: Mapping[str, Any], standing: Mapping[str, int]) -> int:
    """DDP sums gradients in buckets: a second copy, unless the gradients are views into them."""
    chosen = trainer.get("strategy")
    views = isinstance(chosen, dict) and bool(chosen.get("gradient_as_bucket_view"))
    return 0 if views else standing[GRADIENTS]


def _gathered_bytes(spec: TrainSpec) -> int:
    """FSDP2 holds weights and gradients of two layers of the stacks, and of all that is in no stack, as a whole."""
    model = build_model(spec.model, device="meta")
    layers: list[int] = []
    for name in STACKS:
        try:
            stack = model.get_submodule(name)
        except AttributeError:
            continue  # a prompt bank has no text tower
        layers += [_bytes(layer) for layer in stack.children()]
    rest = _bytes(model) - sum(layers)
    return 2 * (rest + 2 * max(layers, default=0))


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def parse_cards(text: str) -> tuple[float, ...]:
    """``"24,48"`` → (24.0, 48.0), GB.

    Raises:
        UserError: not numbers above 0.
    """
    try:
        cards = tuple(float(part) for part in text.split(","))
    except ValueError:
        cards = ()
    if not cards or not all(0 < card < math.inf for card in cards):
        raise UserError(f"--cards {text}: unknown card; give sizes in GB above 0, e.g. --cards 16,24,40,80")
    return cards
