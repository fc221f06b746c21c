"""What lies beside an artifact's weights: ``sam3slim.json``, transformers' configuration, processor, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3ImageProcessor, Sam3Processor

from sam3slim.artifacts.card import DEFAULT_LICENSE_NOTE, artifact_card
from sam3slim.artifacts.trained import KEY, inherited_prompts
from sam3slim.checkpoints import int8
from sam3slim.checkpoints.locating import ARTIFACT_FILE
from sam3slim.checkpoints.readers import SCHEMA
from sam3slim.errors import UserError
from sam3slim.models import to_sam3_config
from sam3slim.precisions import Rounding
from sam3slim.specs import ModelSpec
from sam3slim.text.phrases import tokenizer_of

VERSIONED = ("sam3slim", "torch", "transformers", "safetensors", "torchao")


@dataclass(frozen=True)
class Origin:
    """Where an artifact comes from.

    Attributes:
        parent, metrics, extra: JSON values kept in ``sam3slim.json``.
        trained_prompts: see ``artifacts.trained``; None: what the parent was trained on.
        license_note: the card's words on the licence.
        card: Markdown of README.md; None writes one from the metadata.
    """

    parent: Any = None
    metrics: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] | None = None
    trained_prompts: str | None = None
    license_note: str = DEFAULT_LICENSE_NOTE
    card: str | None = None


@dataclass(frozen=True)
class ArtifactInfo:
    """What was written: ``bytes`` of the weights' files, ``total_bytes`` of the folder, in bytes.

    ``format`` is ``hf`` (opens in transformers), ``onnx`` or ``torch-export``; ``sha256`` that of the weights' file or
    of the graphs' largest file; ``bytes_by_part`` counts tensors, so it is less than ``bytes`` by the headers.
    """

    path: Path
    bytes: int
    sha256: str
    total_bytes: int
    rounding: Rounding = field(default_factory=Rounding)
    format: str = "hf"
    bytes_by_part: dict[str, int] = field(default_factory=dict)


def write_metadata(
    folder: Path,
    spec: ModelSpec,
    origin: Origin,
    weights: Mapping[str, Any],
    *,
    stored: Mapping[str, Tensor] | None = None,
    libraries: Sequence[str] = (),
) -> dict[str, Any]:
    """Write what belongs beside the weights that lie in ``folder``; returns what ``sam3slim.json`` says.

    Args:
        weights: what is said of them: precision, types, bytes, hashes, and what their format alone has.
        stored: their tensors, for transformers' configuration; graphs have none.
        libraries: whose versions are noted too.
    """
    metadata = {
        "schema": SCHEMA,
        "spec": spec.to_dict(),
        **weights,
        "parent": origin.parent,
        KEY: origin.trained_prompts or inherited_prompts(origin.parent),
        "metrics": dict(origin.metrics or {}),
        "extra": dict(origin.extra or {}),
        "versions": _versions((*VERSIONED, *libraries)),
    }
    _write_config(spec, stored or {}, folder)
    _save_processor(spec, folder)
    text = json.dumps(metadata, indent=2, allow_nan=False) + "\n"
    (folder / ARTIFACT_FILE).write_text(text, encoding="utf-8")
    card = artifact_card(metadata, spec, origin.license_note) if origin.card is None else origin.card
    (folder / "README.md").write_text(card, encoding="utf-8")
    return metadata


def opens_in_transformers(spec: ModelSpec, stored: Mapping[str, Tensor]) -> bool:
    """Its model always has a text tower, and its loader no type for INT8 kernels and INT4 weights."""
    return spec.text.bank is None and not int8.is_ours_alone(stored)


def folder_bytes(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def check_target(path: Path) -> None:
    """A folder is replaced as a whole, so it must be ours to replace."""
    if path.is_dir() and any(path.iterdir()) and not (path / ARTIFACT_FILE).is_file():
        raise UserError(f"output folder {path} holds files that are not an artifact; choose a new or empty folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"output folder {path} is a file; choose a folder")


def _write_config(spec: ModelSpec, stored: Mapping[str, Tensor], folder: Path) -> None:
    """``config.json`` of transformers. None where it would open the folder with fresh weights in place of others."""
    if not opens_in_transformers(spec, stored):
        return
    config = to_sam3_config(spec)
    config.architectures = ["Sam3Model"]
    dtypes = {t.dtype for t in stored.values()}
    # transformers loads in this dtype: FP32 unless every tensor fits the stored one (an overflow, INT8).
    config.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    quantization = int8.quantization_config(stored)
    if quantization is not None:
        config.quantization_config = quantization
    config.save_pretrained(folder)


def _save_processor(spec: ModelSpec, folder: Path) -> None:
    """What lets ``transformers.Sam3Processor`` open ``folder``: image processor and tokenizer of ``spec``."""
    size, mask = spec.vit.image_size, 4 * spec.vit.grid_size
    images = Sam3ImageProcessor(size={"height": size, "width": size}, mask_size={"height": mask, "width": mask})
    processor = Sam3Processor(image_processor=images, tokenizer=tokenizer_of(spec.text), target_size=size)
    processor.save_pretrained(folder)


def _versions(names: Sequence[str]) -> dict[str, str]:
    """Name → version of those of ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
