"""Half-precision arithmetic keeps what is stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sam3slim.data.batch import Batch, ImageInfo
from sam3slim.evaluation import predict_batch
from sam3slim.models.arithmetic import HALVES, compute_in, computing
from tests.tiny import tiny_batch, tiny_model


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_compute_in__every_value_as_stored(name: str) -> None:
    model, dtype = tiny_model(), HALVES[name]
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()  # as an artifact's half-precision tensors are loaded
    large = model.detr_encoder.layers[0].mlp.fc1
    large.bias.data[0] = -70_001.0  # which FP16 cannot hold; the ReLU after it makes it 0
    stored = {key: value.clone() for key, value in model.state_dict().items()}
    compute_in(model, name)
    for key, value in model.state_dict().items():
        assert torch.equal(value.to(stored[key].dtype), stored[key]), key
    kept = {key for key, value in model.named_parameters() if value.dtype == torch.float32}
    assert {"detr_decoder.reference_points.weight", "geometry_encoder.final_proj.weight"} < kept
    assert "detr_encoder.layers.0.mlp.fc1.bias" in kept
    assert model.vision_encoder.backbone.layers[0].attention.q_proj.weight.dtype == dtype
    tables = [value for key, value in model.named_buffers() if "inv_freq" in key]
    assert tables
    assert all(value.dtype == torch.float32 for value in tables)
    with torch.inference_mode(), computing(model):
        output = model(**tiny_batch().inputs())
        wide = large(torch.full((1, 32), 0.5))
    assert output.fpn_hidden_states[0].dtype == dtype
    assert output.pred_boxes.dtype == torch.float32
    assert bool(torch.isfinite(output.pred_logits).all())
    if name == "fp16":  # bfloat16 can hold the number, rounded
        assert wide.dtype == torch.float32
        assert float(wide[0, 0]) == pytest.approx(-70_001, abs=10)


def test_compute_in__back_to_fp32() -> None:
    model, batch = tiny_model(), tiny_batch()
    with torch.inference_mode():
        before = model(**batch.inputs()).pred_logits
        compute_in(model, "fp16")
        with computing(model):
            assert not torch.equal(model(**batch.inputs()).pred_logits.float(), before)
        compute_in(model, "fp32")
        with computing(model):
            assert torch.equal(model(**batch.inputs()).pred_logits, before)


def test_predict_batch__computes_as_the_model_was_told() -> None:
    model = tiny_model()
    seen = []
    model.detr_encoder.layers[-1].mlp.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    for name in ("fp32", "bf16"):
        compute_in(model, name)
        predict_batch(model, with_images())
    assert seen == [torch.float32, torch.bfloat16]


def with_images() -> Batch:
    return replace(tiny_batch(), images=[ImageInfo(number, f"{number}.png", 32, 32) for number in (1, 2)])
