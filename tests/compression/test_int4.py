"""INT4 weights: their layout, what is chosen, and that an artifact is read back bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sam3slim.artifacts import write_artifact
from sam3slim.artifacts.cut import cut_text
from sam3slim.checkpoints import load
from sam3slim.checkpoints.inspection import inspect
from sam3slim.checkpoints.int4 import StoredInt4, pack, stored, unpack
from sam3slim.checkpoints.int8 import is_quantised, stored_type
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.compression import Fp16, Int4Weight, Int8Rules, Mixed, compress, int4_bytes, method_from_name
from sam3slim.compression.rounding import int4_grid, store_int4
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_model
from sam3slim.models import Sam3, build_model, bytes_by_part, part_of
from tests.small import assert_same_outputs

METHOD = Int4Weight(group=32)


def linear(rows: int, columns: int, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(columns, rows)
    with torch.no_grad():
        layer.weight.normal_(0.1, 1, generator=torch.Generator().manual_seed(seed))
    return layer


@pytest.mark.parametrize("columns", [1, 2, 7, 64])
def test_pack__two_values_a_byte(columns: int) -> None:
    values = torch.randint(0, 16, (5, columns), generator=torch.Generator().manual_seed(0))
    packed = pack(values)
    assert packed.dtype == torch.uint8
    assert packed.shape == (5, -(-columns // 2))
    assert torch.equal(unpack(packed)[:, :columns].long(), values)
    assert packed[0, 0] % 16 == values[0, 0]  # the first in the low bits, as in ONNX Runtime


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_store_int4__within_half_a_step(group: int, symmetric: bool) -> None:
    layer = linear(24, 3 * 128)
    tensor = store_int4(layer.weight.detach(), layer, group, symmetric=symmetric).tensor
    assert isinstance(tensor, StoredInt4)
    assert tensor.group == group
    assert (tensor.zero is None) == symmetric
    error = (tensor.dequantize() - layer.weight).abs().unflatten(1, (-1, group))
    # The largest weight may lie half a step beyond the last code, and so may both ends once zero is one of the codes.
    assert (error <= 0.51 * tensor.scale.float()[..., None]).all()


def test_store_int4__a_zero_per_group_helps_weights_on_one_side() -> None:
    layer = linear(24, 128)
    weight = layer.weight.detach().abs()
    even, uneven = (store_int4(weight, layer, 32, symmetric=symmetric).tensor for symmetric in (True, False))
    assert (uneven.dequantize() - weight).square().mean() < 0.5 * (even.dequantize() - weight).square().mean()


def test_store_int4__zeros_and_tiny_weights() -> None:
    layer = linear(4, 64)
    weight = layer.weight.detach().clone()
    weight[0], weight[1] = 0.0, 1e-12
    for symmetric in (True, False):
        made = store_int4(weight, layer, 32, symmetric=symmetric).tensor.dequantize()
        assert made.isfinite().all()
        assert (made[:2] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_running__torchao_computes_the_same_values(symmetric: bool) -> None:
    layer = linear(48, 128)
    tensor = store_int4(layer.weight.detach(), layer, 32, symmetric=symmetric).tensor
    running = tensor.running()
    assert torch.equal(running.dequantize(), tensor.dequantize())
    x = torch.randn(3, 128)
    assert torch.equal(nn.functional.linear(x, running), nn.functional.linear(x, tensor.dequantize()))
    again = stored(running)
    assert again is not None
    for mine, theirs in zip(tensor.parts.items(), again.parts.items(), strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1])


def test_int4_weight__which_tensors(model: Sam3) -> None:
    tensors = compress(model, METHOD).tensors
    kinds = {key: stored_type(tensor) for key, tensor in tensors.items()}
    int4 = {key for key, kind in kinds.items() if kind == "int4"}
    assert {part_of(key) for key in int4} == {"vision", "text", "geometry", "encoder", "decoder"}
    assert {key.split(".")[-3] for key in int4 if part_of(key) == "decoder"} == {"mlp"}
    assert kinds["text_encoder.text_model.embeddings.token_embedding.weight"] == "int8"
    assert kinds["detr_decoder.layers.0.self_attn.q_proj.weight"] == "int8"
    assert kinds["vision_encoder.neck.fpn_layers.0.proj2.weight"] == "int8"
    assert not any("norm" in key or "cls_embed" in key for key in kinds if kinds[key] != "float16")
    plain = compress(model, Int4Weight(group=32, int8=())).tensors
    assert {stored_type(t) for k, t in plain.items() if part_of(k) == "decoder"} == {"int4", "float16"}


@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_weight__artifact_is_read_back_bit_by_bit(
    model: Sam3, inputs: dict[str, Tensor], tmp_path: Path, symmetric: bool
) -> None:
    method = Int4Weight(group=32, symmetric=symmetric)
    compressed = compress(model, method)
    info = compressed.write(model, tmp_path / "a")
    assert compressed.bytes == int4_bytes(model, method) == sum(info.bytes_by_part.values())
    running, report = load(tmp_path / "a")
    floats, _ = load(tmp_path / "a", dequantize=True)
    assert report.precision == "int4_weight"
    for key, tensor in compressed.tensors.items():
        want = tensor.dequantize() if isinstance(tensor, StoredInt4) else None
        if want is not None:
            assert torch.equal(floats.state_dict()[key], want), key
            assert torch.equal(running.get_parameter(key).dequantize(), want), key
    assert not any(is_quantised(p) for p in floats.parameters())
    assert_same_outputs(running, floats, inputs, atol=1e-5)
    # What was loaded can be written again, and stays INT4.
    write_artifact(running, tmp_path / "b")
    assert set(inspect(tmp_path / "b").dtypes) == {"int4", "int8", "float32"}
    assert_same_outputs(running, load(tmp_path / "b")[0], inputs)


def test_int4_weight__says_what_reads_it(model: Sam3, tmp_path: Path) -> None:
    compress(model, METHOD).write(model, tmp_path / "a")
    metadata = json.loads((tmp_path / "a" / "sam3slim.json").read_text())
    assert metadata["opens_in"] == ["sam3slim"]
    assert set(metadata["dtypes"]) == {"int4", "int8", "float16"}
    assert "Plain transformers cannot open it: INT4 weights" in (tmp_path / "a" / "README.md").read_text()
    # With a configuration, transformers would open it with fresh weights in place of the packed ones.
    assert not (tmp_path / "a" / "config.json").exists()
    found = inspect(tmp_path / "a")
    assert found.report.ok
    assert found.dtypes == metadata["dtypes"]
    assert found.bytes == metadata["bytes_by_part"]


def test_int4_weight__a_missing_scale_is_named(model: Sam3, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    compress(model, METHOD).write(model, tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    del tensors[next(key for key in tensors if key.endswith("_int4_scale"))]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"INT4 weight .*_weight_int4 has no .*_int4_scale; write it again"):
        load(tmp_path / "a")


def test_int4_weight__already_quantised_is_refused(model: Sam3, tmp_path: Path) -> None:
    compress(model, METHOD).write(model, tmp_path / "a")
    loaded, _ = load(tmp_path / "a")
    for method in (METHOD, Fp16(), Mixed({"vision": "int8"})):
        with pytest.raises(UserError, match=r"already INT[48] .*; start from its FP32 or FP16 parent"):
            compress(loaded, method)
    with pytest.raises(CheckpointError, match=r"is already quantised .int4_weight.; cut the text tower of its FP32"):
        cut_text(tmp_path / "a", tmp_path / "b", ["dog"])


def test_int4_weight__bad_options() -> None:
    with pytest.raises(UserError, match=r"group=48 must be 32, 64 or 128"):
        method_from_name("int4_weight", group=48)
    with pytest.raises(UserError, match="unknown group 'neckk'; did you mean neck"):
        method_from_name("int4_weight", int8=["neckk"])


def test_int4_weight__a_group_that_divides_nothing(model: Sam3) -> None:
    with pytest.raises(UserError, match=r"group=128 divides no row of the chosen weights \(lengths: 32.*\); choose"):
        compress(model, Int4Weight(group=128, rules=Int8Rules(parts=("encoder",), also=())))
    with pytest.raises(UserError, match=r"lengths: none"):
        compress(model, Int4Weight(rules=Int8Rules(parts=(), also=())))


def test_int4_weight__rows_that_a_group_does_not_divide_are_int8(model: Sam3) -> None:
    kinds = {k: stored_type(t) for k, t in compress(model, Int4Weight(group=64)).tensors.items()}
    weights = model.state_dict()
    int4 = {key for key, kind in kinds.items() if kind == "int4"}
    assert int4
    assert all(weights[key].shape[1] % 64 == 0 for key in int4)
    assert kinds["vision_encoder.backbone.layers.0.attention.q_proj.weight"] == "int8"


def test_mixed__int4_group_by_group(model: Sam3, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    compressed = compress(model, Mixed({"vision": "int4", "embeddings": "int4", "neck": "int4"}, int4_group=32))
    kinds = {key: stored_type(tensor) for key, tensor in compressed.tensors.items()}
    assert kinds["vision_encoder.backbone.layers.0.attention.q_proj.weight"] == "int4"
    assert kinds["text_encoder.text_model.embeddings.token_embedding.weight"] == "int8"
    assert kinds["vision_encoder.neck.fpn_layers.0.proj2.weight"] == "int8"
    compressed.write(model, tmp_path / "a")
    assert_same_outputs(load(tmp_path / "a")[0], load(tmp_path / "a", dequantize=True)[0], inputs, atol=1e-5)
    with pytest.raises(UserError, match="int4_group=16 must be 32, 64 or 128"):
        Mixed(int4_group=16)


def test_sizes__at_full_architecture() -> None:
    """Less than 14.5 % of FP32; the text tower replaced by features of phrases, at most 0.30 GB."""
    model = build_model(compose_model(["model=full"]), device="meta")
    params = sum(parameter.numel() for parameter in model.parameters())
    small, tower = int4_bytes(model, Int4Weight()), bytes_by_part(model.spec)["text"]["int4"]
    assert small <= 0.145 * 4 * params
    phrases, tokens = 80, 5
    assert small - tower + 4 * phrases * tokens * model.spec.d_model <= 0.30e9
    assert sum(row["int4"] for row in bytes_by_part(model.spec).values()) == pytest.approx(small, rel=0.02)


def test_grid__shrunk_reaches_less_far() -> None:
    weight = linear(8, 64).weight.detach()
    whole, part = int4_grid(weight, 32), int4_grid(weight, 32, shrink=0.5)
    assert torch.allclose(part.scale, 0.5 * whole.scale, rtol=1e-3)
    assert part.values(part.codes(weight)).abs().amax() < whole.values(whole.codes(weight)).abs().amax()
