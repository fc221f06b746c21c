from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import Sam3Model

from sam3slim.checkpoints import load
from sam3slim.checkpoints.int8 import is_quantised
from sam3slim.compression import (
    CompressedTensors,
    Fp16,
    Int8Onnx,
    Int8Rules,
    Int8Weight,
    Onnx,
    WeightsOnly,
    compress,
    method_from_name,
    method_names,
)
from sam3slim.compression.int8_weight import quantised_names
from sam3slim.errors import UserError
from sam3slim.models import Sam3, part_of
from tests.small import assert_same_outputs


def reload(model: Sam3, compressed: CompressedTensors, folder: Path, **options: bool) -> Sam3:
    compressed.write(model, folder)
    return load(folder, **options)[0]  # type: ignore[arg-type]


def test_method_names__what_the_user_types() -> None:
    names = {
        "weights_only",
        "fp16",
        "bf16",
        "int8_weight",
        "int8_dynamic",
        "fp8_dynamic",
        "int4_weight",
        "mixed",
        "onnx",
        "int8_onnx",
        "int8_onnx_static",
        "int4_onnx",
        "slim",
        "recalibrated",
    }
    assert set(method_names()) == names


def test_method_from_name__typo_and_unknown_option() -> None:
    with pytest.raises(UserError, match=r"did you mean int8_weight\?"):
        method_from_name("int8_weights")
    with pytest.raises(UserError, match="unknown key compress"):
        method_from_name("fp16", bits=3)


def test_compress__unregistered_config(model: Sam3) -> None:
    with pytest.raises(TypeError, match="no compression handler"):
        compress(model, object())


