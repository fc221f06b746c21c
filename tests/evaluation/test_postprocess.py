from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.evaluation.postprocess import (
    Candidates,
    candidates,
    finish_detections,
    merge_candidates,
    no_detections,
    pick,
    prompt_scores,
)


def fake_output(prompts: int = 3, queries: int = 4) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        pred_logits=torch.randn(prompts, queries, generator=generator),
        presence_logits=torch.randn(prompts, 1, generator=generator),
        pred_boxes=torch.rand(prompts, queries, 4, generator=generator),
        pred_masks=torch.randn(prompts, queries, 6, 6, generator=generator),
    )


def test_prompt_scores__query_times_presence() -> None:
    output = fake_output()
    scores, presence = prompt_scores(output)
    expected = torch.sigmoid(output.pred_logits[1, 2]) * torch.sigmoid(output.presence_logits[1, 0])
    assert scores[1, 2] == pytest.approx(expected.item())
    assert presence.shape == (3,)


def test_prompt_scores__nan_is_told() -> None:
    output = fake_output()
    output.pred_logits[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        prompt_scores(output)


def test_pick__best_queries_of_the_given_prompts_only() -> None:
    output = fake_output()
    scores = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0.1, 0.5, 0.2, 0.3], [0.6, 0.0, 0.4, 0.0]])
    chosen = candidates(output, pick(scores, torch.tensor([1, 2]), torch.tensor([70, 80]), top_k=3))
    assert chosen.scores.tolist() == pytest.approx([0.6, 0.5, 0.4])
    assert chosen.labels.tolist() == [80, 70, 80]
    assert torch.equal(chosen.boxes[1], output.pred_boxes[1, 1])
    assert torch.equal(chosen.masks[2], output.pred_masks[2, 2])


def test_pick__neither_below_the_least_score_nor_of_absent_prompts() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.4], [-1.0, -1.0, -1.0]])
    picked = pick(scores, torch.tensor([0, 1]), torch.tensor([3, 4]), top_k=5, min_score=0.3)
    assert list(zip(picked.prompts.tolist(), picked.queries.tolist(), strict=True)) == [(0, 0), (0, 2)]
    assert not len(pick(scores, torch.tensor([1]), torch.tensor([4]), top_k=5).scores)


def test_merge_candidates__equals_one_selection() -> None:
    output = fake_output()
    scores, _ = prompt_scores(output)
    labels = torch.tensor([1, 2, 3])
    whole = candidates(output, pick(scores, torch.arange(3), labels, 5))
    parts = [candidates(output, pick(scores, torch.tensor([i]), labels[i : i + 1], 5)) for i in range(3)]
    merged = merge_candidates(parts, 5)
    for name in ("boxes", "scores", "labels", "masks"):
        assert torch.equal(getattr(merged, name), getattr(whole, name))


def test_finish_detections__original_pixels_and_clipped() -> None:
    candidates = Candidates(torch.tensor([[-0.2, 0.25, 0.5, 1.3]]), torch.ones(1), torch.ones(1).long(), None)
    found = finish_detections(candidates, 7, height=40, width=60)
    assert found.image_id == 7
    assert found.boxes.tolist() == [[0.0, 10.0, 30.0, 40.0]]
    assert found.rles is None


@pytest.mark.parametrize(("with_masks", "rles"), [(True, []), (False, None)])
def test_no_detections__shapes(with_masks: bool, rles: list | None) -> None:
    found = no_detections(3, with_masks=with_masks)
    assert (len(found), found.boxes.shape, found.rles) == (0, (0, 4), rles)
