"""LoRA adapters: named where they are no model, and merged as peft merges them."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam3Model

from sam3slim.artifacts import extract, write_artifact
from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.checkpoints import CheckpointError, inspect, load
from sam3slim.cli import main
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.specs import ModelSpec
from tests.small import small_model

HEADS = {"text.num_heads": 2}
TARGETS = ["q_proj", "v_proj", "fc1"]


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> Sam3:
    return small_model(spec)


def transformers_model(model: Sam3) -> Any:
    plain = Sam3Model(copy.deepcopy(model.config))
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def adapted(model: Sam3, **changes: Any) -> PeftModel:
    """A transformers model with random LoRA matrices, as after a training with peft."""
    wrapped = get_peft_model(
        transformers_model(model), LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **changes})
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped


def merged_by_peft(wrapped: PeftModel) -> dict[str, Tensor]:
    found: dict[str, Tensor] = copy.deepcopy(wrapped).merge_and_unload().state_dict()
    return found


def assert_merged(folder: Path, wanted: dict[str, Tensor], model: Sam3) -> None:
    found = load(folder)[0].state_dict()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    assert not torch.equal(found["vision_encoder.backbone.layers.0.attention.q_proj.weight"],
                           model.state_dict()["vision_encoder.backbone.layers.0.attention.q_proj.weight"])  # fmt: skip


def refused(path: Path) -> str:
    messages = []
    for look in (load, inspect):
        with pytest.raises(CheckpointError) as caught:
            look(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def advised(message: str, **values: object) -> list[str]:
    """The arguments of the command in a message, with what stands for a path or a number filled in."""
    command = re.search(r"sam3slim (extract .*?)(?:;|$)", message)
    assert command is not None, message
    return [str(values.get(word, word)) for word in shlex.split(command[1])]


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns of rank and alpha": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"fc1": 3, r"s\.1\..*v_proj": 5}},
    "every linear layer": {"target_modules": "all-linear"},
    "a pattern of names": {"target_modules": r".*layers\.\d+\.(attention|self_attn)\.q_proj"},
    "convolutions": {"target_modules": ["q_proj", "proj1", "instance_projection", "conv_layers.0"]},
    "embeddings": {"target_modules": ["q_proj", "token_embedding"]},
    "biases": {"bias": "lora_only"},
    "whole modules too": {"modules_to_save": ["presence_head", "text_mlp_out_norm"]},
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_extract__peft_adapter_is_merged_as_peft_does(model: Sam3, tmp_path: Path, case: str) -> None:
    wrapped = adapted(model, **CONFIGS[case])
    wrapped.save_pretrained(tmp_path / "adapter")
    write_artifact(model, tmp_path / "base")
    message = refused(tmp_path / "adapter")
    assert main(advised(message, BASE=tmp_path / "base", OUT=tmp_path / "out")) == 0
    assert_merged(tmp_path / "out", merged_by_peft(wrapped), model)
    source = json.loads((tmp_path / "out/sam3slim.json").read_text())["source"]
    assert source["lora"]["rank"] == 4
    assert len(source["lora"]["sha256"]) == 2


@pytest.mark.parametrize("base", ["reference", "transformers", "fp16"])
def test_extract__onto_any_base(model: Sam3, tmp_path: Path, base: str) -> None:
    wrapped = adapted(model)
    wrapped.save_pretrained(tmp_path / "adapter")
    if base == "reference":
        source, told = tmp_path / "sam3.pt", HEADS
        torch.save(reference_tensors(model.spec, model.state_dict()), source)
    else:
        source, told = tmp_path / "hf", {}
        transformers_model(model).to(torch.float16 if base == "fp16" else None).save_pretrained(source)
    extract(source, tmp_path / "out", lora=tmp_path / "adapter", overrides=told)
    found, wanted = load(tmp_path / "out")[0].state_dict(), merged_by_peft(wrapped)
    assert load(tmp_path / "out")[1].precision == ("fp16" if base == "fp16" else "fp32")
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=3e-3 if base == "fp16" else 1e-6)
    extract(source, tmp_path / "out.pt", lora=tmp_path / "adapter", overrides=told, format="reference", dtype="fp32")
    assert load(tmp_path / "out.pt", overrides=HEADS)[1].ok


def fused(model: Sam3, rank: int = 4) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, Tensor]]:
    """Matrices for modules by the reference's names, and the weights they become with alpha = 2 · rank."""
    state = reference_tensors(model.spec, model.state_dict())
    generator = torch.Generator().manual_seed(1)
    pairs, merged = {}, dict(state)
    for module in [
        f"backbone.vision_backbone.trunk.blocks.{i}.{name}" for i in range(4) for name in ("attn.qkv", "mlp.fc1")
    ]:
        rows, columns = state[f"{module}.weight"].shape
        pairs[module] = (
            torch.randn(rank, columns, generator=generator) * 0.1,
            torch.randn(rows, rank, generator=generator) * 0.1,
        )
        merged[f"{module}.weight"] = state[f"{module}.weight"] + 2 * pairs[module][1] @ pairs[module][0]
    return pairs, merged


