from __future__ import annotations

from itertools import permutations

import pytest
import torch

from sam3slim.data.batch import Targets
from sam3slim.errors import UserError
from sam3slim.losses.boxes import cxcywh_to_xyxy, iou_and_giou
from sam3slim.losses.matcher import HungarianMatcher, Match, OneToManyMatcher

from .conftest import Golden, MakeCase


def triples(match: Match) -> set[tuple[int, int, int]]:
    return set(zip(match.prompt.tolist(), match.query.tolist(), match.target.tolist(), strict=True))


@pytest.mark.parametrize(("kind", "matcher"), [("o2o", HungarianMatcher()), ("o2m", OneToManyMatcher())])
def test_matchers__golden_assignment(golden: Golden, kind: str, matcher: HungarianMatcher | OneToManyMatcher) -> None:
    match = matcher(golden.outputs.layer_logits, golden.outputs.layer_boxes, golden.targets)
    names = ("batch_index", "query_index", "target_index")
    wanted = list(zip(*(golden.tensors[f"{kind}.{name}"].tolist() for name in names), strict=True))
    assert triples(match) == set(wanted)
    assert len(match) == len(wanted)


@pytest.mark.parametrize("counts", [[1, 3], [0, 2, 0], [4, 2]])
def test_hungarian__costs_as_little_as_the_best_permutation(make_case: MakeCase, counts: list[int]) -> None:
    outputs, targets = make_case(counts, layers=2, queries=4, many=False)
    matcher = HungarianMatcher()
    match = matcher(outputs.layer_logits, outputs.layer_boxes, targets)
    costs = matcher.costs(outputs.layer_logits, outputs.layer_boxes, targets).detach()
    for layer in range(2):
        for prompt, count in enumerate(counts):
            rows = (targets.prompt_index == prompt).nonzero()[:, 0].tolist()
            best = min(
                sum(costs[layer, row, query].item() for row, query in zip(rows, choice, strict=True))
                for choice in permutations(range(4), count)
            )
            mine = (match.layer == layer) & (match.prompt == prompt)
            assert int(mine.sum()) == count
            assert match.target[mine].tolist() == rows
            paid = costs[layer, match.target[mine], match.query[mine]].sum().item()
            assert paid == pytest.approx(best, abs=1e-5)


def test_hungarian__costs_equal_the_formula() -> None:
    targets = Targets(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), None, torch.tensor([0]))
    logits, boxes = torch.tensor([[[0.0]]]), torch.tensor([[[[0.5, 0.5, 0.4, 0.2]]]])
    # p = 0.5: 0.25 x 0.25 x ln 2 - 0.75 x 0.25 x ln 2; L1 0.2; GIoU = IoU = 0.5
    wanted = 2 * (-0.125 * torch.log(torch.tensor(2.0))) + 5 * 0.2 - 2 * 0.5
    torch.testing.assert_close(HungarianMatcher().costs(logits, boxes, targets)[0, 0, 0], wanted)


def test_hungarian__more_targets_than_queries_uses_every_query_once(make_case: MakeCase) -> None:
    outputs, targets = make_case([5, 1], layers=1, queries=3, many=False)
    match = HungarianMatcher()(outputs.layer_logits, outputs.layer_boxes, targets)
    assert sorted(match.query[match.prompt == 0].tolist()) == [0, 1, 2]
    assert len(set(match.target.tolist())) == 4


def test_one_to_many__equals_a_loop(make_case: MakeCase) -> None:
    outputs, targets = make_case([2, 0, 3], layers=2, queries=6)
    logits, boxes = outputs.layer_logits.detach() + 2, outputs.layer_boxes.detach()
    wanted = set()
    for layer in range(2):
        for target, prompt in enumerate(targets.prompt_index.tolist()):
            corners = cxcywh_to_xyxy(boxes[layer, prompt])
            iou, _ = iou_and_giou(corners, cxcywh_to_xyxy(targets.boxes[target]))
            score = 0.3 * logits[layer, prompt].sigmoid() + 0.7 * iou
            for query in score.argsort(descending=True)[:2].tolist():
                if score[query] > 0.4:
                    wanted.add((layer, prompt, query, target))
    match = OneToManyMatcher(topk=2)(logits, boxes, targets)
    found = zip(*(x.tolist() for x in (match.layer, match.prompt, match.query, match.target)), strict=True)
    assert len(wanted) > 4
    assert set(found) == wanted


def test_one_to_many__topk_beyond_the_queries(make_case: MakeCase) -> None:
    outputs, targets = make_case([1], layers=1, queries=2)
    match = OneToManyMatcher(threshold=-1.0, topk=9)(outputs.layer_logits, outputs.layer_boxes, targets)
    assert sorted(match.query.tolist()) == [0, 1]


@pytest.mark.parametrize("matcher", [HungarianMatcher(), OneToManyMatcher()])
def test_matchers__no_target_at_all(make_case: MakeCase, matcher: HungarianMatcher | OneToManyMatcher) -> None:
    outputs, targets = make_case([0, 0])
    match = matcher(outputs.layer_logits, outputs.layer_boxes, targets)
    assert len(match) == 0
    assert match.query.dtype == torch.int64


@pytest.mark.parametrize("matcher", [HungarianMatcher(), OneToManyMatcher()])
@pytest.mark.parametrize(("field", "word"), [("layer_logits", "logits"), ("layer_boxes", "boxes")])
def test_matchers__nan_prediction_is_named(
    make_case: MakeCase, matcher: HungarianMatcher | OneToManyMatcher, field: str, word: str
) -> None:
    outputs, targets = make_case([1, 2])
    with torch.no_grad():
        getattr(outputs, field)[0, 1, 2] = float("nan")
    with pytest.raises(UserError, match=f"predicted {word} are NaN"):
        matcher(outputs.layer_logits, outputs.layer_boxes, targets)


def test_match__at_layer_and_add(make_case: MakeCase) -> None:
    outputs, targets = make_case([1, 2], layers=3)
    match = HungarianMatcher()(outputs.layer_logits, outputs.layer_boxes, targets)
    parts = [match.at_layer(i) for i in range(3)]
    whole = parts[0] + parts[1] + parts[2]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert torch.equal(whole.query, match.query)
    assert torch.equal(whole.layer, match.layer)
