"""The emulation of half-precision products that ``benchmarks/half_arithmetic.py`` measures with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.half_arithmetic import EmulatedProducts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_emulated_products__summed_wide_and_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, conv, value = nn.Linear(64, 8), nn.Conv2d(8, 4, 3), torch.randn(5, 64)
    picture = torch.randn(1, 8, 6, 6)
    with torch.inference_mode(), EmulatedProducts() as products, torch.autocast("cpu", dtype):
        found, filtered = layer(value), conv(picture)
    assert products.count == 2
    weight, bias = layer.weight.to(dtype).float(), layer.bias.to(dtype).float()
    assert torch.equal(found, (torch.nn.functional.linear(value.to(dtype).float(), weight, bias)).to(dtype))
    kernel = conv.weight.to(dtype).float(), conv.bias.to(dtype).float()  # type: ignore[union-attr]
    assert torch.equal(filtered, torch.nn.functional.conv2d(picture.to(dtype).float(), *kernel).to(dtype))


def test_emulated_products__leave_fp32_alone() -> None:
    layer, value = nn.Linear(64, 8), torch.randn(5, 64)
    with torch.inference_mode(), EmulatedProducts() as products:
        found = layer(value)
    assert products.count == 0
    assert torch.equal(found, layer(value))
