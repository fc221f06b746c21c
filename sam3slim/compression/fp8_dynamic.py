"""FP8 products: torchao's ``Float8DynamicActivationFloat8WeightConfig`` with a scale per row, for Ada and Hopper GPUs.

w ≈ w_q · s_w with codes in float8_e4m3fn (four bits of exponent, three of mantissa) and s_w = max|w| / 448 of the row,
x ≈ x_q · s with one such scale per token, y = (x_q · w_qᵀ) · s · s_w. See ``checkpoints.float8``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sam3slim.artifacts.lazy import Convert
from sam3slim.checkpoints import float8
from sam3slim.compression.int8_dynamic import DynamicProducts
from sam3slim.compression.int8_weight import quantised_names, store_int8
from sam3slim.compression.registry import register
from sam3slim.errors import UserError
from sam3slim.models import Sam3, part_of
from sam3slim.precisions import Stored


@dataclass(frozen=True)
class Fp8Dynamic(DynamicProducts):
    """FP8 products, of weights in FP8."""

    name: ClassVar[str] = "fp8_dynamic"

    def check(self, model: nn.Module) -> None:
        """Refuse a model of which no Linear would be in FP8. Raises UserError."""
        if not self.weights(model):
            raise UserError(
                f"compress.fp8_dynamic: no weight of rules.parts and activations={list(self.activations)} has rows and "
                f"columns in multiples of {float8.MULTIPLE}, as FP8 products want; use int8_dynamic"
            )

    def weights(self, model: nn.Module) -> set[str]:
        """Names of those in FP8."""
        return {
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and self.rules.selects(f"{name}.weight", module.weight)
            and part_of(f"{name}.") in self.activations
            and not any(side % float8.MULTIPLE for side in module.weight.shape)
        }


@register(Fp8Dynamic)
def fp8_dynamic(model: Sam3, method: Fp8Dynamic) -> Convert:
    products = method.weights(model)
    others = store_int8(set(quantised_names(model, method.rules)))

    def convert(key: str, tensor: Tensor) -> Stored:
        return Stored(float8.quantise(tensor).running()) if key in products else others(key, tensor)

    return convert
