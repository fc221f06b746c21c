"""The forward of SAM 3's image model over ``transformers.Sam3Model``'s own modules.

``Sam3`` has exactly the parameters of ``transformers.Sam3Model`` (but for a prompt bank's, which has no text tower);
what differs is the forward: it
returns every decoder layer, serves several prompts per image (vision tower once per image, text tower
once per distinct phrase), always ends the prompt with the geometry encoder's CLS token as the reference
implementation does, and can run the one-to-many training branch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import Sam3Config, Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from sam3slim.models.decoder import decode
from sam3slim.models.encoder import encode_shared
from sam3slim.models.fp32 import ExactPositions, as_weights, full_precision
from sam3slim.models.masks import AskedMasks, AskedSemantic, MaskHead
from sam3slim.models.outputs import Sam3Output
from sam3slim.models.pixels import level_shares, masks_shared, worth_sharing
from sam3slim.models.prompted import PromptedModel
from sam3slim.models.rotary import MapRotary
from sam3slim.specs import PADDED_BOX_LABEL, ModelSpec
from sam3slim.text.bank import TextBank


class Sam3(Sam3Model, PromptedModel):
    """SAM 3 (arXiv:2511.16719) image model with a training-grade forward.

    Attributes:
        recompute: decoder layers and mask head keep only their inputs for the backward pass; set by
            ``training.recompute_activations``.
        shares_images: in eval mode without gradients, what depends on the image alone is computed once for all its
            prompts. Parts of some modules are then called one by one; False calls all as transformers does, for
            forward hooks.
    """

    spec: ModelSpec
    recompute: bool = False
    shares_images: bool = True

    def __init__(self, config: Sam3Config, bank: TextBank | None = None) -> None:
        """With a ``bank``, stored text features take the text tower's place."""
        super().__init__(config)
        self.vision_encoder.neck.position_encoding.__class__ = ExactPositions
        for layer in self.vision_encoder.backbone.layers:
            layer.rotary_emb.__class__ = MapRotary
        self.text_bank = bank
        if bank is not None:
            del self.text_encoder, self.text_projection

    def get_input_embeddings(self) -> torch.nn.Module:
        """The text tower's token embedding: what generic transformers utilities (TorchAO) ask for."""
        bank = getattr(self, "text_bank", None)  # transformers asks while the tower is being built, too
        if isinstance(bank, TextBank):
            return bank.features
        embeddings: torch.nn.Module = self.text_encoder.get_input_embeddings()
        return embeddings

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """Projected features [P, T, d_model] of token rows [P, T], as ``pooler_output``: the tower's, or the bank's.

        Raises:
            UserError: a row that is not in the bank.
        """
        if self.text_bank is not None:
            return BaseModelOutputWithPooling(pooler_output=self.text_bank(input_ids, attention_mask))
        return super().get_text_features(input_ids, attention_mask, **options)

    def get_output_embeddings(self) -> None:
        return None

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_boxes_labels: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        vision_embeds: Sam3VisionEncoderOutput | None = None,
        text_embeds: Tensor | BaseModelOutputWithPooling | None = None,
        one_to_many: bool = False,
        with_masks: bool | Literal["asked"] = True,
    ) -> Sam3Output:
        """Answer P prompts about B images.

        Args:
            pixel_values: [B, 3, S, S] normalised to -1..1; or give ``vision_embeds``. S is any multiple of the patch.
            input_ids: [P, T] int64 token ids; or give ``text_embeds``.
            attention_mask: [P, T], 1 on real tokens; None means no padding.
            input_boxes: [P, N, 4] (cx, cy, w, h) in 0..1.
            input_boxes_labels: [P, N] int64: 1 positive, 0 negative, -10 padding; None means positive.
            image_index: [P] int64, the image each prompt asks; None: prompt i asks image i
                (or every prompt asks the only image).
            vision_embeds: what ``get_vision_features`` returned for the B images.
            text_embeds: [P, T, d_model] projected text features, or what ``get_text_features`` returned.
            one_to_many: also run a copy of the queries without self-attention (training only).
            with_masks: False skips the mask head; "asked" runs it later, for the queries that a loss looks at
                (see ``Sam3Output``).

        Raises:
            ValueError: inputs that exclude each other, or whose sizes do not fit.
        """
        vision_embeds = self.vision_of(pixel_values, vision_embeds)
        fpn = tuple(vision_embeds.fpn_hidden_states[:-1])
        fpn_pos = tuple(vision_embeds.fpn_position_encoding[:-1])

        text, text_mask = self.encode_text(input_ids, attention_mask, text_embeds)
        image_index = self.image_index_of(image_index, text.shape[0], fpn[0].shape[0])
        geometry, geometry_mask = self._encode_geometry(fpn, fpn_pos, input_boxes, input_boxes_labels, image_index)
        prompt = torch.cat([text, geometry], dim=1)
        prompt_mask = torch.cat([text_mask, geometry_mask], dim=1)

        shared = self._shared(image_index, fpn[0])
        memory, memory_pos = self._encode(fpn[-1], fpn_pos[-1], image_index, shared, prompt, prompt_mask)
        hidden, boxes, presence = decode(
            self.detr_decoder, memory, prompt, memory_pos, prompt_mask,
            (fpn[-1].shape[-2], fpn[-1].shape[-1]), one_to_many=one_to_many, recompute=self._recomputes,
        )  # fmt: skip
        logits = self.dot_product_scoring(
            decoder_hidden_states=hidden, text_features=prompt, text_mask=prompt_mask
        ).squeeze(-1)
        head = masks = semantic = None
        if with_masks == "asked":
            head = MaskHead(
                self.mask_decoder, hidden[-1], fpn, image_index, memory, prompt, prompt_mask,
                recompute=self._recomputes, shared=shared is not None,
            )  # fmt: skip
        elif with_masks and shared is not None and worth_sharing(shared.shape[0], fpn[0].shape[0]):
            shares = level_shares(self.mask_decoder, fpn)
            masks, semantic = masks_shared(self.mask_decoder, shares, shared, hidden[-1], memory, prompt, prompt_mask)
        elif with_masks:
            mask_out = self.mask_decoder(
                decoder_queries=hidden[-1],
                backbone_features=[_take(level, image_index) for level in fpn],
                encoder_hidden_states=memory,
                prompt_features=prompt,
                prompt_mask=prompt_mask,
            )
            masks, semantic = mask_out.pred_masks, mask_out.semantic_seg
        output = self._pack(hidden, logits, boxes, presence, masks, semantic, fpn, memory, text, one_to_many)
        return output if head is None else _with_head(output, head)

    def _encode(
        self,
        level: Tensor,
        position: Tensor,
        image_index: Tensor | None,
        shared: Tensor | None,
        prompt: Tensor,
        prompt_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Memory [P, H·W, d] and its position encoding."""
        if shared is not None:
            return encode_shared(self.detr_encoder, level, position, shared, prompt, prompt_mask)
        encoded = self.detr_encoder(
            vision_features=[_take(level, image_index)],
            text_features=prompt,
            vision_pos_embeds=[_take(position, image_index)],
            text_mask=prompt_mask,
        )
        return encoded.last_hidden_state, encoded.pos_embeds_flattened

    def _shared(self, image_index: Tensor | None, level: Tensor) -> Tensor | None:
        """``image_index`` on the device of ``level`` [B, …] where prompts are to share what their images give."""
        if image_index is None or not self.shares_images or self.training or torch.is_grad_enabled():
            return None
        if not torch.compiler.is_exporting() and image_index.shape[0] <= level.shape[0]:
            return None
        return image_index.to(level.device)

    @property
    def _recomputes(self) -> bool:
        return self.recompute and torch.is_grad_enabled()

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        features: Tensor = self.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output
        return features

    def _encode_geometry(
        self,
        fpn: tuple[Tensor, ...],
        fpn_pos: tuple[Tensor, ...],
        boxes: Tensor | None,
        labels: Tensor | None,
        image_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Encoded boxes plus CLS token [P, N + 1, d_model] and their bool mask.

        Without boxes the CLS token depends on the image alone, so it is computed once per image.
        """
        level, position = fpn[-1], fpn_pos[-1]
        has_boxes = boxes is not None and boxes.numel() > 0
        if has_boxes:
            assert boxes is not None
            level, position = _take(level, image_index), _take(position, image_index)
            if labels is None:
                labels = torch.ones(boxes.shape[:2], dtype=torch.long, device=boxes.device)
            mask = labels != PADDED_BOX_LABEL
            labels = torch.where(mask, labels, 0)
        else:
            boxes = level.new_zeros(level.shape[0], 0, 4)
            labels = torch.zeros(level.shape[0], 0, dtype=torch.long, device=level.device)
            mask = labels.bool()
        level, position, boxes = (as_weights(value, self.geometry_encoder) for value in (level, position, boxes))
        # transformers would pool bfloat16 maps in FP16, which cannot be put beside bfloat16 under autocast.
        with full_precision(level.device):
            encoded = self.geometry_encoder(
                box_embeddings=boxes,
                box_mask=mask,
                box_labels=labels,
                img_feats=(level,),
                img_pos_embeds=(position,),
            )
        tokens, token_mask = encoded.last_hidden_state, encoded.attention_mask
        if not has_boxes:
            tokens, token_mask = _take(tokens, image_index), _take(token_mask, image_index)
        return tokens, token_mask

    @staticmethod
    def _pack(
        hidden: Tensor,
        logits: Tensor,
        boxes: Tensor,
        presence: Tensor,
        masks: Tensor | None,
        semantic: Tensor | None,
        fpn: tuple[Tensor, ...],
        memory: Tensor,
        text: Tensor,
        one_to_many: bool,
    ) -> Sam3Output:
        queries = hidden.shape[2] // 2 if one_to_many else hidden.shape[2]
        cx, cy, w, h = boxes[-1, :, :queries].unbind(-1)
        corners = [cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h]
        return Sam3Output(
            pred_logits=logits[-1, :, :queries],
            pred_boxes=torch.stack(corners, dim=-1),
            pred_masks=None if masks is None else masks[:, :queries],
            presence_logits=presence[-1],
            semantic_seg=semantic,
            layer_logits=logits[:, :, :queries],
            layer_boxes=boxes[:, :, :queries],
            layer_presence=presence,
            o2m_logits=logits[:, :, queries:] if one_to_many else None,
            o2m_boxes=boxes[:, :, queries:] if one_to_many else None,
            o2m_masks=masks[:, queries:] if one_to_many and masks is not None else None,
            fpn_hidden_states=fpn,
            encoder_hidden_states=memory,
            decoder_hidden_states=hidden[:, :, :queries],
            text_features=text,
        )


def _with_head(output: Sam3Output, head: MaskHead) -> Sam3Output:
    """The output with masks that are computed when they are asked for: they stand for tensors that are indexed."""
    queries = output.pred_logits.shape[1]
    many = output.o2m_logits is not None
    return replace(
        output,
        mask_head=head,
        pred_masks=cast(Tensor, AskedMasks(head)),
        semantic_seg=cast(Tensor, AskedSemantic(head)),
        o2m_masks=cast(Tensor, AskedMasks(head, queries)) if many else None,
    )


def _take(value: Tensor, index: Tensor | None) -> Tensor:
    return value if index is None else value[index.to(value.device)]