FILES = {
    "peft": lambda m, a, b: {f"base_model.model.{m}.lora_A.weight": a, f"base_model.model.{m}.lora_B.weight": b},
    "peft's state_dict": lambda m, a, b: {f"{m}.lora_A.default.weight": a, f"{m}.lora_B.default.weight": b},
    "loralib": lambda m, a, b: {f"detector.{m}.lora_A": a, f"detector.{m}.lora_B": b},
    "turned": lambda m, a, b: {f"{m}.lora.lora_A": a.T.contiguous(), f"{m}.lora.lora_B": b.T.contiguous()},
    "down and up": lambda m, a, b: {f"{m}.lora_down.weight": a, f"{m}.lora_up.weight": b},
    "with alphas": lambda m, a, b: {
        f"{m}.lora_down.weight": a, f"{m}.lora_up.weight": b, f"{m}.alpha": torch.tensor(8.0)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_extract__matrices_alone_under_the_references_names(model: Sam3, tmp_path: Path, case: str) -> None:
    pairs, wanted = fused(model)
    content: dict[str, Tensor] = {}
    for module, (a, b) in pairs.items():
        content |= FILES[case](module, a, b)
    file = tmp_path / ("x.safetensors" if case == "peft" else "x.pt")
    save_file(content, file) if case == "peft" else torch.save({"lora": content, "epoch": 1}, file)
    write_artifact(model, tmp_path / "base")
    command = advised(refused(file), BASE=tmp_path / "base", OUT=tmp_path / "out")
    assert "8 pairs of matrices, rank 4" in refused(file)
    if case != "with alphas":
        with pytest.raises(CheckpointError) as caught:
            extract(tmp_path / "base", tmp_path / "out", lora=file)
        assert "does not state its alpha" in str(caught.value)
        advice = re.search(r"e\.g\. (--lora-alpha) (\d+)$", str(caught.value))
        assert advice is not None
        assert main([*command, advice[1], advice[2]]) == 0
        assert main([*command, "--lora-alpha", "8", "--overwrite"]) == 0
    else:
        assert main(command) == 0
    found = reference_tensors(model.spec, load(tmp_path / "out")[0].state_dict())
    for name, value in wanted.items():
        if not value.is_complex():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_extract__unmerged_model(model: Sam3, tmp_path: Path) -> None:
    wrapped = adapted(model)
    torch.save(wrapped.state_dict(), tmp_path / "x.pt")
    vit = model.spec.vit
    told = [
        "text.num_heads=2", f"vit.num_heads={vit.num_heads}", f"vit.window_size={vit.window_size}",
        f"vit.image_size={vit.image_size}", f"vit.global_attention_blocks={list(vit.global_blocks)}",
    ]  # fmt: skip
    overrides = {text.partition("=")[0]: json.loads(text.partition("=")[2]) for text in told}
    with pytest.raises(CheckpointError, match=r"it holds a LoRA adapter .* beside its weights; merge it: ") as caught:
        load(tmp_path / "x.pt", overrides=overrides)
    assert not inspect(tmp_path / "x.pt", overrides).report.ok
    command = advised(str(caught.value), OUT=tmp_path / "out", ALPHA=8)
    assert main([*command, *told]) == 0
    assert_merged(tmp_path / "out", merged_by_peft(wrapped), model)


def test_extract__unmerged_model_with_whole_modules(model: Sam3, tmp_path: Path) -> None:
    wrapped = adapted(model, modules_to_save=["text_mlp_out_norm"])
    names = wrapped.state_dict()
    assert any("original_module" in name for name in names)
    folder = tmp_path / "hf"
    model.config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in names.items()}, folder / "model.safetensors")
    extract(folder, tmp_path / "out", lora=folder / "model.safetensors", lora_alpha=8)
    assert_merged(tmp_path / "out", merged_by_peft(wrapped), model)


