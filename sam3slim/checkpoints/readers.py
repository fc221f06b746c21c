"""One reader per kind of checkpoint: path → its architecture and its tensors under our keys."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import Sam3Config

from sam3slim.checkpoints.locate import ARTIFACT_FILE, INDEX_FILE, WEIGHTS_FILE, Kind, Located, read_json
from sam3slim.checkpoints.report import CheckpointError
from sam3slim.checkpoints.spec_of import spec_from_config
from sam3slim.specs import ModelSpec

SCHEMA = 1  # of sam3slim.json
LIGHTNING_PREFIX = "model."
LFS_HEAD = b"version https://git-lfs"


@dataclass
class RawCheckpoint:
    """Tensors as stored (INT8 ones still flattened), memory-mapped where the format allows."""

    path: Path
    kind: str
    precision: str
    spec: ModelSpec
    tensors: dict[str, Tensor]


def read(located: Located) -> RawCheckpoint:
    """Read what ``locate`` found. Raises CheckpointError (one line) for anything damaged or unknown."""
    return READERS[located.kind](located.path)


def read_artifact(folder: Path) -> RawCheckpoint:
    """Our own artifact: the architecture is the spec in ``sam3slim.json``."""
    facts = read_json(folder / ARTIFACT_FILE)
    schema = facts.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise CheckpointError(
            f"{folder / ARTIFACT_FILE}: schema {schema!r} is unknown (this version reads up to {SCHEMA}); "
            f"update sam3slim"
        )
    for key in ("spec", "precision"):
        if key not in facts:
            raise CheckpointError(f"{folder / ARTIFACT_FILE} lacks {key!r}; write the artifact again")
    tensors = _read_safetensors(folder / WEIGHTS_FILE)
    return RawCheckpoint(folder, "artifact", str(facts["precision"]), ModelSpec.from_dict(facts["spec"]), tensors)


def read_transformers(folder: Path) -> RawCheckpoint:
    """A folder written by ``transformers.Sam3Model.save_pretrained``, single or sharded."""
    values = read_json(folder / "config.json")
    if values.get("model_type") != "sam3":
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {values.get('model_type')!r}, "
            f"expected 'sam3' (transformers.Sam3Model)"
        )
    spec = spec_from_config(Sam3Config.from_dict(values), name=folder.resolve().name)
    if (folder / INDEX_FILE).is_file():
        shards = sorted(set(read_json(folder / INDEX_FILE).get("weight_map", {}).values()))
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            tensors.update(_read_safetensors(folder / shard))
    else:
        tensors = _read_safetensors(folder / WEIGHTS_FILE)
    return RawCheckpoint(folder, "transformers", _precision(tensors), spec, tensors)


def read_torch(path: Path) -> RawCheckpoint:
    """A Lightning checkpoint of ours: weights under ``model.``, architecture in its hyper-parameters."""
    content = _torch_load(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        keys = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"checkpoint {path} has no 'state_dict' (it holds {keys}); expected one written by train.py"
        )
    hyper = content.get("hyper_parameters")
    values = hyper.get("model") if isinstance(hyper, dict) else None
    if not isinstance(values, dict):
        raise CheckpointError(
            f"checkpoint {path} does not state its architecture (hyper_parameters.model); "
            f"expected one written by train.py"
        )
    state = content["state_dict"]
    tensors = {k.removeprefix(LIGHTNING_PREFIX): v for k, v in state.items() if isinstance(v, Tensor)}
    return RawCheckpoint(path, "lightning", _precision(tensors), ModelSpec.from_dict(values), tensors)


READERS: dict[Kind, Callable[[Path], RawCheckpoint]] = {
    "artifact": read_artifact,
    "transformers": read_transformers,
    "torch": read_torch,
}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path.parent} has no {path.name}; copy the whole folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            pointer = file.read(len(LFS_HEAD)) == LFS_HEAD
        if pointer:
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`") from error
        raise CheckpointError(f"{path} is truncated or damaged ({_one_line(error)}); copy it again") from error


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    found = {names.get(t.dtype, str(t.dtype)) for t in tensors.values()}
    return found.pop() if len(found) == 1 else "mixed"
