"""A cut vision tower, fitted to the full one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sam3slim.errors import UserError
from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.slimming import fit_vision, inherit
from sam3slim.slimming.least_squares import LeastSquares
from sam3slim.slimming.principal import Moments, principal_map
from tests.slimming.cuts import cut
from tests.tiny import SPEC, tiny_model

DEEP = replace(SPEC, vit=replace(SPEC.vit, depth=4, num_global_blocks=2, image_size=40))  # 5 x 5 patches, windows of 2


def pictures(count: int, seed: int = 0, size: int = 40) -> list[torch.Tensor]:
    """Batches of two smooth pictures: noise alone would have nothing in common to fit."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2 * count, 3, 4, 4, generator=generator) * 2 - 1
    return list(nn.functional.interpolate(coarse, size, mode="bicubic").split(2))


def deep_model(seed: int = 0) -> Sam3:
    model = init_for_training(build_model(DEEP), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # norms and biases that matter
        for parameter in model.vision_encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_least_squares__finds_the_map_behind_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 4, generator=generator), torch.randn(5, generator=generator)
    rows = torch.randn(6, 50, 4, generator=generator)
    fit = LeastSquares(torch.zeros(5, 4), torch.zeros(5))
    for part in rows.split(2):
        fit.add(part, part @ weight.T + bias)
    found, shift = fit.solve()
    # The ridge holds it back by a thousandth.
    torch.testing.assert_close(found.float(), weight, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(shift.float(), bias, rtol=2e-3, atol=2e-3)


def test_least_squares__what_no_row_reaches_stays() -> None:
    start = torch.tensor([[1.0, 2.0, 3.0]])
    fit = LeastSquares(start, torch.tensor([0.5]), intercept=False)
    rows = torch.eye(3)[:2].repeat(100, 1)
    fit.add(rows, rows @ torch.tensor([[7.0], [2.0], [0.0]]) + 0.5)
    weight, bias = fit.solve()
    assert weight[0, 0] == pytest.approx(7, abs=1e-2)
    assert weight[0, 1:].tolist() == pytest.approx([2, 3], abs=1e-9)
    assert bias.tolist() == [0.5]


def test_principal_map__norms_of_the_narrow_stream_hand_on_what_the_wide_ones_did() -> None:
    """A stream that really has few directions is mapped without loss, and layer norms commute with the map."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    directions -= directions.mean(dim=1, keepdim=True)
    stream = torch.randn(200, 5, generator=generator).double() @ directions
    stream += torch.randn(200, 1, generator=generator)
    moments = Moments(12, torch.device("cpu"))
    moments.add(stream)
    turn, share = principal_map(moments.total, 6)
    assert share == pytest.approx(1)
    torch.testing.assert_close(turn @ turn.T, torch.eye(6, dtype=torch.float64))
    narrow = stream @ turn.T
    torch.testing.assert_close(narrow @ turn, stream)
    wide_norm = nn.functional.layer_norm(stream, (12,), eps=0)
    narrow_norm = nn.functional.layer_norm(narrow, (6,), eps=0)
    torch.testing.assert_close(narrow_norm @ turn * (12 / 6) ** 0.5, wide_norm)


@pytest.mark.parametrize(
    "changes",
    [
        {"vit__embed_dim": 16, "vit__num_heads": 1},
        {"vit__depth": 2, "vit__num_global_blocks": 1},
        {"vit__mlp_ratio": 1.0},
        {"vit__embed_dim": 16, "vit__num_heads": 1, "vit__depth": 2, "vit__num_global_blocks": 1},
    ],
    ids=["narrower", "shallower", "fewer neurons", "both"],
)
def test_fit__nearer_than_the_cut_also_on_other_pictures(changes: dict[str, Any]) -> None:
    source = deep_model()
    target, plan = inherit(source, cut(DEEP, **changes))
    images = pictures(12)
    assert images[0].shape == (2, 3, 40, 40)
    others = pictures(3, seed=1)
    before = distance(source, target, others)
    weights = {key: value.clone() for key, value in source.state_dict().items()}
    heads = {key: value.clone() for key, value in target.state_dict().items() if not key.startswith("vision")}
    found = fit_vision(source, target, plan, images)
    assert found.images == 24
    assert all(after < 0.8 * before for before, after in zip(found.before, found.after, strict=True))
    assert distance(source, target, others) < 0.25 * before
    assert all(torch.equal(value, weights[key]) for key, value in source.state_dict().items())
    assert all(torch.equal(target.state_dict()[key], value) for key, value in heads.items())
    assert (found.variance is None) == ("vit__embed_dim" not in changes)
    assert "fitted on 24 images" in replace(plan, fit=found).describe()


def distance(source: Sam3, target: Sam3, batches: list[torch.Tensor]) -> float:
    with torch.no_grad():
        pairs = [
            [model.get_vision_features(pixels).fpn_hidden_states[-2] for model in (source, target)]
            for pixels in batches
        ]
    return float(sum((a - b).square().mean() for a, b in pairs))


def test_fit__nothing_was_cut() -> None:
    source = tiny_model()
    target, plan = inherit(source, SPEC)
    target.train()
    found = fit_vision(source, target, plan, pictures(2, size=32))
    assert max(found.after) < 1e-9
    assert target.training
    assert target.vision_encoder.training
    assert not source.training
    for key, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[key], value, rtol=0, atol=1e-5)


def test_fit__bad_pictures() -> None:
    source = tiny_model()
    target, plan = inherit(source, cut(SPEC, vit__mlp_ratio=1.0))
    with pytest.raises(UserError, match=r"init\.fit_batches needs training images, and there are none"):
        fit_vision(source, target, plan, [])
    with pytest.raises(UserError, match="not finite"):
        fit_vision(source, target, plan, [torch.full((1, 3, 32, 32), float("nan"))])


def test_fit__bad_pictures_are_told_before_anything_is_turned() -> None:
    source = deep_model()
    target, plan = inherit(source, cut(DEEP, vit__embed_dim=16, vit__num_heads=1))
    weights = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=r"not finite on these images; check .*init\.fit_batches=0"):
        fit_vision(source, target, plan, [torch.full((1, 3, 40, 40), float("nan"))])
    assert all(torch.equal(value, weights[key]) for key, value in target.state_dict().items())
