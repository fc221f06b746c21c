"""Can one architecture be cut out of another? Told before any weight is touched."""

from __future__ import annotations

from sam3slim.errors import UserError
from sam3slim.specs import ModelSpec
from sam3slim.text.vocabulary import kept_tokens

# Sizes every tensor or position of the model depends on: slimming leaves them alone.
EQUAL = (
    "d_model",
    "num_heads",
    "vit.patch_size",
    "vit.image_size",
    "vit.pretrain_image_size",
    "vit.window_size",
)
AT_MOST = (
    "vit.depth",
    "vit.embed_dim",
    "text.layers",
    "text.width",
    "text.context_length",
    "text.projection_dim",
    "geometry.num_layers",
    "geometry.roi_size",
    "encoder.num_layers",
    "decoder.num_layers",
    "decoder.num_queries",
    "ffn_dim",
)


def value_of(spec: ModelSpec, key: str) -> int:
    """``spec``'s value at a dotted key."""
    value: object = spec
    for step in key.split("."):
        value = getattr(value, step)
    assert isinstance(value, int)
    return value


def check_slimmer(source: ModelSpec, target: ModelSpec) -> None:
    """Raise UserError, naming the key and the fix, unless ``target`` can be cut out of ``source``."""
    if source.text.bank is not None or target.text.bank is not None:
        whose = "full model" if source.text.bank is not None else "slim model"
        raise UserError(
            f"the {whose} has a prompt bank instead of a text tower: nothing to cut there; slim the checkpoint it was "
            "made from, and make the bank again at the end"
        )
    for key in EQUAL:
        have, want = value_of(source, key), value_of(target, key)
        if have != want:
            raise UserError(f"model.{key}={want}: slimming keeps the full model's {have}; use model.{key}={have}")
    kept_tokens(source.text, target.text)
    for key in AT_MOST:
        have, want = value_of(source, key), value_of(target, key)
        if want > have:
            raise UserError(
                f"model.{key}={want} is more than the full model's {have}, and inherited weights cannot grow; "
                f"use {have} or less"
            )
    _check_heads("vit", "embed_dim", (source.vit.embed_dim, source.vit.num_heads),
                 (target.vit.embed_dim, target.vit.num_heads))  # fmt: skip
    _check_heads("text", "width", (source.text.width, source.text.num_heads),
                 (target.text.width, target.text.num_heads))  # fmt: skip
    _check_neurons("vit", source.vit.intermediate_size, target.vit.intermediate_size, target.vit.embed_dim)
    _check_neurons("text", text_neurons(source), text_neurons(target), target.text.width)


def text_neurons(spec: ModelSpec) -> int:
    """Hidden units of the text tower's MLPs."""
    return int(spec.text.width * spec.text.mlp_ratio)


def unit_size(spec: ModelSpec, axis: str) -> int:
    """Consecutive entries of one unit on an axis: a head's size, else 1."""
    if not axis.endswith(".heads"):
        return 1
    return spec.vit.head_dim if axis.startswith("vit[") else spec.text.width // spec.text.num_heads


def _check_heads(tower: str, width_key: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Heads are kept whole: their size is the full model's (RoPE rotates fixed pairs within a head)."""
    size, width, heads = source[0] // source[1], *target
    if width == heads * size:
        return
    if width % size == 0:
        fix = f"model.{tower}.num_heads={width // size}"
    else:
        lower = max(width // size, 1)
        fix = f"model.{tower}.{width_key}={lower * size} model.{tower}.num_heads={lower}"
    raise UserError(
        f"model.{tower}.{width_key}={width} with model.{tower}.num_heads={heads} changes the head size "
        f"(the full model's is {size}); use {fix}"
    )


def _check_neurons(tower: str, have: int, want: int, width: int) -> None:
    if want > have:
        raise UserError(
            f"model.{tower}.mlp_ratio gives {want} hidden units, the full model has {have}; "
            f"use model.{tower}.mlp_ratio={have / width:g} or less"
        )
