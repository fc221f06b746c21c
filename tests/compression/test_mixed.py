"""Precisions by group: who belongs where, what is stored, what comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sam3slim.checkpoints import load
from sam3slim.checkpoints.int8 import stored_type
from sam3slim.compression import GROUPS, Mixed, compress, weights_by_group
from sam3slim.compression.effects import Effects
from sam3slim.compression.groups import weights_by_unit
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from tests.tiny import tiny_batch


def test_groups__every_matrix_and_kernel_is_in_exactly_one(model: Sam3) -> None:
    groups = weights_by_group(model)
    assert tuple(groups) == GROUPS
    assert all(groups.values())
    named = [name for names in groups.values() for name in names]
    assert len(named) == len(set(named))
    weights = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    assert weights | {"text_encoder.text_model.embeddings.token_embedding.weight"} == set(named)


@pytest.mark.parametrize("group", GROUPS)
def test_mixed__one_group_in_int8(model: Sam3, tmp_path: Path, group: str) -> None:
    compressed = compress(model, Mixed({name: "int8" if name == group else "fp32" for name in GROUPS}, rest="fp32"))
    loaded, report = load(compressed.write(model, tmp_path / "a").path, expect=model.spec, dequantize=True)
    assert report.ok
    chosen = set(weights_by_group(model)[group])
    for key, value in model.state_dict().items():
        found = loaded.state_dict()[key]
        if key not in chosen:
            assert torch.equal(found, value), key
            continue
        assert not torch.equal(found, value), key
        axis = 1 if isinstance(model.get_submodule(key.rpartition(".")[0]), nn.ConvTranspose2d) else 0
        others = [dim for dim in range(value.ndim) if dim != axis]
        step = value.abs().amax(dim=others, keepdim=True) / 127.5
        # Half a step, or a whole one at the positive end, where +127.5 becomes 127.
        assert ((found - value).abs() <= 0.51 * step + 1e-12).all(), key
    assert compressed.bytes == compress(model, Mixed(dict.fromkeys(GROUPS, "fp32"), rest="fp32")).bytes - sum(
        3 * model.state_dict()[key].numel() - 4 * scales(model, key) for key in chosen
    )


def scales(model: Sam3, key: str) -> int:
    weight = model.state_dict()[key]
    return weight.shape[1 if isinstance(model.get_submodule(key.rpartition(".")[0]), nn.ConvTranspose2d) else 0]


def test_mixed__unnamed_groups_are_fp16(model: Sam3, tmp_path: Path) -> None:
    compressed = compress(model, Mixed({"vision": "int8"}))
    assert {t.dtype for k, t in compressed.tensors.items() if k.startswith("detr_decoder.")} == {torch.float16}
    loaded, _ = load(compressed.write(model, tmp_path / "a").path, dequantize=True)
    for key in weights_by_group(model)["decoder"]:
        assert torch.equal(loaded.state_dict()[key], model.state_dict()[key].half().float())


def test_blocks__every_weight_in_exactly_one(model: Sam3) -> None:
    groups, blocks = weights_by_group(model), weights_by_unit(model, "block")
    assert sorted(name for names in blocks.values() for name in names) == sorted(
        n for ns in groups.values() for n in ns
    )
    depth = {"vision": 4, "text": 2, "geometry": 1, "encoder": 2, "decoder": 2}
    assert {f"{group}_{i}" for group, layers in depth.items() for i in range(layers)} < set(blocks)
    assert set(blocks) - set(groups) == {f"{group}_{i}" for group, layers in depth.items() for i in range(layers)}
    assert all(f".layers.{unit.split('_')[1]}." in name for unit in set(blocks) - set(groups) for name in blocks[unit])
    assert weights_by_unit(model) == groups


def test_mixed__a_block_goes_before_its_group(model: Sam3, tmp_path: Path) -> None:
    compressed = compress(model, Mixed({"vision": "int8", "vision_2": "fp32", "decoder_0": "int4"}, int4_group=32))
    stored = {key: stored_type(tensor) for key, tensor in compressed.tensors.items()}
    for unit, names in weights_by_unit(model, "block").items():
        expected = {"vision_2": "float32", "decoder_0": "int4"}.get(unit)
        expected = expected or ("int8" if unit.startswith("vision") else "float16")
        assert {stored[name] for name in names} == {expected}, unit
    loaded, report = load(compressed.write(model, tmp_path / "a").path, dequantize=True)
    assert report.ok
    assert torch.equal(
        loaded.state_dict()[(key := weights_by_unit(model, "block")["vision_2"][0])], model.state_dict()[key]
    )


def test_mixed__a_block_that_is_not_there(model: Sam3) -> None:
    with pytest.raises(UserError, match=r"groups\.vision_4: the vision of this model has 4 blocks, vision_0 to vi"):
        compress(model, Mixed({"vision_4": "int8"}))
    with pytest.raises(UserError, match=r"unknown group 'neck_1'; did you mean neck"):
        Mixed({"neck_1": "int8"})
    with pytest.raises(UserError, match=r"granularity=layer must be group or block"):
        Mixed(granularity="layer")  # type: ignore[arg-type]


def test_effects__rank_what_a_unit_does(model: Sam3) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    units = weights_by_unit(model, "block")
    effects = Effects(model, units, method := Mixed(int4_group=32), [tiny_batch()])
    found = {precision: effects.of(precision) for precision in ("fp32", "fp16", "int8", "int4")}
    assert {effect.error for effect in found["fp32"].values()} == {0.0}
    reached = [u for u in units if found["int8"][u].error > 0]
    assert {"vision_0", "text_1", "encoder_0", "decoder_1", "mask", "scoring", "neck", "embeddings"} < set(reached)
    for unit in reached:
        assert found["fp16"][unit].error < found["int8"][unit].error <= found["int4"][unit].error, unit

    # Their bytes are those of the whole plan, but for norms and biases.
    def size(precision: str) -> int:
        return compress(model, replace(method, groups=dict.fromkeys(GROUPS, precision))).bytes

    for precision in ("int8", "int4"):
        saved = sum(found["fp16"][u].bytes - found[precision][u].bytes for u in units)
        assert size("fp16") - size(precision) == saved
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_mixed__bad_plans() -> None:
    with pytest.raises(UserError, match=r"unknown group 'decodr'; did you mean decoder\?"):
        Mixed({"decodr": "int8"})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"groups\.text=int2; expected fp32, fp16, int8, int4"):
        Mixed({"text": "int2"})  # type: ignore[dict-item]
