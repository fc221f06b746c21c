from __future__ import annotations

import math

import pytest
import torch

from sam3slim.losses.classification import (
    classification_f1,
    iou_aware_bce,
    match_quality,
    presence_accuracy,
    presence_bce,
)
from sam3slim.losses.matcher import Match


def one_match(*rows: tuple[int, int, int, int]) -> Match:
    return Match(*torch.tensor(rows, dtype=torch.int64).unbind(1))


def test_match_quality__formula_and_floor() -> None:
    quality = match_quality(torch.zeros(1, 1, 3), one_match((0, 0, 0, 0), (0, 0, 2, 1)), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(quality, torch.tensor([[[0.5, 0.0, 0.01]]]))


def test_match_quality__shared_query_takes_its_last_target_in_any_order() -> None:
    for targets in ((0, 1), (1, 0)):
        match = one_match(*((0, 0, 1, target) for target in targets))
        iou = torch.tensor([(0.9, 0.3)[target] for target in targets])
        quality = match_quality(torch.zeros(1, 1, 2), match, iou)
        assert quality[0, 0, 1].item() == pytest.approx(0.5**0.25 * 0.3**0.75)


def test_iou_aware_bce__two_queries_by_hand() -> None:
    loss = iou_aware_bce(torch.zeros(1, 1, 2), torch.tensor([[[0.5, 0.0]]]), torch.tensor([True]))
    # both BCE are ln 2 at p = 0.5; weights 10 and 0.25
    assert loss.item() == pytest.approx(math.log(2) * (10 + 0.25))


def test_iou_aware_bce__absent_prompt_gives_nothing() -> None:
    logits, quality = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    present = iou_aware_bce(logits, quality, torch.tensor([True, True]))
    half = iou_aware_bce(logits, quality, torch.tensor([True, False]))
    assert half.item() == pytest.approx(present.item() / 2)


def test_presence_bce__half_of_bce_per_layer() -> None:
    logits = torch.tensor([[[0.0], [0.0]], [[30.0], [-30.0]]])
    loss = presence_bce(logits, torch.tensor([True, False]))
    torch.testing.assert_close(loss, torch.tensor([math.log(2), 0.0]))


def test_metrics__counted_by_hand() -> None:
    logits, quality = torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.tensor([[0.3, 0.0, 0.9, 0.0]])
    assert classification_f1(logits, quality).item() == pytest.approx(0.5)
    assert classification_f1(-torch.ones(1, 2), torch.zeros(1, 2)).item() == 0.0
    assert presence_accuracy(torch.tensor([[1.0], [1.0]]), torch.tensor([True, False])).item() == 0.5
