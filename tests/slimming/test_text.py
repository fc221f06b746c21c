"""The text tower's levers through ``inherit``: fewer layers, narrower, a shorter context, a trimmed vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sam3slim.launch.compose import compose_model
from sam3slim.models import Sam3, count_params
from sam3slim.slimming import check_slimmer, inherit
from sam3slim.specs import ModelSpec, TextSpec
from sam3slim.text.phrases import encode_phrases
from sam3slim.text.vocabulary import kept_tokens, trim
from tests.banked import PHRASES, asked
from tests.slimming.cuts import cut
from tests.small import outputs, small_model

OPTIONS = ("c16", "l12", "w512")


def scaled(option: TextSpec, tower: TextSpec) -> TextSpec:
    """``tower`` cut in the proportions in which ``option`` cuts SAM 3's."""
    full = TextSpec()
    sizes = {
        name: getattr(tower, name) * getattr(option, name) // getattr(full, name)
        for name in ("width", "layers", "num_heads", "context_length")
    }
    return replace(tower, **sizes)


@pytest.mark.parametrize("option", OPTIONS)
def test_option__is_a_cut_of_the_full_model(option: str) -> None:
    full, slimmer = compose_model(["model=full"]), compose_model(["model=full", f"model/text={option}"])
    check_slimmer(full, slimmer)
    before, after = count_params(full), count_params(slimmer)
    assert {part for part in before if before[part] != after[part]} == {"text"}
    assert after["text"] < before["text"]


@pytest.mark.parametrize("option", OPTIONS)
def test_inherit__text_options_at_small_size(spec: ModelSpec, inputs: dict[str, Tensor], option: str) -> None:
    source = small_model(replace(spec, text=replace(spec.text, context_length=16)))
    tower = scaled(compose_model(["model=full", f"model/text={option}"]).text, source.spec.text)
    assert tower != source.spec.text
    target = replace(source.spec, text=trim(PHRASES, tower))
    slim, plan = inherit(source, target)
    assert plan["text.tokens"].indices == kept_tokens(source.spec.text, target.text)
    assert f"text.tokens      {target.text.vocab_size} of 600 (the phrases' own)" in plan.describe()
    assert all(value.isfinite().all() for value in outputs(slim, asked(slim, inputs, PHRASES[:2])).values())


def test_inherit__shorter_context_is_exact_for_phrases_that_fit(model: Sam3, spec: ModelSpec) -> None:
    short, _ = inherit(model, cut(spec, text__context_length=5))
    ids, mask = encode_phrases(spec.text, ["cat", "red"])
    assert int(mask.sum(dim=1).max()) <= 5
    with torch.no_grad():
        expected = model.encode_text(ids, mask)[0]
        found = short.encode_text(*encode_phrases(short.spec.text, ["cat", "red"]))[0]
    # Values up to 4: a few roundings of a product of another length, which processors order differently.
    torch.testing.assert_close(found, expected[:, :5], rtol=0, atol=2e-6)


def test_inherit__trimmed_model_from_a_trimmed_one(model: Sam3, spec: ModelSpec) -> None:
    once, _ = inherit(model, replace(spec, text=trim(PHRASES, spec.text)))
    twice, plan = inherit(once, replace(spec, text=trim(["cat"], once.spec.text)))
    direct, _ = inherit(model, replace(spec, text=trim(["cat"], spec.text)))
    assert plan["text.tokens"].total == once.spec.text.vocab_size
    assert all(torch.equal(value, direct.state_dict()[key]) for key, value in twice.state_dict().items())
