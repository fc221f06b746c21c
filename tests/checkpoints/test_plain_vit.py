"""A plain ViT read from transformers' or timm's layout computes what the original does, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, ViTConfig

from sam3slim.checkpoints import CheckpointError
from sam3slim.checkpoints.plain_vit import read_plain_vit

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 48,
    "patch_size": 8,
}  # fmt: skip
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def shaken(model: Any) -> Any:
    """Layer scales, biases and tokens that are not 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def dinov2(folder: Path, *, registers: bool = False, **changes: Any) -> Any:
    kind, config = (
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SIZES | changes))
        if registers
        else (Dinov2Model, Dinov2Config(**SIZES | changes))
    )
    model = shaken(kind(config))
    model.save_pretrained(folder)
    return model


def pictures(size: int) -> torch.Tensor:
    """[2, 3, S, S] in -1..1."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def as_imagenet(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("size", [48, 64])
@pytest.mark.parametrize("registers", [False, True])
def test_read__dinov2_computes_the_same(tmp_path: Path, registers: bool, size: int) -> None:
    model = dinov2(tmp_path, registers=registers)
    vit = read_plain_vit(str(tmp_path))
    assert vit.sizes.prefix == (5 if registers else 1)
    expected = model(as_imagenet(pictures(size))).last_hidden_state[:, vit.sizes.prefix :]
    torch.testing.assert_close(vit(pictures(size)).flatten(1, 2), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "more",
    [{}, {"reg_tokens": 2, "no_embed_class": True}, {"pre_norm": True}, {"init_values": 0.1}, {"qkv_bias": False}],
)
def test_read__timm_computes_the_same(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    given = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0, **more}
    model = shaken(timm.models.vision_transformer.VisionTransformer(**given))
    model.pretrained_cfg = {}
    monkeypatch.setattr(timm, "create_model", lambda name, **_: model)
    vit = read_plain_vit("timm:tiny")
    expected = model.forward_features(as_imagenet(pictures(48)))[:, vit.sizes.prefix :]
    torch.testing.assert_close(vit(pictures(48)).flatten(1, 2), expected, rtol=1e-4, atol=1e-4)


def test_read__other_normalisation_of_its_processor(tmp_path: Path) -> None:
    dinov2(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    kernel = Dinov2Model.from_pretrained(tmp_path).embeddings.patch_embeddings.projection.weight
    assert torch.equal(read_plain_vit(str(tmp_path)).kernel, kernel)


def test_read__refused(tmp_path: Path) -> None:
    def refused(source: Path | str, match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            read_plain_vit(str(source))

    refused(tmp_path / "nowhere", "init.vision: checkpoint .*nowhere does not exist")
    Dinov2Config(**SIZES).save_pretrained(tmp_path / "bare")
    refused(tmp_path / "bare", "has a config.json but no weights; copy model.safetensors")
    ViTConfig().save_pretrained(tmp_path / "other")
    refused(tmp_path / "other", "is a vit model; give a folder or hub id of transformers' Dinov2Model")
    dinov2(tmp_path / "gated", use_swiglu_ffn=True)
    refused(tmp_path / "gated", "gated MLPs")
    dinov2(tmp_path / "relu", hidden_act="relu")
    refused(tmp_path / "relu", "computes with relu")
    dinov2(tmp_path / "cut")
    state = {k: v for k, v in Dinov2Model.from_pretrained(tmp_path / "cut").state_dict().items() if "norm2" not in k}
    from safetensors.torch import save_file

    save_file(state, tmp_path / "cut/model.safetensors")
    refused(tmp_path / "cut", "lacks 4 tensors, the first encoder.layer.0.norm2")


def test_read__a_timm_model_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    monkeypatch.setattr(timm, "create_model", lambda name, **_: torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="timm's Linear, not its VisionTransformer"):
        read_plain_vit("timm:swin")
    rotary = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=1, num_classes=0, qk_norm=True
    )
    monkeypatch.setattr(timm, "create_model", lambda name, **_: rotary)
    with pytest.raises(CheckpointError, match="norms of queries and keys"):
        read_plain_vit("timm:normed")
