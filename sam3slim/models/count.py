"""Parameters and bytes per part, counted on the architecture itself without allocating it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches

from torch import nn

from sam3slim.errors import UserError
from sam3slim.models.build import state_shapes
from sam3slim.precisions import FP16, FP32, INT4, INT8
from sam3slim.specs import ModelSpec

INT4_GROUP = 64  # weights that share a scale, as in ``compress=int4_weight``
# Part → the prefixes of its parameters; the order is the order of computation.
PARTS: dict[str, tuple[str, ...]] = {
    "vision": ("vision_encoder.",),
    "text": ("text_encoder.", "text_projection.", "text_bank."),
    "geometry": ("geometry_encoder.",),
    "encoder": ("detr_encoder.",),
    "decoder": ("detr_decoder.",),
    "mask": ("mask_decoder.",),
    "scoring": ("dot_product_scoring.",),
}


# What can be frozen: a part, or the vision tower without its neck.
FREEZABLE: dict[str, tuple[str, ...]] = {**PARTS, "vit": ("vision_encoder.backbone.",)}


def part_of(name: str) -> str:
    """The part a parameter of ``transformers.Sam3Model`` belongs to. Raises KeyError for a foreign name."""
    for part, prefixes in PARTS.items():
        if name.startswith(prefixes):
            return part
    raise KeyError(name)


def frozen_prefixes(parts: Iterable[str]) -> tuple[str, ...]:
    """Prefixes of the parameters of some ``FREEZABLE`` parts."""
    return tuple(prefix for part in parts for prefix in FREEZABLE[part])


def check_parts(key: str, parts: Iterable[str], known: Collection[str] = tuple(PARTS)) -> None:
    """Are all of ``parts``, which ``key`` of the configuration names, parts of the model, or else ``known``?

    Raises:
        UserError: one is not.
    """
    for part in parts:
        if part not in known:
            near = get_close_matches(part, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{key}: unknown part {part!r}; parts: {', '.join(known)}{hint}")


def params_by_part(model: nn.Module) -> dict[str, int]:
    """Parameter counts of ``model`` (real or on the meta device) by part."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


def count_params(spec: ModelSpec) -> dict[str, int]:
    """Parameter counts by part of the architecture ``spec``; no weight is allocated."""
    counts = dict.fromkeys(PARTS, 0)
    for name, shape in state_shapes(spec).items():
        counts[part_of(name)] += shape.numel()
    return counts


def bytes_by_part(spec: ModelSpec) -> dict[str, dict[str, int]]:
    """Weight bytes by part in FP32, FP16, INT8 and INT4.

    INT8 counts what per-channel weight-only quantisation stores: one byte per weight of a Linear or
    Embedding with one FP32 scale per output row, everything else in FP16. INT4 counts half a byte per weight of a
    Linear and an FP16 scale per ``INT4_GROUP`` of them; what has no rows of whole groups, embeddings and kernels in
    INT8.
    """
    sizes = {part: dict.fromkeys((FP32.name, FP16.name, INT8.name, INT4.name), 0) for part in PARTS}
    for name, shape in state_shapes(spec).items():
        row = sizes[part_of(name)]
        count = shape.numel()
        quantised = name.endswith(".weight") and len(shape) == 2  # of a Linear or an Embedding
        row[FP32.name] += FP32.bytes * count
        row[FP16.name] += FP16.bytes * count
        row[INT8.name] += INT8.bytes * count + FP32.bytes * shape[0] if quantised else FP16.bytes * count
        if quantised and not shape[1] % INT4_GROUP and "embedding" not in name:
            row[INT4.name] += count // 2 + FP16.bytes * (count // INT4_GROUP)
        else:
            row[INT4.name] += count + FP32.bytes * shape[0] if quantised or len(shape) == 4 else FP16.bytes * count
    return sizes
