"""Which run is exported, why, and why not the others: from records alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.errors import UserError
from sam3slim.export.choice import METRICS, Baseline, Wish, facts_of, interval, map_of
from sam3slim.report.collect import Group, Run
from sam3slim.report.table import megabytes

# Kinds of artifact that a format takes as they are.
KEPT = {"hf": ("hf", "artifact"), "onnx": ("onnx",), "torch-export": ("torch-export",), "reference": ()}
GRAPHS = ("onnx", "torch-export")
NO_ARTIFACT = "no artifact recorded"


@dataclass
class Candidate:
    """A run, judged.

    Attributes:
        map: mAP in 0..1.
        bytes: of its weights in the wished format, estimated where they are converted.
        drop: points against the baseline.
        interval: of the drop, 95 %.
        broken: limits it does not keep, in words.
        excess: how far it is beyond them, as shares of the limits.
        verdict: why it was passed over, or ``picked``.
    """

    run: Run
    map: float | None = None
    bytes: int | None = None
    drop: float | None = None
    interval: tuple[float, float] | None = None
    broken: list[str] = field(default_factory=list)
    excess: float = 0.0
    verdict: str = ""

    @property
    def name(self) -> str:
        """``nano fp16``."""
        record = self.run.record
        name = (record.model or {}).get("name") or record.choices.get("model") or "a model"
        return f"{name} {(record.artifact or {}).get('precision') or ''}".strip()


@dataclass(frozen=True)
class Pick:
    """What was decided.

    Attributes:
        chosen: the run to export.
        candidates: all runs of the group, the chosen one first.
        why: a sentence.
        warnings: what should be known about the choice.
    """

    chosen: Candidate
    candidates: list[Candidate]
    metric: str
    why: str
    against: Baseline | None
    warnings: list[str]


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
    elif reason := cannot_become(record.artifact or {}, wish.format) or _unlike_reference(run, wish.format):
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


def _unlike_reference(run: Run, format: str) -> str | None:
    text = _facts(run).get("spec", {}).get("text", {})
    if format == "reference" and text.get("bank") is not None:
        return "it has a prompt bank instead of the text tower that the reference needs"
    trimmed = format == "reference" and text.get("vocabulary") is not None
    return "its vocabulary is trimmed, which the reference's tokenizer cannot be told" if trimmed else None


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


def summary(candidate: Candidate, metric: str) -> str:
    """``mask mAP 83.3 %, drop 0.01 (0.00 to 0.04), 5.37 MB``."""
    words = [] if candidate.map is None else [f"{METRICS[metric]} {100 * candidate.map:.2f} %"]
    words += [] if candidate.drop is None else [f"drop {drop_text(candidate)}"]
    words += [] if candidate.bytes is None else [megabytes(candidate.bytes)]
    return ", ".join(words)


def drop_text(candidate: Candidate) -> str:
    """``0.01 (0.00 to 0.04)``, ``–`` for none."""
    if candidate.drop is None:
        return "–"
    bounds = candidate.interval
    return _points(candidate.drop) + (f" ({_points(bounds[0])} to {_points(bounds[1])})" if bounds else "")


def _points(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no "-0.00"


def candidate_rows(pick: Pick) -> list[tuple[str, ...]]:
    """Every run that was looked at: folder, model, mAP, drop, bytes as the format, verdict."""

    top = common_folder([candidate.run.folder for candidate in pick.candidates])

    def row(candidate: Candidate) -> tuple[str, ...]:
        value = "–" if candidate.map is None else f"{100 * candidate.map:.2f}"
        size = "–" if candidate.bytes is None else megabytes(candidate.bytes)
        return (
            os.path.relpath(candidate.run.folder, top),
            candidate.name,
            value,
            drop_text(candidate),
            size,
            candidate.verdict,
        )

    return [row(candidate) for candidate in pick.candidates]


def common_folder(folders: Sequence[Path]) -> Path:
    """The deepest folder that all of ``folders`` lie below; of a single one, its parent."""
    return Path(os.path.commonpath([folder.parent for folder in folders]))


def candidate_heads(pick: Pick, format: str) -> tuple[str, ...]:
    """Of the columns of ``candidate_rows``."""
    top = common_folder([candidate.run.folder for candidate in pick.candidates])
    return f"run below {top}", "model", f"{METRICS[pick.metric]} %", "drop (95 %)", f"as {format}", "verdict"


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
