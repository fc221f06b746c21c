"""Which dimension of which tensor belongs to which axis of the architecture.

One table says it for the whole model, so a kept channel is the same channel everywhere: in the patch and
position embeddings, the norms, every block and the neck.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Layer stack → the prefix of its blocks.
STACKS = {
    "vit": "vision_encoder.backbone.layers.",
    "text": "text_encoder.text_model.encoder.layers.",
    "geometry": "geometry_encoder.layers.",
    "encoder": "detr_encoder.layers.",
    "decoder": "detr_decoder.layers.",
}
NECK = r"vision_encoder\.neck\.fpn_layers\.(\d+)"


def _tower(stack: str, attention: str, out: str) -> list[tuple[str, dict[int, str]]]:
    """Rules of a tower whose blocks share one residual stream ``{stack}.channels``."""
    block = re.escape(STACKS[stack]) + r"(\d+)\."
    channels, heads = f"{stack}.channels", rf"{stack}[\1].heads"
    return [
        (block + r"layer_norm[12]\.(?:weight|bias)", {0: channels}),
        (block + attention + r"\.[qkv]_proj\.weight", {0: heads, 1: channels}),
        (block + attention + r"\.[qkv]_proj\.bias", {0: heads}),
        (block + attention + rf"\.{out}\.weight", {0: channels, 1: heads}),
        (block + attention + rf"\.{out}\.bias", {0: channels}),
        (block + r"mlp\.fc1\.weight", {0: rf"{stack}[\1].neurons", 1: channels}),
        (block + r"mlp\.fc1\.bias", {0: rf"{stack}[\1].neurons"}),
        (block + r"mlp\.fc2\.weight", {0: channels, 1: rf"{stack}[\1].neurons"}),
        (block + r"mlp\.fc2\.bias", {0: channels}),
    ]


def _neurons(stack: str) -> list[tuple[str, dict[int, str]]]:
    """Rules of a stack of fixed width: only its MLPs can shrink."""
    block = re.escape(STACKS[stack]) + r"(\d+)\.mlp\."
    axis = rf"{stack}[\1].neurons"
    return [
        (block + r"fc1\.(?:weight|bias)", {0: axis}),
        (block + r"fc2\.weight", {1: axis}),
    ]


_TABLE: list[tuple[str, dict[int, str]]] = [
    (r"vision_encoder\.backbone\.embeddings\.position_embeddings", {2: "vit.channels"}),
    (r"vision_encoder\.backbone\.embeddings\.patch_embeddings\.projection\.\w+", {0: "vit.channels"}),
    (r"vision_encoder\.backbone\.layer_norm\.\w+", {0: "vit.channels"}),
    *_tower("vit", "attention", "o_proj"),
    # ConvTranspose2d stores [in, out, h, w].
    (NECK + r"\.scale_layers\.0\.weight", {0: "vit.channels", 1: r"neck[\1].half"}),
    (NECK + r"\.scale_layers\.0\.bias", {0: r"neck[\1].half"}),
    (NECK + r"\.scale_layers\.2\.weight", {0: r"neck[\1].half", 1: r"neck[\1].quarter"}),
    (NECK + r"\.scale_layers\.2\.bias", {0: r"neck[\1].quarter"}),
    (r"vision_encoder\.neck\.fpn_layers\.0\.proj1\.weight", {1: "neck[0].quarter"}),
    (r"vision_encoder\.neck\.fpn_layers\.1\.proj1\.weight", {1: "neck[1].half"}),
    (r"vision_encoder\.neck\.fpn_layers\.[23]\.proj1\.weight", {1: "vit.channels"}),
    (r"text_encoder\.text_model\.embeddings\.token_embedding\.weight", {0: "text.tokens", 1: "text.channels"}),
    (
        r"text_encoder\.text_model\.embeddings\.position_embedding\.weight",
        {0: "text.context", 1: "text.channels"},
    ),
    (r"text_encoder\.text_model\.final_layer_norm\.\w+", {0: "text.channels"}),
    (r"text_encoder\.text_projection\.weight", {0: "text.projection", 1: "text.channels"}),
    (r"text_projection\.weight", {1: "text.channels"}),
    *_tower("text", "self_attn", "out_proj"),
    *_neurons("geometry"),
    *_neurons("encoder"),
    *_neurons("decoder"),
    (r"dot_product_scoring\.text_mlp\.layer1\.(?:weight|bias)", {0: "scoring.neurons"}),
    (r"dot_product_scoring\.text_mlp\.layer2\.weight", {1: "scoring.neurons"}),
    (r"detr_decoder\.(?:query_embed|reference_points)\.weight", {0: "decoder.queries"}),
]
RULES = [(re.compile(pattern), axes) for pattern, axes in _TABLE]
_LAYER = re.compile("^(" + "|".join(map(re.escape, STACKS.values())) + r")(\d+)\.")
_STACK_OF = {prefix: stack for stack, prefix in STACKS.items()}


def axes_of(key: str) -> dict[int, str]:
    """Dimension → axis for one parameter; a dimension that is not named keeps its size."""
    for pattern, axes in RULES:
        match = pattern.fullmatch(key)
        if match:
            return {dim: match.expand(axis) for dim, axis in axes.items()}
    return {}


def source_key(target_key: str, layers: Mapping[str, tuple[int, ...]]) -> str:
    """The full model's name of a slim model's parameter, ``layers`` being stack → kept blocks."""
    match = _LAYER.match(target_key)
    if match is None:
        return target_key
    prefix, number = match.groups()
    return f"{prefix}{layers[_STACK_OF[prefix]][int(number)]}.{target_key[match.end() :]}"


@dataclass(frozen=True)
class Member:
    """One tensor dimension that lies on an axis. ``reads``: the tensor consumes the axis' units."""

    key: str
    dim: int
    reads: bool


def members(keys: Iterable[str]) -> dict[str, list[Member]]:
    """Axis → every (tensor, dimension) on it."""
    found: dict[str, list[Member]] = {}
    for key in keys:
        input_dim = 0 if ".scale_layers." in key else 1
        for dim, axis in axes_of(key).items():
            reads = key.endswith(".weight") and "norm" not in key and dim == input_dim
            # A bias has one dimension, and it is an output.
            found.setdefault(axis, []).append(Member(key, dim, reads and _is_matrix(key)))
    return found


def _is_matrix(key: str) -> bool:
    """Embedding tables have their channels last but do not read them."""
    return not key.endswith(("token_embedding.weight", "position_embedding.weight"))
