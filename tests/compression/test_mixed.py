"""Precisions by group: who belongs where, what is stored, what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sam3slim.checkpoints import load
from sam3slim.compression import GROUPS, Mixed, compress, weights_by_group
from sam3slim.errors import UserError
from sam3slim.models import Sam3


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


def test_mixed__bad_plans() -> None:
    with pytest.raises(UserError, match=r"unknown group 'decodr'; did you mean decoder\?"):
        Mixed({"decodr": "int8"})  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"groups\.text=int2; expected fp32, fp16, int8, int4"):
        Mixed({"text": "int2"})  # type: ignore[dict-item]
