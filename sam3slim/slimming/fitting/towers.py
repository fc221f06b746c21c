"""Fitting a cut tower to the full one: first the directions of its narrower stream, then block after block.

Where a tower becomes narrower, its stream keeps principal directions in the place of channels, see ``principal``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.models import Sam3
from sam3slim.slimming.axes import STACKS
from sam3slim.slimming.check import unit_size
from sam3slim.slimming.fitting.blocks import Layout, Pair, attention, capture, fit_stack, mlp, set_linear
from sam3slim.slimming.plan import Plan
from sam3slim.slimming.principal import NormMoments, principal_map

FINAL_WEIGHT = 2.0  # of the tower's output among the norms that read the stream: everything behind it reads it


class Tower:
    """The blocks of a tower, full and slim, and which units of the full one the slim one kept.

    Args:
        stack: ``vit`` or ``text``.

    Attributes:
        map: [narrow, wide] float64 from the wide stream to the narrow one: at first the channels that were chosen.
        turned: whether it is principal directions.
    """

    def __init__(self, source: Sam3, target: Sam3, plan: Plan, stack: str) -> None:
        prefix = STACKS[stack].removesuffix(".")
        self.full: Any = source.get_submodule(prefix)
        self.slim: Any = target.get_submodule(prefix)
        self.stack, self.plan, self.blocks = stack, plan, plan[f"{stack}.blocks"].indices
        self.attention, self.out = ("attention", "o_proj") if stack == "vit" else ("self_attn", "out_proj")
        self.head_size = unit_size(source.spec, f"{stack}[0].heads")
        self.device = next(target.parameters()).device
        self.channels = plan[f"{stack}.channels"]
        whole = torch.eye(self.channels.total, dtype=torch.float64, device=self.device)
        self.map, self.turned = whole[self.kept(f"{stack}.channels")], False

    def kept(self, axis: str, unit: int = 1) -> Tensor:
        """Entries of the full tower's tensors that the slim ones keep."""
        return self.plan[axis].entries(unit).to(self.device)

    def heads(self, block: int) -> Tensor:
        """Entries of the full q, k, v that the slim block keeps."""
        return self.kept(f"{self.stack}[{block}].heads", self.head_size)

    def neurons(self, block: int) -> Tensor:
        """Hidden units of the full MLP that the slim block keeps."""
        return self.kept(f"{self.stack}[{block}].neurons")

    def narrow(self, stream: Tensor) -> Tensor:
        """[..., wide] → [..., narrow]."""
        return stream @ self.map.T.to(stream)

    @property
    def longer(self) -> float:
        """A norm divides by the root mean square of fewer entries: what it hands on is longer by this, at most."""
        return float((self.map.shape[1] / self.map.shape[0]) ** 0.5)

    def turn(
        self, run: Callable[[], Iterable[tuple[Tensor, Tensor | None]]], more: Tensor | None = None
    ) -> float | None:
        """Replace channels by principal directions in every block; the share of variance that is kept.

        Args:
            run: passes all data through the full tower and gives its final streams [..., wide], and which rows
                [...] count (bool; None: all).
            more: rows [N, wide] whose directions count as much as one norm's.

        Returns:
            None where the tower is as wide as it was, and nothing is done.
        """
        if self.channels.everything:
            return None
        moments = NormMoments(self.map.shape[1], self.device)
        names = [f"{i}.layer_norm{n}" for i in self.blocks for n in (1, 2)]
        norms = {name: self.full.get_submodule(name) for name in names}
        results = iter(run())
        while True:
            with capture(norms) as seen:
                result = next(results, None)
            if result is None:
                break
            final, counts = result
            for stream, weight in [(final, FINAL_WEIGHT), *((stream, 1.0) for stream, _ in seen.values())]:
                moments.add(stream if counts is None else stream[counts], weight)
        if more is not None:
            extra = NormMoments(self.map.shape[1], self.device)
            extra.add(more)
            moments.total += extra.total * (moments.total.trace() / extra.total.trace() / (2 * len(self.blocks) + 1))
        self.map, share = principal_map(moments.total, len(self.map))
        self.turned = True
        for i, block in enumerate(self.blocks):
            self._turn_block(i, self.slim.get_submodule(str(i)), self.full.get_submodule(str(block)))
        return share

    def _turn_block(self, i: int, mine: Any, its: Any) -> None:
        heads, neurons = self.heads(i), self.neurons(i)
        for name in ("q_proj", "k_proj", "v_proj"):
            path = f"{self.attention}.{name}"
            self.set_reader(mine.get_submodule(path), its.get_submodule(path), its.layer_norm1, heads)
        self.set_reader(mine.mlp.fc1, its.mlp.fc1, its.layer_norm2, neurons)
        for path, columns in ((f"{self.attention}.{self.out}", heads), ("mlp.fc2", neurons)):
            linear = its.get_submodule(path)
            set_linear(mine.get_submodule(path), self.map @ linear.weight.double()[:, columns],
                       self.map @ linear.bias.double())  # fmt: skip
        for norm in (mine.layer_norm1, mine.layer_norm2):
            plain(norm)

    def reader(self, its: Any, norm: nn.LayerNorm) -> tuple[Tensor, Tensor | None]:
        """``its`` weight and bias, which read the wide stream behind ``norm``, for the narrow one; float64.

        A turned stream's norms are plain: the original's scale and shift go into what reads it.
        """
        weight = its.weight.double()
        bias = None if its.bias is None else its.bias.double()
        if not self.turned:
            return weight @ self.map.T, bias
        shift = weight @ norm.bias.double()
        return (weight * norm.weight.double()) @ self.map.T * self.longer, None if bias is None else bias + shift

    def set_reader(self, mine: Any, its: Any, norm: nn.LayerNorm, rows: Tensor | slice = slice(None)) -> None:
        """Let ``mine`` read the narrow stream as ``its`` reads the wide one; it keeps some of its outputs."""
        weight, bias = self.reader(its, norm)
        mine.weight.copy_(weight[rows])
        if bias is not None:
            mine.bias.copy_(bias[rows])

    def fit(self, pairs: Sequence[Pair], name: str) -> None:
        """Every linear layer of every block, in order."""

        def kept(i: int) -> dict[str, Tensor]:
            heads = dict.fromkeys((f"{self.attention}.{p}_proj" for p in "qkv"), self.heads(i))
            return {**heads, "mlp.fc1": self.neurons(i)}

        def reader(block: Any) -> tuple[Tensor, Tensor]:
            weight, bias = self.reader(block.mlp.fc1, block.layer_norm2)
            assert bias is not None
            return weight, bias

        steps = [*attention(self.attention, self.out, "layer_norm2"), *mlp()]
        layout = Layout(steps, self.blocks, kept, self.narrow, reader)
        fit_stack(self.full.children(), self.slim.children(), layout, pairs, name)


def plain(norm: nn.LayerNorm) -> None:
    """Scale 1 and shift 0."""
    norm.weight.fill_(1)
    norm.bias.zero_()
