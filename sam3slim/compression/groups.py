"""Which weights are decided about together: a precision plan names these groups."""

from __future__ import annotations

from torch import nn

from sam3slim.models import Sam3, part_of

# In the order of computation. Norms, biases and small tables belong to no group: they stay in half precision.
GROUPS = (
    "vision", "neck", "text", "embeddings", "geometry", "encoder", "decoder", "mask", "scoring", "convolutions",
)  # fmt: skip


def weights_by_group(model: Sam3) -> dict[str, list[str]]:
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
