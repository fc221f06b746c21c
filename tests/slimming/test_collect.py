"""Scores from data, against what removing a unit really does and against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sam3slim.data.batch import Batch, Targets
from sam3slim.errors import UserError
from sam3slim.losses import Criterion
from sam3slim.models import Sam3, Sam3Output
from sam3slim.slimming import DataScores, collect_scores, inherit
from sam3slim.specs import ModelSpec
from tests.slimming.cuts import cut
from tests.tiny import tiny_batch

VIT = "vision_encoder.backbone.layers"
FC2 = f"{VIT}.1.mlp.fc2"
BATCHES = [tiny_batch(0), tiny_batch(1)]


def loss(outputs: Sam3Output, targets: Targets) -> Tensor:
    total: Tensor = Criterion()(outputs, targets)["loss"]
    return total


def collect(model: Sam3, importance: Any, batches: Any = BATCHES) -> DataScores:
    return collect_scores(model, batches, importance, loss)


def inputs_of(model: Sam3, name: str, batch: Batch) -> Tensor:
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**batch.inputs())
    handle.remove()
    return seen[0]


def test_collect__activation_is_the_mean_square_in_front_of_the_reader(model: Sam3) -> None:
    found = collect(model, "activation")
    with torch.no_grad():
        seen = torch.cat([inputs_of(model, FC2, batch).flatten(0, -2) for batch in BATCHES])
        heads = torch.cat(
            [inputs_of(model, FC2.replace("mlp.fc2", "attention.o_proj"), b).flatten(0, -2) for b in BATCHES]
        )
    torch.testing.assert_close(found.units["vit[1].neurons"], seen.double().square().mean(0), rtol=1e-5, atol=0)
    by_hand = heads.double().square().mean(0).reshape(2, 16).sum(1)
    torch.testing.assert_close(found.units["vit[1].heads"], by_hand, rtol=1e-5, atol=0)
    assert found.batches == 2


def test_collect__padding_does_not_count(model: Sam3) -> None:
    """Longer padding changes the number of rows in the text tower, and no score."""
    batch = tiny_batch(0)
    longest = int(batch.attention_mask.sum(1).max())
    assert longest < batch.input_ids.shape[1]
    short = replace(batch, input_ids=batch.input_ids[:, :longest], attention_mask=batch.attention_mask[:, :longest])
    left, right = collect(model, "activation", [batch]), collect(model, "activation", [short])
    for axis in left.units:
        torch.testing.assert_close(left.units[axis], right.units[axis], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(left.blocks["text"], right.blocks["text"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("axis", "key"), [
    ("vit[1].neurons", FC2), ("text[0].neurons", "text_encoder.text_model.encoder.layers.0.mlp.fc2"),
    ("encoder[1].neurons", "detr_encoder.layers.1.mlp.fc2"), ("scoring.neurons", "dot_product_scoring.text_mlp.layer2"),
])  # fmt: skip
def test_collect__taylor_is_the_squared_first_order_change_of_the_loss(model: Sam3, axis: str, key: str) -> None:
    """Against the central difference of scaling a unit's outgoing weights, in float64."""
    model = model.double()
    batch = replace(tiny_batch(0), pixel_values=tiny_batch(0).pixel_values.double())

    def smooth(outputs: Sam3Output, targets: Targets) -> Tensor:
        # The training loss rounds to float32, and later decoder layers detach their boxes.
        assert outputs.semantic_seg is not None
        return outputs.semantic_seg.square().mean() + outputs.layer_logits[0].square().mean()

    found = collect_scores(model, [batch], "taylor", smooth).units[axis]
    weight = model.get_submodule(key).weight
    unit, step = int(found.argmax()), 1e-5
    values = []
    with torch.no_grad():
        original = weight[:, unit].clone()
        for scale in (1 + step, 1 - step):
            weight[:, unit] = original * scale
            values.append(float(smooth(model(**batch.inputs()), batch.targets)))
    slope = (values[0] - values[1]) / (2 * step)
    assert float(found[unit]) == pytest.approx(slope**2, rel=1e-2)  # RoPE is computed in float32


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_collect__dead_units_score_nothing_and_go(model: Sam3, spec: ModelSpec, importance: Any) -> None:
    fc1 = model.get_submodule(FC2.replace("fc2", "fc1"))
    dead = list(range(0, 64, 2))
    with torch.no_grad():
        fc1.weight[dead] = 0
        fc1.bias[dead] = 0  # GELU(0) = 0
    found = collect(model, importance)
    assert float(found.units["vit[1].neurons"][dead].sum()) == 0
    _, plan = inherit(model, cut(spec, vit__mlp_ratio=1.0), importance=importance, data=found)
    assert plan["vit[1].neurons"].indices == tuple(range(1, 64, 2))
    assert plan["vit[1].neurons"].share == pytest.approx(1.0)
    assert plan.to_dict()["batches"] == 2


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_collect__covers_every_axis_an_output_depends_on(model: Sam3, importance: Any) -> None:
    found = collect(model, importance)
    assert {"vit.channels", "text.channels", "neck[0].half", "neck[0].quarter", "neck[1].half"} <= found.units.keys()
    for stack, count in (("vit", 4), ("text", 2), ("geometry", 1), ("encoder", 2), ("decoder", 2)):
        assert found.blocks[stack].shape == (count,)
        assert (found.blocks[stack] > 0).all()
        assert {f"{stack}[{i}].neurons" for i in range(count)} <= found.units.keys()
    assert all(float(scores.sum()) > 0 for scores in found.units.values())
    assert "text.projection" not in found.units  # nothing reads it


