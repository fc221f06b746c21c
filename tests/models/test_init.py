"""What makes a narrow model learn from scratch."""

from __future__ import annotations

import torch

from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.models.init import fresh_box_labels, grid_boxes
from tests.tiny import SPEC, tiny_model


def bias_of(model: Sam3, box: list[float], side: int = 8) -> torch.Tensor:
    """[heads, side, side] attention bias of one query with this reference box."""
    grid = (torch.tensor(side), torch.tensor(side))
    return model.detr_decoder._get_rpb_matrix(torch.tensor([[box]]), grid).reshape(-1, side, side).detach()


def test_init_for_training__same_seed_same_bits() -> None:
    states = [init_for_training(build_model(SPEC), seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["detr_decoder.query_embed.weight"], states[2]["detr_decoder.query_embed.weight"])


def test_init_for_training__attention_falls_off_outside_the_box() -> None:
    bias = bias_of(init_for_training(build_model(SPEC)), [0.5, 0.5, 0.25, 0.25])
    corner = bias[:, 0, 0]
    inside = bias[:, 3:5, 3:5].amax(dim=(1, 2))
    assert (inside - corner > 2).all()


def test_init_for_training__heads_look_at_different_sides() -> None:
    bias = bias_of(init_for_training(build_model(SPEC)), [0.5, 0.5, 0.75, 0.75], side=16)
    left, right, top, bottom = bias
    assert left[8, 3] > left[8, 12]
    assert right[8, 12] > right[8, 3]
    assert top[3, 8] > top[12, 8]
    assert bottom[12, 8] > bottom[3, 8]


def test_grid_boxes__distinct_and_inside() -> None:
    for count in (1, 5, 16, 200):
        boxes = grid_boxes(count)
        assert boxes.shape == (count, 4)
        assert len(torch.unique(boxes[:, :2], dim=0)) == count
        assert ((boxes > 0) & (boxes < 1)).all()


def test_fresh_box_labels__as_large_as_the_reference_and_nothing_else_changes() -> None:
    model, before = tiny_model(), tiny_model().state_dict()
    fresh_box_labels(model, seed=3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"geometry_encoder.label_embed.weight"}
    assert 0.7 < float(model.geometry_encoder.label_embed.weight.std()) < 1.3
    again = tiny_model()
    fresh_box_labels(again, seed=3)
    assert torch.equal(again.geometry_encoder.label_embed.weight, model.geometry_encoder.label_embed.weight)
