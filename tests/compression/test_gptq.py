"""Compensated rounding: a lower error, the right inputs for every block, and nothing else changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam3slim.checkpoints import load
from sam3slim.checkpoints.int4 import StoredInt4
from sam3slim.checkpoints.int8 import is_quantised
from sam3slim.compression import Int4Weight, Int8Weight, compress, method_from_name
from sam3slim.compression.calibrate import calibrate
from sam3slim.compression.compensate import _passes, _Real
from sam3slim.compression.gptq import Moments, Rounder, compensated, gptq, int4_rounder, int8_rounder
from sam3slim.compression.rounding import int4_grid
from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from tests.tiny import tiny_batch


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs as layers have them: few strong directions, a mean of their own."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)[:, None]
    return torch.randn(rows, columns, generator=generator) @ mix + torch.randn(columns, generator=generator)


def moments_of(inputs: Tensor) -> Moments:
    moments = Moments(inputs.shape[-1], inputs.device)
    moments.add(inputs)
    return moments


@pytest.mark.parametrize("rounder", [int4_rounder(32, True), int4_rounder(32, False), int8_rounder])
@pytest.mark.parametrize("with_bias", [True, False])
def test_compensated__far_below_the_error_of_plain_rounding(rounder: Rounder, with_bias: bool) -> None:
    layer = nn.Linear(128, 48, bias=with_bias)
    inputs, unseen = correlated(2500, 128).split([2000, 500])
    made = compensated(layer.weight, layer.bias, moments_of(inputs), rounder)
    plain = rounder(layer.weight.detach(), torch.eye(128, dtype=torch.float64))[2]
    with torch.no_grad():
        wanted = layer(unseen)
        before = (nn.functional.linear(unseen, plain, layer.bias) - wanted).square().mean()
        after = (nn.functional.linear(unseen, made.weight, made.bias) - wanted).square().mean()
    assert after < 0.65 * before
    assert made.error < 0.65 * made.plain_error
    # What is stored is what was promised.
    stored: Any = made.stored
    assert torch.equal(stored.dequantize(), made.weight)


def test_compensated__errors_are_those_of_the_outputs() -> None:
    layer, inputs = nn.Linear(64, 16), correlated(1000, 64)
    made = compensated(layer.weight, layer.bias, moments_of(inputs), int4_rounder(32, True))
    with torch.no_grad():
        wanted = layer(inputs)
        lost = (nn.functional.linear(inputs, made.weight, made.bias) - wanted).square().sum()
        power = (wanted - layer.bias).square().sum()
    assert made.error == pytest.approx(float(lost / power), rel=1e-3)
    # The mean is made up for by the bias.
    assert torch.allclose(nn.functional.linear(inputs, made.weight, made.bias).mean(0), wanted.mean(0), atol=1e-4)


def test_gptq__what_is_on_the_grid_stays() -> None:
    weight = nn.Linear(128, 16).weight.detach()
    grid = int4_grid(weight, 32)
    codes = grid.codes(weight)
    second = moments_of(correlated(500, 128)).second(centred=False)
    assert torch.equal(gptq(grid.values(codes), grid, second), codes)


def test_gptq__inputs_that_are_always_zero() -> None:
    inputs = correlated(500, 64)
    inputs[:, 10:20] = 0
    layer = nn.Linear(64, 16)
    made = compensated(layer.weight, layer.bias, moments_of(inputs), int4_rounder(32, True))
    assert made.weight.isfinite().all()
    silent = compensated(layer.weight, layer.bias, moments_of(torch.zeros(5, 64)), int4_rounder(32, True))
    assert silent.weight.isfinite().all()


def half_rounded(model: Sam3) -> Sam3:
    return copy.deepcopy(model).half().float()


def linears_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def test_calibrate__every_layer_sees_what_it_sees_in_the_whole_model(model: Sam3) -> None:
    """With a rounder that rounds nothing, replayed blocks give all others the inputs of an ordinary run."""
    model = half_rounded(model)  # biases are stored so
    batches = [tiny_batch(0), tiny_batch(1)]
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, rounds: Tensor, second: Tensor) -> tuple[object, Tensor, Tensor]:
        seen.setdefault(name, []).append(second)
        return None, rounds, rounds

    names = [n for n in linears_of(model) if "layers." in n or n == "text_projection"]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with _Real(model) as real, torch.no_grad():
        found = calibrate(model, {n: partial(keep, n) for n in names}, _passes(model, batches), real)
        ordinary: dict[str, Moments] = {}

        def hook(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
            ordinary.setdefault(name, Moments(args[0].shape[-1], args[0].device)).add(real(name, args[0]))

        handles = [model.get_submodule(n).register_forward_pre_hook(partial(hook, n)) for n in names]
        for batch in batches:
            model(**batch.inputs())
        for handle in handles:
            handle.remove()
    assert set(found.layers) == set(ordinary)
    assert all(len(times) == 1 for times in seen.values())
    for name, (second,) in seen.items():
        centred = model.get_submodule(name).bias is not None
        torch.testing.assert_close(second, ordinary[name].second(centred=centred), rtol=1e-4, atol=1e-6)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_calibrate__how_often_a_block_runs(model: Sam3) -> None:
    batches = [tiny_batch(0), tiny_batch(1), tiny_batch(2)]
    layers = model.vision_encoder.backbone.layers
    names = [n for n in linears_of(model) if n.startswith("vision_encoder.backbone.layers.")]
    calls: list[int] = []
    for number, layer in enumerate(layers):  # what a block that is done does not call
        layer.layer_norm1.register_forward_pre_hook(lambda module, args, number=number: calls.append(number))
    with torch.no_grad(), _Real(model) as real:
        calibrate(model, dict.fromkeys(names, int4_rounder(32, True)), _passes(model, batches), real)
    # Once at first, for the order; for q, k and v; for o; for fc1; for fc2; for what it hands on.
    assert [calls.count(number) for number in range(len(layers))] == [1 + 5 * len(batches)] * len(layers)


def test_calibrate__later_blocks_make_up_for_earlier_ones(model: Sam3) -> None:
    """The features of unseen images are nearer to the original's than plainly rounded ones."""
    seen, unseen = [tiny_batch(seed) for seed in range(8)], tiny_batch(99)
    names = [n for n in linears_of(model) if n.startswith("vision_encoder.backbone.layers.")]
    rounder = int4_rounder(32, True)
    with torch.no_grad(), _Real(model) as real:
        found = calibrate(model, dict.fromkeys(names, rounder), _passes(model, seen), real)
    plain, better = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            layer: Any = plain.get_submodule(name)
            layer.weight.copy_(int4_grid(layer.weight, 32).values(int4_grid(layer.weight, 32).codes(layer.weight)))
            better.get_submodule(name).weight.copy_(found.layers[name].weight)
            better.get_submodule(name).bias.copy_(found.layers[name].bias)  # type: ignore[arg-type]
        wanted, before, after = (
            m.get_vision_features(unseen.pixel_values).fpn_hidden_states[0] for m in (model, plain, better)
        )
    assert (after - wanted).square().mean() < 0.7 * (before - wanted).square().mean()
    plain_error, error = found.errors()
    assert error < 0.8 * plain_error


