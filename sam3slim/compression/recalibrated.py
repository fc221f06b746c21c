"""Scores that mean what they say again: a scale and a shift of presence and of class logits, folded into the weights.

Platt scaling (Platt 1999; Guo et al., arXiv:1706.04599, section 4): sigmoid(scale · logit + shift) by maximum
likelihood on annotated images. Ranks of queries of one prompt stay; nothing is added to the model, so every runtime
has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from sam3slim.compression.compensate import CompensatedModel
from sam3slim.compression.registry import Batches, register
from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.models import Sam3
from sam3slim.precisions import FP32
from sam3slim.results.calibration import calibration_error

CHUNK = 32  # prompts that pass the model together
HIT = 0.5  # IoU of boxes from which a query has found an object


@dataclass(frozen=True)
class Recalibrated:
    """The same model in FP32 with presence and class scores fitted to the annotations of ``compress.search_split``.

    Attributes:
        batches: of images, with the prompts of an evaluation.
    """

    name: ClassVar[str] = "recalibrated"
    needs_labels: ClassVar[bool] = True
    needs_batches: ClassVar[bool] = True
    batches: int = 8

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise UserError(f"compress.recalibrated.batches={self.batches} must be at least 1")


@dataclass
class Scores:
    """Logits [N] and whether what they stand for is there, [N] 0 or 1; float64."""

    logits: list[Tensor] = field(default_factory=list)
    there: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, there: Tensor) -> None:
        self.logits.append(logits.double().cpu())
        self.there.append(there.double().cpu())

    def fitted(self, what: str) -> Line:
        """The line that makes them most likely. Raises UserError where all or none are there."""
        logits, there = torch.cat(self.logits), torch.cat(self.there)
        if not 0 < float(there.mean()) < 1:
            raise UserError(
                f"compress=recalibrated needs {what}, and these images have only one of the two kinds; use "
                "data.protocol=all and more compress.recalibrated.batches"
            )
        return fit_line(logits, there)


@dataclass(frozen=True)
class Line:
    """``scale`` · logit + ``shift``, and the calibration error of the probabilities before and after."""

    scale: float
    shift: float
    before: float
    after: float

    def to_dict(self) -> dict[str, float]:
        """For metadata."""
        return {key: round(value, 6) for key, value in self.__dict__.items()}


def fit_line(logits: Tensor, there: Tensor) -> Line:
    """Maximum likelihood of ``there`` [N] given ``logits`` [N], by L-BFGS; the scale is above 0."""
    values = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of the scale, shift
    optimizer = torch.optim.LBFGS([values], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.binary_cross_entropy_with_logits(values[0].exp() * logits + values[1], there)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    scale, shift = float(values.detach()[0].exp()), float(values.detach()[1])
    before, after = logits.sigmoid(), (scale * logits + shift).sigmoid()
    return Line(scale, shift, calibration_error(before, there), calibration_error(after, there))


@register(Recalibrated)
def recalibrated(model: Sam3, method: Recalibrated, batches: Batches | None = None) -> CompensatedModel:
    if batches is None:
        raise UserError("compress=recalibrated needs annotated images of compress.search_split")
    images, presence, classes = collect(model, islice(batches(method.batches), method.batches))
    lines = presence.fitted("prompts of present and of absent concepts"), classes.fitted("right and wrong boxes")
    made = {key: tensor.float().cpu() for key, tensor in folded(model, *lines).items()}
    fitted = {"presence": lines[0].to_dict(), "class": lines[1].to_dict(), "images": images}
    for name, line in zip(("presence", "class scores"), lines, strict=True):
        errors = f"calibration error {line.before:.4f} → {line.after:.4f} on {images} images"
        print(f"{name}: logits × {line.scale:.3f} {line.shift:+.3f}; {errors}")
    return CompensatedModel(lambda key, tensor: FP32.store(tensor), made, {"recalibrated": fitted})


@torch.no_grad()
def collect(model: Sam3, batches: Iterable[Batch]) -> tuple[int, Scores, Scores]:
    """Images seen, presence logits of all prompts, and class logits of the queries of prompts with objects."""
    presence, classes, images = Scores(), Scores(), 0
    with eval_mode(model):
        for whole in batches:
            images += len(whole.images)
            vision = model.get_vision_features(whole.pixel_values.to(model.device))
            for start in range(0, len(whole.input_ids), CHUNK):
                batch = whole.part(slice(start, start + CHUNK)).to(model.device)
                inputs = {key: value for key, value in batch.inputs().items() if key != "pixel_values"}
                output = model(**inputs, vision_embeds=vision, with_masks=False)
                found = torch.bincount(batch.targets.prompt_index, minlength=len(batch.input_ids)) > 0
                presence.add(output.presence_logits[:, 0], found)
                for prompt in found.nonzero()[:, 0].tolist():
                    objects = batch.targets.boxes[batch.targets.prompt_index == prompt]
                    hit = _hits(output.pred_boxes[prompt], box_convert(objects, "cxcywh", "xyxy"))
                    classes.add(output.pred_logits[prompt], hit)
    if not images:
        raise UserError("compress=recalibrated needs annotated images, and there are none; check compress.search_split")
    return images, presence, classes


def _hits(boxes: Tensor, objects: Tensor) -> Tensor:
    """[Q] bool: which of the queries' boxes have found one of the objects, each object at most once."""
    iou = box_iou(boxes, objects).cpu()
    queries, places = linear_sum_assignment(iou, maximize=True)
    hit = torch.zeros(len(boxes), dtype=torch.bool)
    hit[queries] = iou[queries, places] >= HIT
    return hit


@torch.no_grad()
def folded(model: Sam3, presence: Line, classes: Line) -> dict[str, Tensor]:
    """Key → tensor, float64, with which the logits of ``model`` are those of the two lines.

    Presence is the output of a linear layer. Class logits are products of two vectors q and t. What a layer norm hands
    on lies in a plane, so behind a linear layer there is a direction in which every q (or t) is the same, k: adding
    u · shift / k to the other vector's bias adds the shift to every product.
    """
    scoring = model.dot_product_scoring
    head: Any = model.detr_decoder.presence_head.layer3
    made = {
        "detr_decoder.presence_head.layer3.weight": head.weight.double() * presence.scale,
        "detr_decoder.presence_head.layer3.bias": head.bias.double() * presence.scale + presence.shift,
    }
    key = "dot_product_scoring.{}_proj.{}".format
    query, text = scoring.query_proj, scoring.text_proj
    weights = {"query": query.weight.double() * classes.scale, "text": text.weight.double()}
    biases = {"query": query.bias.double() * classes.scale, "text": text.bias.double()}
    norms = {"query": model.detr_decoder.output_layer_norm, "text": scoring.text_mlp_out_norm}
    fixed = {name: _fixed_direction(norms[name], weights[name], biases[name]) for name in norms}
    firm = max(fixed, key=lambda name: abs(fixed[name][1]))
    direction, constant = fixed[firm]
    other = "text" if firm == "query" else "query"
    biases[other] = biases[other] + direction * classes.shift / (constant * scoring.scale)
    for name in norms:
        made |= {key(name, "weight"): weights[name], key(name, "bias"): biases[name]}
    return made


def _fixed_direction(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, float]:
    """The unit direction in which all that ``weight`` and ``bias`` make of the norm's outputs is one number, and it."""
    spread = weight * norm.weight.double()
    spread = spread - spread.mean(dim=1, keepdim=True)  # what is normed has a mean of 0
    direction = torch.linalg.svd(spread)[0][:, -1]
    return direction, float(direction @ (weight @ norm.bias.double() + bias))
