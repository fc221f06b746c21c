"""compress=[recalibrated]: four scalars that are fitted, and folded into weights that are there."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torchvision.ops import box_convert

from sam3slim.checkpoints import load
from sam3slim.compression import compress, method_from_name
from sam3slim.compression.recalibrated import Line, fit_line, folded
from sam3slim.data.batch import Batch, ImageInfo, Targets
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.results.calibration import calibration_error
from tests.tiny import tiny_batch, tiny_model

NANO = Path(__file__).parents[2] / "assets" / "nano"


def test_calibration_error__by_hand() -> None:
    sure = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    there = torch.tensor([1, 1, 0, 0, 0, 0])
    assert calibration_error(sure, there) == pytest.approx((4 * 0.4 + 2 * 0.1) / 6, abs=1e-6)
    assert calibration_error(there.float(), there) == 0


def test_fit_line__finds_the_line_behind_the_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    there = (torch.rand(len(logits), generator=generator) < (0.5 * logits - 1).sigmoid()).double()
    line = fit_line(logits, there)
    assert line.scale == pytest.approx(0.5, abs=0.01)
    assert line.shift == pytest.approx(-1, abs=0.03)
    assert line.after < 0.01 < 0.05 < line.before


def nano() -> tuple[Sam3, dict[str, torch.Tensor]]:
    model, _ = load(NANO)
    generator = torch.Generator().manual_seed(0)
    size = model.spec.vit.image_size
    pixels = torch.rand(2, 3, size, size, generator=generator) * 2 - 1
    ids = torch.full((3, model.spec.text.context_length), model.spec.text.vocab_size - 1)
    ids[:, 0], ids[:, 1] = model.spec.text.vocab_size - 2, torch.tensor([320, 400, 450])
    mask = torch.zeros_like(ids)
    mask[:, :3] = 1
    return model, {
        "pixel_values": pixels,
        "input_ids": ids,
        "attention_mask": mask,
        "image_index": torch.tensor([0, 0, 1]),
    }


@pytest.mark.parametrize("shift", [-2.5, 1.0])
def test_folded__logits_are_those_of_the_lines(shift: float) -> None:
    model, inputs = nano()
    changed = copy.deepcopy(model)
    made = folded(model, Line(0.7, -shift, 0, 0), Line(0.6, shift, 0, 0))
    changed.load_state_dict({**model.state_dict(), **{key: value.float() for key, value in made.items()}})
    with torch.no_grad():
        before, after = model(**inputs), changed(**inputs)
    torch.testing.assert_close(
        after.pred_logits, (0.6 * before.pred_logits + shift).clamp(-12, 12), atol=2e-4, rtol=1e-4
    )
    presence = (0.7 * before.presence_logits - shift).clamp(-10, 10)
    torch.testing.assert_close(after.presence_logits, presence, atol=1e-4, rtol=1e-4)
    assert torch.equal(after.pred_boxes, before.pred_boxes)
    assert torch.equal(after.pred_masks, before.pred_masks)


def found_by(model: Sam3) -> Batch:
    """Two prompts with an object where a query is, and one without."""
    batch = tiny_batch()
    with torch.no_grad():
        boxes = model(**batch.inputs(), with_masks=False).pred_boxes[:2, 0]
    batch.targets = Targets(box_convert(boxes, "xyxy", "cxcywh"), None, torch.tensor([0, 1]))
    batch.images = [ImageInfo(1, "a", 32, 32), ImageInfo(2, "b", 32, 32)]
    return batch


def test_recalibrated__errors_fall_and_only_five_tensors_change() -> None:
    model = tiny_model()
    batch = found_by(model)
    found = compress(model, method_from_name("recalibrated"), lambda count: [batch])
    told = found.method["recalibrated"]
    assert told["images"] == found.images_used == 2
    for what in ("presence", "class"):
        assert told[what]["after"] < told[what]["before"]
    state = model.state_dict()
    changed = {key for key, value in state.items() if not torch.equal(found.tensors[key], value)}
    scoring = {f"dot_product_scoring.{name}" for name in ("query_proj.weight", "query_proj.bias", "text_proj.bias")}
    presence = {f"detr_decoder.presence_head.layer3.{name}" for name in ("weight", "bias")}
    assert presence < changed <= presence | scoring


def test_recalibrated__without_absent_concepts() -> None:
    model = tiny_model()
    batch = found_by(model).part(slice(0, 2))
    with pytest.raises(UserError, match=r"needs prompts of present and of absent concepts.* use data\.protocol=all"):
        compress(model, method_from_name("recalibrated"), lambda count: [batch])
    with pytest.raises(UserError, match=r"compress\.recalibrated\.batches=0 must be at least 1"):
        method_from_name("recalibrated", batches=0)
