"""Random predictions and targets, and the golden numbers of the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sam3slim.data.batch import Targets


@dataclass
class Outputs:
    """The least thing that satisfies ``LayerOutputs``."""

    layer_logits: Tensor
    layer_boxes: Tensor
    layer_presence: Tensor
    pred_masks: Tensor | None = None
    semantic_seg: Tensor | None = None
    o2m_logits: Tensor | None = None
    o2m_boxes: Tensor | None = None
    o2m_masks: Tensor | None = None

    def leaves(self) -> dict[str, Tensor]:
        return {name: x for name, x in vars(self).items() if x is not None}


@dataclass
class Golden:
    values: dict[str, float]
    tensors: dict[str, Tensor]
    outputs: Outputs
    targets: Targets


@pytest.fixture
def golden(shared_dir: Path) -> Golden:
    folder = shared_dir / "reference"
    tensors = load_file(folder / "golden_losses.safetensors")
    values = json.loads((folder / "golden_losses.json").read_text())
    logits, boxes = tensors["pred_logits"][None], tensors["pred_boxes_cxcywh"][None]
    masks = tensors["pred_masks"]
    outputs = Outputs(logits, boxes, tensors["presence_logit"][None], masks, None, logits, boxes, masks)
    counts = tensors["target_counts"]
    targets = Targets(
        boxes=tensors["target_boxes_cxcywh"],
        masks=tensors["target_masks"].bool(),
        prompt_index=torch.repeat_interleave(torch.arange(len(counts)), counts),
    )
    return Golden(values, tensors, outputs, targets)


@dataclass
class Shipped:
    """A case of the reference's shipped configuration: every number, and the gradient of the total by each input."""

    total: float
    terms: dict[str, float]
    outputs: Outputs
    targets: Targets
    gradients: dict[str, Tensor]


@pytest.fixture(params=["a", "b", "c"])
def shipped(shared_dir: Path, request: pytest.FixtureRequest) -> Shipped:
    stem, case = shared_dir / "reference" / "golden_losses_shipped", request.param
    golden = json.loads(stem.with_suffix(".json").read_text())
    numbers, o2m = golden["cases"][case], golden["configuration"]["o2m_weight"]
    # The reference reports the one-to-many branch with its weight.
    terms = {name: value / (o2m if name.endswith("_o2m") else 1) for name, value in numbers["terms"].items()}
    own = {k.removeprefix(f"{case}."): v for k, v in load_file(f"{stem}.safetensors").items() if k[0] == case}
    outputs = Outputs(**{name: own[name].requires_grad_() for name in Outputs.__dataclass_fields__})
    targets = Targets(own["target_boxes"], own["target_masks"].bool(), own["prompt_index"])
    gradients = {k.removeprefix("grad."): v for k, v in own.items() if k.startswith("grad.")}
    return Shipped(numbers["total"], terms, outputs, targets, gradients)


MakeCase = Callable[..., tuple[Outputs, Targets]]


@pytest.fixture
def make_case() -> MakeCase:
    """Build random outputs and targets; ``counts`` is the number of instances of each prompt."""

    def build(
        counts: list[int], layers: int = 2, queries: int = 6, many: bool = True, seed: int = 0
    ) -> tuple[Outputs, Targets]:
        gen = torch.Generator().manual_seed(seed)
        prompts, total = len(counts), sum(counts)

        def rand(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=gen)

        def boxes(*shape: int) -> Tensor:
            return torch.cat([0.3 + 0.4 * rand(*shape, 2), 0.1 + 0.4 * rand(*shape, 2)], dim=-1)

        outputs = Outputs(
            4 * rand(layers, prompts, queries) - 2,
            boxes(layers, prompts, queries),
            4 * rand(layers, prompts, 1) - 2,
            4 * rand(prompts, queries, 4, 4) - 2,
            4 * rand(prompts, 1, 4, 4) - 2,
        )
        if many:
            outputs.o2m_logits = 4 * rand(layers, prompts, queries) - 1
            outputs.o2m_boxes = boxes(layers, prompts, queries)
            outputs.o2m_masks = 4 * rand(prompts, queries, 4, 4) - 2
        index = torch.repeat_interleave(torch.arange(prompts), torch.tensor(counts, dtype=torch.int64))
        targets = Targets(boxes(total), rand(total, 8, 8) > 0.5, index)
        for leaf in outputs.leaves().values():
            leaf.requires_grad_()
        return outputs, targets

    return build
