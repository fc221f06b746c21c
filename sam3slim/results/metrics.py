"""The metrics: each is registered once, with its words, and is then in records, tables, plots, page and choices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3slim.errors import UserError
from sam3slim.results.record import RunRecord

if TYPE_CHECKING:
    from sam3slim.data.batch import GroundTruth
    from sam3slim.data.detections import Detections
    from sam3slim.results.coco import IouType
    from sam3slim.results.samples import Samples


@dataclass(frozen=True)
class Measured:
    """A metric of one model: its numbers, as in ``record.json``, and what its drop is computed from."""

    numbers: dict[str, Any]
    samples: Samples | None = None


@dataclass(frozen=True)
class Metric:
    """A measure of detections against ground truth: one or several numbers, of which one is compared.

    Attributes:
        name: its key in ``record.json``, under ``metrics`` and ``drop``.
        title: in messages and on axes, ``mask mAP``.
        short: before "drop" in headings, ``mask``.
        measure: computes it of the detections and the ground truth of every image, in the same order; None where the
            data cannot have it.
        samples: reads back what ``measure`` gave as ``samples``.
        headline: the number that is shown, compared and searched.
        logged: numbers that training logs at each validation.
        printed: numbers that a run prints in the end; (): all.
        scale, unit: a number of 0..1 is shown as 0..100 %; drops are counted in the same points.
        higher_is_better: the direction of comparisons.
        priority: of the metrics a run has, the one with the most decides where none is named.
        of_model: it compares with what another model found (``data.agreement``), where nobody has annotated; the others
            compare with annotations.
    """

    name: str
    title: str
    short: str
    measure: Callable[[Sequence[Detections], Sequence[GroundTruth]], Measured | None]
    samples: Callable[[Path], Samples]
    headline: str = "map"
    logged: tuple[str, ...] = ()
    printed: tuple[str, ...] = ()
    scale: float = 100.0
    unit: str = "%"
    higher_is_better: bool = True
    priority: int = 0
    of_model: bool = False

    @property
    def column(self) -> str:
        """Of tables: ``segm_map``."""
        return self.key(self.headline)

    def key(self, number: str) -> str:
        """A number's name among those of all metrics: ``segm_map_50``; ``cgf1``, not ``cgf1_cgf1``."""
        return self.name if self.name.startswith(number) else f"{self.name}_{number}"

    def score(self, value: float) -> float:
        """More is better."""
        return value if self.higher_is_better else -value

    def score_of(self, record: RunRecord) -> float | None:
        """The record's score; None where it was not measured."""
        value = record.metrics.value(self)
        return None if value is None else self.score(value)

    def points_lost(self, before: float, after: float) -> float:
        """How much worse ``after`` is."""
        return self.scale * (self.score(before) - self.score(after))

    def before(self, value: float, lost: float) -> float:
        """What it was before ``lost`` points were lost."""
        return value + (lost if self.higher_is_better else -lost) / self.scale

    def sentence(self, value: float) -> str:
        """``mask mAP 83.31 %``."""
        return f"{self.title} {self.text(value)} {self.unit}"

    def text(self, value: float, digits: int = 2) -> str:
        """``83.31``, without the unit."""
        return f"{self.scale * value:.{digits}f}"


METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Make a metric known. Raises ValueError for a name that is taken."""
    if metric.name in METRICS:
        raise ValueError(f"there is already a metric {metric.name}")
    METRICS[metric.name] = metric
    return metric


def measure_all(
    detections: Sequence[Detections], truths: Sequence[GroundTruth], without: Collection[str] = ()
) -> dict[str, Measured]:
    """Every metric that the data can have, but those named in ``without``."""
    of_model = any(truth.by_model for truth in truths)
    if of_model and not any(len(truth.labels) for truth in truths):
        return {}  # nothing has been found for them yet
    wanted = {name: m for name, m in METRICS.items() if name not in without and m.of_model == of_model}
    measured = {name: metric.measure(detections, truths) for name, metric in wanted.items()}
    return {name: found for name, found in measured.items() if found is not None}


def _average_precision(
    kind: IouType, detections: Sequence[Detections], truths: Sequence[GroundTruth]
) -> Measured | None:
    from sam3slim.results.coco import average_precision  # pycocotools and scipy, which a table has no use for

    if kind == "segm" and any(truth.rles is None for truth in truths):
        return None
    return Measured(*average_precision(detections, truths, kind))


def _matches(path: Path) -> Samples:
    from sam3slim.results.coco import Matches

    return Matches.load(path)


def _coco(name: str, kind: IouType, title: str, short: str, priority: int, *, of_model: bool = False) -> Metric:
    measure = partial(_average_precision, kind)
    return Metric(
        name, title, short, measure, _matches, logged=("map", "map_50"), priority=priority, of_model=of_model
    )  # fmt: skip


def _cgf1(kind: IouType, detections: Sequence[Detections], truths: Sequence[GroundTruth]) -> Measured | None:
    from sam3slim.results.cgf1 import concept_counts

    if kind == "segm" and any(truth.rles is None for truth in truths):
        return None
    counts = concept_counts(detections, [truths], kind)
    # With data.protocol=present nothing absent is asked for: image-level correlation would be 0 for every model.
    return Measured(counts.numbers(), counts) if counts.has_both else None


def _counts(path: Path) -> Samples:
    from sam3slim.results.cgf1 import ConceptCounts

    return ConceptCounts.load(path)


def _concept(name: str, kind: IouType, title: str, short: str) -> Metric:
    return Metric(
        name, title, short, partial(_cgf1, kind), _counts, headline="cgf1", logged=("pmf1", "il_mcc"),
        printed=("cgf1", "cgf1_50", "cgf1_75", "pmf1", "il_mcc"),
    )  # fmt: skip


register(_coco("bbox", "bbox", "box mAP", "box", 1))
register(_coco("segm", "segm", "mask mAP", "mask", 2))
register(_concept("cgf1_bbox", "bbox", "box cgF1", "box cgF1"))
register(_concept("cgf1", "segm", "mask cgF1", "mask cgF1"))
# Average precision with the full model's detections as objects: 100 % is the full model, not a perfect one.
register(_coco("agreement_bbox", "bbox", "box agreement", "box agreement", 1, of_model=True))
register(_coco("agreement", "segm", "mask agreement", "mask agreement", 2, of_model=True))


def main_metric(records: RunRecord | Iterable[RunRecord], name: str | None = None) -> Metric:
    """The metric that decides between runs: the one named, or mask mAP, box mAP where no run has masks.

    Raises:
        UserError: no metric has this name, or no run has measured it.
    """
    records = [records] if isinstance(records, RunRecord) else list(records)
    measured = [m.name for m in METRICS.values() if any(record.metrics.value(m) is not None for record in records)]
    return main_of(measured, name)


def main_of(names: Collection[str], wanted: str | None = None) -> Metric:
    """Of some metrics the one that decides: ``wanted``, or the one with the most priority.

    Raises:
        UserError: ``wanted`` is none of them.
    """
    if wanted is None:
        return max((METRICS[name] for name in names), key=lambda metric: metric.priority, default=METRICS["bbox"])
    check_metric(wanted)
    if wanted not in names:
        known = f"measured are {', '.join(names)}" if names else "nothing is measured"
        raise UserError(
            f"metric={wanted}: {METRICS[wanted].title} is not measured here, {known}; choose one of those, or evaluate "
            "again: masks need data with masks, cgF1 data.protocol=all or present+k"
        )
    return METRICS[wanted]


def check_metric(name: str | None, key: str = "metric") -> None:
    """Refuse a name that no metric has; ``key`` is what it was given as.

    Raises:
        UserError: such a name.
    """
    if name is not None and name not in METRICS:
        raise UserError(f"{key}={name} is not known; choose from {', '.join(METRICS)}")


def main_value(record: RunRecord, name: str | None = None) -> float | None:
    """The record's main metric's number."""
    return record.metrics.value(main_metric(record, name))
