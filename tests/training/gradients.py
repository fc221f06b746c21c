"""Equal gradients, up to the order of sums."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-5) -> None:
    """Every parameter's gradient differs by at most ``rtol`` of its largest entry, or rounding of the largest of all.

    Gradients that are zero in exact arithmetic (of the keys' biases, say) are rounding errors of the others.
    """
    assert found.keys() == wanted.keys()
    top = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert top > 1e-2
    for name, gradient in wanted.items():
        allowed = rtol * float(gradient.abs().max()) + 1e-7 * top
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=allowed, msg=name)
