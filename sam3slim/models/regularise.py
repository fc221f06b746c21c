"""Regularisation while training: drop path in the ViT, dropout in geometry encoder, DETR encoder and decoder.

Residual and MLP dropout are transformers' own modules. Drop path and attention dropout have no place there: layers and
attentions that need them change their class, which leaves parameters, their names and everything in eval mode as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth
from transformers.models.sam3.modeling_sam3 import (
    Sam3Attention,
    Sam3MLP,
    Sam3ViTLayer,
    window_partition,
    window_unpartition,
)

from sam3slim.specs import ModelSpec

if TYPE_CHECKING:
    from sam3slim.models.sam3 import Sam3

PARTS = ("geometry_encoder", "detr_encoder", "detr_decoder", "dot_product_scoring")


class DropPathLayer(Sam3ViTLayer):
    """A ViT block whose two branches are left out for some images (stochastic depth, arXiv:1603.09382)."""

    drop_path: float

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """[B, H, W, C] to the same; each branch of each image is dropped on its own, the others grow accordingly."""
        if not (self.training and self.drop_path):
            out: Tensor = super().forward(hidden_states, **kwargs)
            return out
        x, size = self.layer_norm1(hidden_states), hidden_states.shape[1:3]
        if self.window_size > 0:
            x, padded = window_partition(x, self.window_size)
        x, _ = self.attention(x, self.rotary_emb(x, self.position_ids), **kwargs)
        if self.window_size > 0:
            x = window_unpartition(x, self.window_size, padded, size)
        x = hidden_states + stochastic_depth(x, self.drop_path, "row")
        return x + stochastic_depth(self.dropout(self.mlp(self.layer_norm2(x))), self.drop_path, "row")


class DropAttention(Sam3Attention):
    """Attention with dropout on its weights (Vaswani et al., 2017)."""

    attention_dropout: float

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """[B, Q, d] queries, [B, K, d] keys and values, mask [B, heads or 1, Q, K] bool or added, to [B, Q, d]."""
        if not (self.training and self.attention_dropout):
            found: tuple[Tensor, Tensor | None] = super().forward(query, key, value, attention_mask, **kwargs)
            return found
        q, k, v = (
            projection(x).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attention_mask, dropout_p=self.attention_dropout, scale=self.scaling
        )
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


def set_regularisation(model: Sam3, spec: ModelSpec) -> None:
    """Give every layer the rates of ``spec``, whatever the model was built with; in place, ``model.spec`` included.

    Drop path grows linearly from 0 in the first ViT block to ``spec.vit.drop_path`` in the last. A rate of 0 draws no
    random number.
    """
    layers: Any = model.vision_encoder.backbone.layers
    for number, layer in enumerate(layers):
        # Plain numbers: a tensor's could not be read where tensors have no data.
        rate = spec.vit.drop_path * number / max(len(layers) - 1, 1)
        if rate or isinstance(layer, DropPathLayer):
            layer.__class__, layer.drop_path = DropPathLayer, rate
    parts: list[Any] = [module for part in PARTS for module in model.get_submodule(part).modules()]
    for module in parts:
        if isinstance(module, Sam3Attention):
            if spec.attention_dropout or isinstance(module, DropAttention):
                module.__class__, module.attention_dropout = DropAttention, spec.attention_dropout  # type: ignore[assignment]
        elif isinstance(module, Sam3MLP):
            module.dropout.p = spec.ffn_dropout
        else:
            for child in module.children():
                if isinstance(child, nn.Dropout):
                    child.p = spec.dropout
    own: ModelSpec = getattr(model, "spec", spec)
    model.spec = replace(
        own,
        vit=replace(own.vit, drop_path=spec.vit.drop_path),
        dropout=spec.dropout,
        attention_dropout=spec.attention_dropout,
        ffn_dropout=spec.ffn_dropout,
    )
