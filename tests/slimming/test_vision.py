"""A plain ViT in SAM 3's vision tower: what is exact, what is fitted, what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.models.plain_vit import PlainVit, PlainVitSizes
from sam3slim.slimming import adopt_vision, check_vision
from sam3slim.slimming.vision import VisionFit, _balance, _silent_direction
from tests.tiny import SPEC

SIZES = PlainVitSizes(32, 2, 2, 64, 8, grid=4, prefix=1)


def plain_vit(**changes: Any) -> PlainVit:
    """Random, with a patch kernel of low rank as a trained one has, and a class token that matters."""
    generator = torch.Generator().manual_seed(0)
    vit = PlainVit(replace(SIZES, **changes), "a ViT").eval()
    for name, parameter in vit.named_parameters():
        if "norm" not in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    for layer, token in zip(vit.layers, vit.prefix.repeat(2, 1)[:2], strict=False):
        block: Any = layer
        # The class token's key is what every query asks for.
        read = block.layer_norm1(token.data)
        block.attention.q_proj.bias.data += 1
        block.attention.k_proj.weight.data += torch.outer(torch.ones(32), read / read.square().sum())
    low = 0.1 * torch.randn(3 * 64, 8, generator=generator) @ torch.randn(8, 32, generator=generator)
    vit.kernel.data = low.T.unflatten(1, (3, 8, 8)).contiguous()
    return vit


def model() -> Sam3:
    # One window is the whole map: no block of the ViT has windows.
    return init_for_training(build_model(replace(SPEC, vit=replace(SPEC.vit, window_size=4))), 0).eval()


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batches() -> list[torch.Tensor]:
    return list(pictures(400).split(50))


@torch.no_grad()
def test_balance__changes_nothing_that_the_vit_computes() -> None:
    vit, tower = plain_vit(), model().vision_encoder.backbone
    before = vit(pictures(4, 1))
    original = copy.deepcopy(vit.layers[0].attention.q_proj.weight)
    streams = [vit.embedded(pixels) for pixels in batches()]
    for mine, its in zip(tower.layers, vit.layers, strict=True):
        _balance(its, mine, streams, vit)  # type: ignore[arg-type]
    assert not torch.allclose(original, vit.layers[0].attention.q_proj.weight, atol=0.01)  # type: ignore[union-attr]
    torch.testing.assert_close(vit(pictures(4, 1)), before, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_balance__keys_have_no_mean_and_the_loudest_coordinates_turn_slowest() -> None:
    vit, tower = plain_vit(), model().vision_encoder.backbone
    its: Any = vit.layers[0]
    streams = [vit.embedded(pixels) for pixels in batches()]
    _balance(its, tower.layers[0], streams, vit)
    rows = torch.cat([vit.patches(its.layer_norm1(stream)).flatten(0, 2) for stream in streams])
    keys, queries = its.attention.k_proj(rows)[:, :16], its.attention.q_proj(rows)[:, :16]
    assert float(keys.mean(0).abs().max()) < 1e-3
    loud = keys.square().mean(0)
    torch.testing.assert_close(loud, queries.square().mean(0), rtol=1e-2, atol=1e-4)
    turns = tower.layers[0].rotary_emb.inv_freq.repeat(2).repeat_interleave(2)
    order = torch.argsort(turns, stable=True)
    assert bool((loud[order].diff() <= 1e-5).all())


@torch.no_grad()
def test_adopt__the_first_norm_is_made_up_for() -> None:
    vit, sam = plain_vit(), model()
    found = adopt_vision(vit, sam, batches())
    assert found.stream[0] < 0.005
    tower: Any = sam.vision_encoder.backbone
    torch.testing.assert_close(tower.embeddings.patch_embeddings.projection.weight, vit.kernel)


@torch.no_grad()
def test_adopt__fitting_makes_up_for_class_token_and_rope() -> None:
    vit, sam = plain_vit(), model()
    found = adopt_vision(vit, sam, batches())
    mapped = model()
    tower: Any = mapped.vision_encoder.backbone
    tower.load_state_dict({
        **sam.vision_encoder.backbone.state_dict(),
        **{f"layers.{i}.{key}": value for i, layer in enumerate(vit.layers)
           for key, value in layer.state_dict().items()},
    })  # fmt: skip
    wanted = vit.patches([*vit.streams(batches()[-1])][-1])
    wanted = wanted - wanted.mean(-1, keepdim=True)
    errors = []
    for one in (mapped, sam):
        made = one.vision_encoder.backbone(batches()[-1]).last_hidden_state.reshape(wanted.shape)
        made = made - made.mean(-1, keepdim=True)
        errors.append(float((made - wanted).square().sum() / (wanted - wanted.mean((0, 1, 2))).square().sum()))
    assert errors[1] == pytest.approx(found.stream[-1], rel=1e-3)
    assert errors[1] < 0.5 * errors[0]
    assert (found.images, found.held_out, len(found.stream)) == (350, 50, 3)
    assert VisionFit.from_dict(found.to_dict()) == found
    assert "fitted on 350 pictures" in found.describe()


@torch.no_grad()
def test_adopt__the_neck_reads_standardised_channels() -> None:
    vit, sam = plain_vit(), model()
    fresh = copy.deepcopy(sam.vision_encoder.neck)
    adopt_vision(vit, sam, batches())
    tower = torch.cat([sam.vision_encoder.backbone(pixels).last_hidden_state for pixels in batches()[:-1]])
    maps = tower.unflatten(1, (4, 4)).movedim(-1, 1)
    rows = tower.flatten(0, 1)
    plain = (maps - rows.mean(0)[:, None, None]) / rows.std(0)[:, None, None]
    torch.testing.assert_close(
        sam.vision_encoder.neck.fpn_layers[2](maps), fresh.fpn_layers[2](plain), rtol=1e-3, atol=1e-3
    )


def test_silent_direction__least_variance_and_no_mean() -> None:
    rows = torch.randn(500, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[:, 3] = rows[:, 7]  # silent along their difference
    rows = rows - rows.mean(1, keepdim=True)
    found = _silent_direction(rows)
    assert float((rows @ found).abs().max()) < 1e-9
    assert abs(float(found.sum())) < 1e-9


@torch.no_grad()
def test_adopt__a_vit_with_a_first_norm_is_exact_there() -> None:
    found = adopt_vision(plain_vit(first_norm=True, prefix=0), model(), batches())
    assert found.stream[0] < 1e-10


def test_check__names_what_fits() -> None:
    with pytest.raises(UserError, match=r"32 wide with 2 blocks of 2 heads, MLPs of 64 and patches of 8.* set "
                       r"model.vit.depth=2 model.vit.mlp_ratio=2, or init.vision=null"):  # fmt: skip
        check_vision(plain_vit(), replace(SPEC.vit, depth=3, mlp_ratio=3.0))
    check_vision(plain_vit(), SPEC.vit)


def test_adopt__without_pictures() -> None:
    with pytest.raises(UserError, match=r"init.vision needs training images"):
        adopt_vision(plain_vit(), model(), [])
