"""An ONNX artifact → something that runs; and any checkpoint that can be evaluated."""

from __future__ import annotations

from pathlib import Path

from sam3slim.checkpoints import CheckpointError, LoadReport, load, locate, spec_difference
from sam3slim.checkpoints.locate import ONNX, is_onnx
from sam3slim.checkpoints.readers import Overrides, read_facts
from sam3slim.models import Sam3
from sam3slim.onnx.runner import OnnxSam3
from sam3slim.specs import ModelSpec


def load_runnable(
    source: str | Path, *, overrides: Overrides | None = None, expect: ModelSpec | None = None
) -> tuple[Sam3 | OnnxSam3, LoadReport]:
    """``checkpoints.load``, and ONNX artifacts too: whatever can be evaluated.

    Raises:
        CheckpointError, UserError: as ``checkpoints.load`` and ``load_onnx``.
    """
    located = locate(source)
    if is_onnx(located):
        return load_onnx(located.path, expect=expect)
    return load(source, overrides=overrides, expect=expect)


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
    if not is_onnx(located):
        raise CheckpointError(f"checkpoint {located.path} is not an ONNX artifact; use sam3slim.checkpoints.load")
    facts = read_facts(located.path)
    _check_files(located.path, facts.get("onnx"))
    spec = ModelSpec.from_dict(facts["spec"])
    differences = [] if expect is None else spec_difference(spec, expect)
    if differences:
        key, found, wanted = differences[0]
        raise CheckpointError(f"checkpoint of another architecture: {key} is {found} in {located.path}, not {wanted}")
    try:
        runner = OnnxSam3(located.path, spec)
    except Exception as error:
        # ONNX Runtime's exceptions have no common base but Exception.
        if type(error).__module__.startswith("onnxruntime"):
            line = str(error).strip().splitlines()[0][:160]
            raise CheckpointError(
                f"checkpoint {located.path}: ONNX Runtime refuses it ({line}); write it again"
            ) from error
        raise
    parts = {str(part): int(size) for part, size in facts.get("bytes_by_part", {}).items()}
    return runner, LoadReport(located.path, ONNX, str(facts["precision"]), spec, bytes_by_part=parts)


def _check_files(folder: Path, facts: object) -> None:
    graphs = facts.get("graphs") if isinstance(facts, dict) else None
    if not isinstance(graphs, dict) or not graphs:
        raise CheckpointError(f"{folder / 'sam3slim.json'} lacks 'onnx.graphs'; write the artifact again")
    for graph in graphs.values():
        for file in graph["files"]:
            path = folder / file["name"]
            if not path.is_file():
                raise CheckpointError(f"checkpoint {folder} has no {file['name']}; copy the whole folder")
            if path.stat().st_size != file["bytes"]:
                raise CheckpointError(
                    f"{path} has {path.stat().st_size} bytes, {file['bytes']} were written; copy it again"
                )
