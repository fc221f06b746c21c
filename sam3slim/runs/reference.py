"""What a run keeps so that others can be compared with it, image by image, and the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.data.coco import CocoConcepts
from sam3slim.data.spec import DataSpec
from sam3slim.errors import UserError
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import RunRecord, read_record
from sam3slim.results.samples import Samples, paired_bootstrap

Found = Mapping[str, Samples]


@dataclass(frozen=True)
class Reference:
    """What drops are counted against: a measurement, and how it was asked.

    Attributes:
        found: metric → its samples.
        protocol: ``data.protocol``, which prompts an image was asked.
        prompts: asked of all images together; None where it is not known.
        source: its folder.
        boxes: ``DataSpec.given_boxes`` of it: {} where phrases alone were asked.
        key: of the configuration that names it.
    """

    found: Found
    protocol: str
    prompts: int | None
    source: Path
    boxes: Mapping[str, Any] = field(default_factory=dict)
    key: str = "reference"

    def check(self, protocol: str, prompts: int | None = None, boxes: Mapping[str, Any] | None = None) -> None:
        """Raise UserError where a run asks otherwise: concepts that are absent can only add false detections."""
        if dict(boxes or {}) != dict(self.boxes):
            raise UserError(
                f"{self.key}={self.source} was measured with {_asked_with(self.boxes)}, this run with "
                f"{_asked_with(boxes or {})}; a drop needs the same prompts: measure both with one data.prompts"
            )
        if protocol != self.protocol:
            raise UserError(
                f"{self.key}={self.source} was measured with data.protocol={self.protocol}, this run with {protocol}; "
                "a drop needs the same prompts: measure both with one protocol"
            )
        if None not in (prompts, self.prompts) and prompts != self.prompts:
            raise UserError(
                f"{self.key}={self.source} was asked {self.prompts:,} prompts, this run {prompts:,}; a drop needs the "
                "same prompts: measure both with the same data, categories and limit"
            )


def _asked_with(boxes: Mapping[str, Any]) -> str:
    noise = f", box noise {boxes.get('box_noise')}" if boxes else ""
    return f"data.prompts={boxes.get('prompt_kind', 'text')}{noise}"


def save_samples(found: Found, folder: Path) -> None:
    """``matches_bbox.npz``, ``matches_segm.npz``, … in a run's folder."""
    for name, samples in found.items():
        samples.save(_file(folder, name))


def load_samples(folder: Path) -> dict[str, Samples]:
    """What ``save_samples`` left; {} where drops cannot be counted against the run of this folder."""
    files = {name: _file(folder, name) for name in METRICS}
    return {name: METRICS[name].samples(file) for name, file in files.items() if file.is_file()}


def _file(folder: Path, metric: str) -> Path:
    return folder / f"matches_{metric}.npz"


def load_reference(run: str | Path, data: DataSpec, key: str = "reference") -> Reference:
    """What a measurement left in the folder of ``run``, which ``key`` of the configuration names.

    Raises:
        UserError: nothing there, or it was asked otherwise than ``data`` says.
    """
    found = load_samples(Path(run))
    if not found:
        raise UserError(
            f"{key}={run} has no matches of its detections; give the output folder of evaluate.py or compress.py, "
            "run on the same data and split"
        )
    asked = read_record(run).data
    if asked.split is not None and asked.split != data.split:
        raise UserError(
            f"{key}={run} was measured on data.split={asked.split}, and the comparison is on {data.split}; measure it "
            f"with data.split={data.split}"
        )
    reference = Reference(found, str(asked.protocol), asked.prompts, Path(run), asked.boxes, key)
    reference.check(data.protocol, boxes=data.given_boxes())
    return reference


def check_images(reference: Reference, dataset: CocoConcepts, limit: int | None) -> None:
    """Raise UserError unless ``reference`` was measured on the images that ``dataset`` gives an evaluation."""
    wanted = [record.id for record in dataset.records[:limit]]
    for samples in reference.found.values():
        if samples.image_ids.tolist() != wanted:
            raise UserError(
                f"{reference.key}={reference.source} was measured on {len(samples.image_ids)} images, and "
                f"{dataset.annotation_file} gives {len(wanted)}, not all the same; measure it on the same data and "
                "limit"
            )


def fill_drop(record: RunRecord, reference: Reference, found: Found) -> None:
    """The record's ``drop`` against ``reference``. Raises UserError when images, objects or prompts differ."""
    drops = {
        name: paired_bootstrap(METRICS[name], reference.found[name], samples)
        for name, samples in found.items()
        if name in reference.found
    }
    reference.check(str(record.data.protocol), record.data.prompts, record.data.boxes)
    record.drop = drops


def print_drop(record: RunRecord) -> None:
    """One line per metric."""
    for name, drop in record.drop.items():
        print(f"{name} drop, points (95 %): {drop.text()}")
