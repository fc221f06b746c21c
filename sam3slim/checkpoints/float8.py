"""FP8 weights on disk and in memory, and products of them.

A weight ``X.weight`` [rows, columns] is stored as ``X._weight_float8`` (float8_e4m3fn, same shape) and
``X._weight_float8_scale`` (float32 [rows, 1]); the weight is their product. In memory it is torchao's ``Float8Tensor``,
whose products are FP8: activations get a scale per token as they come. PyTorch multiplies the same codes on a CPU and
sums them in FP32; GPUs need compute capability 8.9 and give bfloat16.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam3slim.checkpoints.scaled import Scaled
from sam3slim.errors import UserError

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max  # 448
SMALLEST = 1e-12  # largest value of a row: a row of zeros needs a scale too
MULTIPLE = 16  # of rows and columns, for the GPUs' kernels
CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
KEY = re.compile(r"^(?P<module>.+)\._(?P<name>\w+?)_float8$")


class StoredFloat8(Scaled):
    """A weight [rows, columns] in the layout above."""

    ENDS = ("float8", "float8_scale")

    def running(self) -> Tensor:
        """torchao's tensor with FP8 products. Raises UserError without torchao."""
        try:
            from torchao.float8.inference import Float8MMConfig
            from torchao.quantization import PerRow
            from torchao.quantization.quantize_.workflows.float8.float8_tensor import (
                Float8Tensor,
                QuantizeTensorToFloat8Kwargs,
            )
        except ImportError as error:
            raise UserError(
                "FP8 weights run on torchao, which is not installed; pip install torchao, or load with dequantize=True"
            ) from error
        made: Tensor = Float8Tensor(
            self.qdata, self.scale, [1, self.shape[1]], Float8MMConfig(use_fast_accum=True),
            QuantizeTensorToFloat8Kwargs(DTYPE, PerRow(), hp_value_lb=SMALLEST), dtype=torch.float32,
        )  # fmt: skip
        return made


def quantise(weight: Tensor) -> StoredFloat8:
    """A finite weight [rows, columns], the largest value of each row at the end of FP8's range; nearest codes."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1, keepdim=True).clamp(min=SMALLEST) / LARGEST
    return StoredFloat8((weight / scale).clamp(-LARGEST, LARGEST).to(DTYPE), scale)


def is_float8(tensor: Any) -> bool:
    """True for ``StoredFloat8`` and torchao's tensor; not for plain tensors in FP8."""
    return hasattr(tensor, "scale") and getattr(getattr(tensor, "qdata", None), "dtype", None) is DTYPE


def stored(tensor: Any) -> StoredFloat8 | None:
    """``tensor`` as it is stored, if it is FP8, in memory or on disk; else None."""
    if isinstance(tensor, StoredFloat8):
        return tensor
    return StoredFloat8(tensor.qdata, tensor.scale) if is_float8(tensor) else None


def float8_linears(model: nn.Module) -> list[nn.Linear]:
    """Those with FP8 weights."""
    return [module for module in model.modules() if isinstance(module, nn.Linear) and is_float8(module.weight)]


def multiply_on(model: nn.Module, device: torch.device) -> int:
    """Let the Linears with FP8 weights compute on ``device``, where ``model`` is; how many they are.

    Raises:
        UserError: a GPU without FP8 products.
    """
    chosen = float8_linears(model)
    if chosen and device.type == "cuda":
        check_capability(torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))
        for module in chosen:
            module.forward = partial(in_bfloat16, module)  # type: ignore[method-assign]
    return len(chosen)


def check_capability(found: tuple[int, int], name: str) -> None:
    """Refuse a GPU without FP8 products. Raises UserError."""
    if found < CAPABILITY:
        raise UserError(
            f"fp8_dynamic: FP8 products need a GPU of compute capability {'.'.join(map(str, CAPABILITY))} or newer "
            f"(Ada, Hopper), and {name} has {'.'.join(map(str, found))}; use int8_dynamic there, or device=cpu"
        )


def in_bfloat16(module: nn.Linear, x: Tensor) -> Tensor:
    """The product as GPUs give it: inputs and results in bfloat16, [..., columns] → [..., rows] in x's type."""
    with torch.autocast(x.device.type, enabled=False):
        y = F.linear(x.bfloat16(), module.weight, None if module.bias is None else module.bias.bfloat16())
        return y.to(x.dtype)
