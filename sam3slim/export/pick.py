"""Which run is exported, why, and why not the others: from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam3slim.errors import UserError
from sam3slim.export.candidate import Candidate, Pick, summary
from sam3slim.export.choice import Baseline, Wish, baseline, choose_group, facts_of, interval
from sam3slim.precisions import FP32, PRECISIONS, precision_named
from sam3slim.report.collect import Group, Run, collect
from sam3slim.report.table import megabytes
from sam3slim.results.metrics import Metric, main_metric
from sam3slim.results.record import Artifact, Drop, read_record

# Kinds of artifact that a format takes as they are.
KEPT = {"hf": ("hf", "artifact"), "onnx": ("onnx",), "torch-export": ("torch-export",), "reference": ()}
GRAPHS = ("onnx", "torch-export")
NO_ARTIFACT = "no artifact recorded"


def choose(
    runs: Sequence[str | Path], wish: Wish, *, group: str | None = None, reference: str | Path | None = None
) -> Pick:
    """The run that ``wish`` takes from the records in and below ``runs``; nothing is loaded.

    Args:
        group: number or words of the title of the data and protocol to look at, where there are several.
        reference: folder of the full model's run, where the records count their drops against several models or none.

    Raises:
        UserError: no records, several groups, or no run that keeps the limits, in one line.
    """
    found = collect(runs)
    chosen = choose_group(found, group)
    metric = main_metric(run.record for run in chosen.runs)
    full = None if reference is None else read_record(reference)
    try:
        against = baseline(chosen, metric, full, str(reference or ""))
    except UserError:
        if wish.max_drop is not None or full is not None:
            raise
        against = None  # no drop is asked for
    choice = pick(chosen, wish, metric, against)
    return replace(choice, warnings=[*choice.warnings, *(f"not read: {line}" for line in found.unread)])


def pick(group: Group, wish: Wish, metric: Metric, against: Baseline | None) -> Pick:
    """Judge every run of ``group`` and choose the best that keeps the limits.

    Args:
        metric: what the runs are compared by.
        against: what drops count against.

    Raises:
        UserError: a drop is asked for and no record states one; no run keeps the limits (the nearest is named), or none
            can become the format.
    """
    if wish.max_drop is not None and against is None:
        raise UserError(
            f"--max-drop {wish.max_drop:g}: no record here states a drop; name the full model's run with "
            "--reference RUN"
        )
    candidates = [_judge(run, wish, metric, against) for run in group.runs]
    able = [candidate for candidate in candidates if not candidate.verdict]
    fitting = [candidate for candidate in able if not candidate.broken]
    if not fitting:
        raise UserError(_nobody(candidates, able, wish, metric))
    best = min(fitting, key=lambda candidate: _rank(candidate, wish, metric))
    for candidate in able:
        candidate.verdict = "picked" if candidate is best else _passed_over(candidate, best, wish, metric)
    candidates.sort(key=lambda c: (c is not best, c not in fitting, c not in able, _rank(c, wish, metric)))
    return Pick(best, candidates, metric, _why(best, fitting, wish, metric), against, _warnings(best, wish))


def _judge(run: Run, wish: Wish, metric: Metric, against: Baseline | None) -> Candidate:
    record = run.record
    candidate = Candidate(run, record.metrics.value(metric), bytes_as(run, wish.format))
    if candidate.value is not None and against is not None:
        lost = round(metric.points_lost(against.value, candidate.value), 4)  # 1.0 is within --max-drop 1
        candidate.drop = Drop(lost, interval(run, metric, against))
    if record.status != "finished":
        candidate.verdict = f"{record.status}: {record.error or 'no reason recorded'}"
    elif candidate.value is None:
        candidate.verdict = f"no {metric.title}"
    elif not record.artifact.path or candidate.bytes is None:
        candidate.verdict = NO_ARTIFACT
    elif reason := cannot_become(record.artifact, wish.format) or _foreign_text(run, wish.format):
        candidate.verdict, candidate.bytes = reason, None
    if wish.max_drop is not None and candidate.drop is not None and candidate.drop.points > wish.max_drop:
        candidate.broken.append(f"drop {candidate.drop.points:.2f} > {wish.max_drop:g}")
        candidate.excess += (candidate.drop.points - wish.max_drop) / max(wish.max_drop, 1.0)
    if wish.max_bytes is not None and candidate.bytes is not None and candidate.bytes > wish.max_bytes:
        candidate.broken.append(f"{megabytes(candidate.bytes)} > {megabytes(wish.max_bytes)}")
        candidate.excess += candidate.bytes / wish.max_bytes - 1
    return candidate


def cannot_become(artifact: Artifact, format: str) -> str | None:
    """Why the artifact of a record cannot be written as ``format``; None if it can."""
    kind = artifact.format
    if kind in KEPT[format]:
        return None
    if kind in GRAPHS:
        return f"its {'ONNX graphs' if kind == 'onnx' else 'programs'} cannot be turned into {format}"
    known = precision_named(str(artifact.precision))
    if known is not None and known.only and format not in known.only:
        return f"its INT8 products cannot be written as {format}"
    return None


def _foreign_text(run: Run, format: str) -> str | None:
    """Why the reference implementation could not read a phrase for this model."""
    text = _facts(run).get("spec", {}).get("text", {}) if format == "reference" else {}
    if text.get("bank") is not None:
        return "it has a prompt bank instead of the text tower that the reference needs"
    if text.get("vocabulary") is not None:
        return "its vocabulary is trimmed, which the reference's tokenizer cannot be told"
    return None


def _facts(run: Run) -> Mapping[str, Any]:
    return facts_of(Path(str(run.record.artifact.path)))


def bytes_as(run: Run, format: str) -> int | None:
    """Bytes of a run's weights as ``format``; None if the record does not say.

    What is converted is estimated from its parameters: graphs hold FP32, and the reference's format the stored types,
    INT8 weights as the FP32 numbers they stand for. Names and constants come on top.
    """
    artifact, params = run.record.artifact, run.record.model.params
    if artifact.bytes is None or artifact.format in KEPT[format]:
        return artifact.bytes
    if params is None:
        return None
    if format in GRAPHS:
        return FP32.bytes * params
    dtypes = _facts(run).get("dtypes")
    if dtypes:
        packed = {precision.dtype for precision in PRECISIONS.values() if not precision.cast}
        return sum(FP32.bytes * row["params"] if name in packed else row["bytes"] for name, row in dtypes.items())
    known = precision_named(str(artifact.precision))
    return params * (known.bytes if known and known.cast else FP32.bytes)


def _rank(candidate: Candidate, wish: Wish, metric: Metric) -> tuple[float, float, bool, str]:
    """Less is better; of equals the other number decides, then what needs no conversion, then the folder's name."""
    value = -metric.score(candidate.value or 0.0)
    size = float(candidate.bytes or 0)
    first, second = (value, size) if wish.order == "map" else (size, value)
    converted = candidate.run.record.artifact.format not in KEPT[wish.format]
    return first, second, converted, str(candidate.run.folder)


