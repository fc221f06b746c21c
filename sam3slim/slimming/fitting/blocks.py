"""A stack of blocks fitted to another one, linear layer by linear layer, in the order in which data flow.

After a cut every layer reads a stream that is not the one it was trained on. Each linear layer is therefore fitted to
what its original hands on for the same data, by least squares on the inputs it really gets (He et al.,
arXiv:1707.06168, section 3, do so for channels). A layer that writes the stream is fitted to what the stream still
lacks, so it makes up for everything that was lost before it: channels, heads, neurons, whole blocks.

Towers, geometry encoder, encoder and decoder are all fitted by ``fit_stack``; what differs is a list of ``Step``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import window_partition, window_unpartition

from sam3slim.environment import this_process
from sam3slim.progress import progress_bar
from sam3slim.slimming.fitting.neurons import best_inputs
from sam3slim.slimming.least_squares import RIDGE, LeastSquares

Seen = dict[str, tuple[Tensor, Tensor]]  # module → its input and output
Map = Callable[[Tensor], Tensor]


def same(stream: Tensor) -> Tensor:
    """The stream itself."""
    return stream


@dataclass(frozen=True)
class Step:
    """Linear layers of a block that read the same tensor and are fitted at once.

    Attributes:
        linears: their names in the block.
        after: where the stream is seen once they have written to it: the name of the norm that reads it, or ``""``
            for the block's output. None: they write no stream, and are fitted to their originals' outputs.
        reads: ``stream``, ``prompt`` or ``image``: whose rows they read.
    """

    linears: tuple[str, ...]
    after: str | None = None
    reads: str = "stream"


def attention(name: str, out: str, after: str, *, keys: str | None = None) -> list[Step]:
    """Steps of an attention: self-attention, or, with ``keys``, of the stream to the rows of that name."""
    q, k, v = (f"{name}.{p}_proj" for p in "qkv")
    first = [Step((q, k, v))] if keys is None else [Step((q,)), Step((k, v), reads=keys)]
    return [*first, Step((f"{name}.{out}",), after)]


def mlp(after: str = "") -> list[Step]:
    """Steps of a transformer block's MLP."""
    return [Step(("mlp.fc1",)), Step(("mlp.fc2",), after)]


@dataclass
class Side:
    """One model's data on its way through a stack.

    Attributes:
        stream: [..., C] in front of the next block.
        call: (a block, the stream in front of it) → the stream after it.
    """

    stream: Tensor
    call: Callable[[Any, Tensor], Tensor]

    def pass_through(self, blocks: Iterable[nn.Module]) -> None:
        """Run the stream through some blocks."""
        for block in blocks:
            self.stream = self.call(block, self.stream)


@dataclass
class Pair:
    """One batch in both models.

    Attributes:
        weights: ``Step.reads`` → weight of every row it reads, of the slim model's shape without C; None: all count
            the same.
        rows: ``Step.reads`` → the full model's rows that the slim one has; missing: all of them.
    """

    full: Side
    slim: Side
    weights: Mapping[str, Tensor | None] = field(default_factory=dict)
    rows: Mapping[str, Map] = field(default_factory=dict)

    def own(self, reads: str, rows: Tensor) -> Tensor:
        """Those of the full model's rows that the slim one has."""
        return self.rows.get(reads, same)(rows)


@dataclass(frozen=True)
class Layout:
    """How a stack's blocks are made, and what the slim one kept of them.

    Attributes:
        steps: of every block, in order; the last two are its MLP.
        blocks: the full stack's block of each slim one.
        kept: number of a slim block → linear layer → outputs of its original that it keeps.
        narrow: from the full stream's channels to the slim one's.
        reader: the MLP's first layer of a full block, as weight and bias, as the slim stream is to be read.
        absorb: a block also stands in for those that were removed behind it. The last one always does.
        merge: and it may take neurons of theirs.
        ridge: how strongly layers are held where they were, see ``LeastSquares``.
    """

    steps: Sequence[Step]
    blocks: Sequence[int]
    kept: Callable[[int], Mapping[str, Tensor]] = lambda number: {}
    narrow: Map = same
    reader: Callable[[Any], tuple[Tensor, Tensor]] = lambda block: (block.mlp.fc1.weight, block.mlp.fc1.bias)
    absorb: bool = True
    merge: bool = True
    ridge: float = RIDGE


