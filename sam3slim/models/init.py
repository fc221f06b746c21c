"""A start from which a narrow model learns on its own.

``transformers`` initialises SAM 3 for loading weights: every weight N(0, 0.02), so all object queries
are the same centred box and gradients vanish in a narrow model. What is set here instead, and why:

* Xavier-uniform linear and convolution weights (Glorot & Bengio, 2010): signals keep their scale.
* Queries N(0, 1) with reference boxes on a grid: queries differ from the first step.
* A box-local relative position bias: the bias over image tokens falls off outside the query's own box,
  at a different rate in every head, so that cross-attention looks into the box from the first step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3DecoderMLP, Sam3DetrDecoder, Sam3ViTEmbeddings

from sam3slim.models.sam3 import Sam3

LOCAL_BIAS_RANGE = (-8.0, -2.0)  # slope of the fall-off: the most local and the least local head
REFERENCE_BOX_SIZES = (0.25, 0.45)  # of the image, alternating over the grid


@torch.no_grad()
def init_for_training(model: Sam3, seed: int = 0) -> Sam3:
    """Re-initialise ``model`` in place for training from scratch; the same seed gives the same bits."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            _xavier(module.weight, generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.1, generator=generator)
        elif isinstance(module, Sam3ViTEmbeddings):
            _sine_positions(module.position_embeddings)
    _init_decoder(model.detr_decoder, generator)
    return model


def _xavier(weight: Tensor, generator: torch.Generator) -> None:
    receptive = weight[0, 0].numel() if weight.ndim > 2 else 1
    bound = math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * receptive))
    weight.uniform_(-bound, bound, generator=generator)


def _sine_positions(table: Tensor) -> None:
    """Fill [1, n·n, C] with 2-D sines whose wavelengths run from the grid down to two patches."""
    side = math.isqrt(table.shape[1])
    quarter = table.shape[2] // 4
    steps = torch.arange(side, dtype=torch.float32) / side
    frequency = math.pi * torch.logspace(0, math.log2(max(side, 2)), quarter, base=2.0)
    angles = steps[:, None] * frequency
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, C / 2]
    rows = waves[:, None].expand(-1, side, -1)
    columns = waves[None].expand(side, -1, -1)
    filled = torch.cat([rows, columns], dim=-1).reshape(1, side * side, -1)
    table.zero_()
    table[..., : filled.shape[-1]] = 0.5 * filled


def _init_decoder(decoder: Sam3DetrDecoder, generator: torch.Generator) -> None:
    decoder.query_embed.weight.normal_(0, 1, generator=generator)
    decoder.presence_token.weight.normal_(0, 1, generator=generator)
    boxes = grid_boxes(decoder.query_embed.num_embeddings)
    decoder.reference_points.weight.copy_(torch.logit(boxes))
    # The box head starts at "no change": layer by layer it learns corrections.
    decoder.box_head.layer3.weight.mul_(0.1)
    for mlp in (decoder.box_rpb_embed_x, decoder.box_rpb_embed_y):
        _box_local(mlp)


def _box_local(mlp: Sam3DecoderMLP) -> None:
    """Hidden units 0 and 1 measure how far a token lies before the first and past the second box edge."""
    first, last = mlp.layer1, mlp.layer2
    first.weight.mul_(0.1)
    last.weight.mul_(0.1)
    first.weight[0] = torch.tensor([-1.0, 0.0])
    first.weight[1] = torch.tensor([0.0, 1.0])
    slopes = torch.linspace(*LOCAL_BIAS_RANGE, last.weight.shape[0])
    last.weight[:, 0] = slopes
    last.weight[:, 1] = slopes


def grid_boxes(count: int) -> Tensor:
    """[count, 4] boxes (cx, cy, w, h) in 0..1 whose centres fill a near-square grid."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    index = torch.arange(count)
    cx = (index % columns + 0.5) / columns
    cy = (index // columns + 0.5) / rows
    sizes = torch.tensor(REFERENCE_BOX_SIZES)[(index % columns + index // columns) % 2]
    return torch.stack([cx, cy, sizes, sizes], dim=1)
