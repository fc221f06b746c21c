"""What an artifact of graphs holds beside them: ``sam3slim.json``, configuration, processor files and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.artifacts import ArtifactInfo
from sam3slim.artifacts.card import DEFAULT_LICENSE_NOTE
from sam3slim.artifacts.trained import KEY, inherited_prompts
from sam3slim.artifacts.write import VERSIONED, installed_versions, save_processor, write_config
from sam3slim.checkpoints import ARTIFACT_FILE
from sam3slim.checkpoints.locating import ONNX
from sam3slim.checkpoints.readers import SCHEMA
from sam3slim.graphs.card import graphs_card
from sam3slim.graphs.contents import graph_files
from sam3slim.models.count import count_params
from sam3slim.specs import ModelSpec

RUNTIMES = {ONNX: ("onnx", "onnxscript", "onnxruntime"), "torch-export": ("torchvision",)}


@dataclass(frozen=True)
class Provenance:
    """Where graphs come from, kept in ``sam3slim.json``: JSON values, and the card's words on the licence."""

    parent: Any = None
    metrics: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] | None = None
    license_note: str = DEFAULT_LICENSE_NOTE


@dataclass(frozen=True)
class Content:
    """What the graphs hold.

    Attributes:
        format: ``onnx`` or ``torch-export``.
        precision: its name.
        dtypes: storage type → numbers and bytes.
        parts: part → bytes.
        details: facts of this format alone.
    """

    format: str
    precision: str
    dtypes: Mapping[str, Mapping[str, int]]
    parts: Mapping[str, int]
    details: Mapping[str, Any] = field(default_factory=dict)


def complete(folder: Path, spec: ModelSpec, content: Content, origin: Provenance) -> dict[str, Any]:
    """Write what belongs beside the graphs that lie in ``folder``; returns what ``sam3slim.json`` says."""
    files = graph_files(folder, spec, content.format)
    facts = {
        "schema": SCHEMA,
        "spec": spec.to_dict(),
        "precision": content.precision,
        "format": content.format,
        "params": sum(count_params(spec).values()),
        "dtypes": dict(content.dtypes),
        "opens_in": ["sam3slim", "onnxruntime" if content.format == ONNX else "torch"],
        "bytes": sum(file["bytes"] for graph in files.values() for file in graph["files"]),
        "bytes_by_part": dict(content.parts),
        content.format.replace("-", "_"): {"graphs": files, **content.details},
        "parent": origin.parent,
        KEY: inherited_prompts(origin.parent),
        "metrics": dict(origin.metrics or {}),
        "extra": dict(origin.extra or {}),
        "versions": installed_versions((*VERSIONED, *RUNTIMES[content.format])),
    }
    write_config(spec, {}, folder)
    save_processor(spec, folder)
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    (folder / ARTIFACT_FILE).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(graphs_card(facts, spec, origin.license_note), encoding="utf-8")
    return facts


def info(path: Path, facts: Mapping[str, Any]) -> ArtifactInfo:
    """What was written, once it lies at ``path``."""
    graphs = facts[facts["format"].replace("-", "_")]["graphs"]
    largest = max((file for graph in graphs.values() for file in graph["files"]), key=lambda file: int(file["bytes"]))
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ArtifactInfo(
        path, int(facts["bytes"]), largest["sha256"], total, format=facts["format"],
        bytes_by_part=dict(facts["bytes_by_part"]),
    )  # fmt: skip
