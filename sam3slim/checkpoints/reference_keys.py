"""Where each tensor of ``transformers.Sam3Model`` lies in a checkpoint of the reference implementation.

One table, read in one direction: our key → place in the reference's file. Loading, writing and telling foreign keys
apart all follow from it. Module names are templates in which ``*`` stands for a layer's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Modules whose parameters keep their own names (weight, bias): ours, then the reference's.
_MODULES = """
vision_encoder.backbone.embeddings.patch_embeddings.projection   backbone.vision_backbone.trunk.patch_embed.proj
vision_encoder.backbone.layer_norm                               backbone.vision_backbone.trunk.ln_pre
vision_encoder.backbone.layers.*.layer_norm1                     backbone.vision_backbone.trunk.blocks.*.norm1
vision_encoder.backbone.layers.*.layer_norm2                     backbone.vision_backbone.trunk.blocks.*.norm2
vision_encoder.backbone.layers.*.mlp.fc1                         backbone.vision_backbone.trunk.blocks.*.mlp.fc1
vision_encoder.backbone.layers.*.mlp.fc2                         backbone.vision_backbone.trunk.blocks.*.mlp.fc2
vision_encoder.neck.fpn_layers.0.scale_layers.0                  backbone.vision_backbone.convs.0.dconv_2x2_0
vision_encoder.neck.fpn_layers.0.scale_layers.2                  backbone.vision_backbone.convs.0.dconv_2x2_1
vision_encoder.neck.fpn_layers.1.scale_layers.0                  backbone.vision_backbone.convs.1.dconv_2x2
vision_encoder.neck.fpn_layers.*.proj1                           backbone.vision_backbone.convs.*.conv_1x1
vision_encoder.neck.fpn_layers.*.proj2                           backbone.vision_backbone.convs.*.conv_3x3
text_encoder.text_model.embeddings.token_embedding      backbone.language_backbone.encoder.token_embedding
text_encoder.text_model.encoder.layers.*.layer_norm1    backbone.language_backbone.encoder.transformer.resblocks.*.ln_1
text_encoder.text_model.encoder.layers.*.layer_norm2    backbone.language_backbone.encoder.transformer.resblocks.*.ln_2
text_encoder.text_model.encoder.layers.*.mlp.fc1   backbone.language_backbone.encoder.transformer.resblocks.*.mlp.c_fc
text_encoder.text_model.encoder.layers.*.mlp.fc2   backbone.language_backbone.encoder.transformer.resblocks.*.mlp.c_proj
text_encoder.text_model.final_layer_norm                backbone.language_backbone.encoder.ln_final
text_projection                                         backbone.language_backbone.resizer
geometry_encoder.label_embed                geometry_encoder.label_embed
geometry_encoder.cls_embed                  geometry_encoder.cls_embed
geometry_encoder.boxes_direct_project       geometry_encoder.boxes_direct_project
geometry_encoder.boxes_pool_project         geometry_encoder.boxes_pool_project
geometry_encoder.boxes_pos_enc_project      geometry_encoder.boxes_pos_enc_project
geometry_encoder.final_proj                 geometry_encoder.final_proj
geometry_encoder.vision_layer_norm          geometry_encoder.img_pre_norm
geometry_encoder.prompt_layer_norm          geometry_encoder.norm
geometry_encoder.output_layer_norm          geometry_encoder.encode_norm
geometry_encoder.layers.*.layer_norm1       geometry_encoder.encode.*.norm1
geometry_encoder.layers.*.layer_norm2       geometry_encoder.encode.*.norm2
geometry_encoder.layers.*.layer_norm3       geometry_encoder.encode.*.norm3
geometry_encoder.layers.*.mlp.fc1           geometry_encoder.encode.*.linear1
geometry_encoder.layers.*.mlp.fc2           geometry_encoder.encode.*.linear2
detr_encoder.layers.*.layer_norm1           transformer.encoder.layers.*.norm1
detr_encoder.layers.*.layer_norm2           transformer.encoder.layers.*.norm2
detr_encoder.layers.*.layer_norm3           transformer.encoder.layers.*.norm3
detr_encoder.layers.*.mlp.fc1               transformer.encoder.layers.*.linear1
detr_encoder.layers.*.mlp.fc2               transformer.encoder.layers.*.linear2
detr_decoder.layers.*.self_attn_layer_norm          transformer.decoder.layers.*.norm2
detr_decoder.layers.*.text_cross_attn_layer_norm    transformer.decoder.layers.*.catext_norm
detr_decoder.layers.*.vision_cross_attn_layer_norm  transformer.decoder.layers.*.norm1
detr_decoder.layers.*.mlp_layer_norm                transformer.decoder.layers.*.norm3
detr_decoder.layers.*.mlp.fc1                       transformer.decoder.layers.*.linear1
detr_decoder.layers.*.mlp.fc2                       transformer.decoder.layers.*.linear2
detr_decoder.output_layer_norm              transformer.decoder.norm
detr_decoder.query_embed                    transformer.decoder.query_embed
detr_decoder.reference_points               transformer.decoder.reference_points
detr_decoder.presence_token                 transformer.decoder.presence_token
detr_decoder.presence_layer_norm            transformer.decoder.presence_token_out_norm
detr_decoder.presence_head.layer1           transformer.decoder.presence_token_head.layers.0
detr_decoder.presence_head.layer2           transformer.decoder.presence_token_head.layers.1
detr_decoder.presence_head.layer3           transformer.decoder.presence_token_head.layers.2
detr_decoder.box_head.layer1                transformer.decoder.bbox_embed.layers.0
detr_decoder.box_head.layer2                transformer.decoder.bbox_embed.layers.1
detr_decoder.box_head.layer3                transformer.decoder.bbox_embed.layers.2
detr_decoder.ref_point_head.layer1          transformer.decoder.ref_point_head.layers.0
detr_decoder.ref_point_head.layer2          transformer.decoder.ref_point_head.layers.1
detr_decoder.box_rpb_embed_x.layer1         transformer.decoder.boxRPB_embed_x.layers.0
detr_decoder.box_rpb_embed_x.layer2         transformer.decoder.boxRPB_embed_x.layers.1
detr_decoder.box_rpb_embed_y.layer1         transformer.decoder.boxRPB_embed_y.layers.0
detr_decoder.box_rpb_embed_y.layer2         transformer.decoder.boxRPB_embed_y.layers.1
mask_decoder.pixel_decoder.conv_layers.*    segmentation_head.pixel_decoder.conv_layers.*
mask_decoder.pixel_decoder.norms.*          segmentation_head.pixel_decoder.norms.*
mask_decoder.mask_embedder.layers.*         segmentation_head.mask_predictor.mask_embed.layers.*
mask_decoder.instance_projection            segmentation_head.instance_seg_head
mask_decoder.semantic_projection            segmentation_head.semantic_seg_head
mask_decoder.prompt_cross_attn_norm         segmentation_head.cross_attn_norm
dot_product_scoring.text_mlp.layer1         dot_prod_scoring.prompt_mlp.layers.0
dot_product_scoring.text_mlp.layer2         dot_prod_scoring.prompt_mlp.layers.1
dot_product_scoring.text_mlp_out_norm       dot_prod_scoring.prompt_mlp.out_norm
dot_product_scoring.text_proj               dot_prod_scoring.prompt_proj
dot_product_scoring.query_proj              dot_prod_scoring.hs_proj
"""
# Attention: ours, the reference's fused q, k, v (its parameter's name follows), the reference's output projection.
_ATTENTION = """
vision_encoder.backbone.layers.*.attention           backbone.vision_backbone.trunk.blocks.*.attn.qkv.  proj
text_encoder.text_model.encoder.layers.*.self_attn   backbone.language_backbone.encoder.transformer.resblocks.*.attn.in_proj_  out_proj
geometry_encoder.layers.*.self_attn                  geometry_encoder.encode.*.self_attn.in_proj_            out_proj
geometry_encoder.layers.*.cross_attn                 geometry_encoder.encode.*.cross_attn_image.in_proj_     out_proj
detr_encoder.layers.*.self_attn                      transformer.encoder.layers.*.self_attn.in_proj_         out_proj
detr_encoder.layers.*.cross_attn                     transformer.encoder.layers.*.cross_attn_image.in_proj_  out_proj
detr_decoder.layers.*.self_attn                      transformer.decoder.layers.*.self_attn.in_proj_         out_proj
detr_decoder.layers.*.text_cross_attn                transformer.decoder.layers.*.ca_text.in_proj_           out_proj
detr_decoder.layers.*.vision_cross_attn              transformer.decoder.layers.*.cross_attn.in_proj_        out_proj
mask_decoder.prompt_cross_attn                       segmentation_head.cross_attend_prompt.in_proj_          out_proj
"""  # noqa: E501

Piece = Literal["whole", "q", "k", "v", "transposed", "without_class_token"]
_THIRDS = {"q": 0, "k": 1, "v": 2}
POSITIONS = "backbone.vision_backbone.trunk.pos_embed"
_SINGLE: dict[str, tuple[str, Piece]] = {
    "vision_encoder.backbone.embeddings.position_embeddings": (
        POSITIONS,
        "without_class_token",
    ),
    "text_encoder.text_model.embeddings.position_embedding.weight": (
        "backbone.language_backbone.encoder.positional_embedding",
        "whole",
    ),
    "text_encoder.text_projection.weight": ("backbone.language_backbone.encoder.text_projection", "transposed"),
}
CLASS_TOKEN = "class_token"  # our word for the first row of POSITIONS, which nothing reads
# Reference tensors without a counterpart: a table computed from the architecture, and projections of point prompts.
FREQS_CIS = "backbone.vision_backbone.trunk.blocks.*.attn.freqs_cis"
POINTS = tuple(
    f"geometry_encoder.points_{kind}_project.{name}"
    for kind in ("direct", "pool", "pos_enc")
    for name in ("weight", "bias")
)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def _table(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


_MODULE_OF = {ours: theirs for ours, theirs in _table(_MODULES)}
_ATTENTION_OF = {ours: (fused, out) for ours, fused, out in _table(_ATTENTION)}


@dataclass(frozen=True)
class Place:
    """A tensor of ours in a reference checkpoint: ``piece`` of the tensor called ``key``."""

    key: str
    piece: Piece = "whole"

    def take(self, tensor: Tensor) -> Tensor:
        """Our tensor, as a view of the reference's.

        Raises:
            ValueError: the tensor cannot be cut so (its shape is then part of the message).
        """
        if self.piece in _THIRDS:
            if tensor.ndim < 1 or tensor.shape[0] % 3:
                raise ValueError(f"{list(tensor.shape)} cannot be cut into queries, keys and values")
            rows = tensor.shape[0] // 3
            return tensor.narrow(0, _THIRDS[self.piece] * rows, rows)
        if self.piece == "transposed":
            return tensor.mT if tensor.ndim == 2 else tensor
        if self.piece == "without_class_token":
            return tensor[:, 1:] if tensor.ndim == 3 else tensor
        return tensor


def place_of(key: str) -> Place:
    """Where the reference keeps our tensor ``key``.

    Raises:
        KeyError: not a tensor of ``transformers.Sam3Model``.
    """
    if key in _SINGLE:
        return Place(*_SINGLE[key])
    module, _, name = key.rpartition(".")
    found = _lookup(_MODULE_OF, module)
    if found is not None:
        template, numbers = found
        return Place(f"{_fill(_MODULE_OF[template], numbers)}.{name}")
    attention, _, projection = module.rpartition(".")
    found = _lookup(_ATTENTION_OF, attention)
    if found is None:
        raise KeyError(key)
    template, numbers = found
    fused, out = _ATTENTION_OF[template]
    start = _fill(fused, numbers)
    if projection in ("o_proj", "out_proj"):
        return Place(f"{start.rpartition('.')[0].removesuffix('.qkv')}.{out}.{name}")
    if projection not in ("q_proj", "k_proj", "v_proj"):
        raise KeyError(key)
    piece: Piece = projection[0]  # type: ignore[assignment]
    return Place(start + name, piece)


def _lookup(table: Mapping[str, object], module: str) -> tuple[str, list[str]] | None:
    """The template that names ``module``, the exact one first, and the numbers of its wildcards."""
    if module in table:
        return module, []
    template = _NUMBER.sub("*", module)
    return (template, _NUMBER.findall(module)) if template in table else None


def _fill(template: str, numbers: Iterable[str]) -> str:
    for number in numbers:
        template = template.replace("*", number, 1)
    return template


def template_of(key: str) -> str:
    """``key`` with ``*`` in the place of layer numbers."""
    return _NUMBER.sub("*", key)


def templates() -> frozenset[str]:
    """Every name the reference gives to a tensor of the image model, as templates (some exist nowhere: ``norm.bias``
    of a module without bias)."""
    leaves = ("weight", "bias")
    names = {f"{module}.{leaf}" for module in _MODULE_OF.values() for leaf in leaves}
    for fused, out in _ATTENTION_OF.values():
        owner = fused.rpartition(".")[0].removesuffix(".qkv")
        names |= {name for leaf in leaves for name in (f"{fused}{leaf}", f"{owner}.{out}.{leaf}")}
    names |= {key for key, _ in _SINGLE.values()}
    return frozenset(map(template_of, {*names, FREQS_CIS, *POINTS}))


def freqs_cis(head_dim: int, side: int, scale: float = 1.0, theta: float = 10_000.0) -> Tensor:
    """The reference's table of 2-D rotary positions (RoPE): [side², head_dim / 2] complex64, row by row.

    Half of the frequencies turn with x, half with y (axial RoPE; Heo et al. 2024, arXiv:2403.13298, eq. 12).

    Args:
        head_dim: channels of a head, a multiple of 4.
        side: tokens per side that attend to each other: the window's, or the image's in global blocks.
        scale: step between two tokens in units of the window's tokens.
    """
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 4)[: head_dim // 4].float() / head_dim))
    place = torch.arange(side * side, dtype=torch.float32)
    x, y = (place % side) * scale, torch.div(place, side, rounding_mode="floor") * scale
    angles = torch.cat([torch.outer(x, frequencies), torch.outer(y, frequencies)], dim=1)
    return torch.polar(torch.ones_like(angles), angles)
