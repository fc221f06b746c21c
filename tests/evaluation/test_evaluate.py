from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch

from sam3slim.data.batch import Batch, Targets
from sam3slim.data.detections import Detections, PromptScores
from sam3slim.errors import UserError
from sam3slim.evaluation.evaluating import ScoreCalibration, evaluate, first_images
from sam3slim.models import Sam3
from sam3slim.results.coco import NUMBERS

from .conftest import make_truth

MakeBatch = Callable[..., Batch]


def oracle(model: object, batch: Batch, **_: object) -> list[Detections]:
    """Detects the ground truth."""
    found = []
    for info in batch.images:
        truth = info.ground_truth
        found.append(Detections(info.image_id, truth.boxes, torch.ones(len(truth.labels)), truth.labels, truth.rles))
    return found


def test_evaluate__counts_and_keys(model: Sam3, make_batch: MakeBatch) -> None:
    batches = [make_batch([[1, 2], [1]]), make_batch([[1, 2, 3]], first_id=10)]
    result = evaluate(model, batches, progress=False)
    assert (result.images, result.prompts) == (3, 6)
    assert set(result.metrics["segm"]) == set(NUMBERS)
    assert 0 <= result.metrics["bbox"]["map"] <= 1
    assert [d.image_id for d in result.detections] == [0, 1, 10]
    assert 0 < result.calibration["top_score_present"] <= result.calibration["presence_present"] < 1
    assert result.seconds > 0


def test_evaluate__perfect_model_gets_one(model: Sam3, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("sam3slim.evaluation.evaluating"), "predict_batch", oracle)
    result = evaluate(model, [make_batch([[1], [1]])], progress=False)
    assert result.metrics["bbox"]["map"] == pytest.approx(1.0)
    assert result.samples["segm"].value() == pytest.approx(1.0)


@pytest.mark.parametrize(("limit", "images", "prompts"), [(1, 1, 2), (2, 2, 3), (3, 3, 6), (9, 3, 6)])
def test_evaluate__limit_counts_images(
    model: Sam3, make_batch: MakeBatch, limit: int, images: int, prompts: int
) -> None:
    batches = [make_batch([[1, 2], [1]]), make_batch([[1, 2, 3]])]
    result = evaluate(model, batches, progress=False, limit=limit)
    assert (result.images, result.prompts) == (images, prompts)


def test_evaluate__boxes_only_set_skips_the_mask_head(model: Sam3, make_batch: MakeBatch) -> None:
    result = evaluate(model, [make_batch([[1]], masks=False)], progress=False)
    assert list(result.metrics) == ["bbox"]
    assert result.detections[0].rles is None


def test_evaluate__no_image_is_told(model: Sam3, make_batch: MakeBatch) -> None:
    with pytest.raises(UserError, match="no image"):
        evaluate(model, [], progress=False)
    with pytest.raises(UserError, match="limit=0"):
        evaluate(model, [make_batch([[1]])], progress=False, limit=0)


def test_evaluate__training_batch_is_refused(model: Sam3, make_batch: MakeBatch) -> None:
    batch = make_batch([[1]])
    batch.images[0].ground_truth = None
    with pytest.raises(ValueError, match="without ground truth"):
        evaluate(model, [batch], progress=False)


def test_first_images__keeps_prompts_and_targets_of_those(make_batch: MakeBatch) -> None:
    batch = make_batch([[1, 2], [3], [4]])
    batch.targets = Targets(torch.arange(12.0).reshape(3, 4), None, torch.tensor([0, 2, 3]))
    cut = first_images(batch, 2)
    assert cut.category_ids.tolist() == [1, 2, 3]
    assert cut.phrases == ["thing 1", "thing 2", "thing 3"]
    assert (len(cut.images), len(cut.pixel_values)) == (2, 2)
    assert cut.targets.prompt_index.tolist() == [0, 2]
    assert len(batch.images) == 3


def test_calibration__present_and_absent_apart_and_crowds_absent() -> None:
    scores = PromptScores(torch.tensor([1, 2, 3]), torch.tensor([0.8, 0.2, 0.4]), torch.tensor([0.6, 0.1, 0.3]))
    found = Detections(0, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), [], scores)
    calibration = ScoreCalibration()
    calibration.update([found], [make_truth([(1, 1, 5, 5), (1, 1, 9, 9)], [1, 3], crowd=[0, 1])])
    values = calibration.compute()
    assert values["presence_present"] == pytest.approx(0.8)
    assert values["presence_absent"] == pytest.approx(0.3)
    assert values["top_score_absent"] == pytest.approx(0.2)
    assert ScoreCalibration().compute()["presence_absent"] is None
