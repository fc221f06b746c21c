from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam3Config, Sam3Model

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import CheckpointError, load, spec_difference, spec_from_config
from sam3slim.errors import UserError
from sam3slim.models import Sam3, to_sam3_config
from sam3slim.specs import EncoderSpec, ModelSpec
from tests.small import assert_same_outputs


def lightning_checkpoint(model: Sam3, path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "epoch": 1,
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "hyper_parameters": {"model": model.spec.to_dict(), "lr": 1e-4},
    }
    torch.save({**content, **changes}, path)
    return path


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(source: Path, **options: Any) -> str:
    """The one line that ``load`` refuses ``source`` with."""
    with pytest.raises(UserError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def artifact(model: Sam3, tmp_path: Path) -> Path:
    return write_artifact(model, tmp_path / "artifact").path


def test_load__transformers_folder(model: Sam3, spec: ModelSpec, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    plain = Sam3Model(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(tmp_path / "hf")
    loaded, report = load(tmp_path / "hf", expect=spec)
    assert report.kind == "transformers"
    assert_same_outputs(model, loaded, inputs)


def test_load__sharded_transformers_folder(model: Sam3, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    plain = Sam3Model(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(tmp_path / "hf", max_shard_size="300KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    assert_same_outputs(model, load(tmp_path / "hf")[0], inputs)


def test_load__lightning_file(model: Sam3, spec: ModelSpec, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    loaded, report = load(lightning_checkpoint(model, tmp_path / "x.bin"), expect=spec)
    assert (report.kind, report.precision) == ("lightning", "fp32")
    assert_same_outputs(model, loaded, inputs)


def test_load__run_folder_prefers_best(model: Sam3, tmp_path: Path) -> None:
    run = tmp_path / "run"
    last = lightning_checkpoint(model, run / "checkpoints" / "last.ckpt")
    assert load(run)[1].source == last
    best = lightning_checkpoint(model, run / "checkpoints" / "best.ckpt")
    assert load(run)[1].source == best
    assert load(run / "checkpoints")[1].source == best


def test_load__run_folder_with_only_an_artifact(model: Sam3, tmp_path: Path) -> None:
    write_artifact(model, tmp_path / "run" / "artifact")
    assert load(tmp_path / "run")[1].kind == "artifact"
    assert load(tmp_path / "run" / "artifact" / "model.safetensors")[1].kind == "artifact"


def test_load__report_accounts_for_every_key(artifact: Path, model: Sam3) -> None:
    report = load(artifact)[1]
    assert sorted(report.loaded) == sorted(model.state_dict())
    text = report.render()
    assert len(text.splitlines()) <= 24
    assert "vision" in text


def test_load__missing_key_stops(artifact: Path) -> None:
    edit_weights(artifact, lambda t: t.pop("detr_decoder.query_embed.weight"))
    message = refusal(artifact)
    assert "detr_decoder.query_embed.weight" in message
    assert "allow_fresh=[decoder]" in message
    with pytest.raises(CheckpointError) as caught:
        load(artifact)
    assert caught.value.report is not None
    assert caught.value.report.missing == ["detr_decoder.query_embed.weight"]


def test_load__allowed_part_starts_fresh(artifact: Path, model: Sam3) -> None:
    edit_weights(artifact, lambda t: t.pop("detr_decoder.query_embed.weight"))
    assert "query_embed" in refusal(artifact, allow_fresh=["text"])
    loaded, report = load(artifact, allow_fresh=["decoder"])
    assert report.fresh == ["detr_decoder.query_embed.weight"]
    fresh = loaded.detr_decoder.query_embed.weight
    assert fresh.isfinite().all()
    assert 0.5 < fresh.std() < 2  # N(0, 1), not left-over memory
    assert torch.equal(loaded.text_projection.weight, model.text_projection.weight)


def test_load__unknown_part_names_the_nearest(artifact: Path) -> None:
    assert "did you mean decoder?" in refusal(artifact, allow_fresh=["decodr"])


def test_load__unexpected_key_stops(artifact: Path) -> None:
    edit_weights(artifact, lambda t: t.update({"detr_decoder.extra": torch.zeros(1)}))
    assert "unexpected keys (detr_decoder.extra)" in refusal(artifact)


def test_load__shape_mismatch_stops(artifact: Path) -> None:
    edit_weights(artifact, lambda t: t.update({"text_projection.bias": torch.zeros(3)}))
    message = refusal(artifact)
    assert "text_projection.bias: [3] in the file, [32] in the model" in message


def test_load__zero_matches_stop(artifact: Path) -> None:
    def prefix(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[f"detector.{key}"] = tensors.pop(key)

    edit_weights(artifact, prefix)
    everything = ["vision", "text", "geometry", "encoder", "decoder", "mask", "scoring"]
    assert "not one tensor fits" in refusal(artifact, allow_fresh=everything)


def test_load__another_architecture_names_the_field(artifact: Path, spec: ModelSpec) -> None:
    wide = replace(spec, name="nano_slim", vit=replace(spec.vit, embed_dim=64))
    message = refusal(artifact, expect=wide)
    assert f"vit.embed_dim is 32 in {artifact}, 64 in model=nano_slim" in message
    shallow = replace(spec, encoder=EncoderSpec(1))
    assert "encoder.num_layers is 2" in refusal(artifact, expect=shallow)


def test_load__same_architecture_spelled_otherwise(artifact: Path, spec: ModelSpec) -> None:
    spelled = replace(spec, name="x", dropout=0.0, vit=replace(spec.vit, global_attention_blocks=(1, 3)))
    assert load(artifact, expect=spelled)[1].ok


def test_load__missing_path(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_load__empty_folder(tmp_path: Path) -> None:
    assert "is empty" in refusal(tmp_path)


def test_load__folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "holds only notes.txt" in refusal(tmp_path)


def test_load__truncated_zip(model: Sam3, tmp_path: Path) -> None:
    path = lightning_checkpoint(model, tmp_path / "last.ckpt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated or damaged" in refusal(path)


def test_load__truncated_safetensors(artifact: Path) -> None:
    weights = artifact / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated or damaged" in refusal(artifact)


def test_load__lfs_pointer_inside_an_artifact(artifact: Path) -> None:
    (artifact / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refusal(artifact)


def test_load__weights_file_gone(artifact: Path) -> None:
    (artifact / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(artifact)


def test_load__bare_safetensors_must_be_told_its_heads(artifact: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare" / "model.safetensors"
    bare.parent.mkdir()
    bare.write_bytes((artifact / "model.safetensors").read_bytes())
    assert "does not tell vit.num_heads" in refusal(bare)


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("pickled code was run",))


def test_load__pickled_code_is_never_run(model: Sam3, tmp_path: Path) -> None:
    assert "never run" in refusal(lightning_checkpoint(model, tmp_path / "x.ckpt", evil=_Evil()))


def test_load__torch_file_of_another_kind(model: Sam3, tmp_path: Path) -> None:
    for content, problem in (
        ({"weights": torch.zeros(1)}, "not one tensor fits SAM 3 (its 1 tensors are called weights)"),
        ({"epoch": 3, "loss": {}}, "has no tensors (it holds epoch, loss)"),
        ({}, "an empty dict"),
        ([torch.zeros(1)], "a list"),
    ):
        torch.save(content, tmp_path / "x.ckpt")
        assert problem in refusal(tmp_path / "x.ckpt")
    path = lightning_checkpoint(model, tmp_path / "y.ckpt", hyper_parameters={})
    assert "does not tell vit.num_heads" in refusal(path)


def test_load__newer_schema(artifact: Path) -> None:
    metadata = json.loads((artifact / "sam3slim.json").read_text())
    (artifact / "sam3slim.json").write_text(json.dumps({**metadata, "schema": 99}))
    assert "update sam3slim" in refusal(artifact)


def test_load__facts_that_are_not_json(artifact: Path) -> None:
    (artifact / "sam3slim.json").write_text("{")
    assert "as JSON" in refusal(artifact)


def test_load__transformers_folder_of_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert "model_type is 'clip'" in refusal(tmp_path)


def test_spec_from_config__inverse_of_to_sam3_config(spec: ModelSpec) -> None:
    for known in (spec, ModelSpec(), replace(spec, vit=replace(spec.vit, mlp_ratio=2.3))):
        assert spec_difference(spec_from_config(to_sam3_config(known)), known) == []


def test_spec_from_config__unsupported_setting_is_named(spec: ModelSpec) -> None:
    config: Sam3Config = to_sam3_config(spec)
    config.text_config.hidden_act = "quick_gelu"
    with pytest.raises(CheckpointError, match=r"text_config.hidden_act='quick_gelu' is not supported"):
        spec_from_config(config)
