"""A judged run, the decision between them, and both in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sam3slim.export.choice import METRICS, Baseline
from sam3slim.report.collect import Run
from sam3slim.report.table import megabytes


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
