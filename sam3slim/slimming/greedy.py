"""Which blocks of the vision tower can go: one after another, by what the neck's maps lose on a few pictures.

As DART (arXiv:2603.11441, section 3) does it, which judges a block by the maps without it. Here the block behind a gap
is first fitted to make up for it (its two layers that write the stream, see ``fit``), because that is what happens to
the blocks that stay: a block that others can stand in for is cheaper than one whose absence merely looks small.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sam3slim.environment import this_process
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.models import Sam3
from sam3slim.progress import progress_bar
from sam3slim.slimming.fitting.blocks import Pair, Side, Step, fit_block
from sam3slim.slimming.plan import Greedy

# The layers of a block that write the stream.
ATTENTION, MLP = Step(("attention.o_proj",), "layer_norm2"), Step(("mlp.fc2",), "")


@torch.no_grad()
def greedy_blocks(source: Sam3, depth: int, batches: Sequence[Tensor], *, protect_global: bool = True) -> Greedy:
    """Remove blocks of ``source``'s vision tower until ``depth`` are left; ``source`` is not changed.

    Memory: the stream in front of every block, and the maps, for all pictures. Time: for every block that goes, each
    candidate costs about two forward passes of the tower, and two more of a block for each gap.

    Args:
        batches: pictures [B, 3, S, S], normalised as for training, on the source's device.
        protect_global: blocks with global attention stay.

    Raises:
        UserError: no pictures, more blocks asked for than there are, or fewer than are protected.
    """
    full = source.spec.vit
    protected = set(full.global_blocks) if protect_global else set()
    if not batches:
        raise UserError("init.depth=greedy needs training images, and there are none; check data.root and data.limit")
    if depth < len(protected):
        raise UserError(
            f"model.vit.depth={depth} is less than the {len(protected)} blocks with global attention, which "
            f"init.depth=greedy keeps; use model.vit.depth={len(protected)} or more, or init.protect_global=false"
        )
    kept, removed, errors = list(range(full.depth)), [], []
    with eval_mode(source), progress_bar(show=this_process().rank == 0) as bar:
        tower = _Tower(source, batches)
        candidates = full.depth - len(protected)
        steps = full.depth - depth
        task = bar.add_task("removing blocks", total=sum(candidates - step for step in range(steps)))
        for _ in range(steps):
            found = {}
            for block in kept:
                if block not in protected:
                    found[block] = tower.error([b for b in kept if b != block])
                    bar.advance(task)
            best = min(found, key=lambda block: (found[block], block))
            kept.remove(best)
            removed.append(best)
            errors.append(found[best])
    return Greedy(tuple(kept), tuple(removed), tuple(errors), sum(map(len, batches)))


def _call(block: Any, stream: Tensor) -> Tensor:
    """The stream after a block."""
    made: Tensor = block(stream)
    return made


class _Tower:
    """The full tower's streams, and its maps without some blocks."""

    def __init__(self, source: Sam3, batches: Sequence[Tensor]) -> None:
        self.layers: Any = source.vision_encoder.backbone.layers
        self.neck: Any = source.vision_encoder.neck
        backbone: Any = source.vision_encoder.backbone
        patch = source.spec.vit.patch_size
        self.streams: list[list[Tensor]] = []  # of every batch: in front of each block, and behind the last
        for pixels in batches:
            grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
            stream = backbone.layer_norm(backbone.embeddings(pixels).unflatten(1, grid))
            streams = [stream]
            for layer in self.layers:
                streams.append(layer(streams[-1]))
            self.streams.append(streams)
        self.maps = [self._maps(streams[-1]) for streams in self.streams]

    def _maps(self, stream: Tensor) -> list[Tensor]:
        """Those the detector reads: not the coarsest."""
        picture = stream.movedim(-1, 1)
        return [level(picture) for level in self.neck.fpn_layers][:-1]

    def error(self, kept: Sequence[int]) -> float:
        """Squared error of the maps over their variance, mean over the maps; blocks at gaps fitted."""
        depth = len(self.layers)
        first = next((place for place, block in enumerate(kept) if place != block), len(kept))
        begin = first if first < len(kept) or not kept else first - 1  # a gap at the end is the last block's to fill
        start = kept[begin - 1] + 1 if begin else 0
        slim = [streams[start] for streams in self.streams]
        for place in range(begin, len(kept)):
            block = kept[place]
            before, last = kept[place - 1] + 1 if place else 0, place == len(kept) - 1
            end = depth if last else block + 1
            layer = self.layers[block]
            if before != block or end != block + 1:
                layer = self._fitted(block, slim, end)
            slim = [layer(stream) for stream in slim]
        errors = []
        for full, stream in zip(self.maps, slim, strict=True):
            errors.append([(
                (made - want).square().sum(dtype=torch.float64), (want - want.mean()).square().sum(dtype=torch.float64)
            ) for made, want in zip(self._maps(stream), full, strict=True)])  # fmt: skip
        levels = list(zip(*errors, strict=True))
        return sum(float(sum(e for e, _ in level) / sum(p for _, p in level)) for level in levels) / len(levels)

    def _fitted(self, block: int, slim: Sequence[Tensor], end: int) -> Any:
        """A copy of the block that hands on the full tower's stream in front of block ``end``, as far as it can."""
        its, mine = self.layers[block], copy.deepcopy(self.layers[block])
        pairs = [
            Pair(Side(streams[block], _call), Side(stream, _call))
            for streams, stream in zip(self.streams, slim, strict=True)
        ]
        fit_block(mine, its, [ATTENTION], pairs)
        fit_block(mine, its, [MLP], pairs, ends=[streams[end] for streams in self.streams])
        return mine