def batches_of(count: int) -> Iterator[Batch]:
    yield from (tiny_batch(seed) for seed in range(count))


@pytest.mark.parametrize("name", ["int4_weight", "int8_weight"])
def test_compress__compensated_artifact(model: Sam3, tmp_path: Path, name: str) -> None:
    options = {"group": 32} if name == "int4_weight" else {}
    method = method_from_name(name, compensate="gptq", calibration_batches=3, **options)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    compressed = compress(model, method, batches_of)
    plain = compress(model, method_from_name(name, **options))
    assert compressed.bytes == plain.bytes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    compressed.write(model, tmp_path / "a")
    loaded, _ = load(tmp_path / "a")
    changed = 0
    for key, tensor in compressed.tensors.items():
        if is_quantised(tensor):
            assert torch.equal(stored_values(loaded.get_parameter(key)), stored_values(tensor)), key
            changed += not torch.equal(stored_values(tensor), stored_values(plain.tensors[key]))
    facts = json.loads((tmp_path / "a" / "sam3slim.json").read_text())["extra"]["method"]["compensated"]
    assert changed == facts["layers"] > 0
    assert facts["images"] == 6
    assert facts["mean_output_error"]["compensated"] < facts["mean_output_error"]["plain"]
    # No prompt had a box.
    assert "geometry_encoder.boxes_pos_enc_project" in facts["not_reached"]


def stored_values(tensor: Any) -> Tensor:
    if isinstance(tensor, StoredInt4) or hasattr(tensor, "dequantize"):
        return tensor.dequantize()  # type: ignore[no-any-return]
    return tensor.qdata.float() * tensor.scale  # type: ignore[no-any-return]


def test_compress__compensation_needs_images(model: Sam3) -> None:
    for method in (Int4Weight(group=32, compensate="gptq"), Int8Weight(compensate="gptq")):
        with pytest.raises(UserError, match="needs unlabelled images; use compensate=none"):
            compress(model, method)
        with pytest.raises(UserError, match="needs images with a phrase, and there are none"):
            compress(model, method, lambda count: [])
    with pytest.raises(UserError, match=r"compress\.int4_weight\.compensate='?awq'? must be"):
        method_from_name("int4_weight", compensate="awq")
    with pytest.raises(UserError, match=r"calibration_batches=0 must be at least 1"):
        method_from_name("int8_weight", calibration_batches=0)


def test_compress__activations_that_are_not_finite(model: Sam3) -> None:
    def broken(count: int) -> Iterator[Batch]:
        batch = tiny_batch()
        batch.pixel_values[0, 0, 0, 0] = float("nan")
        yield batch

    with pytest.raises(UserError, match=r"calibration: what vision_encoder\S+ reads is not finite"):
        compress(model, Int4Weight(group=32, compensate="gptq"), broken)
