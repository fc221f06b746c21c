"""SAM 3's vision tower from a plain pre-trained ViT: what maps exactly, and what is fitted.

Exact: patch kernel and bias (picture normalisation folded in), layer scale, all norms and MLPs, positions (resized).
The three things that SAM 3's tower does differently:

* **A norm in front of the first block.** It divides by a token's own deviation. A large constant along a direction in
  which the ViT's stream is silent, added to all positions, makes that deviation the same for all tokens: the norm is
  then linear up to the square of stream over constant. What it takes away besides, the mean over channels, no reader of
  the stream sees, because all of them are norms.
* **RoPE.** What queries and keys say to each other does not change under an invertible map of a head's query space and
  its inverse transpose on the keys, nor when all keys of a head move by the same vector. The balanced coordinates
  (Moore 1981, doi 10.1109/TAC.1981.1102568: both moments equal and diagonal) put what is said into few coordinates,
  sorted: the loudest get the pairs that RoPE turns slowest, and the keys lose their mean.
* **No class or register tokens.** They are left out; what they added is constant or linear in the patches to a large
  part, and goes into the layers that are fitted.

Every linear layer is then fitted in order by least squares to what the ViT hands on for the same pictures, as in
``fit``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.environment import this_process
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.models import Sam3
from sam3slim.models.plain_vit import PlainBlock, PlainVit
from sam3slim.progress import progress_bar
from sam3slim.slimming.fitting.blocks import capture, set_linear, spatial
from sam3slim.slimming.least_squares import LeastSquares
from sam3slim.specs import VitSpec, mlp_ratio

LOUDNESS = 20.0  # of the constant along the silent direction, in median lengths of the stream
RIDGE = 1e-6  # of a head's mean moment, where its queries or keys do not reach all directions
FEATURE_RIDGE = 1e-4  # of the map from the tower's output to the ViT's features, which is only reported


@dataclass(frozen=True)
class VisionFit:
    """How well a tower does what the ViT did, on pictures that it was not fitted on where there were several batches.

    Attributes:
        source: the ViT.
        images, held_out: pictures it was fitted on, and those of the numbers; held_out is 0 where they are the same.
        stream: squared error of the stream over its variance, its mean over channels aside: in front of the first
            block, then after each.
        features: squared error that the best linear map from the tower's output to the ViT's patch features leaves,
            over their variance; the map is found on the pictures of the fit.
    """

    source: str
    images: int
    held_out: int
    stream: tuple[float, ...]
    features: float

    def describe(self) -> str:
        """Two lines."""
        stream = " ".join(f"{error:.3f}" for error in self.stream)
        where = f"{self.held_out} others" if self.held_out else "the same"
        return (
            f"vision tower from {self.source}, fitted on {self.images} pictures; error of its stream on {where}, block "
            f"by block: {stream}\n  a linear map of its output leaves {self.features:.3f} of the variance of "
            f"{self.source}'s patch features"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VisionFit:
        """Inverse of ``to_dict``."""
        return cls(**{**values, "stream": tuple(values["stream"])})


def check_vision(vit: PlainVit, spec: VitSpec) -> None:
    """Raise UserError, naming what would fit, unless ``spec``'s tower has the sizes of ``vit``."""
    has = vit.sizes
    wanted = {
        "embed_dim": (spec.embed_dim, has.embed_dim), "depth": (spec.depth, has.depth),
        "num_heads": (spec.num_heads, has.num_heads), "patch_size": (spec.patch_size, has.patch_size),
        "mlp_ratio": (spec.intermediate_size, has.intermediate_size),
    }  # fmt: skip
    differ = [key for key, (mine, its) in wanted.items() if mine != its]
    if not differ:
        return
    fits = {key: its for key, (_, its) in wanted.items()} | {
        "mlp_ratio": mlp_ratio(has.intermediate_size, has.embed_dim)
    }
    raise UserError(
        f"init.vision={vit.source} is {has.embed_dim} wide with {has.depth} blocks of {has.num_heads} heads, MLPs of "
        f"{has.intermediate_size} and patches of {has.patch_size}, and this tower differs; set "
        f"{' '.join(f'model.vit.{key}={fits[key]:g}' for key in differ)}, or init.vision=null"
    )


