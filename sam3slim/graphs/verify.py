"""Exported graphs against the model they came from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.graphs.runner import GraphSam3
from sam3slim.models import Sam3
from sam3slim.specs import ModelSpec
from sam3slim.text.bank import bank_rows

TOLERANCE = 1e-3
# Images, prompts, boxes: more than one of everything, and the least there is.
CASES = ((2, 3, 2), (1, 1, 0))


def verify(model: Sam3, runner: GraphSam3, tolerance: float = TOLERANCE) -> dict[str, float]:
    """Largest difference of every output between ``model`` (FP32, CPU) and ``runner``, on random inputs.

    A difference is absolute for outputs below 1, and a share of the output's largest value above. The graphs of
    ``runner`` work on one another's outputs, as they do in use.

    Raises:
        UserError: one is above ``tolerance``, or not a number.
    """
    differences: dict[str, float] = {}
    with torch.inference_mode(), eval_mode(model):
        for case in CASES:
            images, prompts, boxes = case
            if runner.fixed is not None:
                prompts, boxes = min(prompts, runner.fixed.prompts), min(boxes, runner.fixed.boxes)
            inputs = sample_inputs(model.spec, images, prompts, boxes)
            for name, ours, theirs in _outputs(model, runner, inputs):
                found = difference(ours, theirs)
                # Not max(): it would drop a NaN.
                before = differences.get(name, 0.0)
                differences[name] = before if found <= before else found
    wrong = {name: value for name, value in differences.items() if not value <= tolerance}
    if wrong:
        worst = ", ".join(f"{name} by {value:.2g}" for name, value in wrong.items())
        raise UserError(
            f"{runner.what}, of {model.spec.name} differ from PyTorch: {worst} (allowed: {tolerance:g}); nothing was "
            "written; check the checkpoint for huge weights, or report the versions of torch and onnxruntime"
        )
    return differences


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference: absolute for values below 1, a share of the largest of ``ours`` above; NaN stays NaN."""
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))


def sample_inputs(spec: ModelSpec, images: int, prompts: int, boxes: int) -> dict[str, Tensor]:
    """The same random arguments of ``Sam3.forward`` for an architecture every time."""
    generator = torch.Generator().manual_seed(images)
    size, tokens = spec.vit.image_size, spec.text.context_length
    mask = torch.ones(prompts, tokens, dtype=torch.int64)
    mask[0, tokens // 2 :] = 0
    labels = torch.randint(0, 2, (prompts, boxes), generator=generator)
    labels[1:, -1:] = -10  # padding
    input_ids = torch.randint(0, spec.text.vocab_size, (prompts, tokens), generator=generator)
    if spec.text.bank is not None:
        input_ids, mask = bank_rows(spec.text.bank, tokens, prompts)
    return {
        "pixel_values": torch.rand(images, 3, size, size, generator=generator) * 2 - 1,
        "input_ids": input_ids,
        "attention_mask": mask,
        "input_boxes": 0.3 + 0.4 * torch.rand(prompts, boxes, 4, generator=generator),
        "input_boxes_labels": labels,
        "image_index": torch.arange(prompts) % images,
    }


def _outputs(model: Sam3, runner: GraphSam3, inputs: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, the model's tensor, the runner's."""
    ours, theirs = model(**inputs), runner(**inputs)
    for name in runner.signatures["prompts"].outputs:
        yield name, getattr(ours, name), getattr(theirs, name)
    levels = runner.get_vision_features(inputs["pixel_values"]).fpn_hidden_states
    for number, (level, other) in enumerate(zip(ours.fpn_hidden_states, levels, strict=True)):
        yield f"fpn_{number}", level, other
    text, _ = runner.encode_text(inputs["input_ids"], inputs["attention_mask"])
    yield "text_features", ours.text_features, text
