"""A prompt bank answers as the tower it was made with, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam3slim.artifacts.cut import bank_features
from sam3slim.errors import UserError
from sam3slim.models import Sam3, bytes_by_part, count_params, params_by_part
from sam3slim.specs import ModelSpec, SpecError
from sam3slim.text.bank import bank_spec
from sam3slim.text.phrases import encode_phrases, tokenizer_of
from tests.banked import PHRASES, asked, banked
from tests.small import OUTPUTS, inputs, model, outputs, spec

__all__ = ["inputs", "model", "spec"]


def test_bank__outputs_are_the_towers(model: Sam3, inputs: dict[str, Tensor], tmp_path: Path) -> None:
    bank = banked(model, tmp_path)
    ids, mask = encode_phrases(model.spec.text, [*PHRASES, "visual"])
    with torch.no_grad():
        tower, stored = model.encode_text(ids, mask)[0], bank.encode_text(ids, mask)[0]
    real = mask.bool()
    torch.testing.assert_close(stored[real], tower[real], rtol=0, atol=1e-6)
    assert (stored[~real] == 0).all()
    for phrases in (["cat", "tree"], ["a cup", "a cup"]):
        given = asked(model, inputs, phrases)
        expected, found = outputs(model, given), outputs(bank, given)
        for name in OUTPUTS:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5, msg=name)


def test_bank__has_no_tower(model: Sam3, tmp_path: Path) -> None:
    bank = banked(model, tmp_path)
    theirs, mine = (dict(m.named_parameters()) for m in (model, bank))
    assert mine.keys() - theirs.keys() == {"text_bank.features.weight"}
    assert all(name.startswith(("text_encoder.", "text_projection.")) for name in theirs.keys() - mine.keys())
    assert bank.spec.text.bank is not None
    tokens = sum(map(len, bank.spec.text.bank.tokens))
    parts = params_by_part(bank)
    assert parts == count_params(bank.spec) == {**params_by_part(model), "text": tokens * 32}
    assert bytes_by_part(bank.spec)["text"] == {
        "fp32": 128 * tokens,
        "fp16": 64 * tokens,
        "int8": 36 * tokens,
        "int4": 36 * tokens,
    }


def test_bank__other_rows_are_refused(model: Sam3, tmp_path: Path) -> None:
    bank = banked(model, tmp_path)
    ids, mask = encode_phrases(model.spec.text, ["cat", "dog"])
    with pytest.raises(
        UserError, match=r"a prompt's tokens \[598, .*\] are not in the model's prompt bank of 5 phrases"
    ):
        bank.encode_text(ids, mask)
    with pytest.raises(UserError, match="not in the model's prompt bank"):
        bank.encode_text(ids[:1], mask[:1] * 0)


def test_bank__rows_without_padding_or_mask(model: Sam3, tmp_path: Path) -> None:
    bank = banked(model, tmp_path)
    ids, mask = encode_phrases(model.spec.text, ["cat"])
    length = int(mask.sum())
    with torch.no_grad():
        short, _ = bank.encode_text(ids[:, :length], None)
        padded, _ = bank.encode_text(ids, mask)
    assert torch.equal(short, padded[:, :length])


def test_bank_spec__phrases_with_equal_tokens_share_an_entry(spec: ModelSpec) -> None:
    bank = bank_spec(spec.text, ["Dog", "dog", "cat"])
    assert bank.phrases == ("Dog", "cat", "visual")
    assert bank.tokens[1] == (598, *tokenizer_of(spec.text)("cat").input_ids[1:-1], 599)


def test_bank_features__of_a_part_of_a_bank(model: Sam3, tmp_path: Path) -> None:
    bank = banked(model, tmp_path)
    part = bank_spec(bank.spec.text, ["a cup"])
    assert part == bank_spec(model.spec.text, ["a cup"])
    torch.testing.assert_close(bank_features(bank, part), bank_features(model, part), rtol=0, atol=1e-6)
    message = r"phrase 'cats' is not one of the 5 in the model's prompt bank \(near it: 'cat'\); make the bank again"
    with pytest.raises(UserError, match=message):
        bank_spec(bank.spec.text, ["cats"])
    with pytest.raises(UserError, match=r"\(it has 'red', 'cat', 'a cup', …\)"):
        bank_spec(bank.spec.text, ["zebra"])


def test_bank_features__more_phrases_than_pass_at_once(model: Sam3, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = bank_spec(model.spec.text, PHRASES)
    whole = bank_features(model, bank)
    monkeypatch.setattr("sam3slim.artifacts.cut.CHUNK", 2)
    told: list[tuple[int, int]] = []
    torch.testing.assert_close(bank_features(model, bank, lambda *n: told.append(n)), whole, rtol=0, atol=1e-6)
    assert told == [(2, 5), (2, 5), (1, 5)]


@pytest.mark.parametrize("phrases", [[], ["cat", " "]])
def test_bank_spec__nothing_to_store(spec: ModelSpec, phrases: list[str]) -> None:
    with pytest.raises(UserError, match="needs a list of phrases, none of them blank"):
        bank_spec(spec.text, phrases)


def test_bank_spec__round_trip_and_refusals(model: Sam3, tmp_path: Path) -> None:
    spec = banked(model, tmp_path).spec
    plain = spec.to_dict()
    assert isinstance(plain["text"]["bank"]["tokens"][0], list)
    assert ModelSpec.from_dict(plain) == spec
    for change, message in (
        ({"phrases": []}, "has 0 phrases and 5 token rows"),
        ({"tokens": [[1, 2]] * 5}, "must be different rows"),
        ({"tokens": [[1], [2], [3], [4], [600]]}, "must fit model.text.context_length=8"),
    ):
        bank = {**plain["text"]["bank"], **change}
        with pytest.raises(SpecError, match=message):
            ModelSpec.from_dict({**plain, "text": {**plain["text"], "bank": bank}})


def test_bank__saves_the_tower_at_full_size() -> None:
    """80 names of three to six tokens against 353.7 M parameters."""
    full = ModelSpec()
    names = (Path(__file__).parents[2] / "benchmarks" / "coco_names.txt").read_text().splitlines()
    assert len(names) == 80
    bank = bank_spec(full.text, names)
    spec = replace(full, text=replace(full.text, bank=bank))
    before, after = bytes_by_part(full), bytes_by_part(spec)
    assert {part for part in before if before[part] != after[part]} == {"text"}
    assert after["text"]["fp32"] == 4 * 256 * sum(map(len, bank.tokens)) < 300_000
    assert 1.41e9 < before["text"]["fp32"] - after["text"]["fp32"] < 1.42e9
