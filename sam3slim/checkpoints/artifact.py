"""Writing an artifact: a folder that transformers opens, plus ``sam3slim.json`` and a model card."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sam3slim.checkpoints import int8
from sam3slim.checkpoints.card import DEFAULT_LICENSE_NOTE, default_card
from sam3slim.checkpoints.locate import ARTIFACT_FILE, WEIGHTS_FILE
from sam3slim.checkpoints.processor import save_processor
from sam3slim.checkpoints.readers import SCHEMA
from sam3slim.errors import UserError
from sam3slim.files import atomic_path
from sam3slim.models import Sam3

VERSIONED = ("sam3slim", "torch", "transformers", "safetensors", "torchao")


@dataclass(frozen=True)
class ArtifactInfo:
    """What was written: ``bytes`` of model.safetensors, ``total_bytes`` of the folder, in bytes."""

    path: Path
    bytes: int
    sha256: str
    total_bytes: int


def write_artifact(
    model: Sam3,
    folder: str | Path,
    *,
    precision: str = "fp32",
    tensors: Mapping[str, Tensor] | None = None,
    parent: Any = None,
    metrics: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
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
        card: Markdown of README.md; None writes one from the facts.

    Raises:
        UserError: ``folder`` is not writable, or holds files that are not an artifact.
        ValueError: the keys of ``tensors`` are not the model's, or ``tensors`` is needed but absent.
    """
    path = Path(folder).expanduser()
    _check_target(path)
    tensors = _tensors_to_store(model, tensors, precision)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        weights = _write_weights(tensors, temporary / WEIGHTS_FILE)
        _write_config(model, tensors, temporary)
        save_processor(model.spec, temporary)
        facts = {
            **_facts(model, tensors, precision),
            **weights,
            "parent": parent,
            "metrics": dict(metrics or {}),
            "extra": dict(extra or {}),
            "versions": _versions(),
        }
        text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
        (temporary / ARTIFACT_FILE).write_text(text, encoding="utf-8")
        readme = card if card is not None else default_card(facts, model.spec, license_note)
        (temporary / "README.md").write_text(readme, encoding="utf-8")
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ArtifactInfo(path, weights["bytes"], weights["sha256"], total)


def _facts(model: Sam3, tensors: Mapping[str, Tensor], precision: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "spec": model.spec.to_dict(),
        "precision": precision,
        "params": sum(t.numel() for t in tensors.values()),
        "dtypes": dtype_shares(tensors),
    }


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


def dtype_shares(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Storage type → parameters and bytes; an INT8 weight's scales are counted in its bytes."""
    shares: dict[str, dict[str, int]] = {}
    for tensor in tensors.values():
        if int8.is_quantised(tensor):
            name, size = "int8", tensor.numel() + tensor.scale.numel() * tensor.scale.element_size()  # type: ignore[attr-defined]
        else:
            name, size = str(tensor.dtype).removeprefix("torch."), tensor.numel() * tensor.element_size()
        row = shares.setdefault(name, {"params": 0, "bytes": 0})
        row["params"] += tensor.numel()
        row["bytes"] += size
    return shares


def _check_target(path: Path) -> None:
    """A folder is replaced as a whole, so it must be ours to replace."""
    if path.is_dir() and any(path.iterdir()) and not (path / ARTIFACT_FILE).is_file():
        raise UserError(f"output folder {path} holds files that are not an artifact; choose a new or empty folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"output folder {path} is a file; choose a folder")


def _write_weights(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    flat, metadata = int8.flatten(tensors)
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in flat.items()}
    save_file(stored, path, metadata={**metadata, "format": "pt"})
    path.chmod(0o644)  # safetensors creates it readable by the owner alone
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write_config(model: Sam3, tensors: Mapping[str, Tensor], folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = ["Sam3Model"]
    dtypes = {t.dtype for t in tensors.values()}
    # transformers loads in this dtype: FP32 unless every tensor fits the stored one (an overflow, INT8).
    config.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    quantization = int8.quantization_config(tensors)
    if quantization is not None:
        config.quantization_config = quantization
    config.save_pretrained(folder)


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