@torch.no_grad()
def adopt_vision(vit: PlainVit, model: Sam3, batches: Sequence[Tensor]) -> VisionFit:
    """Give ``model``'s vision tower the weights of ``vit`` and fit it to it; in place.

    The neck's convolutions are scaled so that they read the tower's channels at mean 0 and deviation 1, as fresh
    weights expect.

    Args:
        vit: of the tower's sizes (``check_vision``), on the model's device, in eval mode; its queries and keys change
            coordinates, which changes nothing that it computes.
        model: its neck is fresh, but for its 3 x 3 convolutions.
        batches: pictures [B, 3, S, S], normalised as for training, on the same device. The last batch of several is
            kept out of the fit, for the numbers that are returned.

    Raises:
        UserError: no pictures, other sizes, values that are not finite.
    """
    check_vision(vit, model.spec.vit)
    if not batches:
        raise UserError("init.vision needs training images, and there are none; check data.root and data.limit")
    tower: Any = model.vision_encoder.backbone
    fitted = list(batches[:-1] or batches)
    with eval_mode(model):
        work = _Adoption(vit, tower, fitted, batches[-1])
        errors = work.run()
        features = work.feature_error()
        _standardise(model.vision_encoder.neck, work.slim[:-1])
    if not all(bool(p.isfinite().all()) for p in model.vision_encoder.parameters()):
        raise UserError(f"init.vision={vit.source}: fitted weights are not finite on these images; use other images")
    held_out = len(batches[-1]) if len(batches) > 1 else 0
    return VisionFit(vit.source, sum(map(len, fitted)), held_out, tuple(errors), features)


