"""The mask head for several prompts of one image, with equal answers and less work.

The pixel decoder enlarges a map by nearest neighbours, adds a level of the image's pyramid, and convolves the sum
(3 × 3). A convolution is linear, so the level's share is the same for all prompts of an image and is computed once. The
share of the enlarged map has at most 2 × 2 distinct inputs at every place: four kernels of 2 × 2 on the small map
replace one of 3 × 3 on the large one (16 in place of 36 products a pixel of the small map).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.sam3.modeling_sam3 import Sam3MaskDecoder

# Prompts an image: with fewer, what they share is more work than it saves.
LEAST_PROMPTS = 2


def worth_sharing(prompts: int, images: int) -> bool:
    """Whether sharing saves work; a graph, whose numbers of both change from call to call, always shares."""
    return torch.compiler.is_exporting() or prompts >= LEAST_PROMPTS * images


def level_shares(decoder: Sam3MaskDecoder, fpn: tuple[Tensor, ...]) -> list[Tensor]:
    """What the levels of B images, fine to coarse [B, d, H, W], add in the pixel decoder; coarse to fine."""
    shares = []
    for conv, level in zip(_convolutions(decoder), reversed(fpn[:-1]), strict=False):
        shares.append(F.conv2d(_channels_last(level), conv.weight, conv.bias, padding=1))
    return shares


def masks_shared(
    decoder: Sam3MaskDecoder,
    shares: list[Tensor],
    image_index: Tensor,
    queries: Tensor,
    memory: Tensor,
    prompt: Tensor,
    prompt_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """What ``decoder`` returns in eval mode.

    Args:
        shares: ``level_shares`` of B images.
        image_index: [P] int64.
        queries: [P, Q, d]; ``memory`` [P, H·W, d]; ``prompt`` [P, T, d]; ``prompt_mask`` [P, T] bool.

    Returns:
        mask logits [P, Q, 4·H, 4·W] and the semantic map [P, 1, 4·H, 4·W].
    """
    pixels = _pixels(decoder, shares, image_index, _ask(decoder, memory, prompt, prompt_mask))
    # The projection of every pixel is moved to the queries, of which there are fewer.
    projection = decoder.instance_projection
    embedded = decoder.mask_embedder(queries)
    masks = (embedded @ projection.weight.flatten(1)) @ pixels.flatten(2)
    if projection.bias is not None:
        masks = masks + (embedded @ projection.bias)[..., None]
    return masks.unflatten(2, pixels.shape[2:]), decoder.semantic_projection(pixels)


def _ask(decoder: Sam3MaskDecoder, memory: Tensor, prompt: Tensor, prompt_mask: Tensor) -> Tensor:
    normed = decoder.prompt_cross_attn_norm(memory)
    mask = create_bidirectional_mask(
        config=decoder.config, inputs_embeds=normed, attention_mask=prompt_mask, encoder_hidden_states=prompt
    )
    attended, _ = decoder.prompt_cross_attn(query=normed, key=prompt, value=prompt, attention_mask=mask)
    return memory + attended


def _pixels(decoder: Sam3MaskDecoder, shares: list[Tensor], image_index: Tensor, memory: Tensor) -> Tensor:
    """Pixel embeddings [P, d, 4·H, 4·W]."""
    coarse = shares[0].shape[-2] // 2, shares[0].shape[-1] // 2
    # Channels come last in memory, as they do in this view: no copy.
    pixels = memory.transpose(1, 2).unflatten(2, coarse)
    norms: Any = decoder.pixel_decoder.norms
    for conv, norm, share in zip(_convolutions(decoder), norms, shares, strict=False):
        pixels = F.relu(norm(_enlarged(pixels, conv.weight, share, image_index)), inplace=True)
    return pixels


def _enlarged(small: Tensor, weight: Tensor, share: Tensor, image_index: Tensor) -> Tensor:
    """conv(nearest(small)) + share[image_index]: [P, i, h, w] → [P, o, 2·h, 2·w]."""
    height, width = small.shape[-2:]
    found = F.conv2d(F.pad(small, (1, 1, 1, 1)), _small_kernels(weight)).unflatten(1, (4, -1))
    quarters = [found[:, 2 * a + b, :, a : a + height, b : b + width] for a in (0, 1) for b in (0, 1)]
    if torch.compiler.is_exporting():
        return F.pixel_shuffle(torch.stack(quarters, dim=2).flatten(1, 2), 2) + share[image_index]
    whole = _channels_last(share[image_index])
    for place, quarter in enumerate(quarters):
        whole[:, :, place // 2 :: 2, place % 2 :: 2] += quarter
    return whole


def _small_kernels(weight: Tensor) -> Tensor:
    """[o, i, 3, 3] → [4·o, i, 2, 2]: what each of an enlarged pixel's four places sees of the small map."""

    def halves(kernels: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        before, here, after = kernels.unbind(dim)
        return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)

    rows = halves(weight.float(), 2)
    return torch.cat([kernel for row in rows for kernel in halves(row, 3)]).to(weight.dtype)


def _convolutions(decoder: Sam3MaskDecoder) -> Any:
    return decoder.pixel_decoder.conv_layers


def _channels_last(value: Tensor) -> Tensor:
    return value if torch.compiler.is_exporting() else value.contiguous(memory_format=torch.channels_last)
