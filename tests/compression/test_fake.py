"""What is trained with fake quantisation is what a method stores; the gradient is that at its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sam3slim.checkpoints import load
from sam3slim.compression import (
    GROUPS,
    FakeQuantised,
    Fp16,
    Int4Weight,
    Int8Rules,
    Int8Weight,
    Mixed,
    compress,
    fake_method,
)
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.models.count import PARTS
from tests.small import small_model
from tests.tiny import SPEC, tiny_batch

EVERYTHING = Int8Rules(parts=tuple(PARTS))
METHODS = {
    "int4": Int4Weight(group=32),
    "int4, not symmetric, everything": Int4Weight(group=32, symmetric=False, rules=EVERYTHING),
    "int8": Int8Weight(),
    "mixed": Mixed(dict.fromkeys(GROUPS, "int4") | {"vision": "int8", "text": "fp16"}, int4_group=32),
}


@pytest.mark.parametrize("name", METHODS)
def test_fake__equals_what_is_stored(tmp_path: Path, name: str) -> None:
    model, method = small_model(SPEC), METHODS[name]
    stored = load(compress(model, method).write(model, tmp_path / "a").path, dequantize=True)[0].state_dict()
    own = {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}
    fake = FakeQuantised(model, method)
    assert len(fake.keys) > 20
    with fake:
        for key, value in model.state_dict().items():
            expected = stored[key] if key in fake.keys else own[key][1]
            assert torch.equal(value, expected), key
            assert (key in fake.keys) == (not torch.equal(value, own[key][1])) or value.abs().max() == 0, key
    for key, value in model.state_dict().items():
        assert value.data_ptr() == own[key][0], key
        assert torch.equal(value, own[key][1]), key


def gradients(model: Sam3) -> dict[str, torch.Tensor]:
    output = model(**tiny_batch().inputs())
    (output.pred_logits.square().sum() + output.pred_masks.mean() + output.pred_boxes.sum()).backward()
    return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}


def test_fake__gradients_are_those_at_the_rounded_weights() -> None:
    ours, theirs, method = small_model(SPEC), small_model(SPEC), METHODS["int4"]
    own = {key: value.clone() for key, value in ours.state_dict().items()}
    with FakeQuantised(ours, method) as fake:
        rounded = {key: ours.get_parameter(key).detach().clone() for key in fake.keys}
        found = gradients(ours)
    for key, value in rounded.items():
        theirs.get_parameter(key).data.copy_(value)
    expected = gradients(theirs)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    torch.optim.SGD(ours.parameters(), lr=1e-3).step()  # moves the weights themselves
    key = fake.keys[0]
    torch.testing.assert_close(ours.get_parameter(key).data, own[key] - 1e-3 * expected[key], rtol=0, atol=1e-7)


def test_fake__round_twice_and_restore_twice() -> None:
    model = small_model(SPEC)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fake = FakeQuantised(model, METHODS["int8"])
    for call in (fake.round, fake.round, fake.restore, fake.restore):
        call()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fp16", {}, r"qat=fp16 must be one of int4_weight, int8_weight, mixed"),
        ("int4_weight", {"group": 7}, r"^qat: compress\.int4_weight\.group=7 must be 32, 64 or 128"),
        ("int4_weight", {"grop": 32}, r"^qat: unknown key compress\.int4_weight\.grop; did you mean .*group"),
        ("int8_weight", {"compensate": "gptq"}, r"compensate=gptq rounds once.*use compensate=none"),
    ],
)
def test_fake_method__bad_input(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fake_method(name, **options)


def test_fake__nothing_to_round_and_already_quantised(tmp_path: Path) -> None:
    model = small_model(SPEC)
    with pytest.raises(UserError, match=r"qat=mixed rounds no weight of this model"):
        FakeQuantised(model, Mixed({}))
    with pytest.raises(UserError, match=r"group=128 divides no row"):
        FakeQuantised(model, Int4Weight(group=128, rules=Int8Rules(parts=("vision",), also=())))
    compress(model, Int8Weight()).write(model, tmp_path / "a")
    with pytest.raises(UserError, match="already INT8"):
        FakeQuantised(load(tmp_path / "a")[0], Int8Weight())
    assert isinstance(model.text_projection, nn.Linear)
    assert compress(model, Fp16()).precision == "fp16"
