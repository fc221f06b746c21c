from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam3slim.models import build_model
from sam3slim.slimming.axes import axes_of, members, source_key
from sam3slim.slimming.roi import ROI_WEIGHT
from sam3slim.slimming.select import align, choose, spread
from tests.slimming.cuts import seam_cut
from tests.small import tiny_spec


def test_align__full_to_slim_keeps_kind_with_kind() -> None:
    kept = align("wwwwwwwg" * 4, "wwwwwg" * 4)
    assert kept == (0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20, 22, 23, 24, 26, 27, 28, 30, 31)


def test_align__nano_to_nano_slim() -> None:
    assert align("wgwg", "wgg") == (0, 1, 3)


def test_align__first_of_each_kind() -> None:
    assert align("wwg" * 3, "wg" * 2, lambda i, s: s) == (0, 2, 3, 5)
    assert align("wwwwwwwg" * 4, "wwwwwg" * 4, lambda i, s: s)[:7] == (0, 1, 2, 3, 4, 7, 8)  # type: ignore[index]


def test_align__cheapest_sum_keeps_kind_with_kind() -> None:
    scores = [0.1, 0.5, 0.2, 0.9, 0.3, 0.4]
    assert align("wwgwwg", "wgw", lambda i, s: -scores[s]) == (1, 2, 3)
    assert align("llllll", "lll", lambda i, s: -scores[s]) == (1, 3, 5)


def test_align__impossible() -> None:
    assert align("wg", "gw") is None
    assert align("wgwg", "ggg") is None


@given(total=st.integers(1, 12), data=st.data())
def test_align__increasing_and_last_to_last(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    kept = align("l" * total, "l" * count)
    assert kept is not None
    assert len(kept) == count
    assert kept[-1] == total - 1
    assert all(a < b for a, b in pairwise(kept))
    gaps = [b - a for a, b in pairwise((-1, *kept))]
    assert max(gaps) - min(gaps) <= 2


@given(total=st.integers(1, 50), data=st.data())
def test_spread__distinct_and_in_range(total: int, data: st.DataObject) -> None:
    kept = spread(total, data.draw(st.integers(1, total)))
    assert all(a < b for a, b in pairwise(kept))
    assert kept[0] >= 0
    assert kept[-1] < total


def test_choose__magnitude_takes_the_highest_in_order() -> None:
    scores = torch.tensor([3.0, 1.0, 5.0, 5.0, 0.0])
    assert choose(scores, 3, "magnitude", torch.Generator()) == (0, 2, 3)


def test_axes_of__cover_every_size_that_a_spec_can_shrink() -> None:
    """Any tensor that changes shape when every axis shrinks lies on the table, and nothing else does."""
    spec = tiny_spec()
    full = build_model(spec, device="meta").state_dict()
    slim = build_model(seam_cut(spec), device="meta").state_dict()
    layers = {"vit": (0, 1, 3), "text": (1,), "geometry": (0,), "encoder": (1,), "decoder": (1,)}
    for key, tensor in slim.items():
        before = full[source_key(key, layers)].shape
        changed = {dim for dim in range(tensor.ndim) if tensor.shape[dim] != before[dim]}
        merged = {2, 3} if key == ROI_WEIGHT else set()  # cells of a box are not chosen but merged
        assert changed == set(axes_of(key)) | merged, key


@pytest.mark.parametrize(
    ("key", "dim", "reads"),
    [
        ("vision_encoder.backbone.layers.0.attention.o_proj.weight", 1, True),
        ("vision_encoder.backbone.layers.0.attention.v_proj.weight", 0, False),
        ("vision_encoder.neck.fpn_layers.0.scale_layers.2.weight", 0, True),
        ("vision_encoder.neck.fpn_layers.0.scale_layers.2.weight", 1, False),
        ("text_encoder.text_model.embeddings.token_embedding.weight", 1, False),
    ],
)
def test_members__know_readers_from_writers(key: str, dim: int, reads: bool) -> None:
    found = [m for on_axis in members([key]).values() for m in on_axis if m.dim == dim]
    assert [m.reads for m in found] == [reads]
