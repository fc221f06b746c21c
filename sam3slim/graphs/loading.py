"""An ONNX artifact → something that runs; and any checkpoint that can be evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sam3slim.checkpoints import IMAGE_SIZE, CheckpointError, LoadReport, load, locate, spec_difference
from sam3slim.checkpoints.locating import ONNX, PROGRAMS, Located, graph_format
from sam3slim.checkpoints.readers import Overrides, read_artifact_metadata
from sam3slim.errors import UserError
from sam3slim.graphs.modules import Lengths
from sam3slim.graphs.programs import ProgramSam3
from sam3slim.graphs.runner import GraphSam3, OnnxSam3
from sam3slim.models import Sam3
from sam3slim.specs import ModelSpec

GraphT = TypeVar("GraphT", bound=GraphSam3)
# Format of an artifact of graphs → what runs it.
RUNNERS: dict[str, Callable[[Path, ModelSpec], GraphSam3]] = {ONNX: OnnxSam3, PROGRAMS: ProgramSam3}


def load_runnable(
    source: str | Path,
    *,
    overrides: Overrides | None = None,
    expect: ModelSpec | None = None,
    dequantize: bool = False,
) -> tuple[Sam3 | GraphSam3, LoadReport]:
    """``checkpoints.load``, and artifacts of graphs too: whatever PyTorch and ONNX Runtime run.

    Raises:
        CheckpointError, UserError: as ``checkpoints.load`` and ``load_onnx``; graphs at another image size.
    """
    located = locate(source)
    if graph_format(located) is not None:
        if overrides and IMAGE_SIZE in overrides:
            raise UserError(
                f"image_size={overrides[IMAGE_SIZE]}: the graphs of {located.path} have their size built in; leave "
                "it out, or export the model again at that size"
            )
        return load_graphs(located, expect)
    return load(source, overrides=overrides, expect=expect, dequantize=dequantize)


def load_onnx(source: str | Path, *, expect: ModelSpec | None = None) -> tuple[OnnxSam3, LoadReport]:
    """The graphs of an ONNX artifact, ready to run on the CPU.

    Args:
        source: the folder, or a run folder with ``artifact/``.
        expect: the architecture the caller is about to use; another one is refused.

    Raises:
        CheckpointError: not an ONNX artifact, a file missing or of another size, or another architecture.
        UserError: onnxruntime is not installed.
    """
    located = locate(source)
    if graph_format(located) != ONNX:
        raise CheckpointError(f"checkpoint {located.path} is not an ONNX artifact; use sam3slim.checkpoints.load")
    return load_graphs(located, expect, OnnxSam3)


def load_graphs(
    located: Located, expect: ModelSpec | None, run: Callable[[Path, ModelSpec], GraphT] | None = None
) -> tuple[GraphT, LoadReport]:
    """The graphs of an artifact, run by ``run``; None: by what their format has in ``RUNNERS``.

    Raises:
        CheckpointError: a file is missing or of another size, another architecture, or graphs that cannot be opened.
    """
    metadata = read_artifact_metadata(located.path)
    format = str(metadata["format"])
    key = format.replace("-", "_")
    _check_files(located.path, metadata.get(key), key)
    spec = ModelSpec.from_dict(metadata["spec"])
    differences = [] if expect is None else spec_difference(spec, expect)
    if differences:
        key, found, wanted = differences[0]
        raise CheckpointError(f"checkpoint of another architecture: {key} is {found} in {located.path}, not {wanted}")
    runner: Any = _open(located.path, spec, format, run or RUNNERS[format])
    if lengths := metadata[key].get("fixed"):
        runner.fixed = Lengths(**lengths)
    parts = {str(part): int(size) for part, size in metadata.get("bytes_by_part", {}).items()}
    return runner, LoadReport(located.path, format, str(metadata["precision"]), spec, bytes_by_part=parts)


def _open(folder: Path, spec: ModelSpec, format: str, run: Callable[[Path, ModelSpec], GraphSam3]) -> GraphSam3:
    try:
        return run(folder, spec)
    except UserError:
        raise
    except Exception as error:
        # ONNX Runtime's exceptions have no common base but Exception; torch raises whatever its zip reader does.
        if format == ONNX and not type(error).__module__.startswith("onnxruntime"):
            raise
        who = "ONNX Runtime" if format == ONNX else "PyTorch"
        line = str(error).strip().splitlines()[0][:160]
        raise CheckpointError(f"checkpoint {folder}: {who} refuses it ({line}); write it again") from error


def _check_files(folder: Path, metadata: object, key: str) -> None:
    graphs = metadata.get("graphs") if isinstance(metadata, dict) else None
    if not isinstance(graphs, dict) or not graphs:
        raise CheckpointError(f"{folder / 'sam3slim.json'} lacks '{key}.graphs'; write the artifact again")
    for graph in graphs.values():
        for file in graph["files"]:
            path = folder / file["name"]
            if not path.is_file():
                raise CheckpointError(f"checkpoint {folder} has no {file['name']}; copy the whole folder")
            if path.stat().st_size != file["bytes"]:
                raise CheckpointError(
                    f"{path} has {path.stat().st_size} bytes, {file['bytes']} were written; copy it again"
                )
