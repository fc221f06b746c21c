"""What one forward returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from sam3slim.models.masks import MaskHead


@dataclass
class Sam3Prediction:
    """The last layer's outputs for P prompts, Q queries, masks of h × w; all that detections are made of.

    The fields carry the names and meaning of ``transformers.Sam3Model``'s output.

    Attributes:
        pred_logits: [P, Q] class logits.
        pred_boxes: [P, Q, 4] (x1, y1, x2, y2) in 0..1.
        pred_masks: [P, Q, h, w] logits, h = w = 4 × the ViT's grid; None when masks were not asked for.
        presence_logits: [P, 1]: is the concept in the image at all?
        semantic_seg: [P, 1, h, w] logits of the union of all instances; None without masks.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    pred_masks: Tensor | None
    presence_logits: Tensor
    semantic_seg: Tensor | None


@dataclass
class Sam3Output(Sam3Prediction):
    """The prediction and what training looks at besides, of L decoder layers.

    After ``with_masks="asked"``, ``pred_masks`` and ``o2m_masks`` can only be indexed by pairs of prompt and query, and
    ``semantic_seg`` only be indexed: the mask head runs then, or before that for all pairs that will be asked for
    (``mask_head.compute``).

    Attributes:
        layer_logits: [L, P, Q].
        layer_boxes: [L, P, Q, 4] (cx, cy, w, h) in 0..1.
        layer_presence: [L, P, 1].
        o2m_logits, o2m_boxes, o2m_masks: the one-to-many branch, shaped as the layer tensors and
            ``pred_masks``; None when it is off.
        fpn_hidden_states: 3 × [B, d_model, H, W] of the B images, fine to coarse.
        encoder_hidden_states: [P, H·W, d_model] after the DETR encoder.
        decoder_hidden_states: [L, P, Q, d_model] normalised queries of every layer.
        text_features: [P, T, d_model] before the geometry token is appended.
        mask_head: of ``with_masks="asked"``; None otherwise.
    """

    layer_logits: Tensor
    layer_boxes: Tensor
    layer_presence: Tensor
    o2m_logits: Tensor | None
    o2m_boxes: Tensor | None
    o2m_masks: Tensor | None
    fpn_hidden_states: tuple[Tensor, ...]
    encoder_hidden_states: Tensor
    decoder_hidden_states: Tensor
    text_features: Tensor
    mask_head: MaskHead | None = None
