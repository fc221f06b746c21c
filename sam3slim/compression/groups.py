"""Which weights are decided about together: a precision plan names these groups."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from torch import nn

from sam3slim.errors import UserError
from sam3slim.models import part_of

# In the order of computation. Norms, biases and small tables belong to no group: they stay in half precision.
GROUPS = (
    "vision", "neck", "text", "embeddings", "geometry", "encoder", "decoder", "mask", "scoring", "convolutions",
)  # fmt: skip


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


def _group(name: str, module: nn.Module) -> str | None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return "neck" if name.startswith("vision_encoder.neck.") else "convolutions"
    if isinstance(module, nn.Embedding):
        return "embeddings" if name.endswith((".token_embedding", "text_bank.features")) else None
    return part_of(f"{name}.") if isinstance(module, nn.Linear) else None
