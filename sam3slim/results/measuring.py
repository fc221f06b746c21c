"""The metrics of predictions in files, of any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.data.predictions import Predictions, read_predictions
from sam3slim.data.truths import Truths, read_truths
from sam3slim.errors import UserError
from sam3slim.results.cgf1 import concept_counts
from sam3slim.results.coco import IouType, Matches, fixed_average_precision
from sam3slim.results.metrics import METRICS, Measured, measure_all
from sam3slim.results.record import Drop
from sam3slim.results.samples import paired_bootstrap

KINDS: tuple[IouType, ...] = ("bbox", "segm")
CGF1: Mapping[IouType, str] = {"bbox": "cgf1_bbox", "segm": "cgf1"}
FREQUENCIES = {"r": "map_rare", "c": "map_common", "f": "map_frequent"}


@dataclass(frozen=True)
class SetMetrics:
    """What was measured of one set.

    Attributes:
        measured: metric → its numbers and samples.
        entries: of the annotations: images, or pairs of picture and phrase.
        detections: of the predictions.
        notes: what should be known about the numbers, in words.
    """

    measured: Mapping[str, Measured]
    entries: int
    detections: int
    notes: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, dict[str, Any]]:
        """Metric → number → value."""
        return {name: dict(found.numbers) for name, found in self.measured.items()}


def measure_files(predictions: Path, annotations: Sequence[Path], iou: IouType | None = None) -> SetMetrics:
    """Every metric of a file of predictions.

    COCO's and LVIS' annotations have all metrics, SA-Co's and those of several annotators cgF1 alone.

    Args:
        annotations: one file per annotator of the same images.
        iou: compare boxes or masks alone; None: both, where there are both.

    Raises:
        UserError: files that are broken or do not belong together.
    """
    with_masks = iou != "bbox"
    truths = [read_truths(path, with_masks=with_masks) for path in annotations]
    ordered = [truths[0], *(_as_first(one, truths[0]) for one in truths[1:])]
    given = read_predictions(predictions, truths[0], with_masks=with_masks and all(one.has_masks for one in truths))
    kinds = [kind for kind in KINDS if iou in (None, kind) and (kind == "bbox" or given.has_masks)]
    if not kinds:
        whose = "the annotations" if not all(one.has_masks for one in truths) else "the predictions"
        raise UserError(f"--iou segm: {whose} have no masks; use --iou bbox")
    notes = _notes(given, truths)
    if truths[0].by_concept or len(truths) > 1:
        measured, more = _by_concept(given, ordered, kinds)
        notes += more
    else:
        measured = _by_category(given, truths[0], kinds)
    return SetMetrics(measured, len(truths[0].entries), sum(map(len, given.detections)), notes)


def _by_category(given: Predictions, truths: Truths, kinds: Sequence[IouType]) -> dict[str, Measured]:
    other = {name for kind in KINDS if kind not in kinds for name in (kind, CGF1[kind])}
    measured = measure_all(given.detections, truths.ground_truths, without=other)
    if truths.federated:
        for kind in kinds:
            found = measured[kind]
            found.numbers["map_fixed"] = fixed_average_precision(given.detections, truths.ground_truths, kind)
            if truths.frequency and isinstance(found.samples, Matches):
                found.numbers.update(_by_frequency(found.samples, truths.frequency))
    return measured


def _by_frequency(matches: Matches, frequency: Mapping[int, str]) -> dict[str, float | None]:
    """LVIS' AP of rare, common and frequent categories."""
    groups: dict[str, list[float]] = {group: [] for group in FREQUENCIES}
    for label, value in matches.per_category().items():
        if value is not None and frequency.get(label) in groups:
            groups[frequency[label]].append(value)
    return {FREQUENCIES[group]: mean(values) for group, values in groups.items()}


def _by_concept(
    given: Predictions, truths: Sequence[Truths], kinds: Sequence[IouType]
) -> tuple[dict[str, Measured], list[str]]:
    measured, notes = {}, []
    for kind in kinds:
        counts = concept_counts(given.detections, [one.ground_truths for one in truths], kind)
        measured[CGF1[kind]] = Measured(dict(counts.numbers()), counts)
        left_out = int(sum(len(one.ground_truths) for one in truths[:1]) - counts.entries.sum())
        if truths[0].by_concept and left_out:
            notes.append(f"{left_out} entries are not annotated exhaustively and are left out")
        if not counts.has_both:
            notes.append("IL_MCC is 0 by its formula: all entries, or none, have objects")
    return measured, list(dict.fromkeys(notes))


def _as_first(one: Truths, first: Truths) -> Truths:
    """Another annotator's entries in the order of the first's.

    Raises:
        UserError: the two do not annotate the same entries.
    """
    places = {entry.number: place for place, entry in enumerate(one.entries)}
    missing = [entry.number for entry in first.entries if entry.number not in places]
    if missing or len(one.entries) != len(first.entries):
        raise UserError(
            f"{one.path} and {first.path} do not annotate the same images ({len(one.entries)} and "
            f"{len(first.entries)}); give the files of annotators of one set"
        )
    order = [places[entry.number] for entry in first.entries]
    truths = [one.ground_truths[place] for place in order]
    return Truths(one.path, first.entries, truths, one.images, one.labels, one.names, one.frequency, one.by_concept)


def _notes(given: Predictions, truths: Sequence[Truths]) -> list[str]:
    pictures, beside = given.missing
    notes = []
    if pictures:
        notes.append(
            f"{pictures} of {len(truths[0].entries)} images are not among the predictions': nothing found there"
        )
    if beside:
        notes.append(f"{beside} predictions are of phrases or pictures that are not annotated, and are left out")
    if not given.has_masks and all(one.has_masks for one in truths):
        notes.append("the predictions have no masks: boxes are compared")
    return notes


def drops(full: SetMetrics, other: SetMetrics) -> dict[str, Drop]:
    """How much worse ``other`` is than ``full`` on the same annotations, with 95 % intervals.

    Raises:
        UserError: they are of other annotations.
    """
    found = {}
    for name, one in full.measured.items():
        two = other.measured.get(name)
        if one.samples is not None and two is not None and two.samples is not None:
            found[name] = paired_bootstrap(METRICS[name], one.samples, two.samples)
    return found


def mean(values: Sequence[float]) -> float | None:
    """None of no values."""
    return sum(values) / len(values) if values else None


def macro(sets: Sequence[SetMetrics]) -> dict[str, dict[str, float | None]]:
    """The mean over sets of every number that all of them have, each set counting the same (ODinW, Roboflow-100)."""
    first, *rest = [one.numbers for one in sets]
    return {
        name: {
            number: mean([one[name][number] for one in (first, *rest) if one[name][number] is not None])
            for number in numbers
            if all(number in one[name] for one in rest)
        }
        for name, numbers in first.items()
        if all(name in one for one in rest)
    }
