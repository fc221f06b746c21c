from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.slimming import check_plan, inherit
from sam3slim.slimming.axes import axes_of, source_key
from sam3slim.specs import ModelSpec
from tests.slimming.cuts import cut, seam_cut
from tests.small import tiny_spec

specs = st.fixed_dictionaries({
    "vit__depth": st.sampled_from([2, 3, 4]),
    "vit__num_heads": st.sampled_from([1, 2]),
    "vit__mlp_ratio": st.sampled_from([0.5, 1.0, 2.0]),
    "text__num_heads": st.sampled_from([1, 2]),
    "text__layers": st.sampled_from([1, 2]),
    "text__context_length": st.integers(3, 8),
    "text__projection_dim": st.integers(1, 32),
    "encoder__num_layers": st.sampled_from([1, 2]),
    "decoder__num_layers": st.sampled_from([1, 2]),
    "decoder__num_queries": st.integers(1, 6),
    "ffn_dim": st.integers(1, 32),
})  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(
    changes=specs,
    importance=st.sampled_from(["magnitude", "uniform", "random"]),
    depth=st.sampled_from(["even", "first"]),
    seed=st.integers(0, 99),
)
def test_inherit__every_tensor_is_the_source_indexed_by_the_plan(
    changes: dict[str, Any], importance: Any, depth: Any, seed: int
) -> None:
    """By hand, from the JSON plan: heads are 16 rows in this model, everything else is one entry."""
    spec = tiny_spec()
    source = init_for_training(build_model(spec), seed)
    widths = {"vit__embed_dim": 16 * changes["vit__num_heads"], "text__width": 16 * changes["text__num_heads"]}
    slim, plan = inherit(source, cut(spec, **changes, **widths), importance=importance, depth=depth, seed=seed)
    axes = plan.to_dict()["axes"]

    def indices(axis: str) -> torch.Tensor:
        entry = axes[axis]
        kept = torch.arange(entry["total"]) if entry["kept"] == "all" else torch.tensor(entry["kept"])
        return (16 * kept[:, None] + torch.arange(16)).flatten() if axis.endswith("heads") else kept

    layers = {stack: tuple(indices(f"{stack}.blocks").tolist()) for stack in ("vit", "text", "geometry")}
    layers |= {stack: tuple(indices(f"{stack}.blocks").tolist()) for stack in ("encoder", "decoder")}
    for key, tensor in slim.state_dict().items():
        expected = source.state_dict()[source_key(key, layers)]
        for dim, axis in axes_of(key).items():
            expected = expected.index_select(dim, indices(axis))
        assert torch.equal(tensor, expected), key


@pytest.mark.parametrize("key", [
    "vision_encoder.backbone.layers.1.attention.q_proj.weight", "text_encoder.text_model.final_layer_norm.bias",
    "text_encoder.text_model.embeddings.token_embedding.weight",
    "detr_decoder.query_embed.weight", "mask_decoder.instance_projection.weight",
])  # fmt: skip
def test_check_plan__names_a_tensor_that_differs(model: Sam3, spec: ModelSpec, key: str) -> None:
    slim, plan = inherit(model, seam_cut(spec))
    state = slim.state_dict()
    check_plan(model.state_dict(), state, plan)
    state[key] = state[key] + 1
    with pytest.raises(AssertionError, match=key):
        check_plan(model.state_dict(), state, plan)


def test_check_plan__another_plan(model: Sam3, spec: ModelSpec) -> None:
    slim, plan = inherit(model, seam_cut(spec))
    other = inherit(model, seam_cut(spec), importance="random")[1]
    with pytest.raises(AssertionError, match="does not hold what the plan keeps"):
        check_plan(model.state_dict(), slim.state_dict(), replace(plan, kept=other.kept))
