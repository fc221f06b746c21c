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
from sam3slim.models.empty import empty_model
from sam3slim.slimming.axes import axes_of, members, source_key
from sam3slim.slimming.check import check_slimmer, text_neurons
from sam3slim.slimming.importance import hidden_scores, stream_scores
from sam3slim.slimming.plan import Kept, Plan
from sam3slim.slimming.select import Importance, align, choose, spread
from sam3slim.specs import ModelSpec, VitSpec

IMPORTANCES = ("magnitude", "uniform", "random")


def inherit(
    source: Sam3, target_spec: ModelSpec, *, importance: Importance = "magnitude", seed: int = 0
) -> tuple[Sam3, Plan]:
    """Build ``target_spec`` from ``source``'s own weights.

    Blocks are kept in order and evenly spaced, the last always, windowed with windowed and global with
    global; channels, whole heads and MLP neurons by ``importance``; queries evenly; the first
    ``context_length`` text positions. Keeping everything reproduces ``source`` bit for bit.

    Args:
        source: the full model, float weights on any device; it is not changed.
        importance: ``magnitude`` | ``uniform`` (evenly spaced) | ``random`` (the control, drawn by ``seed``).

    Returns:
        The slim model (new tensors, in ``source``'s train/eval mode, on the CPU) and what was kept.

    Raises:
        UserError: the target is larger on some axis or differs where it must not; the key is named.
    """
    if importance not in IMPORTANCES:
        raise UserError(f"init.importance={importance!r} is unknown; use {'|'.join(IMPORTANCES)}")
    check_slimmer(source.spec, target_spec)
    state = {key: tensor.detach() for key, tensor in source.state_dict().items()}
    if any(hasattr(tensor, "qdata") for tensor in state.values()):
        raise UserError("an INT8 model cannot be slimmed; start from its FP32 or FP16 parent")
    layers = _layers(source.spec, target_spec)
    cut = _Cut(state, layers, importance, torch.Generator().manual_seed(seed))
    _choose_all(cut, source.spec, target_spec)
    target = empty_model(target_spec)
    _copy(cut, target)
    stacks = tuple(
        Kept(f"{stack}.blocks", kept, _depth(source.spec, stack), None, "even, kind with kind")
        for stack, kept in layers.items()
    )
    plan = Plan(
        source=source.spec.name,
        target=target_spec.name,
        importance=importance,
        seed=seed,
        params_before=sum(t.numel() for t in state.values()),
        params_after=sum(p.numel() for p in target.parameters()),
        kept=(*stacks, *cut.kept.values()),
    )
    return target.train(source.training), plan


def _depth(spec: ModelSpec, stack: str) -> int:
    return {
        "vit": spec.vit.depth,
        "text": spec.text.layers,
        "geometry": spec.geometry.num_layers,
        "encoder": spec.encoder.num_layers,
        "decoder": spec.decoder.num_layers,
    }[stack]


def _layers(source: ModelSpec, target: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Stack → the source block of each target block."""
    layers = {}
    for stack in ("vit", "text", "geometry", "encoder", "decoder"):
        have, want = _depth(source, stack), _depth(target, stack)
        if stack == "vit":
            kept = align(_kinds(source.vit), _kinds(target.vit))
        else:
            kept = align(["layer"] * have, ["layer"] * want)
        if kept is None:
            raise UserError(
                f"model.vit.global_attention_blocks={list(target.vit.global_blocks)} of {want} blocks cannot be "
                f"taken in order from the full model's {list(source.vit.global_blocks)} of {have} (windowed blocks "
                f"stay windowed, global ones global); change model.vit.num_global_blocks or model.vit.depth"
            )
        layers[stack] = kept
    return layers


def _kinds(vit: VitSpec) -> list[str]:
    return ["global" if i in vit.global_blocks else "windowed" for i in range(vit.depth)]


@dataclass
class _Cut:
    """The choices made so far: axis (of the slim model) → units kept, and the entries they cover."""

    state: dict[str, Tensor]
    layers: dict[str, tuple[int, ...]]
    importance: Importance
    generator: torch.Generator
    kept: dict[str, Kept] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)

    def by_score(self, axis: str, scores: Tensor, count: int, unit: int = 1) -> None:
        chosen = choose(scores, count, self.importance, self.generator)
        total = float(scores.sum())
        share = 1.0 if len(chosen) == len(scores) or total == 0 else float(scores[list(chosen)].sum()) / total
        self.add(Kept(axis, chosen, len(scores), share, self.importance), unit)

    def add(self, kept: Kept, unit: int = 1) -> None:
        self.kept[kept.axis] = kept
        units = torch.tensor(kept.indices)
        self.entries[kept.axis] = (units[:, None] * unit + torch.arange(unit)).flatten()


def _choose_all(cut: _Cut, source: ModelSpec, target: ModelSpec) -> None:
    on_axis = members(cut.state)
    towers = (
        ("vit", target.vit.embed_dim, target.vit.num_heads, source.vit.head_dim, target.vit.intermediate_size),
        ("text", target.text.width, target.text.num_heads, source.text.width // source.text.num_heads,
         text_neurons(target)),
    )  # fmt: skip
    for tower, width, heads, head_dim, neurons in towers:
        cut.by_score(f"{tower}.channels", stream_scores(cut.state, on_axis[f"{tower}.channels"]), width)
        for i, block in enumerate(cut.layers[tower]):
            scores = hidden_scores(cut.state, on_axis[f"{tower}[{block}].heads"], head_dim)
            cut.by_score(f"{tower}[{i}].heads", scores, heads, head_dim)
            scores = hidden_scores(cut.state, on_axis[f"{tower}[{block}].neurons"])
            cut.by_score(f"{tower}[{i}].neurons", scores, neurons)
    for stack in ("geometry", "encoder", "decoder"):
        for i, block in enumerate(cut.layers[stack]):
            scores = hidden_scores(cut.state, on_axis[f"{stack}[{block}].neurons"])
            cut.by_score(f"{stack}[{i}].neurons", scores, target.ffn_dim)
    width = target.vit.embed_dim
    hidden = {
        "neck[0].half": width // 2,
        "neck[0].quarter": width // 4,
        "neck[1].half": width // 2,
        "scoring.neurons": target.ffn_dim,
    }
    for axis, count in hidden.items():
        cut.by_score(axis, hidden_scores(cut.state, on_axis[axis]), count)
    projection = stream_scores(cut.state, on_axis["text.projection"])
    cut.by_score("text.projection", projection, target.text.projection_dim)
    context, queries = target.text.context_length, target.decoder.num_queries
    cut.add(Kept("text.context", tuple(range(context)), source.text.context_length, None, "first"))
    total = source.decoder.num_queries
    cut.add(Kept("decoder.queries", spread(total, queries), total, None, "even"))


@torch.no_grad()
def _copy(cut: _Cut, target: Sam3) -> None:
    """Fill every tensor of ``target`` from the entries its axes kept."""
    for key, destination in target.state_dict().items():
        tensor = cut.state[source_key(key, cut.layers)]
        for dim, axis in axes_of(key).items():
            entries = cut.entries[axis]
            if len(entries) != tensor.shape[dim]:
                tensor = tensor.index_select(dim, entries.to(tensor.device))
        if tensor.shape != destination.shape:
            raise AssertionError(f"{key}: cut to {list(tensor.shape)}, planned {list(destination.shape)}")
        destination.copy_(tensor)