def test_inherit__an_unread_axis_falls_back_to_magnitude(model: Sam3, spec: ModelSpec) -> None:
    target = cut(spec, text__projection_dim=8, ffn_dim=16)
    _, plan = inherit(model, target, importance="activation", data=collect(model, "activation"))
    assert plan["text.projection"].how == "magnitude"
    assert plan["encoder[0].neurons"].how == "activation"


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_collect__leaves_the_model_as_it_was(model: Sam3, importance: Any) -> None:
    model.train()
    model.vision_encoder.requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first, second = collect(model, importance), collect(model, importance)
    assert all(torch.equal(first.units[axis], second.units[axis]) for axis in first.units)  # no dropout
    assert model.training
    assert model.detr_encoder.training
    assert not any(p.requires_grad for p in model.vision_encoder.parameters())
    assert all(p.requires_grad for p in model.detr_encoder.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_depth__a_block_that_passes_its_input_on_goes(model: Sam3, spec: ModelSpec) -> None:
    passing = [f"{VIT}.0", "text_encoder.text_model.encoder.layers.1", "detr_encoder.layers.1"]
    with torch.no_grad():
        for block in passing:
            for name, parameter in model.get_submodule(block).named_parameters():
                if any(part in name for part in ("o_proj", "out_proj", "fc2")):
                    parameter.zero_()
    found = collect(model, "activation")
    target = cut(spec, vit__depth=2, vit__num_global_blocks=1, text__layers=1, encoder__num_layers=1)
    _, plan = inherit(model, target, importance="activation", depth="importance", data=found)
    assert float(found.blocks["vit"][0]) == pytest.approx(0, abs=1e-6)
    assert plan["vit.blocks"].indices[0] == 2  # the other windowed block
    assert plan["text.blocks"].indices == (0,)
    assert plan["encoder.blocks"].indices == (0,)
    assert "block influence" in plan["encoder.blocks"].how
    assert plan["encoder.blocks"].share == pytest.approx(1.0, abs=1e-5)
    assert "encoder.blocks   1 of 2, 100.0 % of importance: 0 (block influence" in plan.describe()


def test_depth__magnitude_and_first(model: Sam3, spec: ModelSpec) -> None:
    with torch.no_grad():
        for parameter in model.detr_encoder.layers[1].parameters():
            parameter.mul_(0.1)
    target = cut(spec, encoder__num_layers=1, vit__depth=3)
    assert inherit(model, target)[1]["encoder.blocks"].indices == (1,)
    assert inherit(model, target, depth="first")[1]["encoder.blocks"].indices == (0,)
    plan = inherit(model, target, depth="importance")[1]
    assert plan["encoder.blocks"].indices == (0,)
    assert plan["encoder.blocks"].how == "magnitude, kind with kind"
    assert plan["decoder.blocks"].share is None  # nothing to choose
    drawn = {inherit(model, target, importance="random", depth="importance", seed=s)[1]["encoder.blocks"].indices
             for s in range(12)}  # fmt: skip
    assert drawn == {(0,), (1,)}


def test_collect__no_prompts_is_one_line(model: Sam3) -> None:
    batch = tiny_batch(0)
    empty = replace(batch, input_ids=batch.input_ids[:0], attention_mask=batch.attention_mask[:0])
    for batches in ([], [empty]):
        with pytest.raises(UserError, match=r"init\.importance=taylor needs training data.*data\.root") as caught:
            collect(model, "taylor", batches)
        assert "\n" not in str(caught.value)


def test_collect__not_finite_is_one_line(model: Sam3) -> None:
    with torch.no_grad():
        model.get_submodule(FC2).weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"init\.importance=activation: .* is not finite"):
        collect(model, "activation")
