"""Architectures cut out of the tiny one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sam3slim.specs import ModelSpec, VocabularySpec


def cut(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """``spec`` with ``part__field=value`` changes."""
    parts: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {"name": "slim"}
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            parts.setdefault(part, {})[name] = value
        else:
            top[key] = value
    for part, values in parts.items():
        top[part] = replace(getattr(spec, part), **values)
    return replace(spec, **top)


def seam_cut(spec: ModelSpec) -> ModelSpec:
    """Every axis at once."""
    return cut(
        spec, vit__embed_dim=16, vit__num_heads=1, vit__depth=3, vit__mlp_ratio=1.5, text__width=16,
        text__num_heads=1, text__layers=1, text__context_length=5, text__projection_dim=20,
        encoder__num_layers=1, decoder__num_layers=1, decoder__num_queries=3, ffn_dim=20, geometry__roi_size=3,
        text__vocabulary=VocabularySpec((0, 3, 85), spec.text.vocab_size), text__vocab_size=517,
    )  # fmt: skip
