"""What is asked of an export, and the runs it may be taken from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sam3slim.errors import UserError
from sam3slim.report.collect import Collected, Group, Run
from sam3slim.results.metrics import Metric
from sam3slim.results.record import RunRecord

Format = Literal["hf", "reference", "onnx", "torch-export"]
Best = Literal["map", "size"]
SAME_VALUE = 1e-4  # mAP in 0..1; a drop is taken from stored matches, which agree with the recorded mAP to 1e-6


@dataclass(frozen=True)
class Wish:
    """What the export must keep to, and what is best within that.

    Attributes:
        format: what is written.
        max_drop: most points of mAP lost against the full model.
        max_bytes: of the export's weights.
        best: ``map`` (the highest) or ``size`` (the smallest); None: ``size`` where only ``max_drop`` is given,
            else ``map``.
    """

    format: Format = "hf"
    max_drop: float | None = None
    max_bytes: int | None = None
    best: Best | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise UserError(f"--format {self.format}: expected {', '.join(get_args(Format))}")
        if self.best is not None and self.best not in get_args(Best):
            raise UserError(f"--best {self.best}: expected {' or '.join(get_args(Best))}")
        if self.max_drop is None and self.max_bytes is None and self.best is None:
            raise UserError("nothing says which run to take; give --max-drop 1.0, --max-bytes 500MB or --best map")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UserError(f"--max-drop {self.max_drop:g}: expected points of mAP in 0..100")

    @property
    def order(self) -> Best:
        """``best``, or what follows from the limits."""
        return self.best or ("size" if self.max_drop is not None and self.max_bytes is None else "map")

    def limits(self) -> str:
        """``--max-drop 1 and --max-bytes 500,000,000``, or nothing."""
        words = [] if self.max_drop is None else [f"--max-drop {self.max_drop:g}"]
        words += [] if self.max_bytes is None else [f"--max-bytes {self.max_bytes:,}"]
        return " and ".join(words)


def choose_group(found: Collected, wanted: str | None = None) -> Group:
    """The group to pick from: the only measured one, or the one ``wanted`` names by its number or words of its title.

    Raises:
        UserError: nothing was measured, a choice is needed, or ``wanted`` fits none or several.
    """
    groups = [group for group in found.groups if group.data]
    if not groups:
        raise UserError(f"none of the {len(found.runs)} runs has an mAP; run evaluate.py on their artifacts first")
    listed = "; ".join(f"{i}) {g.title} ({len(g.runs)} runs)" for i, g in enumerate(groups, start=1))
    if wanted is None:
        if len(groups) == 1:
            return groups[0]
        raise UserError(
            f"the records have {len(groups)} kinds of data or protocol, whose numbers do not compare: {listed}; "
            "choose one with --group 1 or words of its title"
        )
    if wanted.isdecimal():
        if not 1 <= int(wanted) <= len(groups):
            raise UserError(f"--group {wanted}: there is no such group: {listed}")
        return groups[int(wanted) - 1]
    fitting = [group for group in groups if wanted.lower() in group.title.lower()]
    if len(fitting) != 1:
        raise UserError(f"--group {wanted!r} fits {len(fitting)} of the groups: {listed}")
    return fitting[0]


@dataclass(frozen=True)
class Baseline:
    """What drops are counted against: the metric's number, and where it is from, in words."""

    value: float
    where: str


def baseline(group: Group, metric: Metric, reference: RunRecord | None, folder: str = "") -> Baseline | None:
    """What the drops of a group are counted against.

    Records state their drop against whatever their run was given; a record's own drop and mAP tell the mAP of that.
    So drops count only where all records agree on it, or ``reference`` settles it.

    Args:
        reference: the full model's record, in ``folder``; None: what the group's drops tell.

    Returns:
        None where no record states a drop.

    Raises:
        UserError: the reference was measured on other data or has no such mAP, or drops count against several models.
    """
    if reference is not None:
        if reference.data.identity != group.data:
            raise UserError(f"--reference {folder} was measured on other data or with another protocol: {group.title}")
        value = reference.metrics.value(metric)
        if value is None:
            raise UserError(f"--reference {folder} has no {metric.title}; give a finished evaluation of the full model")
        return Baseline(value, folder)
    told: list[float] = []
    for run in group.runs:
        against = _reference_value(run, metric)
        if against is not None and not any(abs(against - other) < SAME_VALUE for other in told):
            told.append(against)
    if len(told) > 1:
        several = ", ".join(metric.text(value) for value in sorted(told, reverse=True))
        raise UserError(
            f"the records count their drop against {len(told)} models ({metric.title} {several} {metric.unit}); "
            "name the full model's run with --reference RUN"
        )
    return Baseline(told[0], _who(group, metric, told[0])) if told else None


def _reference_value(run: Run, metric: Metric) -> float | None:
    """The metric's number for what the record's drop was counted against."""
    drop, value = run.record.drop.get(metric.name), run.record.metrics.value(metric)
    return None if drop is None or value is None else metric.before(value, drop.points)


def _who(group: Group, metric: Metric, value: float) -> str:
    """The run that has this mAP and states no drop, if there is one; its folder, or a description."""
    same = [run for run in group.runs if abs((run.record.metrics.value(metric) or -1.0) - value) < SAME_VALUE]
    same.sort(key=lambda run: (bool(run.record.drop), -(run.record.model.params or 0)))
    return str(same[0].folder) if same else "the reference of the records"


def interval(run: Run, metric: Metric, against: Baseline) -> tuple[float, float] | None:
    """The 95 % interval of the record's drop, in points, if it was counted against the baseline."""
    told = _reference_value(run, metric)
    if told is None or abs(told - against.value) >= SAME_VALUE:
        return None
    return run.record.drop[metric.name].ci95


def facts_of(folder: Path) -> Mapping[str, Any]:
    """``sam3slim.json`` of an artifact for what it may add to a record; {} where there is none or it is broken."""
    try:
        values = json.loads((folder / "sam3slim.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
