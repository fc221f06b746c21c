"""cgF1 beside the official evaluator, over resampled images, and its rules one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sam3slim.data.batch import GroundTruth
from sam3slim.data.detections import Detections, PromptScores
from sam3slim.errors import UserError
from sam3slim.results.cgf1 import ConceptCounts, concept_counts
from sam3slim.results.coco import IouType
from sam3slim.results.metrics import METRICS, measure_all
from sam3slim.results.samples import paired_bootstrap
from tests.evaluation.conftest import make_truth

from .test_coco import detect, found_like, random_set

KINDS: tuple[IouType, ...] = ("bbox", "segm")
THERE = [(2, 2, 20, 20)]


def counts(found: Detections, *truths: GroundTruth, asked: tuple[int, ...] = (1,)) -> ConceptCounts:
    labels = torch.tensor(asked)
    prompts = PromptScores(labels, torch.zeros(len(labels)), torch.zeros(len(labels)))
    return concept_counts([replace(found, prompts=prompts)], [[truth] for truth in truths], "segm")


def entries(*given: ConceptCounts) -> list[int]:
    """There and found, not there but found, there but not found, neither."""
    return [int(n) for n in sum(one.entries.sum(axis=0) for one in given)]


def test_rules__only_confident_detections_count() -> None:
    truth = make_truth(THERE, [1])
    assert entries(counts(detect(THERE, [1], [0.5]), truth)) == [1, 0, 0, 0]
    assert entries(counts(detect(THERE, [1], [0.49999]), truth)) == [0, 0, 1, 0]


def test_rules__entries_are_what_was_asked() -> None:
    found = detect(THERE, [1], [0.9])
    assert entries(counts(found, make_truth(THERE, [1]), asked=(1, 2, 3))) == [1, 0, 0, 2]
    assert entries(counts(found, make_truth(THERE, [2]), asked=(1, 2))) == [0, 1, 1, 0]
    assert entries(counts(found, make_truth(THERE, [2]), asked=(2,))) == [0, 0, 1, 0]


def test_rules__crowd_regions_are_no_objects() -> None:
    assert entries(counts(detect(THERE, [1], [0.9]), make_truth(THERE, [1], crowd=[1]))) == [0, 1, 0, 0]


def test_rules__what_is_not_annotated_exhaustively_or_not_at_all_is_no_entry() -> None:
    found, truth = detect(THERE, [1], [0.9]), make_truth(THERE, [1])
    assert entries(counts(found, replace(truth, unclear=frozenset({1})), asked=(1, 2))) == [0, 0, 0, 1]
    assert entries(counts(found, replace(truth, known=frozenset({1, 3})), asked=(1, 2, 3))) == [1, 0, 0, 1]
    both = truth, replace(truth, unclear=frozenset({1}))
    assert entries(counts(found, *both)) == [0, 0, 0, 0]  # one annotator's doubt is enough


def test_rules__no_suppression_and_no_cap() -> None:
    found = detect(THERE * 300, [1] * 300, [0.9] * 300)
    one = counts(found, make_truth(THERE, [1]))
    assert (one.found.sum(), one.hits.max()) == (300, 1)
    assert one.numbers()["pmf1"] == pytest.approx(2 / 301, abs=1e-3)


def test_rules__matched_for_the_largest_sum_of_iou() -> None:
    """A greedy match gives the first detection its best object, and leaves none for the second."""
    truth = make_truth([(0, 0, 20, 20), (10, 0, 30, 20)], [1, 1])
    found = detect([(5, 0, 25, 20), (0, 0, 20, 20)], [1, 1], [0.9, 0.8])
    assert counts(found, truth).hits[0].tolist() == [2] * 3 + [1] * 7  # IoU 0.6 and 1


def test_rules__of_several_annotators_the_best_counts() -> None:
    found = detect(THERE, [1], [0.9])
    none, right, more = make_truth([], []), make_truth(THERE, [1]), make_truth([*THERE, (30, 2, 50, 20)], [1, 1])
    assert entries(counts(found, none, right, more)) == [1, 0, 0, 0]
    assert counts(found, none, more, right).wanted.tolist() == [1]
    assert entries(counts(detect([], [], []), more, none)) == [0, 0, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_value__is_the_headline_and_perfect_detections_give_one(kind: IouType) -> None:
    detections, truths = random_set(3, images=30)
    one = concept_counts(detections, [truths], kind)
    assert 0.05 < one.numbers()["cgf1"] < 0.9
    assert one.value() == pytest.approx(one.numbers()["cgf1"], abs=1e-12)
    perfect = concept_counts([found_like(truth, i) for i, truth in enumerate(truths)], [truths], kind)
    assert perfect.numbers()["cgf1"] == pytest.approx(1.0, abs=1e-3)


def test_value__an_image_counted_twice_is_an_image_listed_twice() -> None:
    detections, truths = random_set(5)
    weights = np.random.default_rng(0).integers(0, 4, len(detections))
    listed = [i for i, count in enumerate(weights) for _ in range(count)]
    twice = concept_counts([detections[i] for i in listed], [[truths[i] for i in listed]], "bbox")
    one = concept_counts(detections, [truths], "bbox")
    assert one.values(weights[:, None])[0] == pytest.approx(twice.numbers()["cgf1"], abs=1e-12)


def test_drop__has_a_paired_interval_and_refuses_other_entries() -> None:
    detections, truths = random_set(3, images=40)
    metric = METRICS["cgf1"]
    worse = [replace(item, scores=item.scores * 0.6) if n % 2 else item for n, item in enumerate(detections)]
    full, other = (measure_all(found, truths)["cgf1"].samples for found in (detections, worse))
    assert full is not None
    assert other is not None
    drop = paired_bootstrap(metric, full, other, repeats=200)
    assert drop.points == pytest.approx(100 * (full.value() - other.value()))  # type: ignore[operator]
    assert drop.low < drop.points < drop.high  # type: ignore[operator]
    prompts = PromptScores(torch.tensor([1]), torch.zeros(1), torch.zeros(1))
    fewer = measure_all([replace(item, prompts=prompts) for item in detections], truths)["cgf1"].samples
    assert fewer is not None
    with pytest.raises(UserError, match="the same objects"):
        paired_bootstrap(metric, full, fewer)


def test_measure_all__no_cgf1_where_nothing_absent_is_asked() -> None:
    """``data.protocol=present``: IL_MCC would be 0 for every model."""
    truth = make_truth(THERE, [1])
    assert list(measure_all([found_like(truth)], [truth])) == ["bbox", "segm"]
    boxes = make_truth(THERE, [1], masks=False)
    empty = make_truth([], [], masks=False)
    found = [found_like(boxes), found_like(empty, 1)]
    assert list(measure_all(found, [boxes, empty])) == ["bbox", "cgf1_bbox"]


def test_counts__file(tmp_path: object) -> None:
    one = concept_counts(random_set(2)[0], [random_set(2)[1]], "bbox")
    again = ConceptCounts.load(one.save(f"{tmp_path}/matches.npz"))
    for name, value in one.__dict__.items():
        assert np.array_equal(value, getattr(again, name)), name
