"""One reader per kind of container: path → its architecture, its tensors under our keys, and what else is there."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sam3slim.checkpoints.infer import infer_spec, override_spec
from sam3slim.checkpoints.int8 import DYNAMIC_METADATA
from sam3slim.checkpoints.layout import Layout, assign, find_layout
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import (
    ARTIFACT_FILE,
    GRAPH_FILES,
    INDEX_FILE,
    ONNX,
    WEIGHTS_FILE,
    Located,
    SourceKind,
    read_metadata,
    refuse_pointer,
    weights_name,
)
from sam3slim.checkpoints.spec_of import spec_from_file
from sam3slim.models.build import state_shapes
from sam3slim.precisions import name_of
from sam3slim.specs import ModelSpec

Overrides = Mapping[str, Any]
SCHEMA = 1  # of sam3slim.json
LIGHTNING_PREFIX = "model."
OURS = Layout("transformers", "")
VIDEO_MODEL = "sam3_video"
WEIGHT_KEYS = ("model", "state_dict")  # where trainers put the weights
SPEC_METADATA = "sam3slim.spec"  # in the header of safetensors files of ours


@dataclass
class RawCheckpoint:
    """What a checkpoint holds, sorted; tensors as stored and memory-mapped where the format allows.

    Attributes:
        path: the folder or file.
        kind: ``artifact``, ``transformers``, ``lightning``, ``reference`` (released), ``reference_trainer`` or
            ``state_dict`` (bare, under transformers' names).
        precision: of the weights: ``fp32``, ``fp16``, ``bf16``, ``int8_weight`` or ``mixed``.
        spec: the architecture the checkpoint states, or that its tensors tell.
        tensors: under our keys (INT8 ones still flattened).
        unexpected: names in the file that fit no tensor of the architecture.
        ignored: what is known and not needed → bytes (``tracker``, ``computed``, ``point prompts``).
        other: what lies beside the weights → bytes (``optimizer``, ``scaler``, …).
        originals: what transformers drops of the reference's tensors, see ``layout.Assigned``.
        layout: the file's names of tensors.
        dynamic: keys of INT8 weights whose activations are quantised too.
    """

    path: Path
    kind: str
    precision: str
    spec: ModelSpec
    tensors: dict[str, Tensor]
    unexpected: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    layout: Layout = OURS
    dynamic: frozenset[str] = frozenset()


def read(located: Located, overrides: Overrides | None = None) -> RawCheckpoint:
    """Read what ``locate`` found.

    Args:
        overrides: fields of the architecture by dotted key (``text.num_heads``), over what the file says.

    Raises:
        CheckpointError: anything damaged or unknown, in one line.
        SpecError: an override that cannot be.
    """
    return READERS[located.kind](located.path, overrides or {})


def read_artifact(folder: Path, overrides: Overrides) -> RawCheckpoint:
    """Our own artifact: the architecture is the spec in ``sam3slim.json``."""
    metadata = read_artifact_metadata(folder)
    if metadata.get("format") in GRAPH_FILES:
        what = "ONNX graphs" if metadata["format"] == ONNX else "programs of torch.export"
        raise CheckpointError(
            f"checkpoint {folder} holds {what}: evaluate.py can run it, but its weights cannot be loaded; "
            f"give the checkpoint it was made from ({metadata.get('parent')})"
        )
    spec = override_spec(ModelSpec.from_dict(metadata["spec"]), overrides)
    tensors, header = _read_safetensors(folder / weights_name(spec))
    dynamic = frozenset(json.loads(header.get(DYNAMIC_METADATA, "[]")))
    return RawCheckpoint(folder, "artifact", str(metadata["precision"]), spec, tensors, dynamic=dynamic)


def read_artifact_metadata(folder: Path) -> dict[str, Any]:
    """``sam3slim.json`` of an artifact, of a schema this version knows. Raises CheckpointError."""
    metadata = read_metadata(folder / ARTIFACT_FILE)
    schema = metadata.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise CheckpointError(
            f"{folder / ARTIFACT_FILE}: schema {schema!r} is unknown (this version reads up to {SCHEMA}); "
            f"update sam3slim"
        )
    for key in ("spec", "precision"):
        if key not in metadata:
            raise CheckpointError(f"{folder / ARTIFACT_FILE} lacks {key!r}; write the artifact again")
    return metadata


def read_transformers(folder: Path, overrides: Overrides) -> RawCheckpoint:
    """A folder written by ``transformers``: ``Sam3Model``, or the video model whose tracker is ignored."""
    values = read_metadata(folder / "config.json")
    if values.get("model_type") == VIDEO_MODEL and isinstance(values.get("detector_config"), dict):
        values = values["detector_config"]
    elif values.get("model_type") != "sam3":
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {values.get('model_type')!r}, "
            f"expected 'sam3' (transformers.Sam3Model) or '{VIDEO_MODEL}'"
        )
    spec = override_spec(spec_from_file(folder / "config.json", values, folder.resolve().name), overrides)
    if (folder / INDEX_FILE).is_file():
        shards = sorted(set(read_metadata(folder / INDEX_FILE).get("weight_map", {}).values()))
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            tensors.update(_read_safetensors(folder / shard)[0])
    else:
        tensors, _ = _read_safetensors(folder / WEIGHTS_FILE)
    return _sorted(folder, "transformers", spec, tensors, _layout_of(tensors, folder))


def read_torch(path: Path, overrides: Overrides) -> RawCheckpoint:
    """A file of ``torch.save``: ours, the released one, a trainer's, or a bare ``state_dict``."""
    content = _torch_load(path)
    if not isinstance(content, dict) or not content:
        what = "an empty dict" if content == {} else f"a {type(content).__name__}"
        raise CheckpointError(f"checkpoint {path} holds {what}, expected a dict of tensors; choose another file")
    key, weights = _weights_in(content, path)
    other = {str(name): _bytes(value) for name, value in content.items() if key is not None and name != key}
    hyper = content.get("hyper_parameters")
    if key == "state_dict" and isinstance(hyper, dict) and isinstance(hyper.get("model"), dict):
        spec = override_spec(ModelSpec.from_dict(hyper["model"]), overrides)
        raw = _sorted(path, "lightning", spec, weights, Layout("transformers", LIGHTNING_PREFIX))
    else:
        layout = _layout_of(weights, path)
        kind = "state_dict"
        if layout.format == "reference":
            kind = "reference_trainer" if key is not None and "optimizer" in content else "reference"
        raw = _sorted(path, kind, infer_spec(weights, layout, path, overrides), weights, layout)
    raw.other = other
    return raw


def read_safetensors_file(path: Path, overrides: Overrides) -> RawCheckpoint:
    """A safetensors file without configuration, under the reference's names or transformers'."""
    tensors, header = _read_safetensors(path)
    layout = _layout_of(tensors, path)
    if SPEC_METADATA in header:
        spec = override_spec(ModelSpec.from_dict(json.loads(header[SPEC_METADATA])), overrides)
    else:
        spec = infer_spec(tensors, layout, path, overrides)
    return _sorted(path, "reference" if layout.format == "reference" else "state_dict", spec, tensors, layout)


READERS: dict[SourceKind, Callable[[Path, Overrides], RawCheckpoint]] = {
    "artifact": read_artifact,
    "transformers": read_transformers,
    "torch": read_torch,
    "safetensors": read_safetensors_file,
}


def _sorted(path: Path, kind: str, spec: ModelSpec, tensors: Mapping[str, Tensor], layout: Layout) -> RawCheckpoint:
    found = assign(tensors, layout, state_shapes(spec))
    ignored = {group: sum(map(_bytes, map(tensors.__getitem__, names))) for group, names in found.ignored.items()}
    return RawCheckpoint(
        path, kind, _precision(found.tensors), spec, found.tensors, found.unexpected, ignored,
        originals=found.originals, layout=layout,
    )  # fmt: skip


def _layout_of(tensors: Mapping[str, Tensor], path: Path) -> Layout:
    layout = find_layout(tensors)
    if layout is None:
        names = ", ".join(list(tensors)[:3]) + (", …" if len(tensors) > 3 else "")
        found = f"its {len(tensors)} tensors are called {names}" if tensors else "it has no tensors"
        raise CheckpointError(f"checkpoint {path}: not one tensor fits SAM 3 ({found}); choose another file")
    return layout


def _weights_in(content: dict[Any, Any], path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """The dict of weights and the key it lies under (None: ``content`` itself)."""
    for key in (None, *WEIGHT_KEYS):
        values = content if key is None else content.get(key)
        if isinstance(values, dict):
            tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
            if tensors:
                return key, tensors
    held = ", ".join(map(str, list(content)[:4]))
    raise CheckpointError(
        f"checkpoint {path} has no tensors (it holds {held}); expected a state_dict, or one under "
        f"{' or '.join(repr(key) for key in WEIGHT_KEYS)}"
    )


def _bytes(value: Any) -> int:
    """Bytes of all tensors in a nest of dicts and lists."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Memory-mapped tensors, and the header's metadata."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path.parent} has no {path.name}; copy the whole folder")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        refuse_pointer(path)
        raise CheckpointError(f"{path} is truncated or damaged ({_one_line(error)}); copy it again") from error


def _torch_load(path: Path) -> Any:
    try:
        # Files older than the zip format cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path} holds pickled code, which is never run ({_one_line(error)}); "
            f"save only tensors and plain values"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {path} is truncated or damaged ({_one_line(error)}); copy it again"
        ) from error


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0][:120]}" if lines else type(error).__name__


def _precision(tensors: dict[str, Tensor]) -> str:
    return name_of(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
