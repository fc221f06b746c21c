"""A start from which a narrow model learns on its own.

``transformers`` initialises SAM 3 for loading weights: every weight N(0, 0.02), so all object queries
are the same centred box and gradients vanish in a narrow model. What is set here instead, and why:

* Fan-in scaled linear and convolution weights (LeCun et al., 1998): signals keep their scale, and image
  content is not drowned by position in the patch embedding.
* Queries N(0, 1) with reference boxes on a grid: queries differ from the first step.
* A box-local relative position bias: the bias over image tokens falls off outside the query's own box, and
  every head looks at another side of it, so that cross-attention sees from the first step where the box is off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3DecoderMLP, Sam3DetrDecoder, Sam3ViTEmbeddings

from sam3slim.models.sam3 import Sam3

OUTSIDE_SLOPE = -6.0  # of the attention bias outside the box, per unit of log-scaled distance
INSIDE_SLOPE = -4.0  # of the heads that look at one side of the box
EMBEDDING_STD = 0.02  # CLIP's: a norm follows, and small embeddings change quickly
MASK_SCALE = 0.2  # untrained mask logits stay near 0, or their loss drowns every other one at first
REFERENCE_BOX_SIZES = (0.25, 0.45)  # of the image, alternating over the grid


@torch.no_grad()
def init_for_training(model: Sam3, seed: int = 0) -> Sam3:
    """Re-initialise ``model`` in place for training from scratch; the same seed gives the same bits."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            _fan_in(module, generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, EMBEDDING_STD, generator=generator)
        elif isinstance(module, Sam3ViTEmbeddings):
            _sine_positions(module.position_embeddings)
    _init_decoder(model.detr_decoder, generator)
    model.mask_decoder.instance_projection.weight.mul_(MASK_SCALE)
    return model


@torch.no_grad()
def fresh_box_labels(model: Sam3, seed: int = 0) -> None:
    """Draw the vectors that tell a positive box from a negative one anew, N(0, 1) as the reference does.

    In a model that was never trained with boxes they are as small as they began (``EMBEDDING_STD``): next to what they
    are added to they hardly show, and both kinds of boxes look the same to it.
    """
    model.geometry_encoder.label_embed.weight.normal_(generator=torch.Generator().manual_seed(seed))


def _fan_in(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, generator: torch.Generator) -> None:
    """Uniform weights of variance 1 / (inputs that reach one output)."""
    weight = module.weight
    # Kernel and stride of the neck's transposed convolutions are equal: an output pixel sees one tap a channel.
    inputs = weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else weight[0].numel()
    bound = math.sqrt(3 / inputs)
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
    assert decoder.box_head.layer3 is not None
    decoder.box_head.layer3.weight.mul_(0.1)
    _box_local(decoder.box_rpb_embed_x, toward_first=0, toward_last=1)
    _box_local(decoder.box_rpb_embed_y, toward_first=2, toward_last=3)


def _box_local(mlp: Sam3DecoderMLP, *, toward_first: int, toward_last: int) -> None:
    """The bias of one axis: every head falls off outside the box, one head in four also from each edge inwards.

    Hidden units 0..3 measure how far a token lies before and past the first edge, before and past the last.
    Heads ``toward_first`` and ``toward_last`` (modulo 4) look at that side of the box, as the heads of
    Deformable DETR (arXiv:2010.04159) start in different directions: comparing sides tells where the box is off.
    """
    first, last = mlp.layer1, mlp.layer2
    first.weight.mul_(0.1)
    last.weight.mul_(0.1)
    first.weight[:4] = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    last.weight[:, :4] = 0
    last.weight[:, 0] = OUTSIDE_SLOPE
    last.weight[:, 3] = OUTSIDE_SLOPE
    last.weight[toward_first::4, 1] = INSIDE_SLOPE
    last.weight[toward_last::4, 2] = INSIDE_SLOPE


def grid_boxes(count: int) -> Tensor:
    """[count, 4] boxes (cx, cy, w, h) in 0..1 whose centres fill a near-square grid."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    index = torch.arange(count)
    cx = (index % columns + 0.5) / columns
    cy = (index // columns + 0.5) / rows
    sizes = torch.tensor(REFERENCE_BOX_SIZES)[(index % columns + index // columns) % 2]
    return torch.stack([cx, cy, sizes, sizes], dim=1)
