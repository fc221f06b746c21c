"""Blocks of the vision tower removed one after another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.slimming import Greedy, check_plan, greedy_blocks, inherit
from sam3slim.slimming.fitting.vision import VisionTower
from sam3slim.slimming.greedy import _Tower
from tests.tiny import SPEC

DEEP = replace(SPEC, vit=replace(SPEC.vit, depth=6, num_global_blocks=2))  # blocks 2 and 5 are global


def deep_model() -> Sam3:
    return init_for_training(build_model(DEEP), 0).eval()


def pictures() -> list[torch.Tensor]:
    pixels = torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return list(pixels.split(12))


@torch.no_grad()
def silence(model: Sam3, block: int, scale: float = 0.0) -> None:
    """Let a block write little to the stream, or nothing."""
    layer: Any = model.vision_encoder.backbone.layers[block]
    for linear in (layer.attention.o_proj, layer.mlp.fc2):
        linear.weight.mul_(scale)
        linear.bias.mul_(scale)


def test_greedy__what_does_nothing_goes_first_and_costs_nothing() -> None:
    model = deep_model()
    silence(model, 3)
    silence(model, 0, 0.01)
    found = greedy_blocks(model, 4, pictures())
    assert found.removed == (3, 0)
    assert found.blocks == (1, 2, 4, 5)
    assert found.errors[0] < 0.01  # fitting has a ridge
    assert found.errors[0] <= found.errors[1] < 0.05
    assert found.images == 48


def test_greedy__global_blocks_stay_unless_told() -> None:
    model = deep_model()
    silence(model, 5)
    assert 5 in greedy_blocks(model, 3, pictures()).blocks
    assert greedy_blocks(model, 5, pictures(), protect_global=False).removed == (5,)
    with pytest.raises(UserError, match=r"model.vit.depth=1 is less than the 2 blocks.*init.protect_global=false"):
        greedy_blocks(model, 1, pictures())
    with pytest.raises(UserError, match=r"init.depth=greedy needs training images"):
        greedy_blocks(model, 4, [])


@torch.no_grad()
def test_error__is_that_of_the_maps_without_the_block() -> None:
    model = deep_model()
    tower = _Tower(model, pictures())
    assert tower.error(range(6)) == 0
    before = [value.clone() for value in model.state_dict().values()]
    gone = tower.error([0, 1, 2, 4, 5])
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    # The same with the block behind the gap as it is: fitting it is what makes up for the gap.
    errors, power = [0.0] * 3, [0.0] * 3
    for pixels, maps in zip(pictures(), tower.maps, strict=True):
        backbone: Any = model.vision_encoder.backbone
        stream = backbone.layer_norm(backbone.embeddings(pixels).unflatten(1, (4, 4)))
        for block in (0, 1, 2, 4, 5):
            stream = backbone.layers[block](stream)
        for level, (made, want) in enumerate(zip(tower._maps(stream), maps, strict=True)):
            errors[level] += float((made - want).square().sum())
            power[level] += float((want - want.mean()).square().sum())
    unfitted = sum(e / p for e, p in zip(errors, power, strict=True)) / 3
    assert gone < 0.8 * unfitted


@torch.no_grad()
def test_greedy__all_but_one_block() -> None:
    found = greedy_blocks(deep_model(), 1, pictures(), protect_global=False)
    assert len(found.blocks) == 1
    assert len(found.removed) == len(found.errors) == 5


@torch.no_grad()
def test_inherit__the_blocks_that_greedy_kept() -> None:
    model = deep_model()
    silence(model, 3)
    greedy = greedy_blocks(model, 5, pictures())
    target = replace(DEEP, vit=replace(DEEP.vit, depth=5, global_attention_blocks=(2, 4)))
    slim, plan = inherit(model, target, depth="greedy", greedy=greedy)
    assert plan["vit.blocks"].indices == (0, 1, 2, 4, 5)
    check_plan(dict(model.state_dict()), slim.state_dict(), plan)
    for pixels in pictures():
        full, cut = (m.get_vision_features(pixels).fpn_hidden_states[0] for m in (model, slim))
        torch.testing.assert_close(full, cut)
    assert Greedy.from_dict(plan.to_dict()["greedy"]) == greedy
    assert "blocks removed on 48 images" in plan.describe()
    VisionTower(model, slim, plan).fit_all(pictures())  # fits what greedy left


def test_inherit__greedy_without_its_choice() -> None:
    with pytest.raises(ValueError, match="depth greedy of 6 blocks with None"):
        inherit(deep_model(), DEEP, depth="greedy")
