"""The graphs answer what the model answers, for any number of images, prompts and boxes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sam3slim.data.batch import Batch, ImageInfo
from sam3slim.errors import UserError
from sam3slim.evaluation import measure_latency, predict_batch
from sam3slim.graphs.verify import verify
from tests.graphs.conftest import Exported
from tests.small import OUTPUTS
from tests.tiny import tiny_batch

# Two libraries add up in different orders; 1e-5 is seen.
CLOSE = 1e-4


def ask(images: int, prompts: int, boxes: int, tokens: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * images + 10 * prompts + boxes)
    mask = torch.ones(prompts, tokens, dtype=torch.int64)
    mask[::2, 3:] = 0
    labels = torch.randint(0, 2, (prompts, boxes), generator=generator)
    labels[1::2, -1:] = -10
    return {
        "pixel_values": torch.rand(images, 3, 32, 32, generator=generator) * 2 - 1,
        "input_ids": torch.randint(0, 600, (prompts, tokens), generator=generator),
        "attention_mask": mask,
        "image_index": torch.arange(prompts) % images,
        "input_boxes": torch.rand(prompts, boxes, 4, generator=generator),
        "input_boxes_labels": labels,
    }


def assert_close(exported: Exported, inputs: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        ours, theirs = exported.model(**inputs), exported.runner(**inputs)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("prompts", [1, 5, 23])
@pytest.mark.parametrize("boxes", [0, 1, 3])
def test_call__any_number_of_everything(floats: Exported, images: int, prompts: int, boxes: int) -> None:
    assert_close(floats, ask(images, prompts, boxes))


def test_call__fewer_tokens_than_the_context(floats: Exported) -> None:
    assert_close(floats, ask(2, 3, 1, tokens=5))


def test_call__no_image_index(floats: Exported) -> None:
    for images, prompts in ((1, 3), (2, 2)):
        inputs = ask(images, prompts, 0)
        del inputs["image_index"]
        assert_close(floats, inputs)
    inputs = ask(2, 3, 0)
    del inputs["image_index"]
    with pytest.raises(ValueError, match="3 prompts for 2 images"):
        floats.runner(**inputs)


def test_call__defaults_of_boxes_and_mask(floats: Exported) -> None:
    inputs = ask(1, 3, 2)
    del inputs["attention_mask"], inputs["input_boxes_labels"]
    assert_close(floats, inputs)
    del inputs["input_boxes"]
    assert_close(floats, inputs)


def test_call__boxes_without_area_and_beyond_the_image(floats: Exported) -> None:
    inputs = ask(1, 2, 2)
    inputs["input_boxes"] = torch.tensor([
        [[0.5, 0.5, 0.0, 0.0], [0.9, 0.1, 0.6, 0.6]], [[-0.2, 0.5, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0]],
    ])  # fmt: skip
    inputs["input_boxes_labels"] = torch.tensor([[1, 0], [1, 1]])
    assert_close(floats, inputs)


def test_call__inputs_that_exclude_each_other(floats: Exported) -> None:
    inputs = ask(1, 1, 0)
    with pytest.raises(ValueError, match="exactly one of pixel_values"):
        floats.runner(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        floats.runner(pixel_values=inputs["pixel_values"])


def test_call__in_parts(floats: Exported) -> None:
    inputs = ask(2, 5, 0)
    vision = floats.runner.get_vision_features(inputs["pixel_values"])
    text, mask = floats.runner.encode_text(inputs["input_ids"], inputs["attention_mask"])
    assert mask.dtype == torch.bool
    whole = floats.runner(**inputs)
    rest = {name: inputs[name] for name in ("attention_mask", "image_index")}
    parts = floats.runner(vision_embeds=vision, text_embeds=text, with_masks=False, **rest)
    torch.testing.assert_close(parts.pred_logits, whole.pred_logits, rtol=CLOSE, atol=CLOSE)
    assert parts.pred_masks is None
    assert parts.semantic_seg is None


def with_images(batch: Batch) -> Batch:
    return replace(batch, images=[ImageInfo(i, f"{i}.png", 40, 32) for i in range(2)])


def test_predict_batch__same_detections(floats: Exported) -> None:
    batch = with_images(tiny_batch())
    ours, theirs = predict_batch(floats.model, batch), predict_batch(floats.runner, batch, prompt_chunk=2)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b) > 0
        torch.testing.assert_close(a.scores, b.scores, rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(a.boxes, b.boxes, rtol=CLOSE, atol=1e-2)
        assert a.rles is not None
        assert b.rles is not None


def test_latency__whole_and_parts(floats: Exported) -> None:
    batch = tiny_batch()
    measured = measure_latency(
        floats.runner, batch.pixel_values, batch.input_ids, batch.attention_mask,
        image_index=batch.image_index, warmup=0, repeats=2,
    )  # fmt: skip
    assert (measured["batch"], measured["prompts"]) == (2, 3)
    assert set(measured["parts"]) == {"vision", "text", "prompts"}


def test_verify__says_what_differs(floats: Exported) -> None:
    assert max(verify(floats.model, floats.runner).values()) < 1e-5
    for value in (0.1, float("nan")):
        other = copy.deepcopy(floats.model)
        with torch.no_grad():
            other.detr_decoder.presence_head.layer3.bias += value
        with pytest.raises(UserError, match=r"differ from PyTorch: presence_logits by .*allowed: 0\.001"):
            verify(other, floats.runner)