MORE = {
    "DoRA": {"use_dora": True},
    "a base that was changed": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("case", MORE)
def test_extract__more_than_two_matrices_is_left_to_peft(model: Sam3, tmp_path: Path, case: str) -> None:
    wrapped = adapted(model, **MORE[case])
    wrapped.save_pretrained(tmp_path / "adapter")
    transformers_model(model).save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError) as caught:
        extract(tmp_path / "base", tmp_path / "out", lora=tmp_path / "adapter")
    if case == "DoRA":
        advice = re.search(r"(PeftModel\..*)$", str(caught.value))
        assert advice is not None
        names = {"BASE": str(tmp_path / "base"), "ADAPTER": str(tmp_path / "adapter"), "OUT": str(tmp_path / "out")}
        eval(advice[1], {"PeftModel": PeftModel, "Sam3Model": Sam3Model, **names})
        assert_merged(tmp_path / "out", merged_by_peft(wrapped), model)
        weights = tmp_path / "alone.safetensors"
        save_file(load_file(tmp_path / "adapter/adapter_model.safetensors"), weights)
        with pytest.raises(CheckpointError, match="is DoRA"):
            extract(tmp_path / "base", tmp_path / "second", lora=weights, lora_alpha=8)


def test_extract__adapter_of_another_model(model: Sam3, tmp_path: Path) -> None:
    write_artifact(model, tmp_path / "base")
    name = "vision_encoder.backbone.layers.{}.attention.q_proj.lora_{}.weight"
    for layer, width, problem in ((9, 32, "for 1 modules that the checkpoint lacks"), (0, 64, r"of shape \[64, 64\]")):
        content = {name.format(layer, "A"): torch.zeros(4, width), name.format(layer, "B"): torch.zeros(width, 4)}
        save_file(content, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=problem):
            extract(tmp_path / "base", tmp_path / "out", lora=tmp_path / "x.safetensors", lora_alpha=4)
    save_file({name.format(0, "A"): torch.zeros(4, 32)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="only one of the two matrices"):
        extract(tmp_path / "base", tmp_path / "out", lora=tmp_path / "x.safetensors", lora_alpha=4)
    assert not (tmp_path / "out").exists()


def test_extract__lora_options_that_do_not_belong_together(model: Sam3, tmp_path: Path) -> None:
    write_artifact(model, tmp_path / "base")
    with pytest.raises(UserError, match="give --lora ADAPTER as well"):
        extract(tmp_path / "base", tmp_path / "out", lora_alpha=4)
    adapted(model).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"states 8; leave it out"):
        extract(tmp_path / "base", tmp_path / "out", lora=tmp_path / "adapter", lora_alpha=4)
    with pytest.raises(CheckpointError, match="holds no LoRA matrices"):
        extract(tmp_path / "base", tmp_path / "out", lora=tmp_path / "base/model.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        extract(tmp_path / "base", tmp_path / "out", lora=tmp_path / "nowhere")


def test_adapter__several_in_one_file(model: Sam3, tmp_path: Path) -> None:
    wrapped = adapted(model)
    wrapped.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    torch.save({k: v for k, v in wrapped.state_dict().items() if "lora_" in k}, tmp_path / "x.pt")
    write_artifact(model, tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"holds several \(default, second\)"):
        extract(tmp_path / "base", tmp_path / "out", lora=tmp_path / "x.pt", lora_alpha=4)
    wrapped.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    extract(tmp_path / "base", tmp_path / "out", lora=tmp_path / "one")
