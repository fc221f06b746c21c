"""FP8 products: torchao's tensor as its configuration makes it, the layout on disk, and what a GPU must have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization import PerRow
from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor

from sam3slim.artifacts.cut import cut_text
from sam3slim.checkpoints import CheckpointError, inspect, load
from sam3slim.checkpoints.float8 import StoredFloat8, check_capability, in_bfloat16, is_float8, multiply_on, quantise
from sam3slim.checkpoints.int8 import is_quantised
from sam3slim.compression import Fp8Dynamic, Int8Rules, Int8Weight, compress
from sam3slim.errors import UserError
from sam3slim.models import Sam3, part_of
from tests.small import assert_same_outputs, outputs


def float8_keys(model: nn.Module) -> set[str]:
    return {key for key, tensor in model.named_parameters() if is_float8(tensor)}


@pytest.fixture
def loaded(model: Sam3, tmp_path: Path) -> Sam3:
    compress(model, Fp8Dynamic()).write(model, tmp_path / "a")
    return load(tmp_path / "a")[0]


def test_fp8__which_weights(model: Sam3, loaded: Sam3, tmp_path: Path) -> None:
    fp8 = float8_keys(loaded)
    assert {part_of(key) for key in fp8} == {"vision", "text"}
    assert not any("embedding" in key for key in fp8)
    other = compress(model, Int8Weight()).tensors
    assert {k for k, t in loaded.named_parameters() if is_quantised(t)} == {
        k for k, t in other.items() if is_quantised(t)
    }
    found = inspect(tmp_path / "a")
    assert set(found.dtypes) == {"float8_e4m3fn", "int8", "float16"}
    assert not (tmp_path / "a/config.json").is_file()
    assert "FP8 weights have sam3slim's layout" in (tmp_path / "a/README.md").read_text()


def test_fp8__codes_and_scales_are_torchaos(model: Sam3, loaded: Sam3) -> None:
    for key in float8_keys(loaded):
        theirs = Float8Tensor.from_hp(model.get_parameter(key).detach(), granularity=PerRow())
        ours = loaded.get_parameter(key)
        assert torch.equal(ours.qdata.view(torch.uint8), theirs.qdata.view(torch.uint8)), key  # type: ignore[attr-defined]
        assert torch.equal(ours.scale, theirs.scale), key  # type: ignore[attr-defined]


def test_fp8__layout_reloads_bit_equal(model: Sam3, loaded: Sam3, tmp_path: Path, inputs: dict[str, Tensor]) -> None:
    with safe_open(tmp_path / "a/model.safetensors", "pt") as file:
        for key in float8_keys(loaded):
            module, _, name = key.rpartition(".")
            codes, scale = (file.get_tensor(f"{module}._{name}_float8{end}") for end in ("", "_scale"))
            assert (codes.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
            expected = StoredFloat8(codes, scale).dequantize()
            assert torch.equal(loaded.get_parameter(key).dequantize(), expected)
    assert_same_outputs(loaded, load(tmp_path / "a")[0], inputs)
    floats = load(tmp_path / "a", dequantize=True)[0]
    assert not any(map(is_quantised, floats.parameters()))
    found, full = outputs(loaded, inputs), outputs(floats, inputs)
    assert not torch.equal(found["pred_logits"], full["pred_logits"])  # activations are rounded too
    assert (found["pred_logits"] - full["pred_logits"]).norm() < 0.2 * full["pred_logits"].norm()


@pytest.mark.parametrize("half", [False, True])
def test_fp8__products_of_codes(half: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((48, 16), (256, 1024)):
        layer = nn.Linear(columns, rows)
        made = quantise(torch.randn(rows, columns, generator=generator))
        layer.weight = nn.Parameter(made.running(), requires_grad=False)
        # One token far larger than the others, one of zeros.
        x = torch.randn(2, 9, columns, generator=generator) * torch.logspace(-3, 3, 9)[:, None]
        x[1, 4] = 0
        with torch.inference_mode():
            found = in_bfloat16(layer, x) if half else layer(x)
        given = x.bfloat16().float() if half else x
        scale = given.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
        codes = (given / scale).to(torch.float8_e4m3fn).float()
        y = F.linear(codes, made.qdata.float()) * scale * made.scale.flatten() + layer.bias
        assert found.dtype == torch.float32
        # Scales in bfloat16 move some codes to their neighbours, an eighth away, which a sum that cancels out shows.
        size = F.linear(codes.abs(), made.qdata.float().abs()) * scale * made.scale.flatten() + layer.bias.abs()
        allowed = 1 / 8 if half else 1e-5
        assert ((found - y).abs() <= allowed * size).all(), (rows, columns)


def test_fp8__gpus_that_can_and_cannot(loaded: Sam3) -> None:
    check_capability((8, 9), "L4")
    check_capability((9, 0), "H100")
    with pytest.raises(
        UserError, match=r"capability 8\.9 or newer.*A100 has 8\.0; use int8_dynamic there, or device=cpu"
    ):
        check_capability((8, 0), "A100")
    assert multiply_on(loaded, torch.device("cpu")) == len(float8_keys(loaded))


def test_fp8__on_a_gpu_results_are_bfloat16(loaded: Sam3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    layer = loaded.get_submodule("vision_encoder.backbone.layers.0.mlp.fc1")
    x = torch.randn(3, 32)
    with torch.inference_mode():
        wide = layer(x)
        multiply_on(loaded, torch.device("cuda"))
        narrow = layer(x)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow.bfloat16().float(), narrow)
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, rtol=0, atol=float(3e-2 * wide.abs().max()))


def test_fp8__bad_input(model: Sam3, loaded: Sam3, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown part 'towers'"):
        Fp8Dynamic(activations=("towers",))
    with pytest.raises(UserError, match=r"no weight of rules\.parts .*multiples of 16.*use int8_dynamic"):
        compress(model, Fp8Dynamic(Int8Rules(parts=("geometry",), also=())))
    with pytest.raises(UserError, match="already FLOAT8_E4M3FN"):
        compress(loaded, Int8Weight())
    with pytest.raises(CheckpointError, match="already quantised"):
        cut_text(tmp_path / "a", tmp_path / "b", ["circle"])
