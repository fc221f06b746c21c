"""Cutting a slim model out of a full one.

Layer norms are not rescaled: after channels are removed their mean and variance are taken over the
channels that remain, which retraining absorbs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.models.build import empty_model
from sam3slim.slimming.axes import axes_of, source_key
from sam3slim.slimming.check import check_slimmer, text_neurons, unit_size
from sam3slim.slimming.collect import DATA_IMPORTANCES, DataScores
from sam3slim.slimming.depth import DEPTHS, Depth, choose_blocks
from sam3slim.slimming.plan import Greedy, Kept, Plan
from sam3slim.slimming.ranking import Ranking
from sam3slim.slimming.roi import ROI_WEIGHT, merge_bins
from sam3slim.slimming.select import Importance, choose, spread
from sam3slim.slimming.verify import check_plan
from sam3slim.specs import ModelSpec
from sam3slim.text.vocabulary import kept_tokens

IMPORTANCES = ("magnitude", *DATA_IMPORTANCES, "uniform", "random")


def inherit(
    source: Sam3,
    target_spec: ModelSpec,
    *,
    importance: Importance = "magnitude",
    depth: Depth = "even",
    seed: int = 0,
    data: DataScores | None = None,
    greedy: Greedy | None = None,
) -> tuple[Sam3, Plan]:
    """Build ``target_spec`` from ``source``'s own weights.

    Blocks are kept in order, windowed with windowed and global with global, as ``depth`` says; channels,
    whole heads and MLP neurons by ``importance``; queries evenly; the tokens of the target's vocabulary and the first
    ``context_length`` text positions; the bins of a box are merged. Keeping everything reproduces ``source`` bit for
    bit.

    Args:
        source: the full model, float weights on any device; it is not changed.
        importance: ``magnitude`` | ``activation`` | ``taylor`` | ``uniform`` (evenly spaced) | ``random`` (the
            control, drawn by ``seed``).
        depth: ``even`` | ``first`` | ``importance`` (block influence with ``data``, else the blocks' weights;
            drawn for ``random``) | ``greedy``.
        data: what ``collect_scores`` found for ``source``; ``activation`` and ``taylor`` need it.
        greedy: what ``greedy_blocks`` found for ``source``; ``depth="greedy"`` needs it.

    Returns:
        The slim model (new tensors, in ``source``'s train/eval mode, on the CPU) and what was kept; every
        tensor has been checked against the plan.

    Raises:
        UserError: the target is larger on some axis or differs where it must not; the key is named.
        ValueError: ``data`` is missing, or of another importance; ``greedy`` is missing, or of another depth.
    """
    check_rule(importance, depth)
    if (data.importance if data else None) != (importance if importance in DATA_IMPORTANCES else None):
        raise ValueError(f"importance {importance} with data scores of {data.importance if data else None}")
    if (greedy is None) == (depth == "greedy") or (greedy and len(greedy.blocks) != target_spec.vit.depth):
        raise ValueError(f"depth {depth} of {target_spec.vit.depth} blocks with {greedy}")
    check_slimmer(source.spec, target_spec)
    state = {key: tensor.detach() for key, tensor in source.state_dict().items()}
    if any(hasattr(tensor, "qdata") for tensor in state.values()):
        raise UserError("an INT8 model cannot be slimmed; start from its FP32 or FP16 parent")
    generator = torch.Generator().manual_seed(seed)
    ranking = Ranking(state, importance, data, generator)
    given = None if greedy is None else greedy.blocks
    blocks = choose_blocks(source.spec, target_spec, depth, ranking.blocks, given)
    cut = _Cut(ranking, {stack: kept.indices for stack, kept in blocks.items()}, generator)
    _choose_all(cut, source.spec, target_spec)
    target = empty_model(target_spec)
    _copy(state, cut, target)
    plan = Plan(
        source=source.spec.name,
        target=target_spec.name,
        importance=importance,
        depth=depth,
        seed=seed,
        batches=data.batches if data else None,
        params_before=sum(t.numel() for t in state.values()),
        params_after=sum(p.numel() for p in target.parameters()),
        kept=(*blocks.values(), *cut.kept.values()),
        greedy=greedy,
    )
    check_plan(state, target.state_dict(), plan)
    return target.train(source.training), plan


def check_rule(importance: str, depth: str) -> None:
    """Raise UserError for a rule that does not exist or ranks nothing."""
    if importance not in IMPORTANCES:
        raise UserError(f"init.importance={importance!r} is unknown; use {'|'.join(IMPORTANCES)}")
    if depth not in DEPTHS:
        raise UserError(f"init.depth={depth!r} is unknown; use {'|'.join(DEPTHS)}")
    if depth == "importance" and importance == "uniform":
        raise UserError("init.depth=importance ranks blocks, and init.importance=uniform ranks nothing; use depth=even")


@dataclass
class _Cut:
    """The choices made so far: axis (of the slim model) → units kept, and the entries they cover."""

    ranking: Ranking
    layers: dict[str, tuple[int, ...]]
    generator: torch.Generator
    kept: dict[str, Kept] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)

    def by_score(self, axis: str, count: int, source_axis: str = "", unit: int = 1) -> None:
        """Choose ``count`` units of ``axis``, called ``source_axis`` in the full model."""
        scores, how = self.ranking.units(source_axis or axis, unit)
        chosen = choose(scores, count, self.ranking.importance, self.generator)
        total = float(scores.sum())
        share = 1.0 if len(chosen) == len(scores) or total == 0 else float(scores[list(chosen)].sum()) / total
        self.add(Kept(axis, chosen, len(scores), share, how), unit)

    def in_blocks(self, stack: str, what: str, count: int, unit: int = 1) -> None:
        """``by_score`` in every kept block of a stack."""
        for i, block in enumerate(self.layers[stack]):
            self.by_score(f"{stack}[{i}].{what}", count, f"{stack}[{block}].{what}", unit)

    def add(self, kept: Kept, unit: int = 1) -> None:
        self.kept[kept.axis] = kept
        self.entries[kept.axis] = kept.entries(unit)


def _choose_all(cut: _Cut, source: ModelSpec, target: ModelSpec) -> None:
    towers = (
        ("vit", target.vit.embed_dim, target.vit.num_heads, target.vit.intermediate_size),
        ("text", target.text.width, target.text.num_heads, text_neurons(target)),
    )
    for tower, width, heads, neurons in towers:
        cut.by_score(f"{tower}.channels", width)
        cut.in_blocks(tower, "heads", heads, unit_size(source, f"{tower}[0].heads"))
        cut.in_blocks(tower, "neurons", neurons)
    for stack in ("geometry", "encoder", "decoder"):
        cut.in_blocks(stack, "neurons", target.ffn_dim)
    width = target.vit.embed_dim
    hidden = {
        "neck[0].half": width // 2,
        "neck[0].quarter": width // 4,
        "neck[1].half": width // 2,
        "scoring.neurons": target.ffn_dim,
        "text.projection": target.text.projection_dim,
    }
    for axis, count in hidden.items():
        cut.by_score(axis, count)
    context, queries = target.text.context_length, target.decoder.num_queries
    tokens = kept_tokens(source.text, target.text)
    cut.add(Kept("text.tokens", tokens, source.text.vocab_size, None, "the phrases' own"))
    cut.add(Kept("text.context", tuple(range(context)), source.text.context_length, None, "first"))
    total = source.decoder.num_queries
    cut.add(Kept("decoder.queries", spread(total, queries), total, None, "even"))
    bins = target.geometry.roi_size
    cut.add(Kept("geometry.roi", tuple(range(bins)), source.geometry.roi_size, None, "bins merged by area"))


@torch.no_grad()
def _copy(state: dict[str, Tensor], cut: _Cut, target: Sam3) -> None:
    """Fill every tensor of ``target`` from the entries its axes kept."""
    for key, destination in target.state_dict().items():
        tensor = state[source_key(key, cut.layers)]
        if key == ROI_WEIGHT:
            tensor = merge_bins(tensor, target.spec.geometry.roi_size)
        for dim, axis in axes_of(key).items():
            entries = cut.entries[axis]
            if len(entries) != tensor.shape[dim]:
                tensor = tensor.index_select(dim, entries.to(tensor.device))
        if tensor.shape != destination.shape:
            raise AssertionError(f"{key}: cut to {list(tensor.shape)}, planned {list(destination.shape)}")
        destination.copy_(tensor)
