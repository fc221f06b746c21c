from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.losses import Criterion
from sam3slim.models import Sam3, build_model, count_params, init_for_training
from sam3slim.slimming import DATA_IMPORTANCES, DataScores, collect_scores, inherit
from sam3slim.specs import DecoderSpec, EncoderSpec, GeometrySpec, ModelSpec
from tests.slimming.cuts import cut, seam_cut
from tests.small import assert_same_outputs, tiny_spec
from tests.tiny import tiny_batch

IMPORTANCES = ["magnitude", "activation", "taylor", "uniform", "random"]
VIT = "vision_encoder.backbone.layers"


def scores(model: Sam3, importance: Any) -> DataScores | None:
    """Data scores, for those importances that need them."""
    if importance not in DATA_IMPORTANCES:
        return None
    return collect_scores(model, [tiny_batch(0), tiny_batch(1)], importance, lambda o, t: Criterion()(o, t)["loss"])


@pytest.mark.parametrize("depth", ["even", "first", "importance"])
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_inherit__keeping_everything_is_bit_equal(model: Sam3, spec: ModelSpec, importance: Any, depth: Any) -> None:
    if (importance, depth) == ("uniform", "importance"):
        pytest.skip("refused")
    slim, plan = inherit(model, spec, importance=importance, depth=depth, data=scores(model, importance))
    for (key, mine), theirs in zip(model.state_dict().items(), slim.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key
        assert mine.data_ptr() != theirs.data_ptr(), key
    assert all(kept.everything for kept in plan.kept)
    assert "everything is kept" in plan.describe()


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_inherit__every_axis_at_once_runs(
    model: Sam3, spec: ModelSpec, inputs: dict[str, Tensor], importance: Any
) -> None:
    target = seam_cut(spec)
    slim, plan = inherit(model, target, importance=importance, data=scores(model, importance))
    assert plan.params_after == sum(count_params(target).values())
    assert slim.spec == target
    with torch.no_grad():
        result = slim(**{**inputs, "input_ids": inputs["input_ids"] % target.text.vocab_size})
    assert result.pred_logits.shape == (2, 3)
    assert result.pred_logits.isfinite().all()
    assert json.loads(json.dumps(plan.to_dict()))["axes"]["vit.channels"]["total"] == 32


def test_inherit__source_is_not_changed_and_mode_is_kept(model: Sam3, spec: ModelSpec) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert not inherit(model, seam_cut(spec))[0].training
    assert inherit(model.train(), seam_cut(spec))[0].training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_inherit__random_is_seeded(model: Sam3, spec: ModelSpec) -> None:
    target = seam_cut(spec)
    plans = [inherit(model, target, importance="random", seed=seed)[1] for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0]["vit.channels"] != plans[2]["vit.channels"]


def test_inherit__one_set_of_channels_everywhere(model: Sam3, spec: ModelSpec) -> None:
    """Each channel's tensors are filled with its number: every slice must then read the same numbers."""
    number = torch.arange(32.0)
    with torch.no_grad():
        embeddings = model.vision_encoder.backbone.embeddings
        embeddings.position_embeddings.copy_(number.expand(1, 16, 32))
        embeddings.patch_embeddings.projection.weight.copy_(number[:, None, None, None].expand(32, 3, 8, 8))
        model.vision_encoder.backbone.layer_norm.weight.copy_(number)
        for layer in model.vision_encoder.backbone.layers:
            layer.attention.q_proj.weight.copy_(number.expand(32, 32))
            layer.attention.o_proj.bias.copy_(number)
            layer.mlp.fc1.weight.copy_(number.expand(64, 32))
            layer.mlp.fc2.weight.copy_(number[:, None].expand(32, 64))
        neck = model.vision_encoder.neck.fpn_layers
        neck[0].scale_layers[0].weight.copy_(number[:, None, None, None].expand(32, 16, 2, 2))
        neck[2].proj1.weight.copy_(number[None, :, None, None].expand(32, 32, 1, 1))
    slim, plan = inherit(model, cut(spec, vit__embed_dim=16, vit__num_heads=1), importance="random")
    kept = torch.tensor(plan["vit.channels"].indices, dtype=torch.float32)
    backbone, neck = slim.vision_encoder.backbone, slim.vision_encoder.neck.fpn_layers
    found = [
        backbone.embeddings.position_embeddings[0, 3],
        backbone.embeddings.patch_embeddings.projection.weight[:, 1, 2, 3],
        backbone.layer_norm.weight,
        neck[0].scale_layers[0].weight[:, 2, 1, 1],
        neck[2].proj1.weight[5, :, 0, 0],
    ]
    for layer in backbone.layers:
        found += [layer.attention.q_proj.weight[3], layer.attention.o_proj.bias]
        found += [layer.mlp.fc1.weight[7], layer.mlp.fc2.weight[:, 7]]
    for values in found:
        assert torch.equal(values, kept)


def test_inherit__heads_stay_whole_and_the_dead_one_goes(model: Sam3, spec: ModelSpec) -> None:
    dead = {0: 1, 1: 0, 2: 1, 3: 0}
    with torch.no_grad():
        for block, head in dead.items():
            rows = slice(16 * head, 16 * head + 16)
            model.get_submodule(f"{VIT}.{block}.attention.o_proj").weight[:, rows] = 0
            model.get_submodule(f"{VIT}.{block}.attention.q_proj").weight[rows] *= 100  # loud, but adds nothing
    slim, plan = inherit(model, cut(spec, vit__embed_dim=16, vit__num_heads=1))
    channels = torch.tensor(plan["vit.channels"].indices)
    for block, head in dead.items():
        kept = 1 - head
        assert plan[f"vit[{block}].heads"].indices == (kept,)
        assert plan[f"vit[{block}].heads"].share == pytest.approx(1.0)
        rows = torch.arange(16 * kept, 16 * kept + 16)
        for name in ("q_proj", "k_proj", "v_proj"):
            full = model.get_submodule(f"{VIT}.{block}.attention.{name}")
            mine = slim.get_submodule(f"{VIT}.{block}.attention.{name}")
            assert torch.equal(mine.weight, full.weight[rows][:, channels])
            assert torch.equal(mine.bias, full.bias[rows])
        full, mine = (m.get_submodule(f"{VIT}.{block}.attention.o_proj") for m in (model, slim))
        assert torch.equal(mine.weight, full.weight[channels][:, rows])


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    vit=st.sampled_from([16, 40, 64]),
    text=st.sampled_from([32, 100, 128]),
    ffn=st.sampled_from([8, 24, 32]),
)
def test_inherit__dead_neurons_cost_nothing(seed: int, vit: int, text: int, ffn: int) -> None:
    """Neurons whose output weights are zero are the ones dropped, and no output changes."""
    spec = tiny_spec()
    model = init_for_training(build_model(spec), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    keep = {"vision_encoder": vit, "text_encoder": text}
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(".mlp.fc2") or name == "dot_product_scoring.text_mlp.layer2":
                alive = keep.get(name.split(".")[0], ffn)
                total = module.weight.shape[1]
                dead = torch.randperm(total, generator=generator)[: total - alive]
                module.weight[:, dead] = 0
    target = cut(spec, vit__mlp_ratio=vit / 32, text__mlp_ratio=text / 32, ffn_dim=ffn)
    slim, plan = inherit(model, target)
    assert all(kept.share is None or kept.share == pytest.approx(1.0) for kept in plan.kept)
    inputs = {
        "pixel_values": torch.randn(1, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(0, 600, (1, 6), generator=generator),
    }
    assert_same_outputs(model, slim, inputs, atol=1e-4)


def test_inherit__dead_blocks_cost_nothing(model: Sam3, spec: ModelSpec, inputs: dict[str, Tensor]) -> None:
    """A pre-norm block that adds zero is the identity; exactly the blocks the plan drops are made so."""
    target = cut(spec, vit__depth=3, text__layers=1, encoder__num_layers=1)
    _, plan = inherit(model, target)
    assert plan["vit.blocks"].indices == (0, 1, 3)
    dropped = [f"{VIT}.2", "text_encoder.text_model.encoder.layers.0", "detr_encoder.layers.0"]
    with torch.no_grad():
        for block in dropped:
            for name, parameter in model.get_submodule(block).named_parameters():
                if any(part in name for part in ("o_proj", "out_proj", "fc2")):
                    parameter.zero_()
    slim, _ = inherit(model, target)
    assert_same_outputs(model, slim, inputs, atol=1e-6)


def test_inherit__shorter_context_is_exact_for_short_phrases(
    model: Sam3, spec: ModelSpec, inputs: dict[str, Tensor]
) -> None:
    slim, plan = inherit(model, cut(spec, text__context_length=5))
    assert plan["text.context"].indices == (0, 1, 2, 3, 4)
    assert_same_outputs(model, slim, inputs)


def test_inherit__unused_projection_can_shrink(model: Sam3, spec: ModelSpec, inputs: dict[str, Tensor]) -> None:
    assert_same_outputs(model, inherit(model, cut(spec, text__projection_dim=8))[0], inputs)


def test_inherit__queries_keep_their_reference_box(model: Sam3, spec: ModelSpec) -> None:
    slim, plan = inherit(model, cut(spec, decoder__num_queries=3))
    rows = list(plan["decoder.queries"].indices)
    for name in ("query_embed", "reference_points"):
        full, mine = (getattr(m.detr_decoder, name).weight for m in (model, slim))
        assert torch.equal(mine, full[rows])


def test_inherit__neck_keeps_the_loud_channels(model: Sam3, spec: ModelSpec, inputs: dict[str, Tensor]) -> None:
    neck = model.vision_encoder.neck.fpn_layers[0]
    with torch.no_grad():
        neck.scale_layers[2].weight[::2] = 0  # nothing reads the even half channels
        neck.proj1.weight[:, :4] = 0
    plan = inherit(model, cut(spec, vit__embed_dim=16, vit__num_heads=1))[1]
    assert plan["neck[0].half"].indices == tuple(range(1, 16, 2))
    assert plan["neck[0].quarter"].indices == (4, 5, 6, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit__depth": 5}, r"model\.vit\.depth=5 is more than the full model's 4"),
        ({"vit__embed_dim": 64, "vit__num_heads": 4}, r"model\.vit\.embed_dim=64 is more"),
        ({"encoder__num_layers": 3}, r"model\.encoder\.num_layers=3"),
        ({"decoder__num_queries": 7}, r"model\.decoder\.num_queries=7"),
        ({"d_model": 16}, r"model\.d_model=16: slimming keeps the full model's 32"),
        ({"num_heads": 2}, r"model\.num_heads=2"),
        ({"vit__patch_size": 4}, r"model\.vit\.patch_size=4"),
        ({"vit__image_size": 64}, r"model\.vit\.image_size=64"),
        ({"text__vocab_size": 700}, r"model\.text\.vocab_size=700"),
        ({"vit__embed_dim": 16}, r"use model\.vit\.num_heads=1"),
        ({"vit__embed_dim": 24}, r"use model\.vit\.embed_dim=16 model\.vit\.num_heads=1"),
        ({"text__width": 16}, r"use model\.text\.num_heads=1"),
        ({"vit__mlp_ratio": 3.0}, r"model\.vit\.mlp_ratio gives 96 hidden units, the full model has 64"),
        ({"vit__num_global_blocks": 4}, r"model\.vit\.global_attention_blocks=\[0, 1, 2, 3\]"),
        ({"geometry": GeometrySpec(2)}, r"model\.geometry\.num_layers=2"),
    ],
)
def test_inherit__impossible_cut_names_the_key(
    model: Sam3, spec: ModelSpec, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        inherit(model, cut(spec, **changes))
    assert "\n" not in str(caught.value)


def test_inherit__unknown_importance(model: Sam3, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"init.importance=.tailor. is unknown; use magnitude\|activation\|taylor"):
        inherit(model, spec, importance="tailor")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"init.depth=.last. is unknown; use even\|first\|importance"):
        inherit(model, spec, depth="last")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"init.importance=uniform ranks nothing"):
        inherit(model, spec, importance="uniform", depth="importance")
    with pytest.raises(ValueError, match="importance taylor with data scores of None"):
        inherit(model, spec, importance="taylor")


def test_inherit__plan_describes_the_cut(model: Sam3, spec: ModelSpec) -> None:
    target = cut(spec, encoder=EncoderSpec(1), decoder=DecoderSpec(1, 5))
    text = inherit(model, target)[1].describe()
    assert "tiny → slim" in text
    assert "encoder.blocks   1 of 2: 1" in text
    assert "vit.channels" not in text
