"""How small, at what cost: a row for every evaluation of a slim model against the full one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sam3slim.checkpoints.locating import ARTIFACT_FILE, read_metadata
from sam3slim.errors import UserError
from sam3slim.results.record import RunRecord, read_record
from scripts.study.results import mask_map


def headline_markdown(full: RunRecord, folders: Sequence[Path]) -> str:
    """The table.

    Args:
        full: the evaluation of the full model.
        folders: evaluations (``evaluate.py checkpoint=… reference=…``) of the slim ones.

    Raises:
        UserError: a record that is no finished evaluation against a reference, or one of other data.
    """
    whole = int(full.model.params or 0)
    lines = [
        "| model | parameters | of nano's | size | mask mAP | of nano's | drop, points (95 %) | retraining |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for folder in folders:
        record = read_record(folder)
        if record.status != "finished" or not record.metrics or "segm" not in record.drop:
            raise UserError(f"{folder}: expected a finished evaluation with a drop (evaluate.py reference=FULL)")
        if record.data != full.data:
            raise UserError(f"{folder}: evaluated on other data than the full model")
        params = int(record.model.params or 0)
        artifact = artifact_of(Path(str(record.artifact.path)))
        size, seconds = read_metadata(artifact / ARTIFACT_FILE)["bytes"], training_seconds(artifact)
        lines.append(
            f"| {folder.name} | {params:,} | {100 * params / whole:.1f} % | {size / 1e6:.2f} MB | "
            f"{mask_map(record):.1f} | {100 * mask_map(record) / mask_map(full):.1f} % | "
            f"{record.drop['segm'].text(1)} | {seconds / 60:.0f} min |"
        )
    return "\n".join(lines) + "\n"


def artifact_of(path: Path) -> Path:
    """The artifact of an evaluated path: itself, or the one of the run whose folder or checkpoint it is.

    Raises:
        UserError: there is none.
    """
    for folder in (path, path / "artifact", path.parent.parent / "artifact"):
        if (folder / ARTIFACT_FILE).is_file():
            return folder
    raise UserError(f"{path}: expected an artifact, or a run that has one")


def training_seconds(artifact: Path) -> float:
    """Seconds an artifact was trained, or the one it was made from.

    Raises:
        UserError: nothing on the way says so.
    """
    place: Path | None = artifact
    while place is not None:
        metadata = read_metadata(artifact_of(place) / ARTIFACT_FILE)
        if (seconds := (metadata.get("extra") or {}).get("training_seconds")) is not None:
            return float(seconds)
        place = Path(metadata["parent"]) if metadata.get("parent") else None
    raise UserError(f"{artifact}: neither it nor what it was made from says how long it was trained")
