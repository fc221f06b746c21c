"""The DETR encoder for several prompts of one image: what no prompt enters yet is computed once per image."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.sam3.modeling_sam3 import Sam3DetrEncoder


def encode_shared(
    encoder: Sam3DetrEncoder,
    level: Tensor,
    position: Tensor,
    image_index: Tensor,
    prompt: Tensor,
    prompt_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """What ``encoder`` returns in eval mode for P prompts about B images.

    The first layer attends to the image alone before it looks at the prompt: that attention is computed for B images,
    not for P prompts. Its layer is called part by part, so forward hooks on it do not run.

    Args:
        level: [B, d, H, W] the coarsest map; ``position`` its position encoding.
        image_index: [P] int64.
        prompt: [P, T, d]; ``prompt_mask`` [P, T] bool, True on real tokens.

    Returns:
        memory [P, H·W, d] and its position encoding [P, H·W, d].
    """
    images, places = (value.flatten(2).transpose(1, 2) for value in (level, position))
    first: Any = encoder.layers[0]
    normed = first.layer_norm1(images)
    with_position = normed + places
    attended, _ = first.self_attn(query=with_position, key=with_position, value=normed)
    hidden, places = (images + attended)[image_index], places[image_index]
    mask = create_bidirectional_mask(
        config=encoder.config, inputs_embeds=hidden, attention_mask=prompt_mask, encoder_hidden_states=prompt
    )
    attended, _ = first.cross_attn(
        query=first.layer_norm2(hidden), key=prompt, value=prompt, attention_mask=mask
    )  # fmt: skip
    hidden = hidden + attended
    hidden = hidden + first.mlp(first.layer_norm3(hidden))
    for layer in encoder.layers[1:]:
        hidden = layer(hidden, prompt_feats=prompt, vision_pos_encoding=places, prompt_cross_attn_mask=mask)
    return hidden, places
