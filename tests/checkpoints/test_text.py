"""``cut_text``: a checkpoint's text tower trimmed or banked, as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer, Sam3Model

from sam3slim.artifacts import extract, write_artifact
from sam3slim.artifacts.cut import cut_text
from sam3slim.checkpoints import CheckpointError, load
from sam3slim.checkpoints.inspection import inspect
from sam3slim.cli import main
from sam3slim.compression import Fp16, Int8Weight, Mixed, compress
from sam3slim.errors import UserError
from sam3slim.files import file_sha256
from sam3slim.models import Sam3
from sam3slim.slimming import inherit
from sam3slim.specs import ModelSpec
from sam3slim.text.phrases import encode_phrases
from sam3slim.text.vocabulary import trim
from tests.banked import PHRASES, asked, banked
from tests.checkpoints.test_load import lightning_checkpoint
from tests.small import assert_same_outputs


@pytest.fixture
def full(model: Sam3, tmp_path: Path) -> Path:
    return write_artifact(model, tmp_path / "full").path


def test_cut_text__trimmed(model: Sam3, full: Path, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    found = cut_text(full, tmp_path / "out", PHRASES)
    loaded, report = load(tmp_path / "out", expect=found.spec)
    assert found.spec.text == trim(PHRASES, model.spec.text)
    assert report.ok
    saved = 600 - found.spec.text.vocab_size
    assert {p: found.params_before[p] - n for p, n in found.params_after.items() if n != found.params_before[p]} == {
        "text": 32 * saved
    }
    assert found.bytes_before["text"] - found.bytes_after["text"] == 128 * saved
    assert found.file_before - found.file_after == pytest.approx(128 * saved, abs=200)
    phrases = ["cat", "Tree"]
    ours, theirs = asked(model, inputs, phrases), asked(loaded, inputs, phrases)
    with torch.no_grad():
        assert torch.equal(model(**ours).pred_masks, loaded(**theirs).pred_masks)


@pytest.mark.parametrize("bank", [False, True])
def test_cut_text__provenance(full: Path, tmp_path: Path, bank: bool) -> None:
    found = cut_text(full, tmp_path / "out", PHRASES, bank=bank)
    metadata = json.loads((tmp_path / "out" / "sam3slim.json").read_text())
    assert metadata["parent"] == str(full)
    assert metadata["source"]["sha256"] == {"model.safetensors": file_sha256(full / "model.safetensors")}
    assert metadata["opens_in"] == (["sam3slim"] if bank else ["sam3slim", "transformers"])
    assert metadata["extra"]["text"] == {
        "cut_to": "bank" if bank else "vocabulary",
        "phrases": [*PHRASES, "visual"],
        "vocab_size": [600, 600 if bank else found.spec.text.vocab_size],
    }
    assert metadata["params"] == sum(found.params_after.values())
    assert ModelSpec.from_dict(metadata["spec"]) == found.spec


def test_cut_text__a_bank_does_not_open_in_transformers(model: Sam3, tmp_path: Path) -> None:
    banked(model, tmp_path)
    assert not (tmp_path / "bank" / "config.json").exists()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        Sam3Model.from_pretrained(tmp_path / "bank")
    ids, mask = encode_phrases(model.spec.text, PHRASES)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "bank")
    assert torch.equal(tokenizer(list(PHRASES), padding="max_length", return_tensors="pt").input_ids * mask, ids)
    card = (tmp_path / "bank" / "README.md").read_text()
    assert "Plain transformers cannot open it: it has no text tower." in card
    assert "no others: red, cat, a cup, Tree, visual." in card


@pytest.mark.parametrize("kind", ["fp16", "lightning", "reference"])
def test_cut_text__of_any_checkpoint(model: Sam3, full: Path, tmp_path: Path, kind: str) -> None:
    source, overrides = tmp_path / kind, None
    if kind == "lightning":
        lightning_checkpoint(model, source)
    else:
        extract(full, source, **{"fp16": {"dtype": "fp16"}, "reference": {"format": "reference"}}[kind])
        overrides = {"text.num_heads": 2} if kind == "reference" else None
    parent, _ = load(source, overrides=overrides)
    for bank in (False, True):
        found = cut_text(source, tmp_path / "out", PHRASES, bank=bank, overrides=overrides, overwrite=True)
        loaded, report = load(tmp_path / "out", expect=found.spec)
        with torch.no_grad():
            features = [m.encode_text(*encode_phrases(m.spec.text, PHRASES)) for m in (parent, loaded)]
        real = features[0][1]
        torch.testing.assert_close(features[1][0][real], features[0][0][real], rtol=0, atol=1e-6)
        assert report.precision == ("fp16" if kind == "fp16" else "fp32")
        dtypes = inspect(tmp_path / "out").dtypes.keys()
        assert dtypes == (
            {"float16", "float32"} if bank and kind == "fp16" else {"float16" if kind == "fp16" else "float32"}
        )


@pytest.mark.parametrize("method", [Fp16(), Int8Weight(), Mixed({"embeddings": "int8", "vision": "int8"})])
def test_compress__a_bank(model: Sam3, tmp_path: Path, method: object) -> None:
    bank = banked(model, tmp_path)
    info = compress(bank, method).write(bank, tmp_path / "small")
    loaded, report = load(info.path, expect=bank.spec, dequantize=True)
    assert report.ok
    stored, exact = loaded.state_dict()["text_bank.features.weight"], bank.state_dict()["text_bank.features.weight"]
    assert not torch.equal(stored, exact)
    assert (stored - exact).abs().max() <= exact.abs().max() / (2000 if isinstance(method, Fp16) else 250)
    metadata = json.loads((info.path / "sam3slim.json").read_text())
    assert metadata["opens_in"] == ["sam3slim"]


def test_extract__a_bank(model: Sam3, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    bank = banked(model, tmp_path)
    extract(tmp_path / "bank", tmp_path / "one.safetensors", format="safetensors")
    extract(tmp_path / "bank", tmp_path / "again")
    for path in (tmp_path / "one.safetensors", tmp_path / "again"):
        assert_same_outputs(load(path, expect=bank.spec)[0], bank, asked(bank, inputs, ["red", "cat"]))
    with pytest.raises(UserError, match="format=reference: this model has a prompt bank instead of the text tower"):
        extract(tmp_path / "bank", tmp_path / "a.pt", format="reference")


def test_bank__is_no_start_for_training(model: Sam3, spec: ModelSpec, tmp_path: Path) -> None:
    bank = banked(model, tmp_path)
    with pytest.raises(CheckpointError, match="has a prompt bank instead of a text tower, and nothing to train or cut"):
        load(tmp_path / "bank", expect=spec)
    with pytest.raises(UserError, match="the full model has a prompt bank instead of a text tower: nothing to cut"):
        inherit(bank, spec)
    with pytest.raises(UserError, match="the slim model has a prompt bank"):
        inherit(model, bank.spec)


def test_load__another_bank_is_another_architecture(model: Sam3, tmp_path: Path) -> None:
    first, second = banked(model, tmp_path / "1"), banked(model, tmp_path / "2", ["dog"])
    with pytest.raises(CheckpointError, match=r"text\.bank is 2 phrases \(\w{8}\) in .*, 5 phrases \(\w{8}\) in model"):
        load(tmp_path / "2" / "bank", expect=first.spec)
    assert second.spec.text.bank is not None


def test_cut_text__refusals(model: Sam3, full: Path, tmp_path: Path) -> None:
    compress(model, Int8Weight()).write(model, tmp_path / "int8")
    banked(model, tmp_path)
    out = tmp_path / "out"
    for source, phrases, message in (
        (
            tmp_path / "int8",
            PHRASES,
            "is already quantised .int8_weight.; cut the text tower of its FP32 or FP16 parent",
        ),
        (full, [], "at least one phrase"),
        (tmp_path / "bank", PHRASES, "a prompt bank has no token table to trim"),
        (tmp_path / "nowhere", PHRASES, "does not exist"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            cut_text(source, out, phrases)
        assert "\n" not in str(caught.value)
        assert not out.exists()
    cut_text(full, out, ["cat"])
    with pytest.raises(UserError, match="is not empty; choose another one or give --overwrite"):
        cut_text(full, out, PHRASES)
    with pytest.raises(UserError, match="phrase 'red': 'red' is not in the model's vocabulary"):
        cut_text(out, tmp_path / "other", PHRASES, bank=True)
    with pytest.raises(UserError, match="is the source itself"):
        cut_text(full, full, PHRASES, overwrite=True)


def test_cli__text(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "phrases.txt").write_text("cat\n\ncat\n")
    coco = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a_Cup"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    given = [str(full), str(tmp_path / "out"), "--phrases", str(tmp_path / "phrases.txt")]
    assert main(["text", *given, "--coco", str(tmp_path / "coco.json"), "--bank"]) == 0
    out = capsys.readouterr().out
    assert "a bank of 3 phrases" in out
    assert f"{inspect(full).params['text']:,}" in out
    bank = load(tmp_path / "out")[0].spec.text.bank
    assert bank is not None
    assert bank.phrases == ("cat", "a cup", "visual")
    assert main(["text", *given, "--unknown", "bytes", "--overwrite"]) == 0
    assert "vocabulary 600 → " in capsys.readouterr().out
    vocabulary = load(tmp_path / "out")[0].spec.text.vocabulary
    assert vocabulary is not None
    assert vocabulary.unknown == "bytes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "error: no phrases; give --phrases FILE, --coco ANNOTATIONS.json or both"),
        (["--phrases", "nowhere.txt"], "error: cannot read nowhere.txt"),
        (["--coco", "nowhere.json"], "error: cannot read nowhere.json as JSON"),
        (["--phrases", "x", "--bank", "--unknown", "bytes"], "error: --unknown is for a trimmed vocabulary"),
    ],
)
def test_cli__text_bad_input(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["text", str(full), str(tmp_path / "out"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
