"""What a teacher says about the prompts of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Change = Callable[[Tensor], Tensor]


@dataclass
class SoftTargets:
    """A teacher's answers to the P prompts of B images: K confident queries, packed, and maps.

    Floats are of any floating type; whoever computes with them turns them into float32.

    Attributes:
        presence: [P] probability that the concept is in the image.
        rest: [P] mean class probability of the queries that are not among the K.
        boxes: [K, 4] (cx, cy, w, h) in 0..1.
        scores: [K] class probability.
        masks: [K, h, w] logits, or None when masks are not taught.
        prompt_index: [K] int64, non-decreasing.
        semantic: [P, h, w] logits of the union of all instances, or None.
        fpn: the neck's maps [B, d_model, H, W], fine to coarse; empty when they are not taught.
        memory: [P, H·W, d_model] after the DETR encoder, or None.
    """

    presence: Tensor
    rest: Tensor
    boxes: Tensor
    scores: Tensor
    masks: Tensor | None
    prompt_index: Tensor
    semantic: Tensor | None = None
    fpn: tuple[Tensor, ...] = ()
    memory: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """[K] float32: how sure the teacher is of each query, class times presence."""
        return self.scores.float() * self.presence.float()[self.prompt_index]

    @classmethod
    def join(cls, parts: Sequence[SoftTargets]) -> SoftTargets:
        """The prompts of several answers one after another; maps of images likewise."""
        starts = torch.tensor([0, *(len(part.presence) for part in parts[:-1])]).cumsum(0).tolist()
        index = [part.prompt_index + start for part, start in zip(parts, starts, strict=True)]
        values: dict[str, Any] = {"prompt_index": torch.cat(index)}
        for name in ("presence", "rest", "boxes", "scores", "masks", "semantic", "memory"):
            found = [value for part in parts if (value := getattr(part, name)) is not None]
            values[name] = torch.cat(found) if len(found) == len(parts) else None
        maps = zip(*(part.fpn for part in parts), strict=True)
        return cls(**values, fpn=tuple(torch.cat(level) for level in maps))

    def part(self, prompts: slice) -> SoftTargets:
        """The answers to some prompts in a row, which are counted from 0 again; without the images' maps."""
        own = (self.prompt_index >= prompts.start) & (self.prompt_index < prompts.stop)
        values: dict[str, Any] = {"prompt_index": self.prompt_index[own] - prompts.start}
        for names, place in (
            (("presence", "rest", "semantic", "memory"), prompts),
            (("boxes", "scores", "masks"), own),
        ):
            for name in names:
                value = getattr(self, name)
                values[name] = value if value is None else value[place]
        return SoftTargets(**values)

    def resized(self, grid: int) -> SoftTargets:
        """The maps as a student has them whose encoder sees ``grid`` x ``grid`` places; boxes are relative anyway.

        Features are interpolated, and so are the masks' probabilities: what a smaller pixel covers is the mean of what
        it covers. (Bilinear, antialiased where maps shrink.) Maps that have the size already stay as they are.
        """
        # The neck's maps are 4, 2 and 1 times the encoder's, masks 4 times.
        levels = [level.shape[-1] // self.fpn[-1].shape[-1] * grid for level in self.fpn]
        memory = self.memory
        if memory is not None and memory.shape[1] != grid * grid:
            own = math.isqrt(memory.shape[1])
            maps = memory.transpose(1, 2).reshape(len(memory), memory.shape[2], own, own)
            memory = _resized(maps, grid).flatten(2).transpose(1, 2)
        return replace(
            self,
            fpn=tuple(_resized(level, side) for level, side in zip(self.fpn, levels, strict=True)),
            memory=memory,
            masks=None if self.masks is None else _resized_logits(self.masks, 4 * grid),
            semantic=None if self.semantic is None else _resized_logits(self.semantic, 4 * grid),
        )

    @classmethod
    def nothing(cls, zeros: Tensor | None = None, fpn: tuple[Tensor, ...] = ()) -> SoftTargets:
        """Maps alone, and P prompts (``zeros`` [P]; None: no prompt) that nothing is said about."""
        zeros = torch.zeros(0) if zeros is None else zeros
        none = zeros[:0]
        return cls(zeros, zeros, none.reshape(0, 4), none, None, none.long(), fpn=fpn)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SoftTargets:
        """The same on ``device``."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SoftTargets:
        """The same in page-locked memory."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Change) -> SoftTargets:
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, tuple):
                values[item.name] = tuple(change(v) for v in value)
            else:
                values[item.name] = value if value is None else change(value)
        return SoftTargets(**values)


def _resized(maps: Tensor, side: int) -> Tensor:
    """[N, d, h, w] to [N, d, side, side] float32; unchanged where that is its size."""
    if maps.shape[-2:] == (side, side):
        return maps
    if not maps.numel():
        return maps.new_zeros(*maps.shape[:-2], side, side, dtype=torch.float32)
    return F.interpolate(maps.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def _resized_logits(logits: Tensor, side: int) -> Tensor:
    """[N, h, w] to [N, side, side] through the probabilities."""
    if logits.shape[-2:] == (side, side):
        return logits
    return _resized(logits.float().sigmoid()[:, None], side)[:, 0].logit(eps=1e-6)
