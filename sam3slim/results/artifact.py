"""What lies behind a record: its artifact, where it is now and whether it is still the one that was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.checkpoints import locate, weight_files
from sam3slim.checkpoints.infer import override_spec
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import Located, graph_format
from sam3slim.checkpoints.readers import read, read_artifact_metadata
from sam3slim.precisions import PRECISIONS
from sam3slim.results.collect import Run
from sam3slim.specs import ModelSpec


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        metadata: ``sam3slim.json`` of an artifact; {} for other checkpoints.
        overrides: sizes that its record says it must be loaded with.
    """

    located: Located
    metadata: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.located.path

    @property
    def graphs(self) -> str | None:
        """``onnx`` or ``torch-export`` for graphs."""
        return graph_format(self.located)

    @property
    def spec(self) -> ModelSpec:
        """Its architecture. Raises CheckpointError for a damaged file."""
        if self.metadata:
            return override_spec(ModelSpec.from_dict(read_artifact_metadata(self.path)["spec"]), self.overrides)
        return read(self.located, self.overrides).spec

    @property
    def quantised(self) -> bool:
        """Whether any of its weights is INT8, INT4 or FP8."""
        packed = {precision.dtype for precision in PRECISIONS.values() if not precision.cast}
        return not packed.isdisjoint(self.metadata.get("dtypes", {}))


def source_of(run: Run) -> Source:
    """The artifact of a run that has one.

    Raises:
        CheckpointError: it is gone, or its weights have another size than the record says.
    """
    record = run.record
    artifact = record.artifact
    stated = Path(str(artifact.path))
    places = [stated, run.folder / stated]
    if record.kind != "evaluate":
        places.append(run.folder / "artifact")  # of a run folder that was moved as a whole
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise CheckpointError(
            f"the artifact of {run.folder} is gone: {stated} does not exist; move it back, run `{record.command}` "
            "again, or leave this run out"
        )
    located = locate(path)
    size = sum(file.stat().st_size for file in weight_files(located))
    if size != artifact.bytes:
        raise CheckpointError(
            f"{path} is not what {run.folder / 'record.json'} measured: its weights have {size:,} bytes, the record "
            f"says {artifact.bytes:,}; measure it again with evaluate.py"
        )
    metadata = read_artifact_metadata(located.path) if located.kind == "artifact" else {}
    return Source(located, metadata, dict(artifact.overrides))
