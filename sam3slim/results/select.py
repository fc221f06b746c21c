"""Which of many runs is taken, why, and why not the others: from records alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from sam3slim.errors import UserError
from sam3slim.files import size_text
from sam3slim.results.collect import Collected, Group, Run, collect
from sam3slim.results.formats import KEPT, Format, bytes_as, cannot_become
from sam3slim.results.latency_limit import LatencyLimit, is_here
from sam3slim.results.metrics import Metric, main_metric
from sam3slim.results.record import Drop, RunRecord, read_record

Best = Literal["map", "size"]
NO_ARTIFACT = "no artifact recorded"
SAME_POINTS = 0.01  # a drop is taken from stored matches, which agree with the recorded mAP to 1e-4 points


@dataclass(frozen=True)
class ExportCriteria:
    """What the export must keep to, and what is best within that.

    Attributes:
        format: what is written.
        max_drop: most points of the metric lost against the full model.
        max_bytes: of the export's weights.
        best: ``map`` (the best metric) or ``size`` (the smallest); None: ``size`` where only ``max_drop`` is given,
            else ``map``.
        metric: name of the metric; None: see ``main_metric``.
        max_latency_ms: most milliseconds of one forward (the median in the record's ``latency_ms``).
        on: kind of device it was measured on, ``cpu`` or ``cuda``; None: any of this machine.
        any_machine: a latency counts wherever it was measured.
    """

    format: Format = "hf"
    max_drop: float | None = None
    max_bytes: int | None = None
    best: Best | None = None
    metric: str | None = None
    max_latency_ms: float | None = None
    on: Literal["cpu", "cuda"] | None = None
    any_machine: bool = False

    def __post_init__(self) -> None:
        if self.max_latency_ms is None and (self.on is not None or self.any_machine):
            raise UserError(
                "--on and --any-machine are about a latency; give --max-latency 120ms too, or leave them out"
            )
        if self.format not in get_args(Format):
            raise UserError(f"--format {self.format}: expected {', '.join(get_args(Format))}")
        if self.best is not None and self.best not in get_args(Best):
            raise UserError(f"--best {self.best}: expected {' or '.join(get_args(Best))}")
        if self.max_drop is None and self.max_bytes is None and self.max_latency_ms is None and self.best is None:
            raise UserError(
                "nothing says which run to take; give --max-drop 1.0, --max-bytes 500MB, --max-latency 120ms or "
                "--best map"
            )
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UserError(f"--max-drop {self.max_drop:g}: expected points of mAP in 0..100")

    @property
    def order(self) -> Best:
        """``best``, or what follows from the limits."""
        only_drop = self.max_drop is not None and self.max_bytes is None and self.max_latency_ms is None
        return self.best or ("size" if only_drop else "map")

    def limits(self) -> str:
        """``--max-drop 1 and --max-bytes 500,000,000``, or nothing."""
        words = [] if self.max_drop is None else [f"--max-drop {self.max_drop:g}"]
        words += [] if self.max_bytes is None else [f"--max-bytes {self.max_bytes:,}"]
        words += [] if self.max_latency_ms is None else [f"--max-latency {self.max_latency_ms:g}ms"]
        return " and ".join(words)


@dataclass(frozen=True)
class Baseline:
    """What drops are counted against: the metric's number, and where it is from, in words."""

    value: float
    where: str


@dataclass
class Candidate:
    """A run, judged.

    Attributes:
        value: the metric's number.
        bytes: of its weights in the wanted format, estimated where they are converted.
        drop: against the baseline, with the record's interval where that is of this drop.
        broken: limits it does not keep, in words.
        excess: how far it is beyond them, as shares of the limits.
        verdict: why it was passed over, or ``picked``.
    """

    run: Run
    value: float | None = None
    bytes: int | None = None
    drop: Drop | None = None
    broken: list[str] = field(default_factory=list)
    excess: float = 0.0
    verdict: str = ""

    @property
    def name(self) -> str:
        """``nano fp16``."""
        return self.run.record.title

    def summary(self, metric: Metric) -> str:
        """``mask mAP 83.3 %, drop 0.01 (0.00 to 0.04), 5.37 MB``."""
        words = [] if self.value is None else [metric.sentence(self.value)]
        words += [] if self.drop is None else [f"drop {self.drop.text()}"]
        words += [] if self.bytes is None else [size_text(self.bytes)]
        return ", ".join(words)


@dataclass(frozen=True)
class Selection:
    """What was decided.

    Attributes:
        chosen: the run to export.
        candidates: all runs of the group, the chosen one first.
        metric: what they were compared by.
        why: a sentence.
        against: what drops are counted against.
        warnings: what should be known about the choice.
    """

    chosen: Candidate
    candidates: list[Candidate]
    metric: Metric
    why: str
    against: Baseline | None
    warnings: list[str]

    def headings(self, format: str) -> tuple[str, ...]:
        """Of the columns of ``rows``."""
        value = f"{self.metric.title} {self.metric.unit}"
        return f"run below {self._top()}", "model", value, "drop (95 %)", f"as {format}", "verdict"

    def rows(self) -> list[tuple[str, ...]]:
        """Every run that was looked at: folder, model, metric, drop, bytes as the format, verdict."""
        top = self._top()
        return [
            (
                os.path.relpath(candidate.run.folder, top),
                candidate.name,
                "–" if candidate.value is None else self.metric.text(candidate.value),
                "–" if candidate.drop is None else candidate.drop.text(),
                "–" if candidate.bytes is None else size_text(candidate.bytes),
                candidate.verdict,
            )
            for candidate in self.candidates
        ]

    def _top(self) -> Path:
        return common_folder([candidate.run.folder for candidate in self.candidates])


def common_folder(folders: Sequence[Path]) -> Path:
    """The deepest folder that all of ``folders`` lie below; of a single one, its parent."""
    return Path(os.path.commonpath([folder.parent for folder in folders]))


def choose(
    runs: Sequence[str | Path],
    criteria: ExportCriteria,
    *,
    group: str | None = None,
    reference: str | Path | None = None,
) -> Selection:
    """The run that ``criteria`` take from the records in and below ``runs``; nothing is loaded.

    Args:
        group: number or words of the title of the data and protocol to look at, where there are several.
        reference: folder of the full model's run, where the records count their drops against several models or none.

    Raises:
        UserError: no records, several groups, or no run that keeps the limits, in one line.
    """
    found = collect(runs)
    chosen = choose_group(found, group)
    metric = main_metric((run.record for run in chosen.runs), criteria.metric)
    full = None if reference is None else read_record(reference)
    try:
        against = baseline(chosen, metric, full, str(reference or ""))
    except UserError:
        if criteria.max_drop is not None or full is not None:
            raise
        against = None  # no drop is asked for
    selection = select(chosen, criteria, metric, against)
    return replace(selection, warnings=[*selection.warnings, *(f"not read: {line}" for line in found.unread)])


def choose_group(found: Collected, wanted: str | None = None) -> Group:
    """The group to select from: the only measured one, or the one named by its number or words of its title.

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


def baseline(group: Group, metric: Metric, reference: RunRecord | None, folder: str = "") -> Baseline | None:
    """What the drops of a group are counted against.

    A record states its drop against the reference of its own run; its drop and its metric give that reference's metric.
    So drops compare only where all records agree on it, or where ``reference`` is given.

    Args:
        reference: the full model's record, in ``folder``; None: what the group's drops say.

    Returns:
        None where no record states a drop.

    Raises:
        UserError: the reference was measured on other data or lacks the metric, or drops count against several models.
    """
    if reference is not None:
        if reference.data.identity != group.data:
            raise UserError(f"--reference {folder} was measured on other data or with another protocol: {group.title}")
        value = reference.metrics.value(metric)
        if value is None:
            raise UserError(f"--reference {folder} has no {metric.title}; give a finished evaluation of the full model")
        return Baseline(value, folder)
    stated: list[float] = []
    for run in group.runs:
        value = _reference_value(run, metric)
        if value is not None and not any(_same(metric, value, other) for other in stated):
            stated.append(value)
    if len(stated) > 1:
        several = ", ".join(metric.text(value) for value in sorted(stated, reverse=True))
        raise UserError(
            f"the records count their drop against {len(stated)} models ({metric.title} {several} {metric.unit}); "
            "name the full model's run with --reference RUN"
        )
    return Baseline(stated[0], _owner(group, metric, stated[0])) if stated else None


def _reference_value(run: Run, metric: Metric) -> float | None:
    """The metric of what the record's drop was counted against."""
    drop, value = run.record.drop.get(metric.name), run.record.metrics.value(metric)
    return None if drop is None or value is None else metric.before(value, drop.points)


def _same(metric: Metric, one: float, other: float) -> bool:
    return abs(metric.points_lost(one, other)) < SAME_POINTS


def _owner(group: Group, metric: Metric, value: float) -> str:
    """The run that has this number, best one that states no drop: its folder, or a description."""
    numbers = [(run, run.record.metrics.value(metric)) for run in group.runs]
    same = [run for run, number in numbers if number is not None and _same(metric, number, value)]
    same.sort(key=lambda run: (bool(run.record.drop), -(run.record.model.params or 0)))
    return str(same[0].folder) if same else "the reference of the records"


def select(group: Group, criteria: ExportCriteria, metric: Metric, against: Baseline | None) -> Selection:
    """Judge every run of ``group`` and choose the best that keeps the limits.

    Raises:
        UserError: a drop is asked for and no record states one; no run keeps the limits (the nearest is named), or none
            can become the format.
    """
    if criteria.max_drop is not None and against is None:
        raise UserError(
            f"--max-drop {criteria.max_drop:g}: no record here states a drop; name the full model's run with "
            "--reference RUN"
        )
    candidates = [_judge(run, criteria, metric, against) for run in group.runs]
    able = [candidate for candidate in candidates if not candidate.verdict]
    fitting = [candidate for candidate in able if not candidate.broken]
    if not fitting:
        raise UserError(_explain_no_match(candidates, able, criteria, metric))

    def rank(candidate: Candidate) -> tuple[float, float, bool, str]:
        """Less is better; of equals the other number decides, then what needs no conversion, then the folder."""
        value, size = -metric.score(candidate.value or 0.0), float(candidate.bytes or 0)
        first, second = (value, size) if criteria.order == "map" else (size, value)
        converted = candidate.run.record.artifact.format not in KEPT[criteria.format]
        return first, second, converted, str(candidate.run.folder)

    best = min(fitting, key=rank)
    for candidate in able:
        candidate.verdict = "picked" if candidate is best else _passed_over(candidate, best, criteria, metric)
    candidates.sort(key=lambda c: (c is not best, c not in fitting, c not in able, rank(c)))
    why = _why(best, len(fitting), criteria, metric)
    return Selection(best, candidates, metric, why, against, _warnings(best, criteria))


def _judge(run: Run, criteria: ExportCriteria, metric: Metric, against: Baseline | None) -> Candidate:
    record = run.record
    candidate = Candidate(run, record.metrics.value(metric), bytes_as(record, criteria.format))
    if candidate.value is not None and against is not None:
        lost = round(metric.points_lost(against.value, candidate.value), 4)  # 1.0 is within --max-drop 1
        own = _reference_value(run, metric)
        same = own is not None and _same(metric, own, against.value)
        candidate.drop = Drop(lost, record.drop[metric.name].ci95 if same else None)
    if record.status != "finished":
        candidate.verdict = f"{record.status}: {record.error or 'no reason recorded'}"
    elif candidate.value is None:
        candidate.verdict = f"no {metric.title}"
    elif not record.artifact.path or candidate.bytes is None:
        candidate.verdict = NO_ARTIFACT
    elif reason := cannot_become(record.artifact, criteria.format):
        candidate.verdict, candidate.bytes = reason, None
    if criteria.max_drop is not None and candidate.drop and candidate.drop.points > criteria.max_drop:
        candidate.broken.append(f"drop {candidate.drop.points:.2f} > {criteria.max_drop:g}")
        candidate.excess += (candidate.drop.points - criteria.max_drop) / max(criteria.max_drop, 1.0)
    if criteria.max_bytes is not None and candidate.bytes is not None and candidate.bytes > criteria.max_bytes:
        candidate.broken.append(f"{size_text(candidate.bytes)} > {size_text(criteria.max_bytes)}")
        candidate.excess += candidate.bytes / criteria.max_bytes - 1
    if criteria.max_latency_ms is not None:
        broken = LatencyLimit(criteria.max_latency_ms, criteria.on, criteria.any_machine).broken_by(record)
        candidate.broken += broken
        candidate.excess += sum(broken.values())
    return candidate


def _passed_over(candidate: Candidate, best: Candidate, criteria: ExportCriteria, metric: Metric) -> str:
    if candidate.broken:
        return "; ".join(candidate.broken)
    assert candidate.value is not None
    assert best.value is not None
    worse = metric.score(candidate.value) < metric.score(best.value)
    sign = "<" if metric.higher_is_better else ">"
    compared = f"{metric.title} {metric.text(candidate.value)} {sign} {metric.text(best.value)} {metric.unit}"
    if criteria.order == "map" and worse:
        return compared
    if (candidate.bytes or 0) > (best.bytes or 0):
        return "larger" if criteria.order == "size" else "as good, larger"
    return f"as small, {compared}" if worse else "as good; the first of equals is taken"


def _why(best: Candidate, fitting: int, criteria: ExportCriteria, metric: Metric) -> str:
    top = "highest" if metric.higher_is_better else "lowest"
    what = f"the {top} {metric.title}" if criteria.order == "map" else f"the smallest as {criteria.format}"
    kept = f" that keep {criteria.limits()}" if criteria.limits() else ""
    latency = best.run.record.latency_ms.p50
    taken = f", {latency:.3g} ms" if criteria.max_latency_ms is not None and latency is not None else ""
    return f"picked {best.name} ({best.run.folder}): {what} of {fitting} runs{kept}; {best.summary(metric)}{taken}"


def _warnings(best: Candidate, criteria: ExportCriteria) -> list[str]:
    found = []
    high = best.drop.high if best.drop else None
    if criteria.max_drop is not None and high is not None and high > criteria.max_drop:
        found.append(f"the drop's 95 % interval reaches {high:.2f} points, beyond --max-drop {criteria.max_drop:g}")
    if best.run.conflict:
        found.append("another run of the same configuration has other numbers")
    record = best.run.record
    if criteria.max_latency_ms is not None and not is_here(record):
        found.append(f"the latency was measured on another machine: {record.device}")
    if criteria.max_latency_ms is not None and record.artifact.format not in KEPT[criteria.format]:
        found.append(f"the latency is that of the picked run's artifact, not of what is written as {criteria.format}")
    return found


def _explain_no_match(
    candidates: Sequence[Candidate], able: Sequence[Candidate], criteria: ExportCriteria, metric: Metric
) -> str:
    if not able:
        reasons = "; ".join(f"{c.run.folder}: {c.verdict}" for c in candidates[:3])
        more = f" and {len(candidates) - 3} more" if len(candidates) > 3 else ""
        return f"none of {len(candidates)} runs can become {criteria.format} ({reasons}{more}); choose another --format"
    nearest = min(able, key=lambda candidate: (len(candidate.broken), candidate.excess))
    return (
        f"no run keeps {criteria.limits()} as {criteria.format}; the nearest is {nearest.name} "
        f"({nearest.run.folder}): {nearest.summary(metric)}"
        + (f"; {'; '.join(nearest.broken)}" if criteria.max_latency_ms is not None else "")
    )
