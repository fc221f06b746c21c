"""Fitting a cut vision tower to the full one: layer by layer, in closed form, without gradients.

After a cut every layer reads a stream that is not the one it was trained on. Each linear layer is therefore fitted, in
order, to what its original hands on for the same pictures (least squares on the inputs it really gets, as He et al.,
arXiv:1707.06168, section 3, do for channels), so that a layer also makes up for what was cut before it: channels,
heads, neurons, whole blocks. Where the tower becomes narrower, its stream first keeps principal directions in the
place of channels, see ``principal``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import window_unpartition

from sam3slim.environment import this_process
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.models import Sam3
from sam3slim.progress import progress_bar
from sam3slim.slimming.check import unit_size
from sam3slim.slimming.least_squares import LeastSquares
from sam3slim.slimming.plan import Fit, Plan
from sam3slim.slimming.principal import Moments, principal_map

Seen = dict[str, tuple[Tensor, Tensor]]  # module → its input and output
FINAL_WEIGHT = 2.0  # of the tower's output among the norms that read the stream: the whole neck reads it


@torch.no_grad()
def fit_vision(source: Sam3, target: Sam3, plan: Plan, batches: Sequence[Tensor]) -> Fit:
    """Fit ``target``'s vision tower to ``source``'s; in place.

    Memory: the streams of both towers for all batches, and what one block of the full tower, or one level of its neck,
    hands on.

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
    with eval_mode(source), eval_mode(target):
        before = _errors([model.get_vision_features(pixels).fpn_hidden_states for model in (source, target)]
                         for pixels in batches)  # fmt: skip
        if not all(map(math.isfinite, before)):
            raise UserError(
                "init.fit_batches: the vision tower's maps are not finite on these images; "
                "check the checkpoint and the images, or use init.fit_batches=0"
            )
        towers = _Towers(source, target, plan)
        variance = towers.turn(batches) if target.spec.vit.embed_dim < source.spec.vit.embed_dim else None
        after = _errors(towers.fit(batches))
    if not all(map(_finite, target.vision_encoder.parameters())):
        raise UserError("init.fit_batches: fitted weights are not finite on these images; use init.fit_batches=0")
    return Fit(sum(map(len, batches)), variance, before, after)


