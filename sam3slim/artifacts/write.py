"""Writing an artifact: a folder that transformers opens, plus ``sam3slim.json`` and a model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sam3slim.artifacts.lazy import LazyTensors, described, rounding_of
from sam3slim.artifacts.metadata import (
    ArtifactInfo,
    Origin,
    check_target,
    folder_bytes,
    opens_in_transformers,
    write_metadata,
)
from sam3slim.artifacts.stream import Written, write_safetensors
from sam3slim.checkpoints import int8
from sam3slim.checkpoints.load_report import bytes_by_part
from sam3slim.checkpoints.locating import weights_name
from sam3slim.files import at_home, atomic_path
from sam3slim.models import Sam3
from sam3slim.specs import ModelSpec


def write_artifact(
    model: Sam3,
    folder: str | Path,
    *,
    precision: str = "fp32",
    tensors: Mapping[str, Tensor] | None = None,
    **origin: Any,
) -> ArtifactInfo:
    """Write ``model`` to ``folder``, whole or not at all; an artifact already there is replaced.

    Args:
        model: gives the architecture, and the weights unless ``tensors`` does.
        precision: the name of how the weights are stored, e.g. ``fp16``.
        tensors: what to store under the model's keys instead of its own weights (half precision or
            torchao INT8 tensors); the keys must be exactly the model's.
        origin: fields of ``Origin``.

    Raises:
        UserError: ``folder`` is not writable, or holds files that are not an artifact.
        ValueError: the keys of ``tensors`` are not the model's, or ``tensors`` is needed but absent.
    """
    stored = _tensors_to_store(model, tensors, precision)
    return write_folder(folder, model.spec, stored, precision=precision, **origin)


def write_folder(
    folder: str | Path,
    spec: ModelSpec,
    tensors: Mapping[str, Tensor],
    *,
    precision: str,
    source: Callable[[], Mapping[str, Any]] | None = None,
    advance: Callable[[int], object] = lambda count: None,
    **origin: Any,
) -> ArtifactInfo:
    """``write_artifact`` without a model: ``tensors`` are all of the architecture's.

    Args:
        source: where the weights come from; asked for when they have been written.
        advance: called with the number of elements just written.
    """
    path = at_home(folder)
    check_target(path)
    plan, rounding = described(tensors), rounding_of(tensors)
    with atomic_path(path) as temporary:
        temporary.mkdir()
        written = _write_weights(tensors, temporary / weights_name(spec), advance)
        parts = bytes_by_part(int8.flatten(plan)[0])
        weights = {
            "precision": precision,
            "params": sum(t.numel() for t in plan.values()),
            "dtypes": int8.dtype_shares(plan),
            "opens_in": ["sam3slim", *(["transformers"] if opens_in_transformers(spec, plan) else [])],
            "bytes": written.bytes,
            "bytes_by_part": parts,
            "sha256": written.sha256,
            **({"source": dict(source())} if source else {}),
        }
        if isinstance(tensors, LazyTensors):
            origin["extra"] = {**(origin.get("extra") or {}), **rounding.metadata()}
        write_metadata(temporary, spec, Origin(**origin), weights, stored=plan)
    return ArtifactInfo(path, written.bytes, written.sha256, folder_bytes(path), rounding, bytes_by_part=parts)


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


def _write_weights(tensors: Mapping[str, Tensor], path: Path, advance: Callable[[int], object]) -> Written:
    flat, header = int8.flatten(described(tensors))
    lazy = LazyTensors(flat, lambda key: int8.stored_part(tensors, key))
    return write_safetensors(path, lazy, metadata=header, advance=advance)
