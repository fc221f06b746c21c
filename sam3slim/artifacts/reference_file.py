"""Writing a checkpoint that the reference implementation loads strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sam3slim.artifacts.stream import Written
from sam3slim.checkpoints.readers import UNREAD
from sam3slim.checkpoints.reference_keys import CLASS_TOKEN, FREQS_CIS, POINTS, freqs_cis, place_of
from sam3slim.errors import UserError
from sam3slim.files import file_sha256
from sam3slim.models.build import state_shapes
from sam3slim.specs import CLIP_VOCAB_SIZE, ModelSpec

PREFIX = "detector."  # the reference's loader takes only keys that contain it


def reference_tensors(
    spec: ModelSpec, tensors: Mapping[str, Tensor], originals: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Our tensors under the reference's keys: queries, keys and values joined, the text projection transposed.

    What ``transformers`` drops is taken from ``originals`` (the point projections under the reference's names, the
    position table's first row as ``class_token`` [1, 1, C]) or is zero: the image model's outputs do not depend on it.

    Args:
        tensors: all of ``state_shapes(spec)``.

    Raises:
        UserError: a trimmed vocabulary, which the reference's tokenizer knows nothing of, or a bank instead of a tower.
    """
    if spec.text.bank is not None:
        raise UserError(
            "format=reference: this model has a prompt bank instead of the text tower that the reference needs; use "
            "format=hf, or the checkpoint it was made from"
        )
    if spec.text.vocabulary is not None:
        raise UserError(
            f"format=reference: the reference splits phrases by its own {CLIP_VOCAB_SIZE} tokens, and this model's "
            f"vocabulary is trimmed to {spec.text.vocab_size}; use format=hf, or the checkpoint it was trimmed from"
        )
    kept = originals or {}
    groups: dict[str, dict[str, str]] = {}
    unread = [key for key in state_shapes(spec) if key.startswith(UNREAD)]
    # Zeros stand for the level that a file has left out, and it is left out again.
    left_out = unread if all(not tensors[key].is_meta and not tensors[key].any() for key in unread) else []
    for key in state_shapes(spec):
        if key in left_out:
            continue
        place = place_of(key)
        groups.setdefault(place.key, {})[place.piece] = key
    result = {
        name: _joined({piece: tensors[key] for piece, key in pieces.items()}, kept.get(CLASS_TOKEN))
        for name, pieces in groups.items()
    }
    vit = spec.vit
    for block in range(vit.depth):
        sees_all = block in vit.global_blocks
        side = vit.grid_size if sees_all else vit.window_size
        scale = vit.window_size / vit.grid_size if sees_all else 1.0
        result[FREQS_CIS.replace("*", str(block))] = freqs_cis(vit.head_dim, side, scale)
    dtype = tensors["geometry_encoder.final_proj.weight"].dtype
    for name in POINTS:
        inputs = 2 if "direct" in name else spec.d_model
        shape = (spec.d_model,) if name.endswith("bias") else (spec.d_model, inputs)
        result[name] = kept.get(name, torch.zeros(shape)).to(dtype)
    return result


def write_reference(path: Path, tensors: Mapping[str, Tensor], *, prefix: str = PREFIX) -> Written:
    """Write a ``torch.save`` file of ``{prefix + key: tensor}`` that ``torch.load(weights_only=True)`` reads."""
    # torch.save writes the whole storage of a view.
    torch.save({prefix + key: t.clone() if _is_part(t) else t for key, t in tensors.items()}, path)
    return Written(path.stat().st_size, file_sha256(path))


def _is_part(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.nbytes


def _joined(parts: Mapping[str, Tensor], class_token: Tensor | None) -> Tensor:
    first = next(iter(parts.values()))
    if "q" in parts:
        return torch.cat([parts["q"], parts["k"], parts["v"]])
    if "transposed" in parts:
        return first.mT.contiguous()
    if "without_class_token" in parts:
        row = first.new_zeros(1, 1, first.shape[2]) if class_token is None else class_token.to(first.dtype)
        return torch.cat([row, first], dim=1)
    return first