def _passed_over(candidate: Candidate, best: Candidate, wish: Wish, metric: Metric) -> str:
    if candidate.broken:
        return "; ".join(candidate.broken)
    assert candidate.value is not None
    assert best.value is not None
    worse = metric.score(candidate.value) < metric.score(best.value)
    sign = "<" if metric.higher_is_better else ">"
    compared = f"{metric.title} {metric.text(candidate.value)} {sign} {metric.text(best.value)} {metric.unit}"
    if wish.order == "map" and worse:
        return compared
    if (candidate.bytes or 0) > (best.bytes or 0):
        return "larger" if wish.order == "size" else "as good, larger"
    if worse:
        return f"as small, {compared}"
    return "as good; the first of equals is taken"


def _why(best: Candidate, fitting: Sequence[Candidate], wish: Wish, metric: Metric) -> str:
    what = (
        f"the {'highest' if metric.higher_is_better else 'lowest'} {metric.title}"
        if wish.order == "map"
        else f"the smallest as {wish.format}"
    )
    kept = f" that keep {wish.limits()}" if wish.limits() else ""
    return f"picked {best.name} ({best.run.folder}): {what} of {len(fitting)} runs{kept}; {summary(best, metric)}"


def _warnings(best: Candidate, wish: Wish) -> list[str]:
    found = []
    high = best.drop.high if best.drop else None
    if wish.max_drop is not None and high is not None and high > wish.max_drop:
        found.append(f"the drop's 95 % interval reaches {high:.2f} points, beyond --max-drop {wish.max_drop:g}")
    if best.run.conflict:
        found.append("another run of the same configuration has other numbers")
    return found


def _nobody(candidates: Sequence[Candidate], able: Sequence[Candidate], wish: Wish, metric: Metric) -> str:
    if not able:
        reasons = "; ".join(f"{c.run.folder}: {c.verdict}" for c in candidates[:3])
        more = f" and {len(candidates) - 3} more" if len(candidates) > 3 else ""
        return f"none of {len(candidates)} runs can become {wish.format} ({reasons}{more}); choose another --format"
    nearest = min(able, key=lambda candidate: (len(candidate.broken), candidate.excess))
    return (
        f"no run keeps {wish.limits()} as {wish.format}; the nearest is {nearest.name} ({nearest.run.folder}): "
        f"{summary(nearest, metric)}"
    )
