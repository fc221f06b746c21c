"""A neck behind another tower, fitted to what an inherited detector reads."""

from __future__ import annotations

from dataclasses import replace

import torch

from sam3slim.models import build_model, init_for_training
from sam3slim.slimming import fit_neck
from tests.tiny import SPEC, tiny_model


def pictures(size: int = 32) -> list[torch.Tensor]:
    pixels = torch.rand(60, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return list(torch.nn.functional.avg_pool2d(pixels, 5, 1, 2).split(20))


@torch.no_grad()
def test_fit__behind_the_same_tower_only_what_is_not_linear_is_lost() -> None:
    source, model = tiny_model(), tiny_model(seed=1)
    model.vision_encoder.backbone.load_state_dict(source.vision_encoder.backbone.state_dict())
    for mine, its in zip(model.vision_encoder.neck.fpn_layers, source.vision_encoder.neck.fpn_layers, strict=True):
        mine.proj2.load_state_dict(its.proj2.state_dict())
    errors = fit_neck(source, model, pictures())
    # The finest map has a GELU between two upsamplings; all others are linear in the tower's output.
    assert all(error < 0.01 for error in errors[1:])
    assert errors[0] < 0.9
    made, wanted = (one.get_vision_features(pictures()[0]).fpn_hidden_states[1] for one in (model, source))
    # The four pixels of an upsampling share a bias.
    assert float((made - wanted).square().sum() / (wanted - wanted.mean()).square().sum()) < 0.02


@torch.no_grad()
def test_fit__behind_a_tower_of_another_size() -> None:
    source = tiny_model()
    wide = replace(SPEC.vit, embed_dim=48, num_heads=3, image_size=48, pretrain_image_size=48, window_size=3)
    model = init_for_training(build_model(replace(SPEC, vit=wide)), 1).eval()
    before = fit_neck(source, model, pictures(48))
    assert len(before) == 4
    assert all(error < 1 for error in before)
