"""A cut model, fitted to the full one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sam3slim.data.batch import Batch, Targets
from sam3slim.errors import UserError
from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.slimming import fit_model, inherit
from sam3slim.slimming.fitting.detector import Answers, Detector, in_tokens_of
from sam3slim.slimming.fitting.neurons import best_inputs
from sam3slim.slimming.fitting.text import TextTower
from sam3slim.slimming.fitting.vision import VisionTower
from sam3slim.slimming.least_squares import LeastSquares
from sam3slim.slimming.principal import NormMoments, principal_map
from sam3slim.specs import DecoderSpec, EncoderSpec, GeometrySpec, ModelSpec
from sam3slim.text.phrases import encode_phrases
from tests.slimming.cuts import cut
from tests.tiny import SPEC

DEEP = replace(
    SPEC,
    vit=replace(SPEC.vit, depth=4, num_global_blocks=2, image_size=40),  # 5 x 5 patches, windows of 2
    text=replace(SPEC.text, layers=2),
    geometry=GeometrySpec(2),
    encoder=EncoderSpec(2),
    decoder=DecoderSpec(3, num_queries=6),
)
PHRASES = ["cat", "dog", "red", "blue", "a cat", "big", "sky", "sun", "two", "map", "the", "of", "old car", "tree"]


def pictures(count: int, seed: int = 0, size: int = 40) -> list[torch.Tensor]:
    """Batches of two smooth pictures: noise alone would have nothing in common to fit."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2 * count, 3, 4, 4, generator=generator) * 2 - 1
    return list(nn.functional.interpolate(coarse, size, mode="bicubic").split(2))