def fit_stack(
    full: Iterable[nn.Module], slim: Iterable[nn.Module], layout: Layout, pairs: Sequence[Pair], name: str
) -> None:
    """Fit every block of a stack in order, in place; afterwards both streams have passed it.

    Memory: both streams of all batches, and one batch's activations in one block.
    """
    full, slim, blocks = list(full), list(slim), layout.blocks
    last_norm = layout.steps[-1].after
    done = 0
    with progress_bar(show=this_process().rank == 0) as bar:
        for i, block in enumerate(bar.track(blocks, description=f"fitting the {name}")):
            for pair in pairs:
                pair.full.pass_through(full[done:block])
            last = i + 1 == len(blocks)
            done = len(full) if last else blocks[i + 1] if layout.absorb else block + 1
            fronts = [pair.full.stream for pair in pairs]
            ends = []
            for pair in pairs:
                pair.full.pass_through(full[block : done - 1])
                with capture(_named(full[done - 1], last_norm)) as seen:
                    pair.full.pass_through(full[done - 1 : done])
                whole = seen[last_norm][0] if last_norm else pair.full.stream
                ends.append(layout.narrow(pair.own("stream", whole)))
            backs = [pair.full.stream for pair in pairs]
            for pair, front in zip(pairs, fronts, strict=True):
                pair.full.stream = front
            group = full[block:done] if layout.merge else full[block : block + 1]
            _fit_with_neurons(slim[i], group, layout, pairs, layout.kept(i), ends)
            for pair, back in zip(pairs, backs, strict=True):
                pair.full.stream = back
                pair.slim.pass_through(slim[i : i + 1])


def _fit_with_neurons(
    mine: Any,
    group: Sequence[Any],
    layout: Layout,
    pairs: Sequence[Pair],
    kept: Mapping[str, Tensor],
    ends: Sequence[Tensor],
) -> None:
    """Fit a block to the first of ``group``; its MLP gets the neurons that serve best, of all blocks of the group."""
    *before, hidden, out = layout.steps
    neurons = mine.mlp.fc1.weight.shape[0]
    fit = partial(fit_block, mine, group[0], pairs=pairs, kept=kept, ridge=layout.ridge)
    fit(before, narrow=layout.narrow)
    if len(group) == 1 and neurons == group[0].mlp.fc1.weight.shape[0]:
        fit([hidden])
    else:
        readers = [layout.reader(block) for block in group]
        both, biases = (torch.cat(values) for values in zip(*readers, strict=True))
        hiddens = LeastSquares(both, biases, ridge=layout.ridge)
        for pair in pairs:
            with capture({"fc1": mine.mlp.fc1}, stop=True) as seen:
                pair.slim.call(mine, pair.slim.stream)
            originals, stream = [], pair.full.stream
            for block in group:
                with capture({"fc1": block.mlp.fc1}, stop=block is group[-1]) as original:
                    stream = pair.full.call(block, stream)
                originals.append(pair.own("stream", original["fc1"][1]))
            hiddens.add(seen["fc1"][0], torch.cat(originals, dim=-1), pair.weights.get("stream"))
        weight, bias = (value.to(mine.mlp.fc1.weight) for value in hiddens.solve())
        chosen = best_inputs(_activations(mine, weight, bias, out, pairs, ends), neurons)
        set_linear(mine.mlp.fc1, weight[chosen], bias[chosen])
        columns = torch.cat([layout.narrow(block.mlp.fc2.weight.T) for block in group])
        mine.mlp.fc2.weight.copy_(columns[chosen].T)
    fit([out], ends=ends)


