"""Which run is exported, why, and why not the others: from records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam3slim.errors import UserError
from sam3slim.export.candidate import Candidate, Pick, summary
from sam3slim.export.choice import (
    METRICS,
    Baseline,
    Wish,
    baseline,
    choose_group,
    facts_of,
    interval,
    map_of,
    metric_of,
)
from sam3slim.records import read_record
from sam3slim.report.collect import Group, Run, collect
from sam3slim.report.table import megabytes

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
    metric = metric_of(chosen)
    full = None if reference is None else read_record(reference)
    try:
        against = baseline(chosen, metric, full, str(reference or ""))
    except UserError:
        if wish.max_drop is not None or full is not None:
            raise
        against = None  # no drop is asked for
    choice = pick(chosen, wish, metric, against)
    return replace(choice, warnings=[*choice.warnings, *(f"not read: {line}" for line in found.unread)])


def pick(group: Group, wish: Wish, metric: str, against: Baseline | None) -> Pick:
    """Judge every run of ``group`` and choose the best that keeps the limits.

    Args:
        metric: ``segm`` or ``bbox``.
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
    best = min(fitting, key=lambda candidate: _rank(candidate, wish))
    for candidate in able:
        candidate.verdict = "picked" if candidate is best else _passed_over(candidate, best, wish, metric)
    candidates.sort(key=lambda c: (c is not best, c not in fitting, c not in able, _rank(c, wish)))
    return Pick(best, candidates, metric, _why(best, fitting, wish, metric), against, _warnings(best, wish))


def _judge(run: Run, wish: Wish, metric: str, against: Baseline | None) -> Candidate:
    record = run.record
    candidate = Candidate(run, map=map_of(record, metric), bytes=bytes_as(run, wish.format))
    if candidate.map is not None and against is not None:
        candidate.drop = round(100 * (against.map - candidate.map), 4)  # 1.0 is within --max-drop 1
        candidate.interval = interval(run, metric, against)
    if record.status != "finished":
        candidate.verdict = f"{record.status}: {record.error or 'no reason recorded'}"
    elif candidate.map is None:
        candidate.verdict = f"no {METRICS[metric]}"
    elif not (record.artifact or {}).get("path") or candidate.bytes is None:
        candidate.verdict = NO_ARTIFACT
    elif reason := cannot_become(record.artifact or {}, wish.format) or _foreign_text(run, wish.format):
        candidate.verdict, candidate.bytes = reason, None
    if wish.max_drop is not None and candidate.drop is not None and candidate.drop > wish.max_drop:
        candidate.broken.append(f"drop {candidate.drop:.2f} > {wish.max_drop:g}")
        candidate.excess += (candidate.drop - wish.max_drop) / max(wish.max_drop, 1.0)
    if wish.max_bytes is not None and candidate.bytes is not None and candidate.bytes > wish.max_bytes:
        candidate.broken.append(f"{megabytes(candidate.bytes)} > {megabytes(wish.max_bytes)}")
        candidate.excess += candidate.bytes / wish.max_bytes - 1
    return candidate


def cannot_become(artifact: dict[str, Any], format: str) -> str | None:
    """Why the artifact of a record cannot be written as ``format``; None if it can."""
    kind, precision = artifact.get("format"), str(artifact.get("precision"))
    if kind in KEPT[format]:
        return None
    if kind in GRAPHS:
        return f"its {'ONNX graphs' if kind == 'onnx' else 'programs'} cannot be turned into {format}"
    if precision == "int8_dynamic" and format != "hf":
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
    return facts_of(Path(str((run.record.artifact or {}).get("path"))))


def bytes_as(run: Run, format: str) -> int | None:
    """Bytes of a run's weights as ``format``; None if the record does not say.

    What is converted is estimated from its parameters: graphs hold FP32, and the reference's format the stored types,
    INT8 weights as the FP32 numbers they stand for. Names and constants come on top.
    """
    artifact, params = run.record.artifact or {}, (run.record.model or {}).get("params")
    size = artifact.get("bytes")
    if size is None or artifact.get("format") in KEPT[format]:
        return size
    if params is None:
        return None
    if format in GRAPHS:
        return 4 * int(params)
    dtypes = _facts(run).get("dtypes")
    if dtypes:
        return sum(4 * row["params"] if name == "int8" else row["bytes"] for name, row in dtypes.items())
    return int(params) * (2 if artifact.get("precision") in ("fp16", "bf16") else 4)


def _rank(candidate: Candidate, wish: Wish) -> tuple[float, float, bool, str]:
    """Less is better; of equals the other number decides, then what needs no conversion, then the folder's name."""
    value, size = -(candidate.map or 0.0), float(candidate.bytes or 0)
    first, second = (value, size) if wish.order == "map" else (size, value)
    converted = (candidate.run.record.artifact or {}).get("format") not in KEPT[wish.format]
    return first, second, converted, str(candidate.run.folder)


def _passed_over(candidate: Candidate, best: Candidate, wish: Wish, metric: str) -> str:
    if candidate.broken:
        return "; ".join(candidate.broken)
    assert candidate.map is not None
    assert best.map is not None
    if wish.order == "map" and candidate.map < best.map:
        return f"{METRICS[metric]} {100 * candidate.map:.2f} < {100 * best.map:.2f} %"
    if (candidate.bytes or 0) > (best.bytes or 0):
        return "larger" if wish.order == "size" else "as good, larger"
    if candidate.map < best.map:
        return f"as small, {METRICS[metric]} {100 * candidate.map:.2f} < {100 * best.map:.2f} %"
    return "as good; the first of equals is taken"


def _why(best: Candidate, fitting: Sequence[Candidate], wish: Wish, metric: str) -> str:
    what = f"the highest {METRICS[metric]}" if wish.order == "map" else f"the smallest as {wish.format}"
    kept = f" that keep {wish.limits()}" if wish.limits() else ""
    return f"picked {best.name} ({best.run.folder}): {what} of {len(fitting)} runs{kept}; {summary(best, metric)}"


def _warnings(best: Candidate, wish: Wish) -> list[str]:
    found = []
    if wish.max_drop is not None and best.interval and best.interval[1] > wish.max_drop:
        found.append(
            f"the drop's 95 % interval reaches {best.interval[1]:.2f} points, beyond --max-drop {wish.max_drop:g}"
        )
    if best.run.conflict:
        found.append("another run of the same configuration has other numbers")
    return found


def _nobody(candidates: Sequence[Candidate], able: Sequence[Candidate], wish: Wish, metric: str) -> str:
    if not able:
        reasons = "; ".join(f"{c.run.folder}: {c.verdict}" for c in candidates[:3])
        more = f" and {len(candidates) - 3} more" if len(candidates) > 3 else ""
        return f"none of {len(candidates)} runs can become {wish.format} ({reasons}{more}); choose another --format"
    nearest = min(able, key=lambda candidate: (len(candidate.broken), candidate.excess))
    return (
        f"no run keeps {wish.limits()} as {wish.format}; the nearest is {nearest.name} ({nearest.run.folder}): "
        f"{summary(nearest, metric)}"
    )
