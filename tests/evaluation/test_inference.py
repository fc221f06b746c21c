from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sam3slim.data.batch import Batch
from sam3slim.data.detections import Detections
from sam3slim.evaluation.inference import TextCache, eval_mode, predict_batch
from sam3slim.models import Sam3

MakeBatch = Callable[..., Batch]


def assert_same(a: list[Detections], b: list[Detections]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.image_id == y.image_id
        torch.testing.assert_close(x.scores, y.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(x.boxes, y.boxes, atol=1e-3, rtol=1e-4)
        assert x.labels.tolist() == y.labels.tolist()


def count_calls(monkeypatch: pytest.MonkeyPatch, model: Sam3, name: str, argument: str) -> list[int]:
    """Rows of every call of a tower from now on."""
    rows: list[int] = []
    original = getattr(model, name)

    def counted(*args: torch.Tensor, **kwargs: torch.Tensor) -> object:
        rows.append(len(args[0] if args else kwargs[argument]))
        return original(*args, **kwargs)

    monkeypatch.setattr(model, name, counted)
    return rows


def test_predict_batch__one_detection_set_per_image_best_first(model: Sam3, make_batch: MakeBatch) -> None:
    found = predict_batch(model, make_batch([[1, 2], [], [3]], first_id=50), top_k=4)
    assert [d.image_id for d in found] == [50, 51, 52]
    assert [len(d) for d in found] == [4, 0, 4]
    assert set(found[0].labels.tolist()) <= {1, 2}
    assert found[0].scores.tolist() == sorted(found[0].scores.tolist(), reverse=True)
    assert found[0].rles[0]["size"] == [40, 60]
    assert found[1].rles == []


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_predict_batch__chunks_change_nothing(model: Sam3, make_batch: MakeBatch, chunk: int) -> None:
    batch = make_batch([[1, 2, 3], [2, 3]])
    assert_same(predict_batch(model, batch, prompt_chunk=chunk, top_k=6), predict_batch(model, batch, top_k=6))


def test_predict_batch__equals_plain_forward(model: Sam3, make_batch: MakeBatch) -> None:
    batch = make_batch([[1]])
    (found,) = predict_batch(model, batch)
    with torch.no_grad():
        output = model(batch.pixel_values, batch.input_ids, batch.attention_mask)
    scores = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0].sort(descending=True).values
    torch.testing.assert_close(found.scores, scores)
    assert found.prompts.presence.item() == pytest.approx(output.presence_logits.sigmoid().item(), abs=1e-6)
    assert found.prompts.top_score.item() == pytest.approx(scores[0].item(), abs=1e-6)


def test_predict_batch__towers_run_once(model: Sam3, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    images = count_calls(monkeypatch, model, "get_vision_features", "pixel_values")
    phrases = count_calls(monkeypatch, model, "get_text_features", "input_ids")
    cache = TextCache()
    predict_batch(model, make_batch([[1, 2, 3], [1, 2, 3]]), prompt_chunk=2, text_cache=cache)
    predict_batch(model, make_batch([[1, 2, 3, 4]], first_id=9), prompt_chunk=2, text_cache=cache)
    assert images == [2, 1]
    assert sum(phrases) == len(cache) == 4


def test_predict_batch__phrase_matters_through_the_cache(model: Sam3, make_batch: MakeBatch) -> None:
    cache = TextCache()
    both = predict_batch(model, make_batch([[1, 2]]), top_k=12, text_cache=cache)[0]
    again = predict_batch(model, make_batch([[2]]), top_k=12, text_cache=cache)[0]
    torch.testing.assert_close(both.scores[both.labels == 2], again.scores, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both.prompts.top_score[0], both.prompts.top_score[1], atol=1e-7)


def test_predict_batch__without_masks(model: Sam3, make_batch: MakeBatch) -> None:
    batch = make_batch([[1]])
    (found,) = predict_batch(model, batch, with_masks=False)
    assert found.rles is None
    assert_same([found], predict_batch(model, batch))


def test_predict_batch__box_prompts_reach_the_model(model: Sam3, make_batch: MakeBatch) -> None:
    batch = make_batch([[1, 2]])
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2]], [[0.7, 0.6, 0.5, 0.5]]])
    labels = torch.ones(2, 1, dtype=torch.int64)
    boxed = replace(batch, input_boxes=boxes, input_boxes_labels=labels)
    one = predict_batch(model, boxed, top_k=10)
    assert_same(predict_batch(model, boxed, top_k=10, prompt_chunk=1), one)
    assert not torch.allclose(one[0].scores, predict_batch(model, batch, top_k=10)[0].scores, atol=1e-6)


def test_predict_batch__training_model_is_restored(model: Sam3, make_batch: MakeBatch) -> None:
    batch = make_batch([[1]])
    expected = predict_batch(model, batch)
    model.train()
    model.vision_encoder.eval()  # as a frozen tower would be
    try:
        assert_same(predict_batch(model, batch), expected)
        assert model.training
        assert not model.vision_encoder.training
    finally:
        model.eval()


def test_eval_mode__restored_after_an_error(model: Sam3) -> None:
    model.train()
    try:
        with pytest.raises(RuntimeError, match=r"training=False"), eval_mode(model):
            raise RuntimeError(f"training={model.training}")
        assert all(module.training for module in model.modules())
    finally:
        model.eval()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_predict_batch__cuda(shared_model: Sam3, make_batch: MakeBatch, dtype: torch.dtype) -> None:
    batch = make_batch([[1, 2], [1]])
    expected = predict_batch(shared_model.eval(), batch, top_k=10)
    try:
        found = predict_batch(shared_model.to("cuda", dtype), batch, top_k=10)
    finally:
        shared_model.to("cpu", torch.float32)
    assert found[0].scores.device.type == "cpu"
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found[0].scores, expected[0].scores, atol=tolerance, rtol=tolerance)