def test_weights_only__bit_equal(model: Sam3, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    assert_same_outputs(model, reload(model, compress(model, WeightsOnly()), tmp_path / "a"), inputs)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half__stored_rounded_and_loaded_as_fp32(model: Sam3, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    compressed = compress(model, method_from_name(name))
    assert compressed.bytes == 2 * sum(p.numel() for p in model.parameters())
    loaded = reload(model, compressed, tmp_path / "a")
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[key].to(dtype).float()), key
    assert Sam3Model.from_pretrained(tmp_path / "a").dtype == dtype


def test_fp16__overflow_stays_fp32_and_is_named(model: Sam3, tmp_path: Path) -> None:
    with torch.no_grad():
        model.text_projection.bias[0] = 1e6
    compressed = compress(model, Fp16())
    assert compressed.tensors.rounding.overflowed == ["text_projection.bias"]
    assert "text_projection.bias" in compressed.describe()
    loaded = reload(model, compressed, tmp_path / "a")
    assert loaded.text_projection.bias[0] == 1e6
    # transformers would load everything in the config's type: it must hold the large value.
    assert Sam3Model.from_pretrained(tmp_path / "a").text_projection.bias[0] == 1e6


def test_fp16__underflow_is_counted(model: Sam3) -> None:
    before = compress(model, Fp16()).tensors.rounding.underflowed.get("text_projection.bias", 0)
    with torch.no_grad():
        model.text_projection.bias[:3] = 1e-9
        model.text_projection.bias[3] = 0.0  # already zero: nothing is lost
    assert before == 0
    assert compress(model, Fp16()).tensors.rounding.underflowed["text_projection.bias"] == 3


def test_compress__nan_is_refused_and_named(model: Sam3) -> None:
    with torch.no_grad():
        model.text_projection.bias[0] = float("nan")
    with pytest.raises(UserError, match=r"text_projection.bias holds NaN"):
        compress(model, Fp16())


def test_int8_weight__which_tensors(model: Sam3) -> None:
    tensors = compress(model, Int8Weight()).tensors
    int8 = {key for key, tensor in tensors.items() if is_quantised(tensor)}
    assert "text_encoder.text_model.embeddings.token_embedding.weight" in int8
    assert "vision_encoder.backbone.layers.0.attention.q_proj.weight" in int8
    assert {part_of(key) for key in int8} == {"vision", "text", "geometry", "encoder", "decoder"}
    # Of the decoder only what no attention and no head depends on.
    assert {key.split(".")[-3] for key in int8 if part_of(key) == "decoder"} == {"mlp"}
    assert not any("norm" in key or "conv" in key or "cls_embed" in key for key in int8)
    # Four columns: an FP32 scale per row costs what INT8 saves.
    assert "geometry_encoder.boxes_direct_project.weight" not in int8
    assert all(t.dtype == torch.float16 for key, t in tensors.items() if key not in int8)


def test_int8_weight__bytes_are_counted_with_scales(model: Sam3) -> None:
    compressed = compress(model, Int8Weight())
    names = set(quantised_names(model, Int8Rules()))
    expected = sum(p.numel() + 4 * p.shape[0] if key in names else 2 * p.numel() for key, p in model.named_parameters())
    assert compressed.bytes == expected


def test_int8_weight__artifact_equals_torchao(model: Sam3, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    names = set(quantised_names(model, Int8Rules()))
    reference = copy.deepcopy(model)
    for key, parameter in reference.named_parameters():
        if key not in names:
            parameter.data = parameter.data.half().float()
    config = Int8WeightOnlyConfig(set_inductor_config=False)
    quantize_(reference, config, filter_fn=lambda module, name: f"{name}.weight" in names)
    loaded = reload(model, compress(model, Int8Weight()), tmp_path / "a")
    assert_same_outputs(reference, loaded, inputs)


def test_int8_weight__dequantised_gives_the_same_outputs(
    model: Sam3, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    compressed = compress(model, Int8Weight())
    quantised = reload(model, compressed, tmp_path / "a")
    floats = reload(model, compressed, tmp_path / "a", dequantize=True)
    assert not any(is_quantised(p) for p in floats.parameters())
    assert all(p.dtype == torch.float32 for p in floats.parameters())
    assert_same_outputs(quantised, floats, inputs, atol=1e-5)


def test_int8_weight__error_is_within_half_a_step(model: Sam3) -> None:
    tensors = compress(model, Int8Weight()).tensors
    for key, weight in model.state_dict().items():
        if is_quantised(tensors[key]):
            step = weight.abs().amax(1, keepdim=True) / 127.5
            # The largest value of a row may be clipped to 127: half a step as well.
            assert ((tensors[key].dequantize() - weight).abs() <= 0.5001 * step).all(), key


def test_int8_weight__opens_in_plain_transformers(
    model: Sam3, inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = reload(model, compress(model, Int8Weight()), tmp_path / "a")
    # The two lines the model card shows.
    monkeypatch.setattr(Sam3Model, "get_input_embeddings", lambda self: self.text_encoder.get_input_embeddings())
    monkeypatch.setattr(Sam3Model, "get_output_embeddings", lambda self: None)
    plain = Sam3Model.from_pretrained(tmp_path / "a", dtype=torch.float32).eval()
    assert is_quantised(plain.text_projection.weight)
    ours, theirs = loaded.text_projection.weight, plain.text_projection.weight
    assert torch.equal(ours.dequantize(), theirs.dequantize())
    # Two forwards over equal weights: threads add up in another order (1.4e-6 seen on masks).
    assert_same_outputs(loaded, plain, inputs, atol=1e-5)
    assert "get_input_embeddings" in (tmp_path / "a" / "README.md").read_text()


def test_int8_weight__rules_are_data(model: Sam3) -> None:
    compressed = compress(model, Int8Weight(Int8Rules(parts=("text",), also=(), keep_float=("*token_embedding*",))))
    int8 = {key for key, tensor in compressed.tensors.items() if is_quantised(tensor)}
    assert {part_of(key) for key in int8} == {"text"}
    assert "text_encoder.text_model.embeddings.token_embedding.weight" not in int8
    with pytest.raises(UserError, match="unknown part 'txt'"):
        Int8Rules(parts=("txt",))


@pytest.mark.parametrize("name", ["int8_weight", "int8_onnx"])
def test_int8_rules__as_a_configuration_has_them(name: str) -> None:
    assert method_from_name(name, rules={"parts": ["text"]}).rules == Int8Rules(parts=("text",))
    with pytest.raises(UserError, match=rf"unknown key compress\.{name}\.rules\.part; did you mean .*rules\.parts"):
        method_from_name(name, rules={"part": ["text"]})
    with pytest.raises(UserError, match="unknown part 'txt'"):
        method_from_name(name, rules={"parts": ["txt"]})


def test_onnx__methods(model: Sam3) -> None:
    assert compress(model, Onnx()).int8 == ()
    graphs = compress(model, Int8Onnx(Int8Rules(parts=("vision",), also=())))
    assert {part_of(key) for key in graphs.int8} == {"vision"}
    assert graphs.method["rules"]["parts"] == ("vision",)
    assert f"{len(graphs.int8)} weights in INT8" in graphs.describe()


def test_int8_weight__already_quantised_is_refused(model: Sam3, tmp_path: Path) -> None:
    loaded = reload(model, compress(model, Int8Weight()), tmp_path / "a")
    for method in (Int8Weight(), Fp16(), Onnx(), Int8Onnx()):
        with pytest.raises(UserError, match="already INT8"):
            compress(loaded, method)


def test_int8_weight__model_is_left_untouched(model: Sam3) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    compress(model, Int8Weight())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_write__facts_say_the_method_and_shares(model: Sam3, tmp_path: Path) -> None:
    compress(model, Int8Weight()).write(model, tmp_path / "a", parent="full")
    metadata = json.loads((tmp_path / "a" / "sam3slim.json").read_text())
    assert metadata["precision"] == "int8_weight"
    assert metadata["extra"]["method"]["name"] == "int8_weight"
    assert "vision" in metadata["extra"]["method"]["rules"]["parts"]
    assert set(metadata["dtypes"]) == {"int8", "float16"}
    assert metadata["parent"] == "full"


@pytest.mark.parametrize("method", ["int8_weight", "int4_weight"])
def test_rules__of_every_part_leave_a_model_that_runs(
    model: Sam3, tmp_path: Path, inputs: dict[str, torch.Tensor], method: str
) -> None:
    options = {"group": 32} if method == "int4_weight" else {}
    rules = {"parts": ["vision", "text", "geometry", "encoder", "decoder", "mask", "scoring"]}
    loaded = reload(model, compress(model, method_from_name(method, rules=rules, **options)), tmp_path / "a")
    assert is_quantised(loaded.get_parameter("detr_decoder.layers.0.self_attn.q_proj.weight"))
    assert not is_quantised(loaded.get_parameter("detr_decoder.query_embed.weight"))  # read as a plain tensor
    with torch.inference_mode():
        assert loaded(**inputs).pred_logits.isfinite().all()
