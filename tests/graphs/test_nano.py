"""The trained model: what random weights cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam3slim.checkpoints import load
from sam3slim.compression import Int8Onnx, compress
from sam3slim.graphs import OnnxSam3, export_onnx, load_onnx
from sam3slim.models import Sam3
from tests.small import OUTPUTS

NANO = Path(__file__).resolve().parents[2] / "assets/nano"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nano() -> Sam3:
    return load(NANO)[0]


def ask(spec_size: int, images: int, prompts: int, boxes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * images + 10 * prompts + boxes)
    return {
        "pixel_values": torch.rand(images, 3, spec_size, spec_size, generator=generator) * 2 - 1,
        "input_ids": torch.randint(0, 8190, (prompts, 16), generator=generator),
        "attention_mask": torch.ones(prompts, 16, dtype=torch.int64),
        "image_index": torch.arange(prompts) % images,
        "input_boxes": 0.2 + 0.6 * torch.rand(prompts, boxes, 4, generator=generator),
        "input_boxes_labels": torch.ones(prompts, boxes, dtype=torch.int64),
    }


def test_nano__fp32_within_a_thousandth(nano: Sam3, tmp_path: Path) -> None:
    runner: OnnxSam3 = load_onnx(export_onnx(nano, tmp_path / "a").path)[0]
    for images in (1, 2):
        for prompts in (1, 5, 23):
            for boxes in (0, 1, 3):
                inputs = ask(nano.spec.vit.image_size, images, prompts, boxes)
                with torch.inference_mode():
                    ours, theirs = nano(**inputs), runner(**inputs)
                for name in OUTPUTS:
                    torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=0, atol=1e-3)


def test_nano__int8_stays_near(nano: Sam3, tmp_path: Path) -> None:
    info = compress(nano, Int8Onnx()).write(nano, tmp_path / "a")
    assert info.bytes < 0.6 * (NANO / "model.safetensors").stat().st_size
    runner = load_onnx(info.path)[0]
    inputs = ask(nano.spec.vit.image_size, 2, 23, 1)
    with torch.inference_mode():
        ours, theirs = nano(**inputs), runner(**inputs)
    for name in OUTPUTS:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert 0 < (a - b).norm() <= 0.05 * a.norm(), name
