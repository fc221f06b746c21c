"""Floating-point operations per part, counted on the architecture itself without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from sam3slim.models.build import empty_model
from sam3slim.models.decoder import decode
from sam3slim.models.encoder import encode_shared
from sam3slim.models.pixels import level_shares, masks_shared
from sam3slim.specs import ModelSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Flops:
    """Operations of matrix products and convolutions, a multiplication and an addition as two.

    Attributes:
        image: part → once per image: the vision tower, and what prompts of one image share.
        phrase: part → once per phrase: the text tower.
        prompt: part → for every prompt of an image (a phrase without boxes; masks of all queries).
    """

    image: dict[str, int]
    phrase: dict[str, int]
    prompt: dict[str, int]

    def total(self, prompts: int = 1) -> int:
        """Of one image with that many prompts, their phrases encoded before."""
        return sum(self.image.values()) + prompts * sum(self.prompt.values())


@lru_cache(maxsize=32)
def count_flops(spec: ModelSpec) -> Flops:
    """What ``spec`` computes for one image, one phrase and one prompt, by torch's ``FlopCounterMode`` on meta tensors.

    What prompts of an image share (``models.encoder``, ``models.pixels``) is counted with the image; a single prompt
    shares nothing and costs a little less than both. Not to be changed.
    """
    model: Any = empty_model(spec, device="meta").eval()
    size, tokens = spec.vit.image_size, spec.text.context_length
    vision, vision_flops = _counted(lambda: model.get_vision_features(torch.empty(1, 3, size, size, device="meta")))
    text_flops = 0
    if spec.text.bank is None:
        ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
        # A mask would be read, and there is nothing in it.
        _, text_flops = _counted(lambda: model.get_text_features(ids, None, return_dict=True))
    levels, places = vision.fpn_hidden_states[:-1], vision.fpn_position_encoding[:-1]
    flat = levels[-1].flatten(2).transpose(1, 2)

    def geometry() -> None:
        """The CLS token's way through the geometry encoder: it depends on the image alone."""
        token = torch.empty(1, 1, spec.d_model, device="meta")
        for layer in model.geometry_encoder.layers:
            token = layer(prompt_feats=token, vision_feats=flat, vision_pos_encoding=flat, prompt_mask=None)

    image = {"vision": vision_flops, "geometry": _counted(geometry)[1]}
    one, two = (_prompts(model, spec, levels, places, prompts) for prompts in (1, 2))
    prompt = {part: two[part] - one[part] for part in one}
    shared = {part: one[part] - prompt[part] for part in one if one[part] > prompt[part]}
    return Flops(image | shared, {"text": text_flops}, prompt)


def _prompts(model: Any, spec: ModelSpec, levels: Any, places: Any, prompts: int) -> dict[str, int]:
    """Part → operations of that many prompts of one image, sharing what can be shared."""
    words = torch.empty(prompts, spec.text.context_length + 1, spec.d_model, device="meta")  # and the CLS token
    index = torch.zeros(prompts, dtype=torch.int64, device="meta")
    nothing: Any = None  # no mask
    (memory, memory_places), encoder = _counted(
        lambda: encode_shared(model.detr_encoder, levels[-1], places[-1], index, words, nothing)
    )
    size = levels[-1].shape[-2], levels[-1].shape[-1]
    (hidden, _, _), decoder = _counted(
        lambda: decode(
            model.detr_decoder, memory, words, memory_places, nothing, size, one_to_many=False, recompute=False
        )
    )
    _, scoring = _counted(
        lambda: model.dot_product_scoring(decoder_hidden_states=hidden, text_features=words, text_mask=None)
    )
    head = model.mask_decoder
    _, mask = _counted(
        lambda: masks_shared(head, level_shares(head, levels), index, hidden[-1], memory, words, nothing)
    )
    return {"encoder": encoder, "decoder": decoder, "mask": mask, "scoring": scoring}


def _counted(run: Callable[[], T]) -> tuple[T, int]:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        made = run()
    return made, int(counter.get_total_flops())
