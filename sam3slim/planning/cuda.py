"""What CUDA keeps for the backward pass, on tensors of the CPU.

Without a GPU PyTorch runs no backward pass on CUDA tensors, not even on fake ones. A plan for a card therefore runs on
fake CPU tensors, and what CUDA does otherwise and matters for memory is done here: which operators autocast computes in
float32, attention that keeps no map, dropout that keeps a mask of booleans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sam3slim.planning.fake import backward_under

# CUDA's autocast computes these in float32 (``AT_FORALL_FP32`` in ATen/autocast_mode.h); the CPU's does not.
IN_FLOAT32 = {
    "layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "exp", "log", "log2", "log10", "log1p",
    "expm1", "pow", "__pow__", "rsqrt", "reciprocal", "acos", "asin", "cosh", "sinh", "tan", "erfinv", "norm",
    "sum", "prod", "cumsum", "cumprod", "cosine_similarity", "cdist", "dist", "renorm", "logsumexp", "mse_loss",
    "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "nll_loss", "binary_cross_entropy_with_logits",
    "cosine_embedding_loss", "hinge_embedding_loss", "margin_ranking_loss", "triplet_margin_loss",
    "soft_margin_loss", "poisson_nll_loss",
}  # fmt: skip
ALIGNED = 8  # elements: a bias whose rows are no multiple is copied into rows that are


class _Attention(torch.autograd.Function):
    """Attention as the flash and memory-efficient kernels keep it: inputs, output, one number per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out = value.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, _, _ = ctx.saved_tensors
        wanted = bias is not None and ctx.needs_input_grad[3]
        return (*(torch.empty_like(kept) for kept in (query, key, value)), torch.empty_like(bias) if wanted else None)


class as_on_cuda(TorchFunctionMode):
    """While it is entered, functions keep for the backward pass what they would on a card."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:
            return backward_under(self, *args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func is F.dropout or func is torch.dropout:
            return _dropout(*args, **kwargs)
        if torch.is_autocast_enabled("cpu") and getattr(func, "__name__", "") in IN_FLOAT32:
            args = tuple(_wide(value) for value in args)
            kwargs = {name: _wide(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """In place of ``scaled_dot_product_attention``, arguments and shapes as there; the kernels draw dropout again."""
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu")
        query, key, value = (tensor.to(half) for tensor in (query, key, value))
    bias = attn_mask
    if bias is not None:
        bias = torch.where(bias, 0.0, -torch.inf).to(query.dtype) if bias.dtype == torch.bool else bias.to(query.dtype)
        bias = F.pad(bias, (0, -bias.shape[-1] % ALIGNED))[..., : bias.shape[-1]]
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    found: Tensor = _Attention.apply(query, key, value, bias)
    return found


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


def _wide(value: Any) -> Any:
    """Half-precision tensors in float32."""
    halves = (torch.bfloat16, torch.float16)
    return value.float() if isinstance(value, Tensor) and value.dtype in halves else value
