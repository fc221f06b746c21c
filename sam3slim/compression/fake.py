"""Fake quantisation: a model computes with weights rounded as a method stores them, and its own ones are trained.

The gradient at the rounded weights moves the others (straight-through estimator, Bengio et al., arXiv:1308.3432; Jacob
et al., arXiv:1712.05877, section 3). torchao's fake quantisers have scales in FP32, where INT4 here stores FP16, so
that codes would differ; here the method's own conversion rounds, and what it stores afterwards is what was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from sam3slim.artifacts.lazy import Convert
from sam3slim.checkpoints.int8 import is_quantised
from sam3slim.compression.int4_weight import Int4Weight
from sam3slim.compression.int8_weight import Int8Weight
from sam3slim.compression.mixed import Mixed
from sam3slim.compression.registry import check_methods, handler_of, method_from_name, needs_batches
from sam3slim.errors import UserError
from sam3slim.models import Sam3

METHODS = (Int4Weight, Int8Weight, Mixed)


def fake_method(name: str, **options: Any) -> Any:
    """The method of compression called ``name`` with its options, if it rounds weights alone, plainly.

    Raises:
        UserError: another one, or a wrong option.
    """
    known = [kind.name for kind in METHODS]
    if name not in known:
        raise UserError(f"qat={name} must be one of {', '.join(known)}, which store weights in INT4 or INT8")
    try:
        method = method_from_name(name, **options)
    except UserError as error:
        raise UserError(f"qat: {error}") from error
    if needs_batches(method):
        raise UserError(
            f"qat: {name}.compensate={method.compensate} rounds once, on images, and training in every step; use "
            "compensate=none"
        )
    return method


def rounded_by(method: Any, model: Sam3, values: Callable[[nn.Parameter], Tensor]) -> tuple[Convert, list[str]]:
    """How ``method`` stores a weight, and the names of those that it rounds to INT4 or INT8.

    Args:
        model: may be on the meta device.
        values: of a parameter, float32 on the CPU.

    Raises:
        UserError: it rounds none.
    """
    convert = cast(Convert, handler_of(method)(model, method))  # what those of METHODS make
    keys = [name for name, p in model.named_parameters() if is_quantised(convert(name, values(p)).tensor)]
    if not keys:
        raise UserError(f"qat={method.name} rounds no weight of this model to INT4 or INT8; choose other options")
    return convert, keys


class FakeQuantised:
    """While it is entered, weights of ``model`` have the values that ``method`` would store; then their own again.

    Gradients of a backward pass in between are those at the rounded weights. What ``method`` keeps in floating point
    stays as it is. Beside the weights, memory holds the rounded ones meanwhile.

    Args:
        model: FP32; whatever device it is moved to.
        method: of ``fake_method``.

    Attributes:
        keys: names of the weights that are rounded.

    Raises:
        UserError: ``method`` cannot work on this model, or rounds none of its weights to INT4 or INT8.
    """

    def __init__(self, model: Sam3, method: Any) -> None:
        check_methods(model, {method.name: method})
        self._convert, self.keys = rounded_by(method, model, lambda parameter: parameter.detach().cpu().float())
        self._model = model
        self._own: dict[str, Tensor] = {}

    def __enter__(self) -> FakeQuantised:
        self.round()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @torch.no_grad()
    def round(self) -> None:
        """Round; nothing where they are rounded."""
        for name in () if self._own else self.keys:
            parameter = self._model.get_parameter(name)
            self._own[name] = parameter.data
            parameter.data = self._rounded(name, parameter)

    def _rounded(self, name: str, parameter: nn.Parameter) -> Tensor:
        stored = self._convert(name, parameter.detach().float()).tensor
        values: Tensor = stored.dequantize().to(parameter.device, parameter.dtype)
        return values

    def restore(self) -> None:
        """Undo it."""
        for name, value in self._own.items():
            parameter: nn.Parameter = self._model.get_parameter(name)
            parameter.data = value
        self._own = {}