def _activations(
    mine: Any, weight: Tensor, bias: Tensor, out: Step, pairs: Sequence[Pair], ends: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Of every batch: what all candidate neurons hand on, what the MLP should make of it, and the rows' weights."""
    for pair, end in zip(pairs, ends, strict=True):
        watched = {"fc1": mine.mlp.fc1, "fc2": mine.mlp.fc2, **_named(mine, out.after)}
        with capture(watched, stop=bool(out.after)) as seen:
            stream = pair.slim.call(mine, pair.slim.stream)
        have = seen[out.after][0] if out.after else stream
        hidden = mine.mlp.activation_fn(seen["fc1"][0] @ weight.T + bias)
        yield hidden, end - have + seen["fc2"][1], pair.weights.get("stream")


def fit_block(
    mine: nn.Module,
    its: nn.Module,
    steps: Sequence[Step],
    pairs: Sequence[Pair],
    *,
    kept: Mapping[str, Tensor] | None = None,
    narrow: Map = same,
    ends: Sequence[Tensor] | None = None,
    ridge: float = RIDGE,
) -> None:
    """Fit ``mine`` to ``its`` on the streams in front of them; in place. Memory: one batch's activations in one block.

    Args:
        kept: linear layer → outputs of its original that it keeps.
        narrow: from the full stream's channels to the slim one's.
        ends: what the stream should be after each step that writes it, in the slim model's channels and rows; None:
            what it is in ``its``.
        ridge: see ``LeastSquares``.
    """
    kept = kept or {}
    for step in steps:
        layers: dict[str, Any] = {name: mine.get_submodule(name) for name in step.linears}
        fits = {name: LeastSquares(layer.weight, layer.bias, ridge=ridge) for name, layer in layers.items()}
        for number, pair in enumerate(pairs):
            with capture({**layers, **_named(mine, step.after)}, stop=step.after != "") as seen:
                end = pair.slim.call(mine, pair.slim.stream)
            original: Seen = {}
            if ends is None:
                watched = _named(its, step.after) if step.after is not None else _named(its, *step.linears)
                with capture(watched, stop=step.after != "") as original:
                    its_end = pair.full.call(its, pair.full.stream)
            weights = windowed(pair.weights.get(step.reads), mine, seen[step.linears[0]][0])
            if step.after is None:
                for name, fit in fits.items():
                    wanted = pair.own(step.reads, original[name][1])
                    fit.add(seen[name][0], wanted[..., kept[name]] if name in kept else wanted, weights)
                continue
            have = seen[step.after][0] if step.after else end
            want = ends[number] if ends is not None else None
            if want is None:
                want = narrow(pair.own("stream", original[step.after][0] if step.after else its_end))
            for name, fit in fits.items():
                read, made = (spatial(value, mine, have) for value in seen[name])
                fit.add(read, made + want - have, pair.weights.get(step.reads))
        for name, fit in fits.items():
            set_linear(layers[name], *fit.solve())


def _named(block: nn.Module, *names: str | None) -> dict[str, nn.Module]:
    """Some modules of a block; no name is none."""
    return {name: block.get_submodule(name) for name in names if name}


class _Seen(Exception):
    """Everything that was asked for has been seen: the rest need not run."""


@contextmanager
def capture(modules: Mapping[str, nn.Module], stop: bool = False) -> Iterator[Seen]:
    """What goes into and comes out of some modules while the body runs; with ``stop`` it ends when all have run."""
    seen: Seen = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (args[0], output)
            if stop and len(seen) == len(modules):
                raise _Seen

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    try:
        with suppress(_Seen):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def arguments(module: nn.Module, run: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is first called with while ``run()`` runs, which ends there."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _Seen

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with suppress(_Seen):
            run()
    finally:
        handle.remove()
    return seen[0]


def front(first: nn.Module, run: Callable[[], object]) -> Side:
    """The stream in front of a stack's first block when ``run()`` reaches it, and how its blocks are called there."""
    args, kwargs = arguments(first, run)
    if args:
        return Side(args[0], lambda block, stream: block(stream, *args[1:], **kwargs))
    name = next(iter(kwargs))
    return Side(kwargs[name], lambda block, stream: block(**{**kwargs, name: stream}))


def spatial(rows: Tensor, block: nn.Module, like: Tensor) -> Tensor:
    """A windowed block's [windows, size, size, C] as its stream's [B, h, w, C], padding removed; others as they are."""
    size = int(getattr(block, "window_size", 0))
    if not size or rows.shape[:-1] == like.shape[:-1]:
        return rows
    height, width = like.shape[1:3]
    padded = (-(-height // size) * size, -(-width // size) * size)
    found: Tensor = window_unpartition(rows, size, padded, (height, width))
    return found


def windowed(weights: Tensor | None, block: nn.Module, read: Tensor) -> Tensor | None:
    """Weights [B, h, w] in the order of the rows a layer reads, which a windowed block's attention has in windows."""
    if weights is None or weights.shape == read.shape[:-1]:
        return weights
    found: Tensor = window_partition(weights[..., None], int(getattr(block, "window_size", 0)))[0][..., 0]
    return found


def set_linear(linear: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Give a linear layer these numbers."""
    linear.get_parameter("weight").copy_(weight)
    linear.get_parameter("bias").copy_(bias)
