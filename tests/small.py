"""The tiny model with layers to cut, and what two equal models must agree on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.specs import EncoderSpec, ModelSpec
from tests.tiny import SPEC

OUTPUTS = ("pred_logits", "pred_boxes", "pred_masks", "presence_logits", "semantic_seg")


def tiny_spec() -> ModelSpec:
    """``tests.tiny``'s model with a layer more of everything that slimming cuts, and dropout."""
    return replace(
        SPEC,
        vit=replace(SPEC.vit, depth=4, num_global_blocks=2),
        text=replace(SPEC.text, layers=2),
        encoder=EncoderSpec(2),
        dropout=0.1,
    )


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return tiny_spec()


def small_model(spec: ModelSpec) -> Sam3:
    """Fresh weights, every bias and norm off its trivial value, eval mode."""
    model = init_for_training(build_model(spec), seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def model(spec: ModelSpec) -> Sam3:
    return small_model(spec)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Two images, one phrase of five tokens and one box each."""
    generator = torch.Generator().manual_seed(3)
    return {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(0, 600, (2, 5), generator=generator),
        "attention_mask": torch.ones(2, 5, dtype=torch.int64),
        "input_boxes": torch.tensor([[[0.5, 0.5, 0.3, 0.3]], [[0.3, 0.4, 0.2, 0.2]]]),
        "input_boxes_labels": torch.ones(2, 1, dtype=torch.int64),
    }


def outputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last layer's outputs of ours or of transformers' model."""
    with torch.no_grad():
        result = model(**inputs)
    return {name: getattr(result, name) for name in OUTPUTS}


def assert_same_outputs(left: Any, right: Any, inputs: dict[str, Tensor], atol: float = 0.0) -> None:
    theirs = outputs(right, inputs)
    for name, value in outputs(left, inputs).items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
