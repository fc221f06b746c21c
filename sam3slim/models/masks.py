"""Masks of the queries that a loss looks at: all of a prompt's would be hundreds of maps of the finest resolution."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.models.sam3.modeling_sam3 import Sam3MaskDecoder

from sam3slim.models.pixels import level_shares, masks_shared, worth_sharing
from sam3slim.parts import parts


class MaskHead:
    """The mask head of one forward pass, computed for pairs of prompt and query when they are known.

    Its pixel decoder runs once for all that is asked together, a few prompts at a time.

    Args:
        decoder: SAM 3's mask head.
        queries: [P, Q, d] normalised queries of the last layer, copies of the one-to-many branch included.
        fpn: 3 × [B, d, H, W] of the B images, fine to coarse.
        image_index: [P] int64, the image of each prompt; None: prompt i asks image i.
        memory: [P, H·W, d] after the encoder.
        prompt: [P, T, d]; ``prompt_mask`` [P, T] bool.
        recompute: keep only these arguments for the backward pass (activation checkpointing).
        shared: prompts share what depends on their image alone; for eval mode without gradients.
    """

    def __init__(
        self,
        decoder: Sam3MaskDecoder,
        queries: Tensor,
        fpn: tuple[Tensor, ...],
        image_index: Tensor | None,
        memory: Tensor,
        prompt: Tensor,
        prompt_mask: Tensor,
        *,
        recompute: bool = False,
        shared: bool = False,
    ) -> None:
        self._decoder, self._queries, self._fpn = decoder, queries, fpn
        if image_index is None:
            image_index = torch.arange(len(queries))
        self._image = image_index.to(queries.device)
        self._rows = (memory, prompt, prompt_mask)
        self._recompute, self._shared = recompute, shared
        self._codes: Tensor | None = None
        self._masks: Tensor | None = None
        self._semantic: Tensor | None = None

    def compute(self, prompt: Tensor, query: Tensor, *, semantic: bool = True) -> None:
        """Compute the masks of the pairs (prompt, query), [M] int64 each and in any order, and the semantic map.

        What several losses need is asked in one call: the pixel decoder then runs once. Without ``semantic`` it runs
        for the prompts among the pairs only.
        """
        prompts, queries = self._queries.shape[:2]
        self._codes = torch.unique(prompt * queries + query)
        owner, wanted = self._codes // max(queries, 1), self._codes % max(queries, 1)
        rows = None if semantic else torch.unique(owner)
        if rows is not None:
            if not len(rows):
                self._masks = self._fpn[0].new_zeros(0, *self._fpn[0].shape[-2:])
                return
            owner, prompts = torch.searchsorted(rows, owner), len(rows)
        counts = torch.bincount(owner, minlength=prompts)
        place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        ends = [0, *counts.cumsum(0).tolist()]
        image, shares = self._level_shares(rows)
        masks, maps = [], []
        for part in parts(prompts, self._fpn[0][0].numel()):
            mine = slice(ends[part.start], ends[part.stop])
            chosen = part if rows is None else rows[part]
            found = self._part(chosen, image[part], owner[mine] - part.start, place[mine], wanted[mine], shares)
            masks.append(found[0])
            maps.append(found[1])
        self._masks = masks[0] if len(masks) == 1 else torch.cat(masks)
        if semantic:
            self._semantic = maps[0] if len(maps) == 1 else torch.cat(maps)

    def _level_shares(self, rows: Tensor | None) -> tuple[Tensor, list[Tensor] | None]:
        """The image of every prompt of ``rows`` (None: of all), and what the images give where prompts share it."""
        image = self._image if rows is None else self._image[rows]
        if not self._shared:
            return image, None
        images, place = torch.unique(image, return_inverse=True)
        if not worth_sharing(len(image), len(images)):
            return image, None
        return place, level_shares(self._decoder, tuple(level[images] for level in self._fpn))

    def _part(
        self,
        prompts: slice | Tensor,
        image: Tensor,
        owner: Tensor,
        place: Tensor,
        wanted: Tensor,
        shares: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Masks [M, h, w] and semantic map of some prompts about ``image``, to which ``owner`` [M] counts."""
        most = int(place.max()) + 1 if len(place) else 0
        memory, prompt, prompt_mask, queries = (row[prompts] for row in (*self._rows, self._queries))
        chosen = image.new_zeros(len(image), most)
        chosen[owner, place] = wanted
        if shares is not None:
            found = masks_shared(self._decoder, shares, image, _pick(queries, chosen), memory, prompt, prompt_mask)
            return found[0][owner, place], found[1]
        run = partial(_masks_of, self._decoder, owner, place)
        arguments = (chosen, queries, memory, prompt, prompt_mask, image, *self._fpn)
        if self._recompute and torch.is_grad_enabled():
            kept: tuple[Tensor, Tensor] = checkpoint(run, *arguments, use_reentrant=False)
            return kept
        return run(*arguments)

    def at(self, prompt: Tensor, query: Tensor) -> Tensor:
        """Mask logits [M, h, w] of the pairs; those that have not been computed yet are, by themselves."""
        codes = prompt * self._queries.shape[1] + query
        if self._codes is None or not bool(torch.isin(codes, self._codes).all()):
            self.compute(prompt, query, semantic=False)
        assert self._codes is not None
        assert self._masks is not None
        return self._masks[torch.searchsorted(self._codes, codes)]

    @property
    def semantic(self) -> Tensor:
        """[P, 1, h, w] logits of the union of all instances."""
        if self._semantic is None:
            none = self._image[:0]
            self.compute(none, none)
        assert self._semantic is not None
        return self._semantic


class AskedMasks:
    """What stands in a ``Sam3Output`` for masks [P, Q, h, w]: ``masks[prompt, query]`` computes those asked for.

    Args:
        head: of the forward pass.
        first: index of query 0 among the head's queries.
    """

    def __init__(self, head: MaskHead, first: int = 0) -> None:
        self.head, self.first = head, first

    def __getitem__(self, pairs: tuple[Tensor, Tensor]) -> Tensor:
        prompt, query = pairs
        return self.head.at(prompt, query + self.first)


class AskedSemantic:
    """What stands in a ``Sam3Output`` for the semantic map [P, 1, h, w]: indexing computes it."""

    def __init__(self, head: MaskHead) -> None:
        self.head = head

    def __getitem__(self, place: Any) -> Tensor:
        return self.head.semantic[place]


def _masks_of(
    decoder: Sam3MaskDecoder,
    owner: Tensor,
    place: Tensor,
    chosen: Tensor,
    queries: Tensor,
    memory: Tensor,
    prompt: Tensor,
    prompt_mask: Tensor,
    image: Tensor,
    *fpn: Tensor,
) -> tuple[Tensor, Tensor]:
    """Masks [M, h, w] of the chosen queries [p, n] at (owner, place), and the semantic map [p, 1, h, w]."""
    found = decoder(
        decoder_queries=_pick(queries, chosen),
        backbone_features=[level[image] for level in fpn],  # a copy of the finest maps for every prompt
        encoder_hidden_states=memory,
        prompt_features=prompt,
        prompt_mask=prompt_mask,
    )
    return found.pred_masks[owner, place], found.semantic_seg


def _pick(queries: Tensor, chosen: Tensor) -> Tensor:
    """[p, Q, d] and [p, n] int64 → [p, n, d]."""
    return queries.gather(1, chosen[..., None].expand(-1, -1, queries.shape[-1]))
