"""Writing an artifact: a folder that transformers opens, plus ``sam3slim.json`` and a model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam3slim.artifacts.card import DEFAULT_LICENSE_NOTE, default_card
from sam3slim.artifacts.lazy import LazyTensors, described, rounding_of
from sam3slim.artifacts.stream import Written, write_safetensors
from sam3slim.artifacts.trained import KEY, inherited_prompts
from sam3slim.checkpoints import int8
from sam3slim.checkpoints.load_report import bytes_by_part
from sam3slim.checkpoints.locating import ARTIFACT_FILE, weights_name
from sam3slim.checkpoints.readers import SCHEMA
from sam3slim.errors import UserError
from sam3slim.files import atomic_path
from sam3slim.models import Sam3, to_sam3_config
from sam3slim.precisions import Rounding
from sam3slim.specs import ModelSpec

VERSIONED = ("sam3slim", "torch", "transformers", "safetensors", "torchao")


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


def write_artifact(
    model: Sam3,
    folder: str | Path,
    *,
    precision: str = "fp32",
    tensors: Mapping[str, Tensor] | None = None,
    parent: Any = None,
    metrics: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    trained_prompts: str | None = None,
    license_note: str = DEFAULT_LICENSE_NOTE,
    card: str | None = None,
) -> ArtifactInfo:
    """Write ``model`` to ``folder``, whole or not at all; an artifact already there is replaced.

    Args:
        model: gives the architecture, and the weights unless ``tensors`` does.
        precision: the name of how the weights are stored, e.g. ``fp16``.
        tensors: what to store under the model's keys instead of its own weights (half precision or
            torchao INT8 tensors); the keys must be exactly the model's.
        parent, metrics, extra: JSON values kept in ``sam3slim.json``.
        trained_prompts: see ``checkpoints.trained``; None: what the parent was trained on.
        card: Markdown of README.md; None writes one from the facts.

    Raises:
        UserError: ``folder`` is not writable, or holds files that are not an artifact.
        ValueError: the keys of ``tensors`` are not the model's, or ``tensors`` is needed but absent.
    """
    return write_folder(
        folder, model.spec, _tensors_to_store(model, tensors, precision), precision=precision, parent=parent,
        metrics=metrics, extra=extra, trained_prompts=trained_prompts, license_note=license_note, card=card,
    )  # fmt: skip


def write_folder(
    folder: str | Path,
    spec: ModelSpec,
    tensors: Mapping[str, Tensor],
    *,
    precision: str,
    parent: Any = None,
    metrics: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    trained_prompts: str | None = None,
    license_note: str = DEFAULT_LICENSE_NOTE,
    card: str | None = None,
    source: Callable[[], Mapping[str, Any]] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> ArtifactInfo:
    """``write_artifact`` without a model: ``tensors`` are all of the architecture's.

    Args:
        source: facts of where the weights come from; asked for when they have been written.
        advance: called with the number of elements just written.
    """
    path = Path(folder).expanduser()
    check_target(path)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        written = _write_weights(tensors, temporary / weights_name(spec), advance)
        plan, rounding = described(tensors), rounding_of(tensors)
        write_config(spec, plan, temporary)
        save_processor(spec, temporary)
        parts = bytes_by_part(int8.flatten(plan)[0])
        facts = {
            "schema": SCHEMA,
            "spec": spec.to_dict(),
            "precision": precision,
            "params": sum(t.numel() for t in plan.values()),
            "dtypes": int8.dtype_shares(plan),
            # transformers' loader has no tensor type for INT8 kernels, and its model always has a text tower.
            "opens_in": ["sam3slim", *([] if spec.text.bank or _has_int8_kernels(plan) else ["transformers"])],
            "bytes": written.bytes,
            "bytes_by_part": parts,
            "sha256": written.sha256,
            "parent": parent,
            KEY: trained_prompts or inherited_prompts(parent),
            **({"source": dict(source())} if source else {}),
            "metrics": dict(metrics or {}),
            "extra": {**(extra or {}), **(rounding.facts() if isinstance(tensors, LazyTensors) else {})},
            "versions": installed_versions(VERSIONED),
        }
        text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
        (temporary / ARTIFACT_FILE).write_text(text, encoding="utf-8")
        readme = card if card is not None else default_card(facts, spec, license_note)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ArtifactInfo(path, written.bytes, written.sha256, total, rounding, bytes_by_part=parts)


def _tensors_to_store(model: Sam3, tensors: Mapping[str, Tensor] | None, precision: str) -> Mapping[str, Tensor]:
    """``tensors``, or the model's own; checked to be all of the model's keys and no others."""
    state = model.state_dict()
    if tensors is None:
        if precision != "fp32":
            raise ValueError(f"precision {precision!r} needs the converted tensors")
        return state
    if tensors.keys() != state.keys():
        raise ValueError(f"keys differ from the model's: {sorted(tensors.keys() ^ state.keys())[:3]}")
    return tensors


def check_target(path: Path) -> None:
    """A folder is replaced as a whole, so it must be ours to replace."""
    if path.is_dir() and any(path.iterdir()) and not (path / ARTIFACT_FILE).is_file():
        raise UserError(f"output folder {path} holds files that are not an artifact; choose a new or empty folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"output folder {path} is a file; choose a folder")


def _write_weights(tensors: Mapping[str, Tensor], path: Path, advance: Callable[[int], object]) -> Written:
    flat, metadata = int8.flatten(described(tensors))
    lazy = LazyTensors(flat, lambda key: int8.stored_part(tensors, key))
    return write_safetensors(path, lazy, metadata=metadata, advance=advance)


def _has_int8_kernels(tensors: Mapping[str, Any]) -> bool:
    return any(isinstance(tensor, int8.StoredInt8) for tensor in tensors.values())


def write_config(spec: ModelSpec, stored: Mapping[str, Tensor], folder: Path) -> None:
    """``config.json`` of transformers for an architecture and its stored tensors.

    None for a prompt bank, which transformers has no words for.
    """
    if spec.text.bank is not None:
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


def save_processor(spec: ModelSpec, folder: Path) -> None:
    """Write what lets ``transformers.Sam3Processor`` open ``folder``: image processor and tokenizer of ``spec``."""
    from transformers import Sam3ImageProcessor, Sam3Processor

    from sam3slim.text.phrases import tokenizer_of

    size, mask = spec.vit.image_size, 4 * spec.vit.grid_size
    images = Sam3ImageProcessor(size={"height": size, "width": size}, mask_size={"height": mask, "width": mask})
    processor = Sam3Processor(image_processor=images, tokenizer=tokenizer_of(spec.text), target_size=size)
    processor.save_pretrained(folder)


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Name → version of those of ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
