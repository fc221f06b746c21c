"""What a run keeps so that others can be compared with it, image by image, and the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.data.spec import DataSpec
from sam3slim.errors import UserError
from sam3slim.evaluation import EvalResult, Matches, match, paired_bootstrap
from sam3slim.evaluation.matches import Kind
from sam3slim.records import RunRecord, read_record

KINDS: tuple[Kind, ...] = ("bbox", "segm")
Found = Mapping[str, Matches]


@dataclass(frozen=True)
class Reference:
    """What drops are counted against: a measurement, and how it was asked.

    Attributes:
        found: kind of mAP → matching.
        protocol: ``data.protocol``, which prompts an image was asked.
        prompts: asked of all images together; None where it is not known.
        source: its folder.
        boxes: ``DataSpec.given_boxes`` of it: {} where phrases alone were asked.
    """

    found: Found
    protocol: str
    prompts: int | None
    source: Path
    boxes: Mapping[str, Any] = field(default_factory=dict)

    def check(self, protocol: str, prompts: int | None = None, boxes: Mapping[str, Any] | None = None) -> None:
        """Raise UserError where a run asks otherwise: concepts that are absent can only add false detections."""
        if dict(boxes or {}) != dict(self.boxes):
            raise UserError(
                f"reference={self.source} was measured with {_asked_with(self.boxes)}, this run with "
                f"{_asked_with(boxes or {})}; a drop needs the same prompts: measure both with one data.prompts"
            )
        if protocol != self.protocol:
            raise UserError(
                f"reference={self.source} was measured with data.protocol={self.protocol}, this run with {protocol}; a "
                "drop needs the same prompts: measure both with one protocol"
            )
        if None not in (prompts, self.prompts) and prompts != self.prompts:
            raise UserError(
                f"reference={self.source} was asked {self.prompts:,} prompts, this run {prompts:,}; a drop needs the "
                "same prompts: measure both with the same data, categories and limit"
            )


def _asked_with(boxes: Mapping[str, Any]) -> str:
    noise = f", box noise {boxes.get('box_noise')}" if boxes else ""
    return f"data.prompts={boxes.get('prompt_kind', 'text')}{noise}"


def boxes_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """``DataSpec.given_boxes`` of a record's data entry; {} also of those older than box prompts."""
    return {key: data[key] for key in ("prompt_kind", "box_noise") if key in data}


def matches_of(result: EvalResult) -> dict[str, Matches]:
    """The matching of an evaluation that kept its detections, by kind of mAP."""
    assert result.detections is not None
    assert result.truths is not None
    return {kind: match(result.detections, result.truths, kind) for kind in KINDS if kind in result.metrics}


def save_matches(found: Found, folder: Path) -> None:
    """``matches_bbox.npz`` and ``matches_segm.npz`` in a run's folder."""
    for kind, matches in found.items():
        matches.save(folder / f"matches_{kind}.npz")


def load_reference(run: str | Path, data: DataSpec) -> Reference:
    """What a measurement left in the folder of ``run``.

    Raises:
        UserError: nothing there, or it was asked otherwise than ``data`` says.
    """
    files = {kind: Path(run) / f"matches_{kind}.npz" for kind in KINDS}
    found: dict[str, Matches] = {kind: Matches.load(file) for kind, file in files.items() if file.is_file()}
    if not found:
        raise UserError(
            f"reference={run} has no {files['bbox'].name}; give the output folder of evaluate.py or compress.py, "
            "run on the same data and split"
        )
    told = read_record(run).data or {}
    reference = Reference(found, str(told.get("protocol")), told.get("prompts"), Path(run), boxes_of(told))
    reference.check(data.protocol, boxes=data.given_boxes())
    return reference


def fill_drop(record: RunRecord, reference: Reference, found: Found) -> None:
    """The record's ``drop`` against ``reference``. Raises UserError when images, objects or prompts differ."""
    drop = {
        kind: paired_bootstrap(reference.found[kind], matches).to_dict()
        for kind, matches in found.items()
        if kind in reference.found
    }
    asked = record.data or {}
    reference.check(str(asked.get("protocol")), asked.get("prompts"), boxes_of(asked))
    record.drop = drop


def print_drop(record: RunRecord) -> None:
    """One line per kind of mAP."""
    for kind, drop in (record.drop or {}).items():
        low, high = drop["ci95"]
        print(f"{kind} drop: {drop['points']:.2f} points (95 % {low:.2f} to {high:.2f})")
