"""The architecture that a bare file's tensors tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sam3slim.checkpoints.layout import Layout
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.spec_of import NOT_ARCHITECTURE
from sam3slim.specs import ModelSpec, mlp_ratio
from sam3slim.strict import SpecError, spec_from_dict, unknown_key

CLIP_HEAD_SIZE = 64
_STACKS = {  # spec key → where its layers are: ours, the reference's
    "vit.depth": ("vision_encoder.backbone.layers.", "backbone.vision_backbone.trunk.blocks."),
    "text.layers": (
        "text_encoder.text_model.encoder.layers.",
        "backbone.language_backbone.encoder.transformer.resblocks.",
    ),
    "geometry.num_layers": ("geometry_encoder.layers.", "geometry_encoder.encode."),
    "encoder.num_layers": ("detr_encoder.layers.", "transformer.encoder.layers."),
    "decoder.num_layers": ("detr_decoder.layers.", "transformer.decoder.layers."),
}
_SHAPES = {  # spec key → our tensor and the axis that tells it
    "vit.embed_dim": ("vision_encoder.backbone.embeddings.patch_embeddings.projection.weight", 0),
    "vit.patch_size": ("vision_encoder.backbone.embeddings.patch_embeddings.projection.weight", 2),
    "text.width": ("text_encoder.text_model.embeddings.token_embedding.weight", 1),
    "text.vocab_size": ("text_encoder.text_model.embeddings.token_embedding.weight", 0),
    "text.context_length": ("text_encoder.text_model.embeddings.position_embedding.weight", 0),
    "text.projection_dim": ("text_encoder.text_projection.weight", 0),
    "geometry.roi_size": ("geometry_encoder.boxes_pool_project.weight", 2),
    "decoder.num_queries": ("detr_decoder.query_embed.weight", 0),
    "d_model": ("text_projection.weight", 0),
    "num_heads": ("detr_decoder.box_rpb_embed_x.layer2.weight", 0),
    "ffn_dim": ("detr_encoder.layers.0.mlp.fc1.weight", 0),
}
# What only the rotary tables of a reference file tell; SAM 3 as released is recognised without them.
# What no tensor tells and a bare file does without: its own default is taken.
_LISTS = ("text.vocabulary", "text.bank")
_NOT_TOLD = (*NOT_ARCHITECTURE, "vit.num_global_blocks", *_LISTS)
_UNKNOWN = "text.vocabulary.unknown"  # the one field of a trimmed vocabulary that a user may change
_NOT_TRIMMED = f"overrides: {_UNKNOWN} is for a vocabulary that was trimmed, and this checkpoint states none; remove it"
IMAGE_SIZE = "vit.image_size"  # the override that reads weights for another size of images; no tensor depends on it
_FROM_TABLES = ("vit.num_heads", "vit.window_size", "vit.image_size", "vit.global_attention_blocks")


class Inferred(NamedTuple):
    """An architecture, and those of its sizes that no tensor tells and nobody has stated, by dotted key."""

    spec: ModelSpec
    assumed: dict[str, Any]


def infer_spec(
    tensors: Mapping[str, Tensor],
    layout: Layout,
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    stated: ModelSpec | None = None,
) -> Inferred:
    """The architecture of a file without configuration; ``overrides`` go first and fill in what it does not tell.

    What nobody states is assumed where one value is usual: the text tower's heads are 64 wide, as in every CLIP, and a
    vision tower as large as the released one, without rotary tables, has its heads, windows and image size.

    Args:
        stated: what the file's writer has left beside it; it fills in what neither ``overrides`` nor tensors tell.

    Raises:
        CheckpointError: something is not told by the file nor overridden (the message names the key).
        SpecError: an unknown override, or sizes that do not fit together.
    """
    known = check_overrides(overrides or {})
    if _UNKNOWN in known:
        raise SpecError(_NOT_TRIMMED)
    found: dict[str, Any] = {}

    def tell(key: str, value: Any) -> None:
        if key not in known and value is not None:
            found[key] = value

    for key, (ours, theirs) in _STACKS.items():
        tell(key, _layers(tensors, layout.prefix + (theirs if layout.format == "reference" else ours), path))
    for key, (name, axis) in _SHAPES.items():
        tell(key, _size(tensors, layout, name, axis))
    for key, name, width_key in (
        ("vit.mlp_ratio", "vision_encoder.backbone.layers.0.mlp.fc1.weight", "vit.embed_dim"),
        ("text.mlp_ratio", "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight", "text.width"),
    ):
        inner, width = _size(tensors, layout, name, 0), {**found, **known}.get(width_key)
        tell(key, mlp_ratio(inner, width) if inner and width else None)
    sizes = {**found, **known}
    positions = _size(tensors, layout, "vision_encoder.backbone.embeddings.position_embeddings", 1)
    if positions and "vit.patch_size" in sizes:
        tell("vit.pretrain_image_size", math.isqrt(positions) * sizes["vit.patch_size"])
    for key, value in _from_rotary_tables(tensors, layout, sizes).items():
        tell(key, value)
    known = {**({} if stated is None else _flat(stated.to_dict())), **found, **known}
    usual = _usual(sizes, tables=any(".freqs_cis" in name for name in tensors))
    assumed = {key: value for key, value in usual.items() if key not in known}
    return Inferred(_spec({**assumed, **known}, path), assumed)


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``overrides`` with dotted keys of ``ModelSpec``, without a leading ``model.``.

    Raises:
        SpecError: a key that no architecture has.
    """
    known = [*(key for key in _flat(ModelSpec().to_dict()) if key not in ("name", *_LISTS)), _UNKNOWN]
    checked = {}
    for key, value in overrides.items():
        short = str(key).removeprefix("model.")
        if short not in known:
            raise SpecError(f"overrides: {unknown_key('', short, known)}")
        checked[short] = value
    return checked