class _Towers:
    """The two towers, and which units of the full one the slim one kept."""

    def __init__(self, source: Sam3, target: Sam3, plan: Plan) -> None:
        self.full, self.slim = source.vision_encoder.backbone, target.vision_encoder.backbone
        self.full_neck, self.slim_neck = source.vision_encoder.neck, target.vision_encoder.neck
        self.plan, self.blocks = plan, plan["vit.blocks"].indices
        self.head_size = unit_size(source.spec, "vit[0].heads")
        self.device = self.slim.layer_norm.weight.device
        # From the wide stream to the narrow one: at first the channels that were chosen.
        whole = torch.eye(plan["vit.channels"].total, dtype=torch.float64, device=self.device)
        self.map = whole[self.kept("vit.channels")]

    def kept(self, axis: str, unit: int = 1) -> Tensor:
        """Entries of the full tower's tensors that the slim ones keep."""
        return self.plan[axis].entries(unit).to(self.device)

    def heads(self, block: int) -> Tensor:
        """Entries of the full q, k, v that the slim block keeps."""
        return self.kept(f"vit[{block}].heads", self.head_size)

    def narrow(self, stream: Tensor) -> Tensor:
        """[..., wide] → [..., narrow]."""
        return stream @ self.map.T.to(stream)

    # -- turning -----------------------------------------------------------------------------------------------------

    def turn(self, batches: Sequence[Tensor]) -> float:
        """Replace channels by principal directions everywhere; the share of variance that is kept."""
        moments = Moments(len(self.map.T), self.device)
        for pixels in batches:
            norms = {f"{i}.{n}": self.full.layers[i].get_submodule(n)
                     for i in self.blocks for n in ("layer_norm1", "layer_norm2")}  # fmt: skip
            with _capture_io(norms) as seen:
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
            heads, neurons = self.heads(i), self.kept(f"vit[{i}].neurons")
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
            name, first = next(iter(_convolutions(mine).items()))
            weight = its.get_parameter(f"{name}.weight").double()
            if isinstance(first, nn.ConvTranspose2d):
                weight = weight[:, self.kept(f"neck[{level}].half")]
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

    def fit(self, batches: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
        """Every linear layer in order, then the neck; for each batch the maps of both, the full ones first."""
        full = [self._embedded(self.full, pixels) for pixels in batches]
        slim = [self._embedded(self.slim, pixels) for pixels in batches]
        done = 0
        with progress_bar(show=this_process().rank == 0) as bar:
            for i, block in enumerate(bar.track(self.blocks, description="fitting the vision tower")):
                for skipped in range(done, block):
                    full = [self.full.layers[skipped](stream) for stream in full]
                done = block + 1
                full = self._fit_block(i, block, full, slim)
                slim = [self.slim.layers[i](stream) for stream in slim]
        for skipped in range(done, len(self.full.layers)):
            full = [self.full.layers[skipped](stream) for stream in full]
        pairs = [(whole.movedim(-1, 1), cut.movedim(-1, 1)) for whole, cut in zip(full, slim, strict=True)]
        for level in range(len(self.slim_neck.fpn_layers)):
            self._fit_level(level, pairs)
        necks = (self.full_neck, self.slim_neck)
        return ([[level(image) for level in neck.fpn_layers] for neck, image in zip(necks, pair, strict=True)]
                for pair in pairs)  # fmt: skip

    def _fit_block(self, i: int, block: int, full: list[Tensor], slim: list[Tensor]) -> list[Tensor]:
        """Fit block ``i`` to the full tower's ``block``; what the latter hands on."""
        mine, its = self.slim.layers[i], self.full.layers[block]
        heads, neurons = self.heads(i), self.kept(f"vit[{i}].neurons")
        projections = {name: its.attention.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")}
        wanted: list[dict[str, Tensor]] = []
        handed_on = []
        for stream in full:
            with _capture_io({**projections, "norm": its.layer_norm2, "fc1": its.mlp.fc1}) as seen:
                handed_on.append(its(stream))
            wanted.append({
                **{name: seen[name][1][..., heads] for name in projections}, "fc1": seen["fc1"][1][..., neurons],
                "middle": self.narrow(seen["norm"][0]), "end": self.narrow(handed_on[-1]),
            })  # fmt: skip

        def rows(name: str, seen: Seen, stream: Tensor, want: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            """What the layer reads, and what it should make of it: after either half, what the stream still lacks."""
            read = seen[name][0]
            if name == "o_proj":
                return _spatial(read, stream, mine.window_size), want["middle"] - stream
            return read, want["end"] - seen["norm"][0] if name == "fc2" else want[name]

        linears = {**dict(mine.attention.named_children()), **dict(mine.mlp.named_children())}
        for names in (tuple(projections), ("o_proj",), ("fc1",), ("fc2",)):  # those that read the same at once
            fits = {name: LeastSquares(linears[name].weight, linears[name].bias) for name in names}
            watched = {**{name: linears[name] for name in names}, "norm": mine.layer_norm2}
            for stream, want in zip(slim, wanted, strict=True):
                with _capture_io(watched) as seen:
                    mine(stream)
                for name, fit in fits.items():
                    fit.add(*rows(name, seen, stream, want))
            for name, fit in fits.items():
                _set(linears[name], *fit.solve())
        return handed_on

    def _fit_level(self, level: int, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """The convolutions of one map of the neck up to its own width; each of them sees one pixel at a time."""
        mine, its = self.slim_neck.fpn_layers[level], self.full_neck.fpn_layers[level]
        axes = {"scale_layers.0": f"neck[{level}].half", "scale_layers.2": f"neck[{level}].quarter"}
        convolutions = _convolutions(mine)
        originals = {name: its.get_submodule(name) for name in convolutions}
        wanted: list[dict[str, Tensor]] = []
        for whole, _ in pairs:
            with _capture_io(originals) as seen:
                its(whole)
            wanted.append({
                name: _folded(made[:, self.kept(axes[name])]) if name in axes else made
                for name, (_, made) in seen.items()
            })  # fmt: skip
        for name, conv in convolutions.items():
            up = name in axes
            weight, bias = _taps(conv) if up else (conv.weight[:, :, 0, 0], conv.bias)
            # The four taps of an upsampling share a bias: it stays as it is.
            fitted = LeastSquares(weight, bias, intercept=not up)
            for (_, cut), want in zip(pairs, wanted, strict=True):
                with _capture_io({name: conv}) as seen:
                    mine(cut)
                fitted.add(seen[name][0].movedim(1, -1), want[name].movedim(1, -1))
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
def _capture_io(modules: dict[str, nn.Module]) -> Iterator[Seen]:
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


def _errors(batches: Iterable[Sequence[Sequence[Tensor]]]) -> tuple[float, ...]:
    """Squared error of the maps the detector reads over their variance; full and slim maps of every batch."""
    error: list[Tensor | float] = []
    power: list[Tensor | float] = []
    for full, slim in batches:
        read = len(full) - 1  # not the coarsest
        error, power = error or [0.0] * read, power or [0.0] * read
        for level, (want, found) in enumerate(zip(full[:read], slim[:read], strict=True)):
            error[level] += (found - want).square().sum(dtype=torch.float64)
            power[level] += (want - want.mean()).square().sum(dtype=torch.float64)
    return tuple(float(e / p) for e, p in zip(error, power, strict=True))


def _convolutions(level: nn.Module) -> dict[str, Any]:
    """Those from the tower's width to the neck's, in order."""
    found = {name: module for name, module in level.named_modules() if isinstance(module, nn.ConvTranspose2d)}
    return {**found, "proj1": level.proj1}


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


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
