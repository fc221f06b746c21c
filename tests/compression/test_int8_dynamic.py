"""INT8 products: torchao's kernel, and its emulation in float."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from transformers import Sam3Model

from sam3slim.checkpoints import load
from sam3slim.checkpoints.int8 import is_dynamic, is_quantised
from sam3slim.compression import Int8Dynamic, Int8Weight, compress, emulated
from sam3slim.compression.int8_weight import quantise
from sam3slim.errors import UserError
from sam3slim.models import Sam3, part_of
from tests.small import assert_same_outputs

NANO = Path("assets/nano")


def dynamic_keys(model: nn.Module) -> set[str]:
    return {key for key, tensor in model.named_parameters() if is_dynamic(tensor)}


@pytest.fixture
def loaded(model: Sam3, tmp_path: Path) -> Sam3:
    compress(model, Int8Dynamic()).write(model, tmp_path / "a")
    return load(tmp_path / "a")[0]


def test_int8_dynamic__which_weights(model: Sam3, loaded: Sam3) -> None:
    dynamic = dynamic_keys(loaded)
    assert {part_of(key) for key in dynamic} == {"vision", "text"}
    assert not any("embedding" in key for key in dynamic)
    # The others are stored as int8_weight stores them.
    other = compress(model, Int8Weight()).tensors
    assert {k for k, t in loaded.named_parameters() if is_quantised(t)} == {
        k for k, t in other.items() if is_quantised(t)
    }
    for key in dynamic:
        assert torch.equal(loaded.get_parameter(key).qdata, other[key].qdata)  # type: ignore[attr-defined]


def test_int8_dynamic__is_torchaos_config(model: Sam3, loaded: Sam3, inputs: dict[str, Tensor]) -> None:
    dynamic = dynamic_keys(loaded)
    reference = load_weight_only(model)
    for key in dynamic:
        module = reference.get_submodule(key.removesuffix(".weight"))
        module.weight = nn.Parameter(model.get_parameter(key).detach().clone())
        quantize_(module, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    assert_same_outputs(reference, loaded, inputs)


def load_weight_only(model: Sam3) -> Sam3:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        compress(model, Int8Weight()).write(model, Path(folder) / "a")
        return load(Path(folder) / "a")[0]


def test_int8_dynamic__opens_in_plain_transformers(
    model: Sam3, loaded: Sam3, tmp_path: Path, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sam3Model, "get_input_embeddings", lambda self: self.text_encoder.get_input_embeddings())
    monkeypatch.setattr(Sam3Model, "get_output_embeddings", lambda self: None)
    plain = Sam3Model.from_pretrained(tmp_path / "a", dtype=torch.float32).eval()
    assert dynamic_keys(plain) == dynamic_keys(loaded)


def test_emulated__equals_the_kernel_on_layers_of_every_width() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((48, 16), (256, 1024), (1024, 4736)):
        layer = nn.Linear(columns, rows)
        layer.weight = nn.Parameter(quantise(layer.weight, dynamic=True), requires_grad=False)
        # One token far larger than the others, one of zeros.
        x = torch.randn(2, 9, columns, generator=generator) * torch.logspace(-3, 3, 9)[:, None]
        x[1, 4] = 0
        with torch.inference_mode():
            kernel = layer(x)
            with emulated(layer) as count:
                float_ = layer(x)
            assert torch.equal(layer(x), kernel)
        assert count == 1
        assert not torch.equal(kernel, nn.functional.linear(x, layer.weight.dequantize(), layer.bias))
        scale = kernel.abs().amax(-1, keepdim=True)
        assert ((float_ - kernel).abs() <= 1e-5 * scale).all(), (rows, columns)


@pytest.mark.skipif(not (NANO / "sam3slim.json").is_file(), reason="assets/nano is not there")
def test_emulated__equals_the_kernel_in_trained_towers(tmp_path: Path) -> None:
    trained, _ = load(NANO)
    compress(trained, Int8Dynamic()).write(trained, tmp_path / "a")
    loaded, _ = load(tmp_path / "a")
    pixels = torch.rand(1, 3, *[trained.spec.vit.image_size] * 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen.setdefault(name, (args[0], output))

        return hook

    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear) and is_dynamic(module.weight):
            module.register_forward_hook(keep(name))
    with torch.inference_mode():
        loaded.get_vision_features(pixels)
        with emulated(loaded):
            for name, (x, kernel) in seen.items():
                float_ = loaded.get_submodule(name).forward(x)
                assert (float_ - kernel).abs().max() <= 1e-5 * kernel.abs().max(), name
    assert len(seen) == len([key for key in dynamic_keys(loaded) if part_of(key) == "vision"])


def test_int8_dynamic__unknown_part() -> None:
    with pytest.raises(UserError, match="unknown part 'towers'"):
        Int8Dynamic(activations=("towers",))
