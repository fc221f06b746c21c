"""One reader per kind of container: path → its architecture, its tensors under our keys, and what else is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam3slim.checkpoints.container import find_weights
from sam3slim.checkpoints.infer import infer_spec, override_spec
from sam3slim.checkpoints.int8 import DYNAMIC_METADATA
from sam3slim.checkpoints.layout import Layout, assign
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import (
    ARTIFACT_FILE,
    GRAPH_FILES,
    ONNX,
    Located,
    SourceKind,
    read_metadata,
    transformers_files,
    weights_name,
)
from sam3slim.checkpoints.lora import Adapter, merged
from sam3slim.checkpoints.names import Named, named
from sam3slim.checkpoints.pickles import torch_load
from sam3slim.checkpoints.spec_of import spec_from_file
from sam3slim.checkpoints.storage import read_safetensors, tensors_of
from sam3slim.models.build import state_shapes
from sam3slim.precisions import name_of
from sam3slim.specs import ModelSpec
from sam3slim.strict import SpecError

Overrides = Mapping[str, Any]
SCHEMA = 1  # of sam3slim.json
OURS = Layout("transformers", "")
VIDEO_MODEL = "sam3_video"
WEIGHTS = "weights"  # an override of no architecture: which set of a file's weights to take
# Nothing reads the neck's last level: transformers makes it and drops it, and SAM 3.1's files leave it out.
UNREAD = "vision_encoder.neck.fpn_layers.3."
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
        ignored: what is known and not needed → bytes (``tracker``, ``computed``, ``point prompts``, ``copies``).
        other: what lies beside the weights → bytes (``optimizer``, ``scaler``, …).
        originals: what transformers drops of the reference's tensors, see ``layout.Assigned``.
        layout: the file's names of tensors.
        dynamic: keys of INT8 weights whose activations are quantised too.
        absent: keys of ``UNREAD`` that the file lacks; zeros stand for them.
        adapter: LoRA matrices that nobody has merged, by the file's names.
        rivals: other sets of weights in the file, which the override ``weights`` takes instead.
        left_out: classes of the objects in the file that were not loaded.
        assumed: sizes in ``spec`` that nothing states, by dotted key.
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
    absent: list[str] = field(default_factory=list)
    adapter: dict[str, Tensor] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()
    left_out: list[str] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)


def read(located: Located, overrides: Overrides | None = None) -> RawCheckpoint:
    """Read what ``locate`` found.

    Args:
        overrides: fields of the architecture by dotted key (``text.num_heads``), over what the file says; ``weights``
            chooses between several sets of weights in a file.

    Raises:
        CheckpointError: anything damaged or unknown, in one line.
        SpecError: sizes that cannot be, the file's or an override.
    """
    sizes = dict(overrides or {})
    chosen = sizes.pop(WEIGHTS, None)
    try:
        return READERS[located.kind](located.path, sizes, None if chosen is None else str(chosen))
    except SpecError as error:
        raise SpecError(f"checkpoint {located.path}: {error}") from error


def read_artifact(folder: Path, overrides: Overrides, chosen: str | None = None) -> RawCheckpoint:
    """Our own artifact: the architecture is the spec in ``sam3slim.json``."""
    if chosen is not None:
        raise CheckpointError(f"weights={chosen}: {folder} is an artifact, which has one set of weights; leave it out")
    metadata = read_artifact_metadata(folder)
    if metadata.get("format") in GRAPH_FILES:
        what = "ONNX graphs" if metadata["format"] == ONNX else "programs of torch.export"
        raise CheckpointError(
            f"checkpoint {folder} holds {what}: evaluate.py can run it, but its weights cannot be loaded; "
            f"give the checkpoint it was made from ({metadata.get('parent')})"
        )
    spec = override_spec(ModelSpec.from_dict(metadata["spec"]), overrides)
    tensors, header = read_safetensors(folder / weights_name(spec))
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


def read_transformers(folder: Path, overrides: Overrides, chosen: str | None = None) -> RawCheckpoint:
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
    tensors: dict[str, Tensor] = {}
    for file in transformers_files(folder):
        tensors |= tensors_of(file)
    return _sorted(folder, "transformers", spec, named(tensors, folder, chosen))


def read_torch(path: Path, overrides: Overrides, chosen: str | None = None) -> RawCheckpoint:
    """A file of ``torch.save``: ours, the released one, a trainer's, or a bare ``state_dict``."""
    content, left_out = torch_load(path)
    held, prefix = find_weights(content, path, chosen)
    found = named(held.tensors, path, prefix)
    hyper = content.get("hyper_parameters") if isinstance(content, dict) else None
    ours = hyper.get("model") if isinstance(hyper, dict) else None
    if held.path == ("state_dict",) and isinstance(hyper, dict) and isinstance(ours, dict) and "vit" in ours:
        spec = override_spec(ModelSpec.from_dict(ours), overrides)
        raw = _sorted(path, "lightning", spec, found)
        if raw.adapter and (adapter := Adapter.of_training(path, raw.adapter, hyper)) is not None:
            raw.tensors, raw.adapter = merged(raw.tensors, adapter), {}
    else:
        kind = "state_dict"
        if found.layout.format == "reference":
            kind = "reference_trainer" if held.path and "optimizer" in content else "reference"
        raw = _inferred(path, kind, found, overrides)
    raw.other, raw.rivals, raw.left_out = held.other, held.rivals, left_out
    return raw


