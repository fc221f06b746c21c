"""Fitting a cut vision tower to the full one: layer by layer, in closed form, without gradients.

After a cut every layer reads a stream that is not the one it was trained on. Each linear layer is therefore fitted, in
order, to what its original hands on for the same pictures (least squares on the inputs it really gets, as He et al.,
arXiv:1707.06168, section 3, do for channels), so that a layer also makes up for what was cut before it: channels,
heads, neurons, whole blocks. Where the tower becomes narrower, its stream first keeps principal directions in the
place of channels, see ``principal``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import window_unpartition

from sam3slim.environment import this_process
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.slimming.check import unit_size
from sam3slim.slimming.least_squares import LeastSquares
from sam3slim.slimming.plan import Fit, Plan
from sam3slim.slimming.principal import Moments, principal_map

Seen = dict[str, tuple[Tensor, Tensor]]  # module → its input and output
FINAL_WEIGHT = 2.0  # of the tower's output among the norms that read the stream: the whole neck reads it


@torch.no_grad()
def fit_vision(source: Sam3, target: Sam3, plan: Plan, batches: Sequence[Tensor]) -> Fit:
    """Fit ``target``'s vision tower to ``source``'s; in place.

    Memory: the streams of both towers for all batches, and what one block of the full tower hands on.

    Args:
        source: the full model, float32; it is not changed.
        target: what ``inherit`` made of it, on the same device.
        plan: the one ``inherit`` returned.
        batches: pictures [B, 3, H, W], normalised as for training, on the same device.

    Raises:
        UserError: no pictures; values that are not finite.
    """
    if not batches:
        raise UserError("init.fit_batches needs training images, and there are none; check data.root and data.limit")
    modes = [(module, module.training) for model in (source, target) for module in model.modules()]
    source.eval()
    target.eval()
    try:
        before = _errors(source, target, batches)
        tower = _Tower(source, target, plan)
        variance = tower.turn(batches) if target.spec.vit.embed_dim < source.spec.vit.embed_dim else None
        tower.fit(batches)
        after = _errors(source, target, batches)
    finally:
        for module, mode in modes:
            module.training = mode
    if not all(map(_finite, target.vision_encoder.parameters())):
        raise UserError("init.fit_batches: fitted weights are not finite on these images; use init=pruned")
    return Fit(sum(map(len, batches)), variance, before, after)


class _Tower:
    """The two towers, and which units of the full one the slim one kept."""

    def __init__(self, source: Sam3, target: Sam3, plan: Plan) -> None:
        self.full, self.slim = source.vision_encoder.backbone, target.vision_encoder.backbone
        self.full_neck, self.slim_neck = source.vision_encoder.neck, target.vision_encoder.neck
        self.plan, self.blocks = plan, plan["vit.blocks"].indices
        self.head_size = unit_size(source.spec, "vit[0].heads")
        weight = self.slim.layer_norm.weight
        kept = torch.tensor(plan["vit.channels"].indices, device=weight.device)
        # From the wide stream to the narrow one: at first the channels that were chosen.
        self.map = torch.eye(plan["vit.channels"].total, dtype=torch.float64, device=weight.device)[kept]

    def heads(self, block: int) -> Tensor:
        """Entries of the full q, k, v that the slim block keeps."""
        heads = torch.tensor(self.plan[f"vit[{block}].heads"].indices, device=self.map.device)
        return (heads[:, None] * self.head_size + torch.arange(self.head_size, device=self.map.device)).flatten()

    def units(self, axis: str) -> Tensor:
        return torch.tensor(self.plan[axis].indices, device=self.map.device)

    def narrow(self, stream: Tensor) -> Tensor:
        """[..., wide] → [..., narrow]."""
        return stream @ self.map.T.to(stream)

    # -- turning -----------------------------------------------------------------------------------------------------

    def turn(self, batches: Sequence[Tensor]) -> float:
        """Replace channels by principal directions everywhere; the share of variance that is kept."""
        moments = Moments(len(self.map.T), self.map.device)
        for pixels in batches:
            norms = {f"{i}.{n}": self.full.layers[i].get_submodule(n)
                     for i in self.blocks for n in ("layer_norm1", "layer_norm2")}  # fmt: skip
            with _seeing(norms) as seen:
                moments.add(self.full(pixels).last_hidden_state, FINAL_WEIGHT)
            for stream, _ in seen.values():
                moments.add(stream)
        self.map, share = principal_map(moments.total, len(self.map))
        self._turn_blocks()
        self._turn_neck()
        self._turn_embeddings(batches)
        return share

    def _turn_blocks(self) -> None:
        wide, narrow = self.map.shape[1], self.map.shape[0]
        # Norms divide by the root mean square of fewer entries, so what they hand on is longer by this, at most.
        longer = (wide / narrow) ** 0.5

        def read(mine: nn.Linear, its: nn.Linear, norm: nn.LayerNorm, rows: Tensor) -> None:
            """The norm's own scale and shift go into what reads it."""
            weight = its.weight.double()
            _set(mine, (weight * norm.weight.double())[rows] @ self.map.T * longer,
                 (its.bias.double() + weight @ norm.bias.double())[rows])  # fmt: skip

        def write(mine: nn.Linear, its: nn.Linear, columns: Tensor) -> None:
            _set(mine, self.map @ its.weight.double()[:, columns], self.map @ its.bias.double())

        for i, block in enumerate(self.blocks):
            mine, its = self.slim.layers[i], self.full.layers[block]
            heads, neurons = self.heads(i), self.units(f"vit[{i}].neurons")
            for name in ("q_proj", "k_proj", "v_proj"):
                read(mine.attention.get_submodule(name), its.attention.get_submodule(name), its.layer_norm1, heads)
            write(mine.attention.o_proj, its.attention.o_proj, heads)
            read(mine.mlp.fc1, its.mlp.fc1, its.layer_norm2, neurons)
            write(mine.mlp.fc2, its.mlp.fc2, neurons)
            for norm in (mine.layer_norm1, mine.layer_norm2):
                norm.weight.fill_(1)
                norm.bias.zero_()

    def _turn_neck(self) -> None:
        for level, (mine, its) in enumerate(zip(self.slim_neck.fpn_layers, self.full_neck.fpn_layers, strict=True)):
            (name, first), *_ = _convolutions(mine)
            weight = its.get_parameter(f"{name}.weight").double()
            if isinstance(first, nn.ConvTranspose2d):
                weight = weight[:, self.units(f"neck[{level}].half")]
                first.weight.copy_(torch.einsum("nw,wohv->nohv", self.map, weight))
            else:
                first.weight.copy_(torch.einsum("nw,owhv->onhv", self.map, weight))

    def _turn_embeddings(self, batches: Sequence[Tensor]) -> None:
        """The first norm writes the stream itself: its scale goes in front of it, and what is lost is fitted."""
        mine, its, norm = self.slim.embeddings, self.full.embeddings, self.full.layer_norm
        wide = self.map.shape[1]
        centre = torch.eye(wide).to(self.map) - 1 / wide
        embed = (self.map * norm.weight.double()) @ centre
        embed = embed - embed.mean(dim=0)  # the mean of what it scaled is not the norm's to take away
        mine.patch_embeddings.projection.weight.copy_(
            torch.einsum("nw,wchv->nchv", embed, its.patch_embeddings.projection.weight.double())
        )
        mine.position_embeddings.copy_(its.position_embeddings.double() @ embed.T)
        self.slim.layer_norm.weight.fill_(1)
        self.slim.layer_norm.bias.zero_()
        fits = [LeastSquares(one, one[0] * 0) for one in self.map.new_ones(len(self.map), 1, 1)]
        for pixels in batches:
            given, wanted = self._embedded(self.slim, pixels), self.narrow(self._embedded(self.full, pixels))
            for channel, fit in enumerate(fits):
                fit.add(given[..., channel, None], wanted[..., channel, None])
        solved = [fit.solve() for fit in fits]
        self.slim.layer_norm.weight.copy_(torch.stack([weight[0, 0] for weight, _ in solved]))
        self.slim.layer_norm.bias.copy_(torch.stack([bias[0] for _, bias in solved]))

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(self, batches: Sequence[Tensor]) -> None:
        """Every linear layer in order, then the neck."""
        full = [self._embedded(self.full, pixels) for pixels in batches]
        slim = [self._embedded(self.slim, pixels) for pixels in batches]
        done = 0
        blocks = list(enumerate(self.blocks))
        quiet = this_process().rank > 0
        for i, block in track(blocks, "fitting the vision tower", transient=True, disable=quiet):
            for skipped in range(done, block):
                full = [self.full.layers[skipped](stream) for stream in full]
            done = block + 1
            full = self._fit_block(i, block, full, slim)
            slim = [self.slim.layers[i](stream) for stream in slim]
        for skipped in range(done, len(self.full.layers)):
            full = [self.full.layers[skipped](stream) for stream in full]
        for level in range(len(self.slim_neck.fpn_layers)):
            self._fit_level(level, [_image(stream) for stream in full], [_image(stream) for stream in slim])

    def _fit_block(self, i: int, block: int, full: list[Tensor], slim: list[Tensor]) -> list[Tensor]:
        """Fit block ``i`` to the full tower's ``block``; what the latter hands on."""
        mine, its = self.slim.layers[i], self.full.layers[block]
        heads, neurons = self.heads(i), self.units(f"vit[{i}].neurons")
        projections = {name: its.attention.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")}
        wanted: list[dict[str, Tensor]] = []
        for stream in full:
            with _seeing({**projections, "norm": its.layer_norm2, "fc1": its.mlp.fc1}) as seen:
                out = its(stream)
            wanted.append({
                **{name: seen[name][1][..., heads] for name in projections},
                "middle": self.narrow(seen["norm"][0]), "fc1": seen["fc1"][1][..., neurons], "out": out,
            })  # fmt: skip

        def fit(linear: nn.Linear, rows: Callable[[Seen, Tensor, dict[str, Tensor]], tuple[Tensor, Tensor]]) -> None:
            fitted = LeastSquares(linear.weight, linear.bias)
            watched = {"linear": linear, "norm": mine.layer_norm2}
            for stream, want in zip(slim, wanted, strict=True):
                with _seeing(watched) as seen:
                    mine(stream)
                fitted.add(*rows(seen, stream, want))
            _set(linear, *fitted.solve())

        def same(name: str) -> Callable[[Seen, Tensor, dict[str, Tensor]], tuple[Tensor, Tensor]]:
            return lambda seen, stream, want: (seen["linear"][0], want[name])

        for name in projections:
            fit(mine.attention.get_submodule(name), same(name))
        fit(mine.attention.o_proj, lambda seen, stream, want: (
            _spatial(seen["linear"][0], stream, mine.window_size), want["middle"] - stream
        ))  # fmt: skip
        fit(mine.mlp.fc1, same("fc1"))
        fit(mine.mlp.fc2, lambda seen, stream, want: (seen["linear"][0], self.narrow(want["out"]) - seen["norm"][0]))
        return [want["out"] for want in wanted]

    def _fit_level(self, level: int, full: list[Tensor], slim: list[Tensor]) -> None:
        """The convolutions of one map of the neck up to its own width; each of them sees one pixel at a time."""
        mine, its = self.slim_neck.fpn_layers[level], self.full_neck.fpn_layers[level]
        kept = {f"scale_layers.{n}": f"neck[{level}].{name}" for n, name in ((0, "half"), (2, "quarter"))}
        for name, conv in _convolutions(mine):
            original = its.get_submodule(name)
            up = isinstance(conv, nn.ConvTranspose2d)
            weight, bias = _taps(conv) if up else (conv.weight[:, :, 0, 0], conv.bias)
            # The four taps of an upsampling share a bias: it stays as it is.
            fitted = LeastSquares(weight, bias, intercept=not up)
            for whole, cut in zip(full, slim, strict=True):
                with _seeing({"its": original}) as theirs:
                    its(whole)
                with _seeing({"mine": conv}) as ours:
                    mine(cut)
                wanted = theirs["its"][1]
                if up:
                    wanted = _folded(wanted[:, self.units(kept[name])])
                fitted.add(ours["mine"][0].movedim(1, -1), wanted.movedim(1, -1))
            weight, bias = fitted.solve()
            if up:
                conv.weight.copy_(weight.unflatten(0, (-1, 2, 2)).permute(3, 0, 1, 2))
            else:
                conv.weight.copy_(weight[:, :, None, None])
                conv.bias.copy_(bias)

    @staticmethod
    def _embedded(tower: Any, pixels: Tensor) -> Tensor:
        """The stream [B, h, w, width] in front of the first block."""
        embedded = tower.embeddings(pixels)
        patch = tower.config.patch_size
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        stream: Tensor = tower.layer_norm(embedded.unflatten(1, grid))
        return stream


@contextmanager
def _seeing(modules: dict[str, nn.Module]) -> Iterator[Seen]:
    """What goes into and comes out of some modules while the body runs."""
    seen: Seen = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (args[0], output)

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _errors(source: Sam3, target: Sam3, batches: Sequence[Tensor]) -> tuple[float, ...]:
    """Squared error of the maps the detector reads over their variance."""
    error: list[Tensor | float] = []
    power: list[Tensor | float] = []
    for pixels in batches:
        full, slim = (model.get_vision_features(pixels).fpn_hidden_states[:-1] for model in (source, target))
        error, power = error or [0.0] * len(full), power or [0.0] * len(full)
        for level, (want, found) in enumerate(zip(full, slim, strict=True)):
            error[level] += (found - want).square().sum(dtype=torch.float64)
            power[level] += (want - want.mean()).square().sum(dtype=torch.float64)
    return tuple(float(e / p) for e, p in zip(error, power, strict=True))


def _convolutions(level: nn.Module) -> list[tuple[str, Any]]:
    """Those from the tower's width to the neck's, in order."""
    found = [(name, module) for name, module in level.named_modules() if isinstance(module, nn.ConvTranspose2d)]
    return [*found, ("proj1", level.proj1)]


def _taps(conv: nn.ConvTranspose2d) -> tuple[Tensor, Tensor]:
    """An upsampling by its own kernel as a linear map: weight [outputs · 4, inputs] and bias."""
    assert conv.bias is not None
    assert conv.kernel_size == conv.stride == (2, 2)
    return conv.weight.permute(1, 2, 3, 0).flatten(0, 2), conv.bias.repeat_interleave(4)


def _folded(picture: Tensor) -> Tensor:
    """[B, C, 2h, 2w] → [B, C · 4, h, w], in the order of ``_taps``."""
    return nn.functional.pixel_unshuffle(picture, 2)


def _spatial(windows: Tensor, like: Tensor, size: int) -> Tensor:
    """[windows, size, size, C] or [B, h, w, C] → [B, h, w, C], padding removed."""
    if not size:
        return windows
    height, width = like.shape[1:3]
    padded = (-(-height // size) * size, -(-width // size) * size)
    found: Tensor = window_unpartition(windows, size, padded, (height, width))
    return found


def _image(stream: Tensor) -> Tensor:
    """[B, h, w, C] → [B, C, h, w]."""
    return stream.movedim(-1, 1)


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
