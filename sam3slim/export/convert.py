"""An artifact in the format asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.artifacts import extract
from sam3slim.checkpoints import load, weight_files
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import Located, weights_name
from sam3slim.files import file_sha256, require_space
from sam3slim.graphs import export_onnx, export_programs
from sam3slim.results.artifact import Source
from sam3slim.results.formats import KEPT, Format
from sam3slim.specs import ModelSpec

REFERENCE_FILE = "model.pt"
QUANTISED_NOTE = "INT4 and INT8 weights are stored as the FP32 numbers they stand for: the same outputs, more bytes"
Advance = Callable[[int, int], object]


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: to open it: the folder, or the file of ``reference``.
        weights: names of the files with weights → their SHA-256.
        bytes: of those.
        notes: what changed on the way.
        overrides: what ``sam3slim.load`` must be told to open it.
    """

    path: Path
    weights: dict[str, str]
    bytes: int
    notes: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)


def convert(
    source: Source,
    format: Format,
    folder: Path,
    *,
    metrics: dict[str, Any] | None = None,
    advance: Advance = lambda done, total: None,
) -> Converted:
    """Write ``source`` as ``format`` to ``folder``, which does not exist yet.

    Args:
        metrics: of the source, for the ``sam3slim.json`` of graphs.
        advance: called with elements just written and elements in all, where weights are streamed.

    Raises:
        UserError: the disk is full, a package is missing, graphs that differ from PyTorch.
        CheckpointError: the source is damaged.
    """
    notes = [QUANTISED_NOTE] if source.quantised and format != "hf" and source.graphs is None else []
    overrides: dict[str, Any] = {}
    if (source.graphs or "hf") in KEPT[format] and source.metadata:
        _copy(source, folder)
    elif format == "hf":
        extract(source.path, folder, format="hf", overrides=source.overrides, advance=advance)
    elif format == "reference":
        folder.mkdir()
        extract(source.path, folder / REFERENCE_FILE, format="reference", overrides=source.overrides, advance=advance)
        overrides = {"text.num_heads": source.spec.text.num_heads}
    else:
        model, _ = load(source.path, overrides=source.overrides, dequantize=True, mapped=True)
        write = export_onnx if format == "onnx" else export_programs
        extra = {"converted_from": source.metadata.get("precision")}
        write(model, folder, parent=str(source.path), metrics=metrics, extra=extra)
    files = [folder / REFERENCE_FILE] if format == "reference" else weight_files(Located("artifact", folder))
    return Converted(
        files[0] if format == "reference" else folder,
        {file.name: file_sha256(file) for file in files},
        sum(file.stat().st_size for file in files),
        notes,
        overrides,
    )


def _copy(source: Source, folder: Path) -> None:
    """The artifact's own files; its weights must still have the SHA-256 that it states.

    Raises:
        CheckpointError: they have another.
    """
    files = [file for file in sorted(source.path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    require_space(folder.parent, sum(file.stat().st_size for file in files))
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    for name, stated in _hashes(source.metadata).items():
        if file_sha256(folder / name) != stated:
            raise CheckpointError(
                f"{source.path / name} is not what was written: its SHA-256 differs from the one in sam3slim.json; "
                "run the command that made it again"
            )


def _hashes(metadata: dict[str, Any]) -> dict[str, str]:
    """File of weights → the SHA-256 its artifact states."""
    for key in ("onnx", "torch_export"):
        if key in metadata:
            return {
                file["name"]: file["sha256"] for graph in metadata[key]["graphs"].values() for file in graph["files"]
            }
    return {weights_name(ModelSpec.from_dict(metadata["spec"])): metadata["sha256"]}
