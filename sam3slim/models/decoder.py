"""The DETR decoder's loop, with every layer's outputs and the one-to-many branch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.sam3.modeling_sam3 import Sam3DetrDecoder, inverse_sigmoid

from sam3slim.models.fp32 import as_weights, full_precision
from sam3slim.parts import recomputed


def decode(
    decoder: Sam3DetrDecoder,
    memory: Tensor,
    prompt: Tensor,
    memory_pos: Tensor,
    prompt_mask: Tensor,
    grid: tuple[int, int],
    *,
    one_to_many: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the object queries through all L layers.

    With ``one_to_many`` the queries are doubled; the copies skip self-attention, so that they need not
    avoid each other (DAC-DETR, arXiv:2309.12966, as the reference recipe uses it), and come last in Q.

    Args:
        memory: [P, H·W, d] encoded image features; ``memory_pos`` their position encoding.
        prompt: [P, T, d]; ``prompt_mask`` [P, T] bool, True on real tokens.
        grid: (H, W).
        recompute: keep only the inputs of every layer for the backward pass, not its bias and attention maps of
            heads × queries × pixels.

    Returns:
        normalised queries [L, P, Q, d]; boxes [L, P, Q, 4] (cx, cy, w, h) in 0..1; presence logits [L, P, 1].
    """
    size = memory.shape[0]
    queries = decoder.query_embed.weight
    boxes = decoder.reference_points.weight.sigmoid()
    if one_to_many:
        queries, boxes = torch.cat([queries, queries]), torch.cat([boxes, boxes])
    boxes = boxes.expand(size, -1, -1)
    presence_token = decoder.presence_token.weight.expand(size, -1, -1)
    hidden = torch.cat([presence_token, queries.expand(size, -1, -1)], dim=1)
    text_mask = create_bidirectional_mask(
        config=decoder.config, inputs_embeds=hidden, attention_mask=prompt_mask, encoder_hidden_states=prompt
    )

    all_hidden, all_boxes, all_presence = [], [], []
    map_size = decoder.config.num_attention_heads * hidden.shape[1] * memory.shape[1]
    for layer in decoder.layers:
        step = partial(step_of, decoder, layer, grid, one_to_many)
        rows = (hidden, boxes, prompt, memory, memory_pos, text_mask)
        hidden = recomputed(step, *rows, elements=map_size) if recompute else step(*rows)
        normed, new_boxes, presence = read_out(decoder, hidden, boxes)
        boxes = new_boxes.detach()
        limit = decoder.clamp_presence_logit_max_val
        all_hidden.append(normed)
        all_boxes.append(new_boxes)
        all_presence.append(presence.clamp(min=-limit, max=limit))
    return torch.stack(all_hidden), torch.stack(all_boxes), torch.stack(all_presence)


def read_out(decoder: Any, hidden: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the heads say of a layer's output [P, 1 + Q, d]: normalised queries, refined ``boxes``, presence logits."""
    normed = decoder.output_layer_norm(hidden[:, 1:])
    present = decoder.presence_layer_norm(hidden[:, :1])
    with full_precision(boxes.device):
        new_boxes = (decoder.box_head(as_weights(normed, decoder.box_head)) + inverse_sigmoid(boxes)).sigmoid()
        presence = decoder.presence_head(as_weights(present, decoder.presence_head)).squeeze(-1)
    return normed, new_boxes, presence


def step_of(
    decoder: Sam3DetrDecoder,
    layer: Any,
    grid: tuple[int, int],
    one_to_many: bool,
    hidden: Tensor,
    boxes: Tensor,
    prompt: Tensor,
    memory: Tensor,
    memory_pos: Tensor,
    text_mask: Any,
) -> Tensor:
    """One layer with the positions and the relative position bias of its reference boxes [P, Q, 4]."""
    with full_precision(boxes.device):
        query_pos = decoder.ref_point_head(decoder.position_encoding.encode_boxes(boxes))
    # The presence token has no box: no position, no bias.
    query_pos = F.pad(query_pos, (0, 0, 1, 0))
    # Its annotation says tensors; plain numbers do as well, and can be traced.
    bias = F.pad(decoder._get_rpb_matrix(boxes, grid), (0, 0, 1, 0))  # type: ignore[arg-type]
    return _layer(layer, hidden, query_pos, prompt, memory, memory_pos, text_mask, bias, one_to_many)


def _layer(
    layer: Any,
    hidden: Tensor,
    query_pos: Tensor,
    prompt: Tensor,
    memory: Tensor,
    memory_pos: Tensor,
    text_mask: Any,
    bias: Tensor,
    one_to_many: bool,
) -> Tensor:
    """One decoder layer; the ordinary case is transformers' own."""
    if not one_to_many:
        out: Tensor = layer(
            hidden,
            query_pos=query_pos[:, 1:],
            text_features=prompt,
            vision_features=memory,
            vision_pos_encoding=memory_pos,
            text_cross_attn_mask=text_mask,
            vision_cross_attn_mask=bias,
        )
        return out
    # Presence token and one-to-one queries attend to each other; the copies at the end do not.
    first = 1 + (hidden.shape[1] - 1) // 2
    with_pos = (hidden + query_pos)[:, :first]
    attended, _ = layer.self_attn(query=with_pos, key=with_pos, value=hidden[:, :first], attention_mask=None)
    attended = F.pad(layer.self_attn_dropout(attended), (0, 0, 0, hidden.shape[1] - first))
    hidden = layer.self_attn_layer_norm(hidden + attended)

    attended, _ = layer.text_cross_attn(query=hidden + query_pos, key=prompt, value=prompt, attention_mask=text_mask)
    hidden = layer.text_cross_attn_layer_norm(hidden + layer.text_cross_attn_dropout(attended))

    attended, _ = layer.vision_cross_attn(
        query=hidden + query_pos, key=memory + memory_pos, value=memory, attention_mask=bias
    )
    hidden = layer.vision_cross_attn_layer_norm(hidden + layer.vision_cross_attn_dropout(attended))
    return layer.mlp_layer_norm(hidden + layer.mlp_dropout(layer.mlp(hidden)))
