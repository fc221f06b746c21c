"""Plain rounding of one weight to INT8 or INT4: the nearest code, weight by weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sam3slim.checkpoints import int4
from sam3slim.checkpoints.int8 import StoredInt8, int8_tensor
from sam3slim.errors import UserError
from sam3slim.precisions import FP16, Stored

STEPS = 127.5  # between 0 and the largest weight, as torchao's symmetric scheme has it
INT4_GROUPS = (32, 64, 128)
INT4_STEPS = 7.5
SMALLEST_SCALE = 2.0**-24  # of FP16


@dataclass(frozen=True)
class Grid:
    """The numbers that a weight [rows, columns] may become: ``(code - zero) · scale``, code in ``low``..``high``.

    Attributes:
        scale, zero: float32 [rows, groups]; a group is ``columns / groups`` neighbours.
    """

    scale: Tensor
    zero: Tensor
    low: int
    high: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest ones, float32 [rows, columns]."""
        grouped = weight.unflatten(1, (self.scale.shape[1], -1))
        codes = (grouped / self.scale[..., None] + self.zero[..., None]).round().clamp(self.low, self.high)
        return codes.flatten(1)

    def values(self, codes: Tensor) -> Tensor:
        """What codes stand for, float32 [rows, columns]."""
        grouped = codes.unflatten(1, (self.scale.shape[1], -1))
        return ((grouped - self.zero[..., None]) * self.scale[..., None]).flatten(1)


def check_int4_group(key: str, group: int) -> None:
    """Is ``group``, which ``key`` of the configuration names, one that kernels have? Raises UserError."""
    if group not in INT4_GROUPS:
        *others, last = INT4_GROUPS
        raise UserError(f"{key}={group} must be {', '.join(map(str, others))} or {last}")


def int4_grid(weight: Tensor, group: int, *, symmetric: bool = True, shrink: float = 1.0) -> Grid:
    """Codes 0..15 that reach from a group's smallest weight to its largest, or as far on both sides (``symmetric``).

    Args:
        weight: [rows, columns], columns a multiple of ``group``.
        shrink: reach only so far; larger weights become the nearest end.
    """
    grouped = weight.float().unflatten(1, (-1, group))
    if symmetric:
        scale = _half(grouped.abs().amax(-1) * (shrink / INT4_STEPS))
        return Grid(scale, torch.full_like(scale, int4.MIDDLE), 0, int4.CODES - 1)
    # Zero is always one of the numbers.
    low, high = grouped.amin(-1).clamp(max=0) * shrink, grouped.amax(-1).clamp(min=0) * shrink
    scale = _half((high - low) / (int4.CODES - 1))
    return Grid(scale, (-low / scale).round().clamp(0, int4.CODES - 1), 0, int4.CODES - 1)


def _half(scale: Tensor) -> Tensor:
    """Rounded to FP16 before codes are chosen, because that is what is stored."""
    return scale.half().float().clamp(min=SMALLEST_SCALE)


def fits_int4(weight: Tensor, module: nn.Module, group: int) -> bool:
    """Whether ``weight`` can be INT4: a Linear's, of whole groups, with scales that FP16 can hold."""
    if not isinstance(module, nn.Linear) or weight.shape[1] % group:
        return False
    return weight.device.type == "meta" or bool(weight.abs().amax() < torch.finfo(torch.float16).max)


def store_int4(weight: Tensor, module: nn.Module, group: int = 64, *, symmetric: bool = True) -> Stored:
    """INT4 where it fits (``fits_int4``), else INT8: embeddings, kernels, columns that ``group`` does not divide."""
    if not fits_int4(weight, module, group):
        return store_int8(weight, module)
    grid = int4_grid(weight, group, symmetric=symmetric)
    return Stored(int4.store(grid.codes(weight), grid.scale, None if symmetric else grid.zero))


def store_int8(weight: Tensor, module: nn.Module) -> Stored:
    """torchao's tensor where its kernels run; elsewhere INT8 is a storage format with one scale per output channel."""
    if weight.ndim == 2:
        return Stored(quantise(weight))
    # A transposed convolution has its output channels second.
    axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scale = weight.abs().amax(dim=others, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / STEPS
    return Stored(StoredInt8((weight / scale).round().clamp(-128, 127).to(torch.int8), scale))


def store_int8_or_half(weight: Tensor, module: nn.Module, min_columns: int) -> Stored:
    """INT8 where an output channel has ``min_columns`` weights or more to share its FP32 scale, else FP16."""
    return (
        store_int8(weight, module)
        if weight.numel() >= min_columns * output_channels(weight, module)
        else FP16.store(weight)
    )


def output_channels(weight: Tensor, module: nn.Module) -> int:
    """Of a weight; a transposed convolution has them second."""
    return weight.shape[1 if isinstance(module, nn.ConvTranspose2d) and weight.ndim > 1 else 0]


def quantise(weight: Tensor, *, dynamic: bool = False) -> Tensor:
    """torchao's per-row tensor of a float ``weight`` [rows, columns]; see ``int8_tensor`` for ``dynamic``.

    Its zero points (all zero: symmetric) are dropped; they would cost a byte per row for nothing.
    """
    try:
        from torchao.quantization import Int8Tensor, PerRow
    except ImportError as error:
        raise UserError("INT8 weights need torchao, which is not installed; pip install torchao") from error
    quantised = Int8Tensor.from_hp(weight.detach().float(), granularity=PerRow())
    return int8_tensor(quantised.qdata, quantised.scale, dynamic=dynamic)
