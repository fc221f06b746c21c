"""The architecture a checkpoint states, and how two architectures differ."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from transformers import Sam3Config

from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.errors import UserError
from sam3slim.models.configuration import VOCABULARY_KEY, to_sam3_config
from sam3slim.specs import (
    DecoderSpec,
    EncoderSpec,
    GeometrySpec,
    ModelSpec,
    TextSpec,
    VitSpec,
    VocabularySpec,
    mlp_ratio,
)
from sam3slim.strict import SpecError, spec_from_dict

# What a ModelSpec has no word for; a config that differs here computes something else.
FIXED = {
    "vision_config.backbone_config": ("hidden_act", "layer_norm_eps", "layer_scale_init_value", "rope_parameters"),
    "vision_config": ("scale_factors",),
    "text_config": ("hidden_act", "layer_norm_eps"),
    "geometry_encoder_config": ("hidden_act", "hidden_size", "num_attention_heads", "intermediate_size"),
    "detr_encoder_config": ("hidden_act", "hidden_size", "num_attention_heads", "intermediate_size"),
    "detr_decoder_config": ("hidden_act", "hidden_size", "num_attention_heads", "intermediate_size"),
    "mask_decoder_config": ("hidden_size", "num_attention_heads", "num_upsampling_stages"),
}
# Sizes; those of pictures may be written as [side, side].
WHOLE = {
    "vision_config.backbone_config": (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size",
        "pretrain_image_size", "window_size",
    ),
    "text_config": (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
        "vocab_size", "projection_dim",
    ),
    "geometry_encoder_config": ("num_layers", "roi_size"),
    "detr_encoder_config": ("num_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    "detr_decoder_config": ("num_layers", "num_queries"),
}  # fmt: skip
# Fields that change no tensor and no output of a trained model.
NOT_ARCHITECTURE = ("name", "dropout", "attention_dropout", "ffn_dropout", "vit.drop_path")


def spec_from_file(path: Path, values: Mapping[str, Any], name: str) -> ModelSpec:
    """The ``ModelSpec`` of the content of transformers' ``config.json``.

    Raises:
        CheckpointError: as ``spec_from_config``, and for a value of the wrong kind.
        SpecError: sizes that do not fit together.
    """
    try:
        return spec_from_config(Sam3Config.from_dict(dict(values)), name)
    except SpecError:
        raise
    except UserError as error:
        raise CheckpointError(f"checkpoint {path.parent}: {error}") from error
    except Exception as error:  # which one transformers raises depends on where the odd value is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is not a SAM 3 configuration: {reason}; correct it there") from error


def spec_from_config(config: Sam3Config, name: str = "transformers") -> ModelSpec:
    """The ``ModelSpec`` of a ``transformers.Sam3Config``.

    Raises:
        CheckpointError: the config sets something a ModelSpec cannot say (the field is named).
        SpecError: sizes that do not fit together.
    """
    # transformers types its sub-configs as "dict, config or None"; after construction they are configs.
    parts: Any = config
    vit, text = parts.vision_config.backbone_config, parts.text_config
    encoder, decoder, geometry = parts.detr_encoder_config, parts.detr_decoder_config, parts.geometry_encoder_config
    for part, keys in WHOLE.items():
        owner = attrgetter(part)(config)
        for key in keys:
            setattr(owner, key, _whole(getattr(owner, key), f"{part}.{key}"))
    spec = ModelSpec(
        name=name,
        vit=VitSpec(
            embed_dim=vit.hidden_size,
            depth=vit.num_hidden_layers,
            num_heads=vit.num_attention_heads,
            mlp_ratio=mlp_ratio(vit.intermediate_size, vit.hidden_size),
            patch_size=vit.patch_size,
            image_size=vit.image_size,
            pretrain_image_size=vit.pretrain_image_size,
            window_size=vit.window_size,
            num_global_blocks=max(len(vit.global_attn_indexes), 1),
            global_attention_blocks=tuple(vit.global_attn_indexes),
        ),
        text=TextSpec(
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            mlp_ratio=mlp_ratio(text.intermediate_size, text.hidden_size),
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            projection_dim=text.projection_dim,
            vocabulary=_vocabulary(config),
        ),
        geometry=GeometrySpec(geometry.num_layers, geometry.roi_size),
        encoder=EncoderSpec(encoder.num_layers),
        decoder=DecoderSpec(decoder.num_layers, decoder.num_queries),
        d_model=encoder.hidden_size,
        num_heads=encoder.num_attention_heads,
        ffn_dim=encoder.intermediate_size,
        dropout=encoder.dropout,
        ffn_dropout=encoder.hidden_dropout,
    )
    _check_fixed(config, to_sam3_config(spec))
    return spec


def _whole(value: Any, key: str) -> int:
    """A size, also as a list of two equal ones. Raises CheckpointError for anything else."""
    sides = (
        set(value) if isinstance(value, (list, tuple)) and len(value) == 2 else {value} if type(value) is int else set()
    )
    if len(sides) != 1 or type(side := sides.pop()) is not int or side < 1:
        raise CheckpointError(f"config.json: {key}={value!r}, expected a whole number above 0; correct it there")
    return side


def _vocabulary(config: Sam3Config) -> VocabularySpec | None:
    """What a trimmed model of ours that went through transformers says of its tokens."""
    given = getattr(config, VOCABULARY_KEY, None)
    return None if given is None else spec_from_dict(VocabularySpec, given, f"config.json: {VOCABULARY_KEY}")


def _check_fixed(given: Any, known: Any) -> None:
    for group, keys in FIXED.items():
        ours, theirs = known, given
        for step in group.split("."):
            ours, theirs = getattr(ours, step), getattr(theirs, step)
        for key in keys:
            if getattr(theirs, key) != getattr(ours, key):
                raise CheckpointError(
                    f"config.json: {group}.{key}={getattr(theirs, key)!r} is not supported "
                    f"(sam3slim builds it with {getattr(ours, key)!r})"
                )


def spec_difference(found: ModelSpec, wanted: ModelSpec) -> list[tuple[str, Any, Any]]:
    """The architecture fields in which two specs differ, as (key, found, wanted), most basic first."""
    left, right = _flat(found), _flat(wanted)
    return [(key, left[key], right[key]) for key in left if left[key] != right[key]]


def _flat(spec: ModelSpec) -> dict[str, Any]:
    """Dotted field → value, with what follows from others resolved so that two spellings compare equal."""
    flat: dict[str, Any] = {}
    for key, value in spec.to_dict().items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": v for inner, v in value.items()})
        else:
            flat[key] = value
    flat["vit.global_attention_blocks"] = list(spec.vit.global_blocks)
    # In words short enough for a message; what an unknown phrase meets changes no tensor.
    flat |= {"text.vocabulary": str(spec.text.vocabulary), "text.bank": str(spec.text.bank)}
    for key in (*NOT_ARCHITECTURE, "vit.num_global_blocks"):
        del flat[key]
    for tower, width in (("vit", spec.vit.embed_dim), ("text", spec.text.width)):
        # Two ratios that give the same integer width are the same architecture.
        flat[f"{tower}.mlp_ratio"] = round(int(width * flat[f"{tower}.mlp_ratio"]) / width, 6)
    return flat
