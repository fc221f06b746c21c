"""A plain pre-trained ViT (Dinov2, timm's), with the names that SAM 3's vision tower has for the same tensors.

Layer scale is folded into the projections and the picture's normalisation into the patch kernel, so that a block is
what a block of SAM 3's tower is, but for its attention: everywhere, with class and register tokens, without RoPE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PlainVitSizes:
    """Sizes of a plain ViT.

    Attributes:
        grid: patches on a side of the pictures it was trained on.
        prefix: class and register tokens in front of the patches.
    """

    embed_dim: int
    depth: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    grid: int
    prefix: int
    layer_norm_eps: float = 1e-6
    first_norm: bool = False
    antialias: bool = False  # where positions are resized


class PlainAttention(nn.Module):
    """Softmax attention over all tokens, with SAM 3's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] → [B, N, C]."""
        q, k, v = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        made: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return made


class PlainMlp(nn.Module):
    """Two linear layers and a GELU, with SAM 3's names."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] → [B, N, C]."""
        made: Tensor = self.fc2(nn.functional.gelu(self.fc1(tokens)))
        return made


class PlainBlock(nn.Module):
    """A pre-norm block; its ``state_dict`` has the keys and shapes of ``Sam3ViTLayer``'s."""

    def __init__(self, sizes: PlainVitSizes) -> None:
        super().__init__()
        width, eps = sizes.embed_dim, sizes.layer_norm_eps
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attention = PlainAttention(width, sizes.num_heads)
        self.mlp = PlainMlp(width, sizes.intermediate_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] → [B, N, C]."""
        tokens = tokens + self.attention(self.layer_norm1(tokens))
        added: Tensor = tokens + self.mlp(self.layer_norm2(tokens))
        return added


class PlainVit(nn.Module):
    """The whole ViT, for pictures that are normalised as ours are (mean 0.5, std 0.5).

    Attributes:
        kernel: [C, 3, p, p], bias [C] of the patch embedding.
        prefix: [T, C] class and register tokens, their positions added.
        positions: [grid², C] of the patches.
        source: where it comes from.
    """

    def __init__(self, sizes: PlainVitSizes, source: str = "") -> None:
        super().__init__()
        self.sizes, self.source = sizes, source
        width, patch = sizes.embed_dim, sizes.patch_size
        self.kernel = nn.Parameter(torch.zeros(width, 3, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))
        self.prefix = nn.Parameter(torch.zeros(sizes.prefix, width))
        self.positions = nn.Parameter(torch.zeros(sizes.grid**2, width))
        self.first_norm = nn.LayerNorm(width, sizes.layer_norm_eps) if sizes.first_norm else nn.Identity()
        self.layers = nn.ModuleList(PlainBlock(sizes) for _ in range(sizes.depth))
        self.final_norm = nn.LayerNorm(width, sizes.layer_norm_eps)

    def fold_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Let a kernel for pictures of mean ``mean`` and deviation ``std`` [3] take ours; exact."""
        kernel = self.kernel.data.double()
        scale, shift = 0.5 / std.double(), (0.5 - mean.double()) / std.double()
        self.bias.data += (kernel * shift[:, None, None]).sum((1, 2, 3)).to(self.bias)
        self.kernel.data.copy_(kernel * scale[:, None, None])

    def positions_on(self, grid: int) -> Tensor:
        """[grid², C]: the positions of another number of patches on a side, bicubic as the ViT itself does it."""
        if grid == self.sizes.grid:
            return self.positions
        table = self.positions.T.unflatten(1, (self.sizes.grid,) * 2)[None]
        resized = nn.functional.interpolate(
            table, (grid, grid), mode="bicubic", align_corners=False, antialias=self.sizes.antialias
        )
        return resized[0].flatten(1).T

    def embedded(self, pixels: Tensor) -> Tensor:
        """[B, T + N, C] in front of the first block, of square pictures [B, 3, S, S]."""
        patches = nn.functional.conv2d(pixels, self.kernel, self.bias, self.sizes.patch_size).flatten(2).transpose(1, 2)
        patches = patches + self.positions_on(math.isqrt(patches.shape[1]))
        tokens: Tensor = self.first_norm(torch.cat([self.prefix.expand(len(pixels), -1, -1), patches], dim=1))
        return tokens

    def streams(self, pixels: Tensor) -> Iterator[Tensor]:
        """[B, T + N, C] in front of the first block and after each of them."""
        tokens = self.embedded(pixels)
        yield tokens
        for layer in self.layers:
            tokens = layer(tokens)
            yield tokens

    def patches(self, tokens: Tensor) -> Tensor:
        """[B, T + N, C] → [B, h, w, C]: the tokens of patches."""
        rows = tokens[:, self.sizes.prefix :]
        return rows.unflatten(1, (math.isqrt(rows.shape[1]),) * 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features [B, h, w, C] behind the final norm."""
        *_, tokens = self.streams(pixels)
        features: Tensor = self.final_norm(self.patches(tokens))
        return features
