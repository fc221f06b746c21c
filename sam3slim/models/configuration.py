"""Architecture spec → transformers configuration."""

from __future__ import annotations

from typing import Any

from transformers import CLIPTextConfig, Sam3Config
from transformers.models.sam3.configuration_sam3 import (
    Sam3DETRDecoderConfig,
    Sam3DETREncoderConfig,
    Sam3GeometryEncoderConfig,
    Sam3MaskDecoderConfig,
    Sam3VisionConfig,
    Sam3ViTConfig,
)

from sam3slim.specs import MIN_VOCAB_SIZE, ModelSpec, TextSpec

VOCABULARY_KEY = "sam3slim_vocabulary"  # in config.json: a trimmed vocabulary


def to_sam3_config(spec: ModelSpec) -> Sam3Config:
    """The ``transformers.Sam3Config`` of ``spec``; ``ModelSpec()`` gives SAM 3 as released."""
    vit, text = spec.vit, spec.text
    transformer: dict[str, Any] = {
        "hidden_size": spec.d_model,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.ffn_dim,
        "dropout": spec.dropout,
        "hidden_dropout": spec.ffn_dropout,
    }
    backbone = Sam3ViTConfig(
        hidden_size=vit.embed_dim,
        intermediate_size=vit.intermediate_size,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.num_heads,
        image_size=vit.image_size,
        patch_size=vit.patch_size,
        pretrain_image_size=vit.pretrain_image_size,
        window_size=vit.window_size,
        global_attn_indexes=list(vit.global_blocks),
    )
    grid = vit.grid_size
    vision = Sam3VisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=spec.d_model,
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
    )
    config = Sam3Config(
        vision_config=vision,
        text_config=_text_config(text),
        geometry_encoder_config=Sam3GeometryEncoderConfig(
            num_layers=spec.geometry.num_layers, roi_size=spec.geometry.roi_size, **transformer
        ),
        detr_encoder_config=Sam3DETREncoderConfig(num_layers=spec.encoder.num_layers, **transformer),
        detr_decoder_config=Sam3DETRDecoderConfig(
            num_layers=spec.decoder.num_layers, num_queries=spec.decoder.num_queries, **transformer
        ),
        mask_decoder_config=Sam3MaskDecoderConfig(hidden_size=spec.d_model, num_attention_heads=spec.num_heads),
    )
    if text.vocabulary is not None:
        # transformers keeps what it does not know: a model it loads and saves still tells its tokens.
        setattr(config, VOCABULARY_KEY, spec.to_dict()["text"]["vocabulary"])
    return config


def _text_config(text: TextSpec) -> CLIPTextConfig:
    if text.bank is not None:
        # transformers builds a tower whatever is asked for; this one is thrown away.
        text = TextSpec(width=1, layers=1, num_heads=1, mlp_ratio=1.0, vocab_size=MIN_VOCAB_SIZE, projection_dim=1)
    return CLIPTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        intermediate_size=int(text.width * text.mlp_ratio),
        projection_dim=text.projection_dim,
        num_hidden_layers=text.layers,
        num_attention_heads=text.num_heads,
        max_position_embeddings=text.context_length,
        hidden_act="gelu",
        # CLIP's last two ids, wherever a shorter vocabulary moves them.
        bos_token_id=text.vocab_size - 2,
        eos_token_id=text.vocab_size - 1,
    )
