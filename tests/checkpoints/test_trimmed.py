"""A trimmed vocabulary goes with the weights, whatever they are written as."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer, Sam3Model, Sam3Processor

from sam3slim.artifacts import extract, write_artifact
from sam3slim.checkpoints import CheckpointError, load
from sam3slim.checkpoints.inspection import inspect
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.slimming import inherit
from sam3slim.specs import ModelSpec
from sam3slim.text.phrases import encode_phrases
from sam3slim.text.vocabulary import trim
from tests.checkpoints.test_load import lightning_checkpoint

PHRASES = ["red circle", "small tree", "café"]


@pytest.fixture
def trimmed(model: Sam3, spec: ModelSpec) -> Sam3:
    return inherit(model, replace(spec, text=trim(PHRASES, spec.text)))[0]


def features(model: Sam3) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_text(*encode_phrases(model.spec.text, PHRASES))[0]


def test_inherit__trimmed_to_phrases_reads_them_as_before(model: Sam3, trimmed: Sam3) -> None:
    assert trimmed.spec.text.vocab_size < model.spec.text.vocab_size
    assert torch.equal(features(trimmed), features(model))


@pytest.mark.parametrize("form", ["artifact", "lightning", "safetensors"])
def test_load__a_trimmed_vocabulary_comes_back(trimmed: Sam3, tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    if form == "lightning":
        lightning_checkpoint(trimmed, path)
    else:
        write_artifact(trimmed, path)
    if form == "safetensors":
        path = tmp_path / "one.safetensors"
        extract(tmp_path / form, path, format="safetensors")
    loaded, report = load(path, expect=trimmed.spec)
    assert loaded.spec == trimmed.spec
    assert torch.equal(features(loaded), features(trimmed))
    assert report.ok


def test_write_artifact__plain_transformers_reads_a_trimmed_vocabulary(trimmed: Sam3, tmp_path: Path) -> None:
    write_artifact(trimmed, tmp_path / "a")
    for tokenizer in (
        CLIPTokenizer.from_pretrained(tmp_path / "a"),
        Sam3Processor.from_pretrained(tmp_path / "a").tokenizer,
    ):
        assert len(tokenizer) == trimmed.spec.text.vocab_size
        given = tokenizer(PHRASES, padding="max_length", truncation=True, max_length=8, return_tensors="pt")
        ids, mask = encode_phrases(trimmed.spec.text, PHRASES)
        assert torch.equal(given["attention_mask"], mask)
        assert torch.equal(given["input_ids"] * mask, ids)
    plain = Sam3Model.from_pretrained(tmp_path / "a").eval()
    with torch.no_grad():
        theirs = plain.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(theirs, features(trimmed), rtol=0, atol=1e-6)
    assert "is trimmed to the" in (tmp_path / "a" / "README.md").read_text()


def test_load__a_trimmed_model_that_plain_transformers_saved(trimmed: Sam3, tmp_path: Path) -> None:
    write_artifact(trimmed, tmp_path / "a")
    Sam3Model.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "again")
    loaded, report = load(tmp_path / "again", expect=trimmed.spec)
    assert report.kind == "transformers"
    assert loaded.spec.text.vocabulary == trimmed.spec.text.vocabulary
    assert torch.equal(features(loaded), features(trimmed))


def test_extract__reference_has_no_trimmed_vocabulary(trimmed: Sam3, tmp_path: Path) -> None:
    write_artifact(trimmed, tmp_path / "a")
    with pytest.raises(UserError, match=r"format=reference: .* trimmed to 5\d\d; use format=hf, or the checkpoint"):
        extract(tmp_path / "a", tmp_path / "a.pt", format="reference")
    assert not (tmp_path / "a.pt").exists()


def test_load__another_vocabulary_is_another_architecture(model: Sam3, trimmed: Sam3, tmp_path: Path) -> None:
    write_artifact(trimmed, tmp_path / "a")
    text = trimmed.spec.text
    assert text.vocabulary is not None
    merges = (*text.vocabulary.merges[:-1], 85)
    other = replace(trimmed.spec, text=replace(text, vocabulary=replace(text.vocabulary, merges=merges)))
    with pytest.raises(CheckpointError, match=r"text\.vocabulary is \d+ of the merges of 600 tokens \(\w{8}\) in"):
        load(tmp_path / "a", expect=other)
    with pytest.raises(CheckpointError, match=r"text\.vocab_size is 5\d\d in .*, 600 in model=tiny"):
        load(tmp_path / "a", expect=model.spec)


def test_load__unknown_phrases_may_be_spelt(model: Sam3, trimmed: Sam3, tmp_path: Path) -> None:
    write_artifact(trimmed, tmp_path / "a")
    overrides = {"text.vocabulary.unknown": "bytes"}
    loaded, _ = load(tmp_path / "a", overrides=overrides, expect=trimmed.spec)
    assert encode_phrases(loaded.spec.text, ["blue dog"])[1].sum() > 2
    with pytest.raises(UserError, match=r"model\.text\.vocabulary\.unknown=skip must be one of error, bytes"):
        load(tmp_path / "a", overrides={"text.vocabulary.unknown": "skip"})
    write_artifact(model, tmp_path / "whole")
    with pytest.raises(UserError, match=r"text\.vocabulary\.unknown is for a vocabulary that was trimmed"):
        load(tmp_path / "whole", overrides=overrides)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(UserError, match=r"text\.vocabulary\.unknown is for a vocabulary that was trimmed"):
        load(tmp_path / "bare.pt", overrides=overrides)


def test_inspect__says_trimmed(trimmed: Sam3, tmp_path: Path) -> None:
    write_artifact(trimmed, tmp_path / "a")
    assert inspect(tmp_path / "a").report.spec == trimmed.spec