class _Adoption:
    """Both streams of all batches, from block to block; the last batch is only looked at."""

    def __init__(self, vit: PlainVit, tower: Any, fitted: Sequence[Tensor], seen: Tensor) -> None:
        self.vit, self.tower = vit, tower
        self.batches = [*fitted, seen]
        self.full = [vit.embedded(pixels) for pixels in self.batches]
        self.slim: list[Tensor] = []

    def run(self) -> list[float]:
        """Map and fit everything in order; the stream's errors on the last batch."""
        self._embed()
        errors = [self._error()]
        with progress_bar(show=this_process().rank == 0) as bar:
            blocks: list[Any] = list(zip(self.tower.layers, self.vit.layers, strict=True))
            for mine, its in bar.track(blocks, description="fitting the vision tower"):
                _balance(its, mine, self.full[:-1], self.vit)
                mine.load_state_dict(its.state_dict(), strict=True)
                self.full = self._fit(mine, its)
                self.slim = [mine(stream) for stream in self.slim]
                errors.append(self._error())
        return errors

    def _embed(self) -> None:
        """Patch kernel, positions and the first norm."""
        tower, vit = self.tower, self.vit
        table = tower.embeddings.position_embeddings
        positions = vit.positions_on(round(table.shape[1] ** 0.5)).double() + vit.bias.double()
        tower.embeddings.patch_embeddings.projection.weight.copy_(vit.kernel)
        if isinstance(vit.first_norm, nn.LayerNorm):
            table.copy_(positions)
            tower.layer_norm.load_state_dict(vit.first_norm.state_dict())
        else:
            rows = _centred(torch.cat([vit.patches(stream).flatten(0, 2) for stream in self.full[:-1]]).double())
            constant = LOUDNESS * rows.norm(dim=1).median() * _silent_direction(rows)
            table.copy_(positions + constant)
            tower.layer_norm.weight.fill_(float(constant.square().mean().sqrt()))
            tower.layer_norm.bias.copy_(-_centred(constant))
        for pixels in self.batches:
            grid = (pixels.shape[-1] // vit.sizes.patch_size,) * 2
            self.slim.append(tower.layer_norm(tower.embeddings(pixels).unflatten(1, grid)))

    def _fit(self, mine: Any, its: PlainBlock) -> list[Tensor]:
        """Fit a block; what the ViT's block hands on. Memory: what it hands on within the block, for all batches."""
        names = {f"attention.{n}_proj": its.attention.get_submodule(f"{n}_proj") for n in "qkv"}
        watched = {**names, "norm": its.layer_norm2, "mlp.fc1": its.mlp.fc1}
        wanted: list[dict[str, Tensor]] = []
        handed_on = []
        for stream in self.full:
            with capture(watched) as seen:
                handed_on.append(its(stream))
            ends = {name: self.vit.patches(seen[name][1]) for name in watched if name != "norm"}
            middle, end = self.vit.patches(seen["norm"][0]), self.vit.patches(handed_on[-1])
            wanted.append({**ends, "attention.o_proj": middle, "mlp.fc2": end})
        for step in (tuple(names), ("attention.o_proj",), ("mlp.fc1",), ("mlp.fc2",)):
            layers = {name: mine.get_submodule(name) for name in step}
            fits = {name: LeastSquares(layer.weight, layer.bias) for name, layer in layers.items()}
            for stream, want in zip(self.slim[:-1], wanted[:-1], strict=True):
                with capture({**layers, "norm1": mine.layer_norm1, "norm": mine.layer_norm2}) as seen:
                    mine(stream)
                for name, fit in fits.items():
                    read = seen["norm1"][1] if name in names else seen[name][0]
                    if name == "attention.o_proj":
                        fit.add(spatial(read, mine, stream), _centred(want[name] - stream))
                    elif name == "mlp.fc2":
                        fit.add(read, _centred(want[name] - seen["norm"][0]))
                    else:
                        fit.add(read, want[name])
            for name, fit in fits.items():
                set_linear(layers[name], *fit.solve())
        return handed_on

    def _error(self) -> float:
        want = _centred(self.vit.patches(self.full[-1]))
        left = _centred(self.slim[-1]) - want
        return float(left.square().sum() / (want - want.mean((0, 1, 2))).square().sum())

    def feature_error(self) -> float:
        """What the best linear map to the ViT's features leaves on the last batch."""
        streams = [stream.flatten(0, 2).double() for stream in self.slim]
        features = [self.vit.final_norm(self.vit.patches(full)).flatten(0, 2).double() for full in self.full]
        x, y = torch.cat(streams[:-1]), torch.cat(features[:-1])
        means, mean = x.mean(0), y.mean(0)
        moments = (x - means).T @ (x - means)
        ridge = FEATURE_RIDGE * moments.diagonal().mean() * torch.eye(len(moments)).to(moments)
        weight = torch.linalg.solve(moments + ridge, (x - means).T @ (y - mean))
        left = (streams[-1] - means) @ weight + mean - features[-1]
        return float(left.square().sum() / (features[-1] - features[-1].mean(0)).square().sum())


def _centred(rows: Tensor) -> Tensor:
    """Without their mean over channels."""
    return rows - rows.mean(dim=-1, keepdim=True)


def _silent_direction(rows: Tensor) -> Tensor:
    """[C]: of mean 0 and length 1, in which ``rows`` [N, C] (of mean 0) vary least."""
    width = rows.shape[1]
    moments = rows.T @ rows
    ones = torch.ones(width, width).to(moments) / width
    # The direction of ones is empty in centred rows, and no norm hands it on.
    _, vectors = torch.linalg.eigh(moments + moments.trace() * ones)
    return _centred(vectors[:, 0])


def _balance(its: PlainBlock, mine: Any, streams: Sequence[Tensor], vit: PlainVit) -> None:
    """Balanced coordinates for queries and keys of a block, the loudest where RoPE turns slowest; in place, exact."""
    attention = its.attention
    inputs = torch.cat([vit.patches(its.layer_norm1(stream)).flatten(0, 2) for stream in streams])
    q_proj, k_proj = attention.q_proj, attention.k_proj
    queries, keys = q_proj(inputs).double(), k_proj(inputs).double()
    mean = keys.mean(dim=0)
    keys = keys - mean
    k_proj.bias.copy_(k_proj.bias - mean)
    size = queries.shape[1] // attention.heads
    # One frequency a pair: those of the height, then those of the width.
    turns = mine.rotary_emb.inv_freq.repeat(2).repeat_interleave(2)
    slowest = torch.argsort(turns, stable=True)
    for start in range(0, queries.shape[1], size):
        head = slice(start, start + size)
        left, right = _root(queries[:, head]), _root(keys[:, head])
        u, said, v = torch.linalg.svd(left.T @ right)
        said = said.clamp_min(said[0] * 1e-12).sqrt()
        maps = (said[:, None] * u.T @ torch.linalg.inv(left), said[:, None] * v @ torch.linalg.inv(right))
        for layer, change in zip((q_proj, k_proj), maps, strict=True):
            sorted_change = torch.empty_like(change)
            sorted_change[slowest] = change
            layer.weight[head] = (sorted_change @ layer.weight[head].double()).to(layer.weight)
            layer.bias[head] = (sorted_change @ layer.bias[head].double()).to(layer.bias)


def _root(rows: Tensor) -> Tensor:
    """L with L Lᵀ the second moments of ``rows`` [N, d], float64."""
    moments = rows.T @ rows / len(rows)
    return torch.linalg.cholesky(moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments)).to(moments))


def _standardise(neck: Any, streams: Sequence[Tensor]) -> None:
    """Let the fresh first convolution of every level read channels of mean 0 and deviation 1."""
    rows = torch.cat([stream.flatten(0, 2) for stream in streams])
    mean, deviation = rows.mean(dim=0), rows.std(dim=0).clamp_min(1e-6)
    for level in neck.fpn_layers:
        first = next(m for m in level.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
        up = isinstance(first, nn.ConvTranspose2d)
        shape = (-1, 1, 1, 1) if up else (1, -1, 1, 1)
        first.weight.div_(deviation.reshape(shape))
        assert first.bias is not None
        # An upsampling's four taps share one bias, which takes their average.
        taps = first.weight.mean((2, 3)).T if up else first.weight.sum((2, 3))
        first.bias.sub_(taps @ mean)
