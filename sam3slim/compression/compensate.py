"""A method's stored tensors with compensated rounding in the place of plain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor, nn

from sam3slim.artifacts.lazy import Convert
from sam3slim.compression.calibrate import Compensation, Pass, calibrate
from sam3slim.compression.gptq import Rounder
from sam3slim.compression.registry import Batches
from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.models import Sam3, part_of
from sam3slim.precisions import FP16, Stored

COMPENSATIONS = ("none", "gptq")
# Modules that are told which rows of padded inputs are real, and how.
MASKED = {"text_encoder": "attention_mask", "detr_encoder": "text_mask"}


def check_compensation(key: str, compensate: str, batches: int) -> None:
    """Can ``key.compensate`` and ``key.calibration_batches`` be? Raises UserError."""
    if compensate not in COMPENSATIONS:
        raise UserError(f"{key}.compensate={compensate} must be {' or '.join(COMPENSATIONS)}")
    if batches < 1:
        raise UserError(f"{key}.calibration_batches={batches} must be at least 1")


@dataclass
class CompensatedModel:
    """How each tensor is stored (``Convert``): what was made for it, or what ``plain`` makes.

    Attributes:
        made: key → the tensor as stored.
        facts: for the artifact's metadata.
    """

    plain: Convert
    made: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)

    def __call__(self, key: str, tensor: Tensor) -> Stored:
        return Stored(self.made[key]) if key in self.made else self.plain(key, tensor)


def compensated_model(
    model: Sam3, rounders: Mapping[str, Rounder], plain: Convert, batches: Batches | None, count: int
) -> CompensatedModel:
    """``plain``, with the weights of Linears that ``rounders`` names (key → how) rounded on ``count`` batches.

    It computes where ``model`` is. Embeddings and kernels are rounded plainly, and so are Linears that no batch runs
    through (those that read boxes).

    Raises:
        UserError: no batches, none with a prompt, or activations that are not finite.
    """
    if batches is None:
        raise UserError("compensate=gptq needs unlabelled images; use compensate=none where there are none")
    modules = dict(model.named_modules())
    linears = {
        name: rounder
        for key, rounder in rounders.items()
        if isinstance(modules[name := key.removesuffix(".weight")], nn.Linear)
    }
    given = [batch.to(model.device) for batch in islice((b for b in batches(count) if len(b.input_ids)), count)]
    if not given:
        raise UserError(
            "compensate=gptq needs images with a phrase, and there are none; check data.root and data.limit"
        )
    images = sum(len(batch.pixel_values) for batch in given)
    print(f"compensated rounding of {len(linears)} layers on {images} unlabelled images")
    with eval_mode(model), _Real(model) as real:
        found = calibrate(model, linears, _passes(model, given), real)
    made: dict[str, Any] = {}
    for name, layer in found.layers.items():
        made[f"{name}.weight"] = layer.stored
        if layer.bias is not None:
            made[f"{name}.bias"] = FP16.store(layer.bias.cpu()).tensor
    print(_told(found))
    before, after = found.errors()
    facts = {
        "images": images, "layers": len(found.layers), "not_reached": found.not_reached,
        "mean_output_error": {"plain": round(before, 5), "compensated": round(after, 5)},
    }  # fmt: skip
    return CompensatedModel(plain, made, {"compensated": facts})


def _told(found: Compensation) -> str:
    before, after = found.errors()
    left = f"; {len(found.not_reached)} layers that no image reached are rounded plainly" if found.not_reached else ""
    return f"output error of a layer, relative, mean: {before:.2%} rounded plainly, {after:.2%} compensated{left}"


def _passes(model: Sam3, batches: Sequence[Batch]) -> Callable[[str], Sequence[Pass]]:
    """What runs a Linear: its tower alone, or the model up to the decoder's end."""
    vision: list[Pass] = [partial(model.get_vision_features, batch.pixel_values) for batch in batches]
    text: list[Pass] = [partial(model.encode_text, batch.input_ids, batch.attention_mask) for batch in batches]
    whole: list[Pass] = [partial(model, **batch.inputs()) for batch in batches]
    return lambda name: {"vision": vision, "text": text}.get(part_of(f"{name}."), whole)


class _Real:
    """While it is entered: which rows of what a Linear reads are no padding; modules are called whole, for hooks."""

    def __init__(self, model: Sam3) -> None:
        self.model = model
        self._stack = ExitStack()
        self._masks: dict[str, Tensor | None] = {}

    def __enter__(self) -> _Real:
        shares, self.model.shares_images = self.model.shares_images, False
        self._stack.callback(setattr, self.model, "shares_images", shares)
        for name, argument in MASKED.items():
            if (module := getattr(self.model, name, None)) is not None:
                handle = module.register_forward_pre_hook(partial(self._remember, name, argument), with_kwargs=True)
                self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _remember(
        self, name: str, argument: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        mask = kwargs.get(argument)
        self._masks[name] = None if mask is None else mask.bool()

    def __call__(self, name: str, inputs: Tensor) -> Tensor:
        part = name.split(".")[0]
        mask = self._masks.get("text_encoder" if part == "text_projection" else part)
        return inputs if mask is None or mask.shape != inputs.shape[:-1] else inputs[mask]