def read_safetensors_file(path: Path, overrides: Overrides, chosen: str | None = None) -> RawCheckpoint:
    """A safetensors file without configuration, under the reference's names or transformers'."""
    tensors, header = read_safetensors(path)
    found = named(tensors, path, chosen)
    kind = "reference" if found.layout.format == "reference" else "state_dict"
    if SPEC_METADATA in header:
        spec = override_spec(ModelSpec.from_dict(json.loads(header[SPEC_METADATA])), overrides)
        return _sorted(path, kind, spec, found)
    return _inferred(path, kind, found, overrides)


READERS: dict[SourceKind, Callable[[Path, Overrides, str | None], RawCheckpoint]] = {
    "artifact": read_artifact,
    "transformers": read_transformers,
    "torch": read_torch,
    "safetensors": read_safetensors_file,
}


def _inferred(path: Path, kind: str, given: Named, overrides: Overrides) -> RawCheckpoint:
    """A file without configuration, of the architecture that its tensors tell."""
    spec, assumed = infer_spec(given.tensors, given.layout, path, overrides, _stated_beside(path))
    raw = _sorted(path, kind, spec, given)
    raw.assumed = assumed
    return raw


def _stated_beside(path: Path) -> ModelSpec | None:
    """The architecture that ``extract`` has left beside a single file, unless the file is another one now."""
    beside = path.with_name(f"{path.name}.{ARTIFACT_FILE}")
    if not beside.is_file():
        return None
    metadata = read_metadata(beside)
    own = metadata.get("bytes") == path.stat().st_size
    return ModelSpec.from_dict(metadata["spec"]) if own and isinstance(metadata.get("spec"), dict) else None


def _sorted(path: Path, kind: str, spec: ModelSpec, given: Named) -> RawCheckpoint:
    wanted = state_shapes(spec)
    found = assign(given.tensors, given.layout, wanted)
    ignored = {group: sum(given.tensors[name].nbytes for name in names) for group, names in found.ignored.items()}
    ignored |= {name: size for name, size in (("copies", given.copies), ("other weights", given.others)) if size}
    raw = RawCheckpoint(
        path, kind, _precision(found.tensors), spec, found.tensors, [given.written[name] for name in found.unexpected],
        ignored, originals=found.originals, layout=given.layout, adapter=given.adapter,
    )  # fmt: skip
    unread = [key for key in wanted if key.startswith(UNREAD)]
    if found.tensors and not any(key in found.tensors for key in unread):
        like = next(iter(found.tensors.values()))
        raw.tensors |= {key: torch.zeros((), dtype=like.dtype).expand(wanted[key]) for key in unread}
        raw.absent = unread
    return raw


def _precision(tensors: dict[str, Tensor]) -> str:
    return name_of(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
