"""What SAM 3's modules and its exported graphs have in common: how images and prompts may be given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


class PromptedModel:
    """A model that is asked prompts about images; ``text_features`` and ``get_vision_features`` are its towers."""

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Projected features [P, T, d_model] of token rows [P, T]; a mask of None: no padding."""
        raise NotImplementedError

    def get_vision_features(self, pixel_values: Any) -> Any:
        """Feature maps of images [B, 3, S, S], for ``vision_embeds``."""
        raise NotImplementedError

    def encode_text(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        text_embeds: Tensor | BaseModelOutputWithPooling | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Projected text features [P, T, d_model] and their bool mask [P, T], True on real tokens.

        Each distinct row of ``input_ids`` passes the text tower once.
        """
        if (input_ids is None) == (text_embeds is None):
            raise ValueError("give exactly one of input_ids and text_embeds")
        if text_embeds is not None:
            text: Any = text_embeds if isinstance(text_embeds, Tensor) else text_embeds.pooler_output
        else:
            assert input_ids is not None
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
            distinct, inverse = torch.unique(torch.stack([input_ids, mask], dim=1), dim=0, return_inverse=True)
            text = self.text_features(distinct[:, 0], None if attention_mask is None else distinct[:, 1])[inverse]
        if attention_mask is None:
            return text, torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        return text, attention_mask.bool()

    def vision_of(self, pixel_values: Tensor | None, vision_embeds: Any) -> Any:
        """``vision_embeds``, or those of ``pixel_values``. Raises ValueError unless exactly one is given."""
        if (pixel_values is None) == (vision_embeds is None):
            raise ValueError("give exactly one of pixel_values and vision_embeds")
        return self.get_vision_features(pixel_values) if vision_embeds is None else vision_embeds

    @staticmethod
    def image_index_of(image_index: Tensor | None, prompts: int, images: int) -> Tensor | None:
        """None when prompt i asks image i: no copy of the feature maps is needed then."""
        if image_index is not None:
            if image_index.shape[0] != prompts:
                raise ValueError(f"image_index has {image_index.shape[0]} entries for {prompts} prompts")
            return image_index
        if prompts == images:
            return None
        if images == 1:
            return torch.zeros(prompts, dtype=torch.long)
        raise ValueError(f"{prompts} prompts for {images} images: give image_index")
