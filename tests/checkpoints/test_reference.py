"""Checkpoints of the reference implementation: read, and run as it runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sam3slim
from sam3slim.artifacts import extract, write_artifact
from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.checkpoints import CheckpointError, LoadReport, inspect, load
from sam3slim.checkpoints.layout import find_layout
from sam3slim.checkpoints.reference_keys import POINTS, freqs_cis, place_of, template_of
from sam3slim.models import Sam3
from sam3slim.models.build import state_shapes
from sam3slim.predict.opening import open_model
from sam3slim.specs import ModelSpec
from tests.small import small_model
from tests.tiny import SPEC

TOLERANCE = 1e-5
HEADS = {"text.num_heads": 2}
Golden = tuple[Sam3, LoadReport, dict[str, Tensor]]


@pytest.fixture(scope="module")
def golden_file(shared_dir: Path) -> Path:
    return shared_dir / "reference/golden_model/model.pt"


@pytest.fixture(scope="module")
def golden(golden_file: Path) -> Golden:
    return *sam3slim.load(golden_file, overrides=HEADS), load_file(golden_file.parent / "io.safetensors")


@pytest.mark.parametrize(("case", "image"), [(0, 0), (1, 1), (2, 0)])
def test_golden_model__every_recorded_output(golden: Golden, case: int, image: int) -> None:
    model, _, io = golden
    recorded = {key.removeprefix(f"case{case}."): value for key, value in io.items() if key.startswith(f"case{case}.")}
    ids = recorded.pop("input_ids")
    words = ids != 0
    with torch.no_grad():
        out = model(
            io["image"][image][None],
            ids,
            words.long(),
            input_boxes=recorded.pop("box_prompt_cxcywh", None),
            input_boxes_labels=recorded.pop("box_prompt_labels", None),
        )
        # The reference encodes padding too, which nothing looks at; in a causal tower it changes no word.
        padded, _ = model.encode_text(ids, None)
    ours = {
        "text_features": padded,
        "encoder_hidden_states": out.encoder_hidden_states,
        "pred_logits": out.pred_logits,
        "pred_boxes_cxcywh": out.layer_boxes[-1],
        "presence_logit": out.presence_logits,
        "pred_masks": out.pred_masks,
        "semantic_seg": out.semantic_seg,
    }
    assert ours.keys() == recorded.keys()
    for name, value in recorded.items():
        torch.testing.assert_close(ours[name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(out.text_features[words], recorded["text_features"][words], rtol=0, atol=TOLERANCE)
    for level, features in enumerate(out.fpn_hidden_states):
        torch.testing.assert_close(features[0], io[f"fpn_{level}"][image], rtol=TOLERANCE, atol=TOLERANCE)


def test_golden_model__report_names_what_was_not_needed(golden: Golden) -> None:
    _, report, _ = golden
    assert report.kind == "reference"
    assert report.ignored == {"computed": 2 * (16 + 64) * 8 * 8, "point prompts": 4 * (32 * (2 + 32 + 32) + 3 * 32)}
    assert "point prompts" in report.render()


def test_golden_model__architecture_is_the_recorded_one(golden: Golden, golden_file: Path) -> None:
    wanted = json.loads((golden_file.parent / "golden.json").read_text())["architecture"]
    found = golden[0].spec.to_dict()
    for key, value in wanted.items():
        assert found[key] == ({**found[key], **value} if isinstance(value, dict) else value)


def test_golden_model__text_heads_must_be_told(golden_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not tell text\.num_heads; state it as overrides"):
        load(golden_file)


def test_assumed_sizes__are_told_and_those_beside_an_extracted_file_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(SPEC, text=replace(SPEC.text, width=64, num_heads=2))
    model = small_model(spec)
    torch.save(reference_tensors(spec, model.state_dict()), tmp_path / "bare.pt")
    found, report = load(tmp_path / "bare.pt")
    assert found.spec.text.num_heads == 1  # 64 wide, as in CLIP
    assert report.assumed == {"text.num_heads": 1}
    assert "assumed, because no tensor tells: text.num_heads=1" in report.render()
    assert inspect(tmp_path / "bare.pt").to_dict()["assumed"] == report.assumed
    assert load(tmp_path / "bare.pt", overrides=HEADS)[1].assumed == {}

    extract(tmp_path / "bare.pt", tmp_path / "folder")
    open_model(tmp_path / "bare.pt", torch.device("cpu"), "fp32")
    told = f"{tmp_path / 'bare.pt'}: assumed, because no tensor tells: text.num_heads=1 (overrides change it)"
    assert caplog.messages.count(told) == 2  # where no report is shown

    write_artifact(model, tmp_path / "artifact")
    extract(tmp_path / "artifact", tmp_path / "ours.pt", format="reference")
    found, report = load(tmp_path / "ours.pt")
    assert (found.spec.text.num_heads, report.assumed) == (2, {})
    torch.save(torch.load(tmp_path / "bare.pt", weights_only=True) | {"x": torch.ones(9)}, tmp_path / "ours.pt")
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path / "ours.pt")  # another file now
    assert refused.value.report is not None
    assert refused.value.report.assumed == {"text.num_heads": 1}


def test_sizes_that_nothing_tells__the_advice_names_all_of_them(golden_file: Path, tmp_path: Path) -> None:
    state = torch.load(golden_file, weights_only=True)
    torch.save({key: value for key, value in state.items() if "freqs_cis" not in key}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path / "x.pt")
    advice = str(refused.value).partition("SAM 3 has ")[2]
    assert advice == (
        "vit.num_heads=16 vit.image_size=1008 vit.window_size=24 vit.global_attention_blocks=[7,15,23,31] "
        "text.num_heads=16"
    )


@pytest.mark.parametrize("prefix", ["detector.", "module.", "module.detector."])
def test_golden_model__prefixed_and_with_a_tracker(
    golden: Golden, golden_file: Path, tmp_path: Path, prefix: str
) -> None:
    state = torch.load(golden_file, weights_only=True)
    renamed = {prefix + key: value for key, value in state.items()}
    # As in the released file: the tracker repeats names of the detector's.
    renamed["tracker.transformer.encoder.layers.0.linear1.weight"] = torch.zeros(4, 4)
    renamed[f"{prefix}backbone.vision_backbone.sam2_convs.0.conv_1x1.weight"] = torch.zeros(2, 2)
    torch.save(renamed, tmp_path / "sam3.pt")
    model, report = load(tmp_path / "sam3.pt", overrides=HEADS)
    assert report.ignored["tracker"] == 4 * (16 + 4)
    assert_equal_weights(model, golden[0])


def test_golden_model__trainer_checkpoint(golden: Golden, golden_file: Path, tmp_path: Path) -> None:
    content = {
        "model": torch.load(golden_file, weights_only=True),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(5)}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 3,
        "scaler": {},
    }
    torch.save(content, tmp_path / "checkpoint.pt")
    model, report = load(tmp_path / "checkpoint.pt", overrides=HEADS)
    assert report.kind == "reference_trainer"
    assert_equal_weights(model, golden[0])


def test_golden_model__as_safetensors(golden: Golden, golden_file: Path, tmp_path: Path) -> None:
    save_file(torch.load(golden_file, weights_only=True), tmp_path / "weights.bin")
    assert_equal_weights(load(tmp_path / "weights.bin", overrides=HEADS)[0], golden[0])


def test_places__are_the_references_keys_and_shapes(shared_dir: Path) -> None:
    listed = json.loads((shared_dir / "reference/meta_state_dict.json").read_text())
    used = set()
    for key, shape in state_shapes(ModelSpec()).items():
        place = place_of(key)
        assert place.take(torch.empty(listed[place.key][0], device="meta")).shape == shape, key
        used.add(place.key)
    rest = {template_of(key) for key in listed.keys() - used}
    assert rest == {"backbone.vision_backbone.trunk.blocks.*.attn.freqs_cis", *POINTS}


@pytest.mark.parametrize(("block", "scale"), [(0, 1.0), (1, 0.5)])
def test_freqs_cis__equal_bits(golden_file: Path, block: int, scale: float) -> None:
    stored = torch.load(golden_file, weights_only=True)[f"backbone.vision_backbone.trunk.blocks.{block}.attn.freqs_cis"]
    assert torch.equal(freqs_cis(head_dim=16, side=int(len(stored) ** 0.5), scale=scale), stored)


def test_find_layout__foreign_names() -> None:
    assert find_layout(["conv1.weight", "layer1.0.bn1.bias"]) is None


def test_load__bare_state_dict_under_transformers_names(model: Sam3, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"does not tell vit\.num_heads, .*vit\.window_size"):
        load(tmp_path / "x.pt")
    vit = model.spec.vit
    told = {
        "text.num_heads": 2,
        "vit.num_heads": vit.num_heads,
        "vit.window_size": vit.window_size,
        "vit.image_size": vit.image_size,
        "vit.global_attention_blocks": vit.global_blocks,
    }
    loaded, report = load(tmp_path / "x.pt", overrides=told)
    assert report.kind == "state_dict"
    assert_equal_weights(loaded, model)


def test_load__unknown_override(golden_file: Path) -> None:
    with pytest.raises(CheckpointError.__mro__[1], match=r"unknown key text\.heads; did you mean text\.num_heads\?"):
        load(golden_file, overrides={"text.heads": 2})


def assert_equal_weights(left: Sam3, right: Sam3) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
