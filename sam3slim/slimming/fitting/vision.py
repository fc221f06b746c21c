"""Fitting a cut vision tower and its neck."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.models import Sam3
from sam3slim.slimming.fitting.blocks import Pair, capture, front, set_linear
from sam3slim.slimming.fitting.neurons import best_inputs
from sam3slim.slimming.fitting.towers import Tower, plain
from sam3slim.slimming.least_squares import LeastSquares
from sam3slim.slimming.plan import Plan

PIXELS = 1000  # of a picture's map, which a 3 x 3 convolution is fitted on
HIDDEN = {"scale_layers.0": "half", "scale_layers.2": "quarter"}  # upsampling → axis of its outputs


class VisionTower(Tower):
    """The vision tower with patches, positions and neck."""

    def __init__(self, source: Sam3, target: Sam3, plan: Plan) -> None:
        super().__init__(source, target, plan, "vit")
        full, slim = source.vision_encoder, target.vision_encoder
        self.full_tower, self.slim_tower = full.backbone, slim.backbone
        self.full_neck, self.slim_neck = full.neck, slim.neck

    def fit_all(self, batches: Sequence[Tensor]) -> float | None:
        """Fit tower and neck to pictures [B, 3, H, W]; the share of variance that a narrower stream keeps."""
        variance = self.turn(lambda: ((self.full_tower(pixels).last_hidden_state, None) for pixels in batches))
        if self.turned:
            self._turn_neck()
            self._turn_embeddings(batches)
        pairs = [self._front(pixels) for pixels in batches]
        self.fit(pairs, "vision tower")
        for level in range(len(self.slim_neck.fpn_layers)):
            _Level(self, level, pairs).fit()
        return variance

    def _front(self, pixels: Tensor) -> Pair:
        towers = (self.full_tower, self.slim_tower)
        full, slim = (front(tower.layers[0], partial(tower, pixels)) for tower in towers)
        return Pair(full, slim)

    def _turn_neck(self) -> None:
        for level, (mine, its) in enumerate(zip(self.slim_neck.fpn_layers, self.full_neck.fpn_layers, strict=True)):
            name, first = next(iter(_convolutions(mine).items()))
            weight = its.get_parameter(f"{name}.weight").double()
            if isinstance(first, nn.ConvTranspose2d):
                weight = weight[:, self.kept(f"neck[{level}].half")]
                first.weight.copy_(torch.einsum("nw,wohv->nohv", self.map, weight))
            else:
                first.weight.copy_(torch.einsum("nw,owhv->onhv", self.map, weight))

    def _turn_embeddings(self, batches: Sequence[Tensor]) -> None:
        """The first norm writes the stream itself: its scale goes in front of it, and what is lost is fitted."""
        mine, its, norm = self.slim_tower.embeddings, self.full_tower.embeddings, self.full_tower.layer_norm
        wide = self.map.shape[1]
        centre = torch.eye(wide).to(self.map) - 1 / wide
        embed = (self.map * norm.weight.double()) @ centre
        embed = embed - embed.mean(dim=0)  # the mean of what it scaled is not the norm's to take away
        mine.patch_embeddings.projection.weight.copy_(
            torch.einsum("nw,wchv->nchv", embed, its.patch_embeddings.projection.weight.double())
        )
        mine.position_embeddings.copy_(its.position_embeddings.double() @ embed.T)
        plain(self.slim_tower.layer_norm)
        fits = [LeastSquares(one, one[0] * 0) for one in self.map.new_ones(len(self.map), 1, 1)]
        for pixels in batches:
            pair = self._front(pixels)
            given, wanted = pair.slim.stream, self.narrow(pair.full.stream)
            for channel, fit in enumerate(fits):
                fit.add(given[..., channel, None], wanted[..., channel, None])
        solved = [fit.solve() for fit in fits]
        self.slim_tower.layer_norm.weight.copy_(torch.stack([weight[0, 0] for weight, _ in solved]))
        self.slim_tower.layer_norm.bias.copy_(torch.stack([bias[0] for _, bias in solved]))


class _Level:
    """One map of the neck: upsampling to a few channels, then to the map's width, then a 3 x 3 convolution."""

    def __init__(self, tower: VisionTower, level: int, pairs: Sequence[Pair]) -> None:
        self.mine: Any = tower.slim_neck.fpn_layers[level]
        self.its: Any = tower.full_neck.fpn_layers[level]
        self.tower, self.level, self.pairs = tower, level, pairs

    def fit(self) -> None:
        """Every convolution in order; in place."""
        *ups, _ = _convolutions(self.mine)
        if ups:
            last = ups[-1]
            kept = [self.tower.kept(f"neck[{self.level}].{HIDDEN[name]}") for name in ups]
            code = self._code(kept[-1]) if len(kept[-1]) < self.its.get_submodule(last).weight.shape[1] else None
            if len(ups) > 1:
                kept[0] = self._fit_first(kept[0], code)
            if code is not None:
                self._recode(last, code, kept[0] if len(ups) > 1 else None)
            self._fit_taps(last, _rows(kept[-1], self.its.get_submodule(last)) if code is None else code)
        self._fit_pixels()
        fit_kernel(self.mine.proj2, self._seen("proj2"))

    def _code(self, kept: Tensor) -> Tensor:
        """Principal directions of the map in the place of the channels between the last upsampling and it.

        No activation stands between the two: what they hand on is best kept by the directions in which it varies most
        (reduced-rank regression; Izenman 1975, doi 10.1016/0047-259X(75)90042-1). There are no more of those than the
        map has channels; the last of the ``kept`` ones stay beside them, unread at first, as something to learn with.

        Returns:
            From what the full upsampling makes to what the slim one should make; [slim, full] float64.
        """
        its, mine = self.its.proj1, self.mine.proj1
        total = its.weight.new_zeros(len(its.weight), len(its.weight), dtype=torch.float64)
        mean, count = total[0].clone(), 0
        for _, made in self._seen("proj1"):
            rows = made.movedim(1, -1).flatten(0, -2)
            total += rows.T @ rows
            mean += rows.sum(dim=0)
            count += len(rows)
        directions = torch.linalg.eigh(total / count - torch.outer(mean, mean) / count**2)[1]
        count = min(mine.weight.shape[1], len(its.weight))
        directions = directions[:, -count:]
        mine.weight.zero_()
        mine.weight[:, :count].copy_(directions[:, :, None, None])
        mine.bias.copy_(its.bias)
        weight = its.weight[:, :, 0, 0].double()
        spare = torch.eye(weight.shape[1]).to(weight)[kept[count:]]
        return torch.cat([directions.T @ weight, spare])

    def _fit_first(self, kept: Tensor, code: Tensor | None) -> Tensor:
        """The first of two upsamplings; its channels, those that serve the second best where some were cut."""
        mine, its = self.mine.scale_layers[0], self.its.scale_layers[0]
        if code is None:
            self._fit_taps("scale_layers.0", _rows(kept, its))
            return kept
        weight = torch.einsum("nw,wohv->ohvn", self.tower.map, its.weight.double()).flatten(0, 2)
        bias = its.bias.repeat_interleave(4)
        fit = LeastSquares(weight, bias, intercept=False)
        for read, made in self._seen("scale_layers.0"):
            fit.add(read.movedim(1, -1), nn.functional.pixel_unshuffle(made, 2).movedim(1, -1))
        weight = fit.solve()[0]

        def activations() -> Iterator[tuple[Tensor, Tensor, None]]:
            for (read, _), (_, made) in zip(self._seen("scale_layers.0"), self._seen("scale_layers.2"), strict=True):
                taps = read.movedim(1, -1) @ weight.T.to(read) + bias
                hidden = self.mine.scale_layers[1](nn.functional.pixel_shuffle(taps.movedim(-1, 1), 2))
                yield hidden.movedim(1, -1), _coded(made, code), None

        kept = best_inputs(activations(), len(kept))
        mine.weight.copy_(_kernel(weight)[:, kept])
        mine.bias.copy_(its.bias[kept])
        return kept

    def _recode(self, last: str, code: Tensor, hidden: Tensor | None) -> None:
        """Let the last upsampling make what ``code`` makes of its original's outputs; it reads the ``hidden`` ones."""
        mine, its = self.mine.get_submodule(last), self.its.get_submodule(last)
        weight = torch.einsum("co,iohv->ichv", code, its.weight.double())
        mine.weight.copy_(torch.einsum("ni,ichv->nchv", self.tower.map, weight) if hidden is None else weight[hidden])
        mine.bias.copy_(code @ its.bias.double())

    def _seen(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Of every batch: what a convolution reads in the slim neck, and what its original makes; [B, C, h, w]."""
        for pair in self.pairs:
            with capture({name: self.mine.get_submodule(name)}, stop=True) as seen:
                self.mine(pair.slim.stream.movedim(-1, 1))
            with capture({name: self.its.get_submodule(name)}, stop=True) as original:
                self.its(pair.full.stream.movedim(-1, 1))
            yield seen[name][0], original[name][1]

    def _fit_taps(self, name: str, code: Tensor) -> None:
        """An upsampling by its own kernel: one linear map of each pixel to its four, which share a bias that stays."""
        conv = self.mine.get_submodule(name)
        assert conv.kernel_size == conv.stride == (2, 2)
        fit = LeastSquares(
            conv.weight.permute(1, 2, 3, 0).flatten(0, 2), conv.bias.repeat_interleave(4), intercept=False
        )
        for read, made in self._seen(name):
            fit.add(read.movedim(1, -1), _coded(made, code))
        conv.weight.copy_(_kernel(fit.solve()[0]))

    def _fit_pixels(self) -> None:
        """The projection to the map's width sees one pixel at a time."""
        conv = self.mine.proj1
        fit = LeastSquares(conv.weight[:, :, 0, 0], conv.bias)
        for read, made in self._seen("proj1"):
            fit.add(read.movedim(1, -1), made.movedim(1, -1))
        weight, bias = fit.solve()
        set_linear(conv, weight[:, :, None, None], bias)


def _rows(kept: Tensor, conv: Any) -> Tensor:
    """[kept, outputs]: picks an upsampling's outputs."""
    return torch.eye(conv.weight.shape[1], dtype=torch.float64, device=kept.device)[kept]


def _coded(made: Tensor, code: Tensor) -> Tensor:
    """``code`` of the channels of [B, C, 2h, 2w], the four taps of a pixel as channels: [B, h, w, slim · 4]."""
    coded = torch.einsum("co,bohw->bchw", code.to(made), made)
    return nn.functional.pixel_unshuffle(coded, 2).movedim(1, -1)


def _kernel(taps: Tensor) -> Tensor:
    """A linear map [outputs · 4, inputs] as an upsampling's kernel [inputs, outputs, 2, 2]."""
    return taps.unflatten(0, (-1, 2, 2)).permute(3, 0, 1, 2)


def fit_kernel(conv: Any, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Fit a 3 x 3 convolution to pictures it reads [B, C, h, w] and should make of them; on ``PIXELS`` of each."""
    fit = LeastSquares(conv.weight.flatten(1), conv.bias)
    generator = torch.Generator().manual_seed(0)
    for read, wanted in rows:
        pixels = read.shape[-2] * read.shape[-1]
        picked = torch.randperm(pixels, generator=generator)[:PIXELS].to(read.device)
        patches = nn.functional.unfold(read, 3, padding=1)[..., picked]
        fit.add(patches.transpose(1, 2), wanted.flatten(2)[..., picked].transpose(1, 2))
    weight, bias = fit.solve()
    set_linear(conv, weight.view_as(conv.weight), bias)


def _convolutions(level: nn.Module) -> dict[str, Any]:
    """Those up to the map's own width, in order."""
    found = {name: module for name, module in level.named_modules() if isinstance(module, nn.ConvTranspose2d)}
    return {**found, "proj1": level.get_submodule("proj1")}
