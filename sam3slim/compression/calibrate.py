"""Compensated rounding of a whole model, block by block, each on the inputs that the rounded ones before it give.

A block (a layer of a tower, of the encoder, …; a Linear elsewhere) is run to collect the moments of what its first
Linears read, those are rounded, it is run again for the next ones, and in the end to note what it now hands on. Blocks
that are done are not run any more: they hand on what was noted. So every block runs a few times per batch (a layer of
a tower five times), and memory holds, beside the model, the moments of Linears that read the same and the outputs of
the last finished block for all batches (of the decoder, of each).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.compression.gptq import Compensated, Moments, Rounder, compensated
from sam3slim.errors import UserError
from sam3slim.progress import progress_bar

LAYER = re.compile(r"^((?:.*\.)?layers)\.\d+(?=\.)")
# Stacks whose layers' outputs are read by others than the next layer.
READ_BY_OTHERS = ("detr_decoder.layers",)
Pass = Callable[[], object]  # runs one batch through the model, or through the part in question


@dataclass
class Compensation:
    """What came of it.

    Attributes:
        layers: Linear → its rounded weight and bias.
        not_reached: Linears that no batch ran through.
    """

    layers: dict[str, Compensated] = field(default_factory=dict)
    not_reached: list[str] = field(default_factory=list)

    def errors(self) -> tuple[float, float]:
        """Mean over the layers of the output error, relative: of plain rounding, and of this."""
        count = max(len(self.layers), 1)
        plain = sum(layer.plain_error**0.5 for layer in self.layers.values())
        return plain / count, sum(layer.error**0.5 for layer in self.layers.values()) / count


@torch.no_grad()
def calibrate(
    model: nn.Module,
    rounders: Mapping[str, Rounder],
    passes: Callable[[str], Sequence[Pass]],
    real: Callable[[str, Tensor], Tensor] = lambda name, inputs: inputs,
) -> Compensation:
    """Round the Linears of ``model`` that ``rounders`` name; the model itself is left as it was.

    Args:
        model: in eval mode; it calls the modules that hold the Linears, in the same order for every batch.
        passes: name of a Linear → what runs it, one per batch; those of a block are called at least twice.
        real: (name of a Linear, what it reads) → the rows that count, without padding.

    Raises:
        UserError: activations that are not finite.
    """
    found = Compensation()
    blocks = _in_order(model, rounders, passes)
    reached = {name for block in blocks.values() for name in block.linears}
    found.not_reached = [name for name in rounders if name not in reached]
    with ExitStack() as stack, progress_bar() as progress:
        task = progress.add_task("rounding block by block", total=len(blocks))
        noted: dict[str, _Noted] = {}
        for block, held in blocks.items():
            run = partial(_run, model, block, held.calls, passes(held.linears[0]), noted)
            with ExitStack() as rounded:
                for names in held.steps:
                    moments = _collect(model, names, run, real)
                    for name in names:
                        made = _rounded(model, name, rounders[name], moments[name])
                        rounded.enter_context(_with_weight(model.get_submodule(name), made))
                        found.layers[name] = made
                outputs = run()
            stack_of = _stack(block)
            replays = [b for b in noted if stack_of is not None and _stack(b) == stack_of]
            for other in replays if stack_of not in READ_BY_OTHERS else ():
                noted[other].outputs = outputs  # of which only the last layer's are read
            noted[block] = stack.enter_context(_replayed(model.get_submodule(block), outputs))
            progress.advance(task)
    return found


def _stack(block: str) -> str | None:
    """The list of layers that a block belongs to; None for a Linear of its own."""
    match = LAYER.match(f"{block}.")
    return match[1] if match else None


@dataclass(frozen=True)
class _Block:
    """Its Linears in the order in which they run, together where they read the same; its calls per batch."""

    steps: list[list[str]]
    calls: int

    @property
    def linears(self) -> list[str]:
        return [name for names in self.steps for name in names]


def _in_order(
    model: nn.Module, rounders: Mapping[str, Rounder], passes: Callable[[str], Sequence[Pass]]
) -> dict[str, _Block]:
    """Blocks in the order in which they first run; Linears that do not run are left out."""
    block_of = {name: match[0] if (match := LAYER.match(f"{name}.")) else name for name in rounders}
    first = {name: runs[0] for name in rounders if (runs := passes(name))}
    order: list[str] = []
    steps: dict[str, list[list[str]]] = {block: [] for block in block_of.values()}
    ran: set[str] = set()
    last: list[Tensor] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            order.append(name)

        return hook

    def read(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name in ran or not args[0].numel():  # no boxes
                return
            ran.add(name)
            mine = steps[block_of[name]]
            if mine and last and last[0] is args[0]:
                mine[-1].append(name)
            else:
                mine.append([name])
            last[:] = args[:1]

        return hook

    for run in dict.fromkeys(first.values()):
        mine = [name for name in rounders if first.get(name) is run]
        with ExitStack() as stack:
            for name in {block_of[name] for name in mine}:
                stack.callback(model.get_submodule(name).register_forward_pre_hook(note(name)).remove)
            for name in mine:
                stack.callback(model.get_submodule(name).register_forward_pre_hook(read(name)).remove)
            run()
    return {block: _Block(steps[block], order.count(block)) for block in dict.fromkeys(order) if steps[block]}


class _Stop(Exception):
    """Raised behind a block: what follows is of no account."""


@dataclass
class _Noted:
    """What a finished block hands on: for each batch, for each call."""

    outputs: list[list[Any]]
    batch: int = 0
    call: int = 0

    def start(self, batch: int) -> None:
        self.batch, self.call = batch, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.outputs[self.batch][self.call]
        self.call += 1
        return output


@contextmanager
def _replayed(module: nn.Module, outputs: list[list[Any]]) -> Iterator[_Noted]:
    noted = _Noted(outputs)
    module.forward = noted  # type: ignore[method-assign, assignment]
    try:
        yield noted
    finally:
        module.__dict__.pop("forward", None)


def _run(
    model: nn.Module, block: str, calls: int, runs: Sequence[Pass], noted: Mapping[str, _Noted]
) -> list[list[Any]]:
    """Run all batches up to the end of ``block``; its outputs for each batch and call."""
    module = model.get_submodule(block)
    outputs: list[list[Any]] = []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        outputs[-1].append(output)
        if len(outputs[-1]) == calls:
            raise _Stop

    handle = module.register_forward_hook(after)
    try:
        for batch, run in enumerate(runs):
            outputs.append([])
            for other in noted.values():
                other.start(batch)
            with suppress(_Stop):
                run()
    finally:
        handle.remove()
    return outputs


def _collect(
    model: nn.Module, names: Sequence[str], run: Callable[[], object], real: Callable[[str, Tensor], Tensor]
) -> dict[str, Moments]:
    moments: dict[str, Moments] = {}

    def see(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0]
            if name not in moments:
                moments[name] = Moments(inputs.shape[-1], inputs.device)
            moments[name].add(real(name, inputs))

        return hook

    with ExitStack() as stack:
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(see(name)).remove)
        run()
    for name, moment in moments.items():
        if not moment.second(centred=False).isfinite().all():
            raise UserError(
                f"calibration: what {name} reads is not finite on these images; check the checkpoint and the images, "
                "or use compensate=none"
            )
    return moments


def _rounded(model: nn.Module, name: str, rounder: Rounder, moments: Moments) -> Compensated:
    layer: Any = model.get_submodule(name)
    return compensated(layer.weight, layer.bias, moments, rounder)


@contextmanager
def _with_weight(layer: Any, made: Compensated) -> Iterator[None]:
    """``layer`` with its rounded weight and its bias as it is stored."""
    weight, bias = layer.weight.data, None if layer.bias is None else layer.bias.data
    try:
        layer.weight.data = made.weight
        if made.bias is not None:
            layer.bias.data = made.bias.half().float()
        yield
    finally:
        layer.weight.data = weight
        if bias is not None:
            layer.bias.data = bias