def override_spec(spec: ModelSpec, overrides: Mapping[str, Any] | None) -> ModelSpec:
    """``spec`` with the given fields changed. Raises SpecError as ``check_overrides`` and ``ModelSpec`` do."""
    if not overrides:
        return spec
    checked, values = check_overrides(overrides), _flat(spec.to_dict())
    if _UNKNOWN in checked:
        if spec.text.vocabulary is None:
            raise SpecError(_NOT_TRIMMED)
        values["text.vocabulary"]["unknown"] = checked.pop(_UNKNOWN)
    return ModelSpec.from_dict(_nested({**values, **checked}))


def _layers(tensors: Mapping[str, Tensor], start: str, path: Path) -> int | None:
    numbers = re.compile(re.escape(start) + r"(\d{1,9})\.")
    found = {int(match[1]) for name in tensors if (match := numbers.match(name))}
    if len(found) < max(found, default=-1) + 1:
        lost = next(number for number in range(max(found)) if number not in found)
        raise CheckpointError(
            f"checkpoint {path} has tensors of {start}{max(found)}, but none of {start}{lost}; it is not whole: "
            "save or copy it again"
        )
    return len(found) or None


def _size(tensors: Mapping[str, Tensor], layout: Layout, key: str, axis: int) -> int | None:
    try:
        tensor = layout.get(tensors, key)
    except ValueError:
        return None
    return int(tensor.shape[axis]) if tensor is not None and tensor.ndim > axis else None


def _from_rotary_tables(tensors: Mapping[str, Tensor], layout: Layout, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Head size from the tables' columns; window and image size, and which blocks are global, from their rows."""
    name = re.compile(
        re.escape(layout.prefix) + r"backbone\.vision_backbone\.trunk\.blocks\.(\d+)\.attn\.freqs_cis(_real)?"
    )
    tables = {int(match[1]): tensor for key, tensor in tensors.items() if (match := name.fullmatch(key))}
    if not tables:
        return {}
    sides = {block: math.isqrt(len(table)) for block, table in tables.items()}
    image, window = max(sides.values()), min(sides.values())
    columns = {table.shape[1] for table in tables.values() if table.ndim == 2}
    if sorted(tables) != list(range(sizes.get("vit.depth", 0))):
        return {}  # a block without its table may be global or not: that would be a guess
    found: dict[str, Any] = {
        "vit.window_size": window,
        # A single size means that no block looks further than another: all of them see the whole image.
        "vit.global_attention_blocks": tuple(sorted(block for block, side in sides.items() if side == image)),
    }
    if len(columns) == 1 and "vit.embed_dim" in sizes:
        found["vit.num_heads"] = sizes["vit.embed_dim"] // (2 * columns.pop())
    if "vit.patch_size" in sizes:
        found["vit.image_size"] = image * sizes["vit.patch_size"]
    return found


def _usual(sizes: Mapping[str, Any], *, tables: bool) -> dict[str, Any]:
    """What files of these sizes usually have, of what no tensor tells; ``tables``: rotary ones are there."""
    released, usual = ModelSpec().vit, {}
    if "text.width" in sizes and sizes["text.width"] % CLIP_HEAD_SIZE == 0:
        usual["text.num_heads"] = sizes["text.width"] // CLIP_HEAD_SIZE
    same = (sizes.get("vit.embed_dim"), sizes.get("vit.depth")) == (released.embed_dim, released.depth)
    if same and not tables:
        usual |= {key: getattr(released, key.removeprefix("vit.")) for key in _FROM_TABLES}
    return usual


def _spec(sizes: dict[str, Any], path: Path) -> ModelSpec:
    wanted = [key for key in _flat(ModelSpec().to_dict()) if key not in _NOT_TOLD]
    unknown = [key for key in wanted if key not in sizes]
    if unknown:
        released = {**_flat(ModelSpec().to_dict()), "vit.global_attention_blocks": list(ModelSpec().vit.global_blocks)}
        example = " ".join(f"{key}={released[key]}".replace(" ", "") for key in unknown)
        raise CheckpointError(
            f"checkpoint {path} does not tell {', '.join(unknown)}; state {'it' if len(unknown) == 1 else 'them'} "
            f"as overrides, which extract, evaluate.py, compress.py and train.py take; SAM 3 has {example}"
        )
    return spec_from_dict(ModelSpec, _nested({"name": path.stem, **sizes}), "model")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update({f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group, _, field = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[field] = value
    return nested
