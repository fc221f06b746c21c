"""Names and shapes of an architecture's tensors, counted out from its sizes.

Looking into a checkpoint needs no more than this, and importing the modules themselves takes longer than reading its
table of contents. A test holds the list against ``transformers.Sam3Model`` for every shipped architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch

from sam3slim.specs import ModelSpec

Named = Iterator[tuple[str, tuple[int, ...]]]


@lru_cache(maxsize=8)
def state_shapes(spec: ModelSpec) -> dict[str, torch.Size]:
    """Key → shape of every tensor in a model's ``state_dict``, in its order. Not to be changed."""
    text = () if spec.text.bank else (_text,)
    bank = (_bank,) if spec.text.bank else ()
    parts = (_vision, *text, _geometry, _encoder, _decoder, _mask, _scoring, *bank)
    return {key: torch.Size(shape) for part in parts for key, shape in part(spec)}


def _vision(spec: ModelSpec) -> Named:
    vit, d = spec.vit, spec.d_model
    width, p = vit.embed_dim, "vision_encoder."
    grid = vit.pretrain_image_size // vit.patch_size
    yield f"{p}backbone.embeddings.position_embeddings", (1, grid * grid, width)
    yield f"{p}backbone.embeddings.patch_embeddings.projection.weight", (width, 3, vit.patch_size, vit.patch_size)
    yield from _norm(f"{p}backbone.layer_norm", width)
    for i in range(vit.depth):
        block = f"{p}backbone.layers.{i}."
        yield from _norm(f"{block}layer_norm1", width)
        yield from _attention(f"{block}attention", width)
        yield from _norm(f"{block}layer_norm2", width)
        yield from _mlp(f"{block}mlp", width, vit.intermediate_size)
    for level in range(4):
        neck = f"{p}neck.fpn_layers.{level}."
        channels = width
        # ConvTranspose2d stores [in, out, h, w].
        for step in range((2, 1, 0, 0)[level]):
            yield f"{neck}scale_layers.{2 * step}.weight", (channels, channels // 2, 2, 2)
            yield f"{neck}scale_layers.{2 * step}.bias", (channels // 2,)
            channels //= 2
        yield from _layer(f"{neck}proj1", (d, channels, 1, 1))
        yield from _layer(f"{neck}proj2", (d, d, 3, 3))


def _text(spec: ModelSpec) -> Named:
    text, p = spec.text, "text_encoder."
    yield f"{p}text_model.embeddings.token_embedding.weight", (text.vocab_size, text.width)
    yield f"{p}text_model.embeddings.position_embedding.weight", (text.context_length, text.width)
    for i in range(text.layers):
        block = f"{p}text_model.encoder.layers.{i}."
        yield from _attention(f"{block}self_attn", text.width, order="kvq", out="out_proj")
        yield from _norm(f"{block}layer_norm1", text.width)
        yield from _mlp(f"{block}mlp", text.width, int(text.width * text.mlp_ratio))
        yield from _norm(f"{block}layer_norm2", text.width)
    yield from _norm(f"{p}text_model.final_layer_norm", text.width)
    yield f"{p}text_projection.weight", (text.projection_dim, text.width)
    yield from _layer("text_projection", (spec.d_model, text.width))


def _bank(spec: ModelSpec) -> Named:
    assert spec.text.bank is not None
    yield "text_bank.features.weight", (sum(map(len, spec.text.bank.tokens)), spec.d_model)


def _geometry(spec: ModelSpec) -> Named:
    d, roi, p = spec.d_model, spec.geometry.roi_size, "geometry_encoder."
    yield f"{p}label_embed.weight", (2, d)
    yield f"{p}cls_embed.weight", (1, d)
    yield from _layer(f"{p}boxes_direct_project", (d, 4))
    yield from _layer(f"{p}boxes_pool_project", (d, d, roi, roi))
    # Sine encoding of the centre, and width and height as they are.
    yield from _layer(f"{p}boxes_pos_enc_project", (d, d + 2))
    yield from _norm(f"{p}vision_layer_norm", d)
    yield from _layer(f"{p}final_proj", (d, d))
    yield from _norm(f"{p}prompt_layer_norm", d)
    yield from _cross_layers(f"{p}layers", spec.geometry.num_layers, spec)
    yield from _norm(f"{p}output_layer_norm", d)


def _encoder(spec: ModelSpec) -> Named:
    yield from _cross_layers("detr_encoder.layers", spec.encoder.num_layers, spec)


def _decoder(spec: ModelSpec) -> Named:
    d, p = spec.d_model, "detr_decoder."
    for i in range(spec.decoder.num_layers):
        block = f"{p}layers.{i}."
        for name in ("self_attn", "text_cross_attn", "vision_cross_attn"):
            yield from _attention(f"{block}{name}", d)
            yield from _norm(f"{block}{name}_layer_norm", d)
        yield from _mlp(f"{block}mlp", d, spec.ffn_dim)
        yield from _norm(f"{block}mlp_layer_norm", d)
    yield from _norm(f"{p}output_layer_norm", d)
    yield from _layers(f"{p}box_head", (d, d, d, 4))
    yield f"{p}query_embed.weight", (spec.decoder.num_queries, d)
    yield f"{p}reference_points.weight", (spec.decoder.num_queries, 4)
    yield f"{p}presence_token.weight", (1, d)
    yield from _layers(f"{p}presence_head", (d, d, d, 1))
    yield from _norm(f"{p}presence_layer_norm", d)
    yield from _layers(f"{p}ref_point_head", (2 * d, d, d))
    for axis in "xy":
        yield from _layers(f"{p}box_rpb_embed_{axis}", (2, d, spec.num_heads))


def _mask(spec: ModelSpec) -> Named:
    d, p = spec.d_model, "mask_decoder."
    for i in range(3):
        yield from _layer(f"{p}pixel_decoder.conv_layers.{i}", (d, d, 3, 3))
    for i in range(3):
        yield from _norm(f"{p}pixel_decoder.norms.{i}", d)
    for i in range(3):
        yield from _layer(f"{p}mask_embedder.layers.{i}", (d, d))
    yield from _layer(f"{p}instance_projection", (d, d, 1, 1))
    yield from _layer(f"{p}semantic_projection", (1, d, 1, 1))
    yield from _attention(f"{p}prompt_cross_attn", d)
    yield from _norm(f"{p}prompt_cross_attn_norm", d)


def _scoring(spec: ModelSpec) -> Named:
    d, p = spec.d_model, "dot_product_scoring."
    yield from _layers(f"{p}text_mlp", (d, spec.ffn_dim, d))
    yield from _norm(f"{p}text_mlp_out_norm", d)
    yield from _layer(f"{p}text_proj", (d, d))
    yield from _layer(f"{p}query_proj", (d, d))


def _cross_layers(prefix: str, count: int, spec: ModelSpec) -> Named:
    """Layers that attend to themselves, then to something else."""
    for i in range(count):
        yield from _norm(f"{prefix}.{i}.layer_norm1", spec.d_model)
        yield from _attention(f"{prefix}.{i}.self_attn", spec.d_model)
        yield from _attention(f"{prefix}.{i}.cross_attn", spec.d_model)
        yield from _norm(f"{prefix}.{i}.layer_norm2", spec.d_model)
        yield from _mlp(f"{prefix}.{i}.mlp", spec.d_model, spec.ffn_dim)
        yield from _norm(f"{prefix}.{i}.layer_norm3", spec.d_model)


def _attention(prefix: str, width: int, order: str = "qkv", out: str = "o_proj") -> Named:
    for name in (*(f"{letter}_proj" for letter in order), out):
        yield from _layer(f"{prefix}.{name}", (width, width))


def _mlp(prefix: str, width: int, neurons: int) -> Named:
    yield from _layer(f"{prefix}.fc1", (neurons, width))
    yield from _layer(f"{prefix}.fc2", (width, neurons))


def _layers(prefix: str, widths: tuple[int, ...]) -> Named:
    """``layer1``, ``layer2``, … from width to width."""
    for i in range(len(widths) - 1):
        yield from _layer(f"{prefix}.layer{i + 1}", (widths[i + 1], widths[i]))


def _layer(prefix: str, shape: tuple[int, ...]) -> Named:
    """A weight, and a bias of its first dimension."""
    yield f"{prefix}.weight", shape
    yield f"{prefix}.bias", shape[:1]


def _norm(prefix: str, width: int) -> Named:
    yield from _layer(prefix, (width,))
