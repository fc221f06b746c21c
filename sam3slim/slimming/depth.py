"""Which blocks of every stack stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.slimming.axes import STACKS
from sam3slim.slimming.plan import Kept
from sam3slim.slimming.select import Cost, align, evenly
from sam3slim.specs import ModelSpec, VitSpec

Depth = Literal["even", "first", "importance", "greedy"]
DEPTHS = ("even", "first", "importance", "greedy")


def depth_of(spec: ModelSpec, stack: str) -> int:
    """Number of blocks of a stack."""
    return {
        "vit": spec.vit.depth,
        "text": spec.text.layers,
        "geometry": spec.geometry.num_layers,
        "encoder": spec.encoder.num_layers,
        "decoder": spec.decoder.num_layers,
    }[stack]


def choose_blocks(
    source: ModelSpec,
    target: ModelSpec,
    depth: Depth,
    scores_of: Callable[[str], tuple[Tensor, str]],
    vit_blocks: Sequence[int] | None = None,
) -> dict[str, Kept]:
    """Stack → the source block of each target block; blocks keep their order, and kind goes with kind.

    Args:
        depth: ``even`` (the last block always) | ``first`` (the first of each kind) | ``importance`` (the
            highest sum of scores) | ``greedy`` (the vision tower's are given, the other stacks' are even).
        scores_of: stack → (scores [depth], >= 0, and the name of what they are); asked only for ``importance``
            and for stacks that lose blocks.
        vit_blocks: for ``greedy``, see ``greedy_blocks``.

    Raises:
        UserError: the target's windowed and global blocks cannot be taken in order from the source's.
    """
    kept = {}
    for stack in STACKS:
        have, want = depth_of(source, stack), depth_of(target, stack)
        if vit_blocks is not None and stack == "vit":
            kept[stack] = Kept(f"{stack}.blocks", tuple(vit_blocks), have, None, "greedy")
            continue
        rule: str = "even" if depth == "greedy" else depth
        scores: Tensor | None = None
        if depth == "importance" and want < have:
            scores, rule = scores_of(stack)
        chosen = align(_kinds(source, stack), _kinds(target, stack), _cost(rule, have, want, scores))
        if chosen is None:
            raise UserError(_impossible(source.vit, target.vit))
        share = None if scores is None else float(scores[list(chosen)].sum() / scores.sum().clamp_min(1e-300))
        kept[stack] = Kept(f"{stack}.blocks", chosen, have, share, f"{rule}, kind with kind")
    return kept


def _cost(depth: str, have: int, want: int, scores: Tensor | None) -> Cost:
    if depth == "first":
        return lambda i, s: s
    if scores is None:
        return evenly(have, want)
    # Of the whole, so that small scores are not below the tolerance of equal sums.
    lost = (-scores / scores.sum().clamp_min(1e-300)).tolist()
    return lambda i, s: float(lost[s])


def _kinds(spec: ModelSpec, stack: str) -> list[str]:
    """Windowed and global blocks of the ViT are different kinds (they were trained on different context)."""
    if stack == "vit":
        return ["global" if i in spec.vit.global_blocks else "windowed" for i in range(spec.vit.depth)]
    return ["layer"] * depth_of(spec, stack)


def _impossible(source: VitSpec, target: VitSpec) -> str:
    return (
        f"model.vit.global_attention_blocks={list(target.global_blocks)} of {target.depth} blocks cannot be "
        f"taken in order from the full model's {list(source.global_blocks)} of {source.depth} (windowed blocks "
        f"stay windowed, global ones global); change model.vit.num_global_blocks or model.vit.depth"
    )
