"""Boxes and coordinates compute in FP32 under autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sam3slim.environment import before_fake_tensors
from sam3slim.models import Sam3, Sam3Output, build_model
from sam3slim.models.fp32 import FP32_PARTS
from tests.tiny import SPEC, tiny_batch, tiny_model

HALVES = [torch.bfloat16, torch.float16]
BOXES = torch.tensor([[[0.31, 0.42, 0.23, 0.17]], [[0.5, 0.5, 0.4, 0.4]], [[0.7, 0.2, 0.1, 0.1]]])


def answer(model: Sam3, dtype: torch.dtype | None, boxes: Tensor | None = None) -> Sam3Output:
    with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        output: Sam3Output = model(**tiny_batch().inputs(), input_boxes=boxes)
    return output


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("boxes", [None, BOXES], ids=["text", "boxes"])
def test_autocast__boxes_are_not_on_the_half_grid(dtype: torch.dtype, boxes: Tensor | None) -> None:
    model = tiny_model()
    found, exact = answer(model, dtype, boxes), answer(model, None, boxes)
    assert found.fpn_hidden_states[0].dtype == dtype  # it was autocast
    assert found.layer_boxes.dtype == found.pred_boxes.dtype == found.presence_logits.dtype == torch.float32
    error = (found.layer_boxes - exact.layer_boxes).abs()
    assert 0 < float(error.max()) < torch.finfo(dtype).eps / 4
    rounded = (exact.layer_boxes.to(dtype).float() - exact.layer_boxes).abs()
    assert float(error.mean()) < float(rounded.mean()) / 2


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast__box_prompts_as_in_fp32(dtype: torch.dtype) -> None:
    """The geometry encoder alone, on the same maps: equal to the last bit."""
    model = tiny_model()
    maps = torch.rand(3, 32, 4, 4)
    with torch.inference_mode():
        exact, _ = model._encode_geometry((maps,), (maps,), BOXES, None, None)
        with torch.autocast("cpu", dtype):
            found, _ = model._encode_geometry((maps,), (maps,), BOXES, None, None)
    assert torch.equal(found, exact)


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast__positions_are_rounded_once(dtype: torch.dtype) -> None:
    encode = tiny_model().vision_encoder.neck.position_encoding
    shape = torch.Size((1, 32, 72, 72))
    exact = encode(shape, "cpu", torch.float32)
    assert torch.equal(encode(shape, "cpu", dtype), exact.to(dtype))


@contextmanager
def autocast_of_a_gpu(dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast("cuda")``, which switches itself off where there is no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("boxes", [None, BOXES], ids=["text", "boxes"])
def test_autocast__types_on_a_gpu(dtype: torch.dtype, boxes: Tensor | None) -> None:
    """Fake tensors that say they are on a GPU: types and devices of a forward pass there, without one."""
    before_fake_tensors()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(SPEC, device="cuda").train()
        inputs = {name: value.to("cuda") for name, value in tiny_batch().inputs().items()}
        text = torch.zeros(3, 8, 32, device="cuda")
        inputs.pop("input_ids")  # distinct phrases depend on their values
        with autocast_of_a_gpu(dtype):
            output = model(
                **inputs, text_embeds=text, input_boxes=None if boxes is None else boxes.to("cuda"), one_to_many=True
            )
    assert output.layer_boxes.device.type == "cuda"
    assert output.layer_boxes.dtype == output.layer_presence.dtype == torch.float32
    assert output.pred_masks is not None
    assert output.pred_masks.dtype == output.fpn_hidden_states[0].dtype == dtype


def test_whole_model_in_half__still_answers() -> None:
    """Without autocast the model computes in its weights' own type."""
    with torch.inference_mode():
        inputs = tiny_batch().inputs()
        inputs["pixel_values"] = inputs["pixel_values"].half()
        output = tiny_model().half()(**inputs, input_boxes=BOXES)
    assert output.pred_boxes.dtype == torch.float16


def test_fp32_parts__are_parameters() -> None:
    names = [name for name, _ in tiny_model().named_parameters()]
    assert all(any(name.startswith(part) for name in names) for part in FP32_PARTS)