def deep_model(seed: int = 0, spec: ModelSpec = DEEP) -> Sam3:
    model = init_for_training(build_model(spec), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # norms and biases that matter
        for parameter in model.parameters():
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
    moments = NormMoments(12, torch.device("cpu"))
    moments.add(stream)
    turn, share = principal_map(moments.total, 6)
    assert share == pytest.approx(1)
    torch.testing.assert_close(turn @ turn.T, torch.eye(6, dtype=torch.float64))
    narrow = stream @ turn.T
    torch.testing.assert_close(narrow @ turn, stream)
    wide_norm = nn.functional.layer_norm(stream, (12,), eps=0)
    narrow_norm = nn.functional.layer_norm(narrow, (6,), eps=0)
    torch.testing.assert_close(narrow_norm @ turn * (12 / 6) ** 0.5, wide_norm)


def batches(count: int, seed: int = 0, size: int = 40) -> list[Batch]:
    """Pictures with three phrases each; labels are none."""
    found = []
    for pixels in pictures(count, seed, size):
        phrases = [PHRASES[(seed + len(found) + i) % len(PHRASES)] for i in range(6)]
        ids, mask = encode_phrases(SPEC.text, phrases)
        nothing = Targets(torch.zeros(0, 4), None, torch.zeros(0, dtype=torch.long))
        index = torch.tensor([0, 0, 0, 1, 1, 1])
        found.append(Batch(pixels, ids, mask, index, torch.zeros(6, dtype=torch.long), nothing, phrases))
    return found


def outputs(model: Sam3, batch: Batch) -> dict[str, torch.Tensor]:
    """What each part hands on."""
    phrases = in_tokens_of(model, batch)
    with torch.no_grad():
        out = model(**phrases.inputs())
        boxes = torch.tensor([[[0.4, 0.5, 0.3, 0.2]]]).expand(2, 1, 4)
        images = model.get_vision_features(batch.pixel_values)
        maps, places = images.fpn_hidden_states[:-1], images.fpn_position_encoding[:-1]
        geometry, _ = model._encode_geometry(tuple(maps), tuple(places), boxes, None, torch.arange(2))
    words = phrases.attention_mask.bool()[:, :5]
    return {
        "maps": out.fpn_hidden_states[-1],
        "finest map": out.fpn_hidden_states[0],
        "text": out.text_features[:, :5][words],
        "geometry": geometry,
        "memory": out.encoder_hidden_states,
        "queries": out.decoder_hidden_states[-1],
        "scores": out.pred_logits,
    }


def distances(source: Sam3, target: Sam3, held_out: list[Batch], queries: tuple[int, ...]) -> dict[str, float]:
    """Squared error of every output over its variance, on batches that were not used for fitting."""
    error: dict[str, float] = {}
    power: dict[str, float] = {}
    for batch in held_out:
        full, slim = outputs(source, batch), outputs(target, batch)
        full |= {"queries": full["queries"][:, list(queries)], "scores": full["scores"][:, list(queries)]}
        for name, want in full.items():
            error[name] = error.get(name, 0.0) + float((slim[name] - want).square().sum())
            power[name] = power.get(name, 0.0) + float((want - want.mean()).square().sum())
    return {name: error[name] / power[name] for name in error}


# What is cut, the outputs that must then be nearer to the full model's, and by how much at least.
CUTS = {
    "width": ({"vit__embed_dim": 16, "vit__num_heads": 1}, ("maps", "finest map", "memory"), 0.3),
    "depth": ({"vit__depth": 2, "vit__num_global_blocks": 1}, ("maps", "memory"), 0.5),
    "neurons": ({"vit__mlp_ratio": 1.0}, ("maps", "memory"), 0.5),
    "text width": ({"text__width": 16, "text__num_heads": 1}, ("text",), 0.3),
    "text depth": ({"text__layers": 1}, ("text",), 0.5),
    "text neurons": ({"text__mlp_ratio": 1.0}, ("text",), 0.5),
    "geometry": ({"geometry__num_layers": 1}, ("geometry",), 0.5),
    "encoder": ({"encoder__num_layers": 1}, ("memory", "queries"), 0.5),
    "decoder": ({"decoder__num_layers": 2}, ("queries",), 0.8),
    "ffn": ({"ffn_dim": 12}, ("memory", "queries", "geometry", "scores"), 0.8),
    "everything": (
        {"vit__embed_dim": 16, "vit__num_heads": 1, "vit__depth": 3, "text__width": 16, "text__num_heads": 1,
         "encoder__num_layers": 1, "decoder__num_layers": 2, "decoder__num_queries": 4, "text__context_length": 6},
        ("maps", "text", "memory", "queries"), 0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_fit__nearer_than_the_cut_also_on_other_pictures(name: str) -> None:
    changes, outputs_of_the_cut, most = CUTS[name]
    source = deep_model()
    target, plan = inherit(source, cut(DEEP, **changes))
    weights = {key: value.clone() for key, value in source.state_dict().items()}
    others, queries = batches(2, seed=1), plan["decoder.queries"].indices
    before = distances(source, target, others, queries)
    found = fit_model(source, target, plan, batches(6))
    after = distances(source, target, others, queries)
    assert found.images == 12
    assert found.after[-1] < most * found.before[-1] or name.startswith(("text", "geometry"))
    for output in outputs_of_the_cut:
        assert after[output] < most * before[output], (output, before[output], after[output])
    assert all(torch.equal(value, weights[key]) for key, value in source.state_dict().items())
    assert (found.variance is None) == ("vit__embed_dim" not in changes)
    assert "fitted on 12 images" in replace(plan, fit=found).describe()


def test_fit__a_tower_much_wider_than_its_maps() -> None:
    """Then more channels are left in front of a map than it has directions; they stay as something to learn with."""
    spec = replace(DEEP, vit=replace(DEEP.vit, embed_dim=128, num_heads=8))
    source = deep_model(spec=spec)
    target, plan = inherit(source, cut(spec, vit__embed_dim=96, vit__num_heads=6))
    weight = target.get_parameter("vision_encoder.neck.fpn_layers.1.proj1.weight")
    assert weight.shape[1] == 48 > weight.shape[0]
    others, queries = batches(2, seed=1), plan["decoder.queries"].indices
    before = distances(source, target, others, queries)
    fit_model(source, target, plan, batches(8))
    after = distances(source, target, others, queries)
    for output in ("maps", "finest map", "memory"):
        assert after[output] < 0.3 * before[output], (output, before[output], after[output])
    up = target.get_parameter("vision_encoder.neck.fpn_layers.1.scale_layers.0.weight")
    assert up.flatten(2).norm(dim=(0, 2)).min() > 1e-3


def test_fit__nothing_was_cut() -> None:
    """Every part, asked to fit what is equal, leaves it equal."""
    source = deep_model()
    target, plan = inherit(source, DEEP)
    asked = batches(4)
    answers = [Answers.of(source, batch) for batch in asked]
    with torch.no_grad():
        assert VisionTower(source, target, plan).fit_all([batch.pixel_values for batch in asked]) is None
        TextTower(source, target, plan).fit_all(PHRASES)
        detector = Detector(source, target, plan, asked, answers)
        source.shares_images = target.shares_images = False
        for part in ("geometry", "encoder", "decoder", "scoring"):
            getattr(detector, f"fit_{part}")()
    for key, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[key], value, rtol=0, atol=1e-4)


def test_fit__what_was_not_cut_stays_bit_for_bit() -> None:
    source = deep_model()
    target, plan = inherit(source, cut(DEEP, encoder__num_layers=1))
    target.train()
    fit_model(source, target, plan, batches(4))
    assert target.training
    assert target.shares_images
    assert not source.training
    for key, value in source.state_dict().items():
        # In front of the cut, and the decoder, which fitted answers worse.
        if key.startswith(("vision_encoder", "text_", "geometry", "detr_decoder")):
            assert torch.equal(target.state_dict()[key], value)


def test_fit__bad_pictures_are_told_before_anything_is_turned() -> None:
    source = deep_model()
    target, plan = inherit(source, cut(DEEP, vit__embed_dim=16, vit__num_heads=1))
    weights = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=r"init\.fit_batches needs images with phrases, and there are none"):
        fit_model(source, target, plan, [])
    broken = batches(2)
    broken[1].pixel_values[0] = float("nan")
    with pytest.raises(UserError, match=r"not finite; check .*init\.fit_batches=0"):
        fit_model(source, target, plan, broken)
    assert all(torch.equal(value, weights[key]) for key, value in target.state_dict().items())


def test_fit__says_how_many_pictures_are_needed() -> None:
    source = deep_model()
    target, plan = inherit(source, cut(DEEP, vit__depth=2, vit__num_global_blocks=1))
    few = [replace(batch, pixel_values=batch.pixel_values[:1]) for batch in batches(1)]
    few = [replace(batch.part(slice(0, 3)), phrases=batch.phrases[:3]) for batch in few]
    message = r"init\.fit_batches=1 gives 1 image of 25 patches.*65 directions.*at least 3 images.*batches=3"
    with pytest.raises(UserError, match=message):
        fit_model(source, target, plan, few)
    fit_model(source, target, plan, few * 3)


def test_best_inputs__finds_those_the_outputs_are_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 100, 12, generator=generator)
    rows[..., 3] = rows[..., 7] + 0.1 * rows[..., 3]  # nearly the same: one of the two is enough
    wanted = rows[..., [1, 5, 7]] @ torch.randn(3, 4, generator=generator) + 2.0
    counted = torch.ones(100)
    chosen = best_inputs(((part, want, counted) for part, want in zip(rows, wanted, strict=True)), 3)
    assert chosen.tolist() == [1, 5, 7]
