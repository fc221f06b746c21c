"""Which weights are decided about together: a precision plan names these groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

from torch import nn

from sam3slim.errors import UserError
from sam3slim.models import part_of

Granularity = Literal["group", "block"]
GRANULARITIES: tuple[Granularity, ...] = ("group", "block")

# In the order of computation. Norms, biases and small tables belong to no group: they stay in half precision.
GROUPS = (
    "vision", "neck", "text", "embeddings", "geometry", "encoder", "decoder", "mask", "scoring", "convolutions",
)  # fmt: skip
# Groups made of blocks: ``vision_3`` is the fourth layer of the tower, ``vision`` what lies outside of its layers.
STACKS = ("vision", "text", "geometry", "encoder", "decoder")
LAYER = re.compile(r"\.layers\.(\d+)\.")
BLOCK = re.compile(rf"^({'|'.join(STACKS)})_\d+$")


def check_groups(key: str, groups: Iterable[str]) -> None:
    """Are all of ``groups``, which ``key`` of the configuration names, groups of weights? Raises UserError."""
    for group in groups:
        if group not in GROUPS:
            near = get_close_matches(group, GROUPS, 1)
            hint = f"did you mean {near[0]}?" if near else f"groups: {', '.join(GROUPS)}"
            raise UserError(f"{key}: unknown group {group!r}; {hint}")


def weights_by_group(model: nn.Module) -> dict[str, list[str]]:
    """Group → names of its weights; every weight matrix and kernel of ``model`` is in exactly one.

    ``vision`` is the ViT's Linears, ``neck`` all of the feature pyramid, ``embeddings`` the token table or the prompt
    bank, ``convolutions`` the kernels elsewhere (patch embedding, box pooling, mask head); the others are the Linears
    of their part.
    """
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, module in model.named_modules():
        group = _group(name, module)
        if group is not None:
            groups[group].append(f"{name}.weight")
    return groups


def weights_by_unit(model: nn.Module, granularity: Granularity = "group") -> dict[str, list[str]]:
    """Unit → names of its weights, without empty ones: the groups, or with ``block`` every block of one by itself."""
    units: dict[str, list[str]] = {}
    for group, names in weights_by_group(model).items():
        for name in names:
            units.setdefault(group if granularity == "group" else block_of(group, name), []).append(name)
    return units


def block_of(group: str, name: str) -> str:
    """The block of ``group`` that the weight called ``name`` is in; ``group`` where it is in none."""
    layer = LAYER.search(name) if group in STACKS else None
    return f"{group}_{layer[1]}" if layer else group


def group_of(unit: str) -> str:
    """The group that a block belongs to; of a group itself, it."""
    return match[1] if (match := BLOCK.match(unit)) else unit


def _group(name: str, module: nn.Module) -> str | None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return "neck" if name.startswith("vision_encoder.neck.") else "convolutions"
    if isinstance(module, nn.Embedding):
        return "embeddings" if name.endswith((".token_embedding", "text_bank.features")) else None
    return part_of(f"{name}.") if isinstance(module, nn.Linear) else None
