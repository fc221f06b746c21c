from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Sam3Model, Sam3Processor

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.specs import ModelSpec
from tests.small import assert_same_outputs


def test_write_artifact__load_is_bit_equal(model: Sam3, tmp_path: Path) -> None:
    write_artifact(model, tmp_path / "a")
    loaded, report = load(tmp_path / "a")
    assert report.ok
    assert not loaded.training
    for (key, mine), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key


def test_write_artifact__plain_transformers_gives_our_outputs(
    model: Sam3, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    write_artifact(model, tmp_path / "a")
    plain = Sam3Model.from_pretrained(tmp_path / "a").eval()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())
    # Two forwards over equal weights: threads add up in another order (1.3e-6 seen on masks).
    assert_same_outputs(model, plain, inputs, atol=1e-5)


def test_write_artifact__processor_has_the_models_sizes(model: Sam3, spec: ModelSpec, tmp_path: Path) -> None:
    write_artifact(model, tmp_path / "a")
    processor = Sam3Processor.from_pretrained(tmp_path / "a")
    assert processor.image_processor.size["height"] == spec.vit.image_size
    assert processor.target_size == spec.vit.image_size
    assert len(processor.tokenizer) == spec.text.vocab_size
    assert processor.tokenizer.model_max_length == spec.text.context_length
    batch = processor(images=torch.zeros(3, 50, 70, dtype=torch.uint8), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 32, 32)


def test_write_artifact__states_its_facts(model: Sam3, spec: ModelSpec, tmp_path: Path) -> None:
    metrics = {"segm": {"map": 0.5}}
    info = write_artifact(model, tmp_path / "a", parent={"path": "full"}, metrics=metrics)
    weights = tmp_path / "a" / "model.safetensors"
    metadata = json.loads((tmp_path / "a" / "sam3slim.json").read_text())
    assert info.bytes == metadata["bytes"] == weights.stat().st_size
    assert info.total_bytes == sum(f.stat().st_size for f in (tmp_path / "a").iterdir())
    assert info.sha256 == metadata["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert ModelSpec.from_dict(metadata["spec"]) == spec
    assert metadata["metrics"] == metrics
    assert metadata["parent"] == {"path": "full"}
    assert metadata["params"] == sum(p.numel() for p in model.parameters())
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["architectures"] == ["Sam3Model"]
    assert config["dtype"] == "float32"
    with safe_open(weights, "pt") as file:
        assert file.metadata()["format"] == "pt"
    assert info.sha256 in (tmp_path / "a" / "README.md").read_text()


def test_write_artifact__given_card_is_kept(model: Sam3, tmp_path: Path) -> None:
    write_artifact(model, tmp_path / "a", card="# mine\n")
    assert (tmp_path / "a" / "README.md").read_text() == "# mine\n"


def test_write_artifact__replaces_an_artifact(model: Sam3, tmp_path: Path) -> None:
    first = write_artifact(model, tmp_path / "a")
    with torch.no_grad():
        model.text_projection.bias.add_(1)
    assert write_artifact(model, tmp_path / "a").sha256 != first.sha256
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_write_artifact__foreign_folder_is_left_alone(model: Sam3, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an artifact"):
        write_artifact(model, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_write_artifact__failure_leaves_nothing(model: Sam3, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_artifact(model, tmp_path / "a", metrics={"map": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_write_artifact__foreign_tensors_are_refused(model: Sam3, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keys differ"):
        write_artifact(model, tmp_path / "a", precision="fp16", tensors={"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="converted tensors"):
        write_artifact(model, tmp_path / "a", precision="fp16")
