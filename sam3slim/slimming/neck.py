"""A neck behind another tower: its maps are fitted to those that the inherited detector was trained to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.evaluation.inference import eval_mode
from sam3slim.models import Sam3
from sam3slim.slimming.fit import _capture_io
from sam3slim.slimming.least_squares import LeastSquares


@torch.no_grad()
def fit_neck(source: Sam3, model: Sam3, batches: Sequence[Tensor]) -> tuple[float, ...]:
    """Fit the neck so that its maps are ``source``'s, as far as a linear layer can; in place.

    In every level what is linear in front of the 3 x 3 convolution, which is inherited, is fitted: the projection to
    ``d_model``, together with the upsampling before it. Pictures and maps are resized where the two models look at
    different sizes.

    Args:
        source: what the detector was inherited from, on the model's device.
        model: with a tower that sees, see ``adopt_vision``.
        batches: pictures [B, 3, S, S], normalised as for training, on the same device.

    Returns:
        For each map, fine to coarse: squared error of what the projections hand on, over its variance.
    """
    levels = [_Level(level, model.spec.d_model) for level in model.vision_encoder.neck.fpn_layers]
    originals = [level.get_submodule("proj1") for level in source.vision_encoder.neck.fpn_layers]
    size = (source.spec.vit.image_size,) * 2
    with eval_mode(source), eval_mode(model):
        for fit in (True, False):
            for pixels in batches:
                with _capture_io({str(i): layer for i, layer in enumerate(originals)}) as wanted:
                    source.get_vision_features(_resized(pixels, size))
                layers = {f"{kind}{i}": layer for i, level in enumerate(levels)
                          for kind, layer in (("last", level.last), ("proj", level.proj))}  # fmt: skip
                with _capture_io(layers) as seen:
                    model.get_vision_features(pixels)
                for i, level in enumerate(levels):
                    want = _resized(wanted[str(i)][1], seen[f"proj{i}"][1].shape[-2:])
                    level.add(seen[f"last{i}"][0], want) if fit else level.compare(seen[f"proj{i}"][1], want)
            for level in levels if fit else ():
                level.solve()
    return tuple(float(level.error / level.power) for level in levels)


class _Level:
    """One level of the neck and the sums of its fit."""

    def __init__(self, level: Any, width: int) -> None:
        self.proj: nn.Conv2d = level.proj1
        ups = [module for module in level.scale_layers if isinstance(module, nn.ConvTranspose2d)]
        self.last: Any = ups[-1] if ups else level.proj1
        for up in ups[:-1]:
            up.weight.copy_(up.weight[:, :, :1, :1])  # all four pixels alike: what follows is one layer for all
        self.width, self.up = width, bool(ups)
        outputs = width * (4 if ups else 1)
        inputs = self.last.weight.shape[0 if ups else 1]
        zeros = self.proj.weight.new_zeros(outputs, inputs)
        self.sums = LeastSquares(zeros, zeros[:, 0])
        self.error = self.power = torch.zeros((), dtype=torch.float64)

    def add(self, read: Tensor, wanted: Tensor) -> None:
        """What the last layer reads, and what the projection should hand on."""
        wanted = nn.functional.pixel_unshuffle(wanted, 2) if self.up else wanted
        self.sums.add(read.movedim(1, -1), wanted.movedim(1, -1))

    def solve(self) -> None:
        weight, bias = self.sums.solve()
        if not self.up:
            self.last.weight.copy_(weight[:, :, None, None])
            self.last.bias.copy_(bias)
            return
        # Both layers at once, as far as the channels between them reach.
        u, s, v = torch.linalg.svd(weight.unflatten(0, (self.width, 4)).flatten(1), full_matrices=False)
        kept = min(self.width, self.proj.weight.shape[1])
        taps = (s[:kept, None] * v[:kept]).unflatten(1, (2, 2, -1))
        self.last.weight[:, :kept] = taps.permute(3, 0, 1, 2).to(self.last.weight)
        self.last.bias[:kept] = 0
        self.proj.weight[:, :kept, 0, 0] = u[:, :kept].to(self.proj.weight)
        self.proj.weight[:, kept:].zero_()
        assert self.proj.bias is not None
        self.proj.bias.copy_(bias.unflatten(0, (-1, 4)).mean(1))  # one for four pixels

    def compare(self, made: Tensor, wanted: Tensor) -> None:
        self.error = self.error + (made - wanted).square().sum(dtype=torch.float64)
        self.power = self.power + (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum(dtype=torch.float64)


def _resized(picture: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return nn.functional.interpolate(picture, tuple(size), mode="bilinear", antialias=True)
