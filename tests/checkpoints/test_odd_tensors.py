"""Tensors that are no weights, and settings of adapters that are none: found by fuzzing (tests/fuzz)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.checkpoints import CheckpointError, load
from sam3slim.checkpoints.lora import read_config
from sam3slim.strict import SpecError
from tests.small import small_model
from tests.tiny import SPEC

HEADS = {"text.num_heads": 2}
NAME = "backbone.vision_backbone.trunk.patch_embed.proj.weight"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return reference_tensors(SPEC, small_model(SPEC).state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("odd", "advice"),
    [
        (lambda t: t.to_sparse(), "a sparse tensor; save tensor.to_dense()"),
        (lambda t: torch.quantize_per_tensor(t, 1e-4, 0, torch.qint32), "a quantised tensor; save tensor.dequantize()"),
    ],
)
def test_tensor__advice_works(
    state: dict[str, Tensor], tmp_path: Path, odd: Callable[[Tensor], Tensor], advice: str
) -> None:
    tensor = odd(state[NAME])
    torch.save({"model": {**state, NAME: tensor}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: ") as caught:
        load(tmp_path / "x.pt", overrides=HEADS)
    assert str(caught.value).endswith(f"{NAME} is {advice}")
    mended = getattr(tensor, advice.rpartition(".")[2].removesuffix("()"))()
    torch.save({"model": {**state, NAME: mended}}, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt", overrides=HEADS)[0].state_dict()
    assert any(torch.equal(tensor, mended) for tensor in found.values())


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda t: torch.empty(t.shape, device="meta"), "without values"),
        (lambda t: torch.zeros(1).expand(10**6, 10**6), "of 4,000,000,000,000 bytes, of which the file holds 4"),
    ],
)
def test_tensor__that_holds_nothing(
    state: dict[str, Tensor], tmp_path: Path, odd: Callable[[Tensor], Tensor], message: str
) -> None:
    torch.save({**state, NAME: odd(state[NAME])}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "x.pt", overrides=HEADS)


def test_sizes__that_cannot_be_name_the_file(tmp_path: Path) -> None:
    small_model(SPEC).config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["detr_decoder_config"]["hidden_size"] = 36
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises((CheckpointError, SpecError), match=str(tmp_path)):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": None}, {"lora_alpha": "16"}, {"lora_alpha": True}, {"lora_alpha": float("nan")},
        {"lora_alpha": 10**400}, {"alpha_pattern": "x"}, {"alpha_pattern": [1]}, {"alpha_pattern": {"a": "b"}},
        {"alpha_pattern": {"(": 1}},
    ],
)  # fmt: skip
def test_adapter__odd_settings_are_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"q_proj": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_config(tmp_path)["lora_alpha"] == 4
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=next(iter(change))) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)
