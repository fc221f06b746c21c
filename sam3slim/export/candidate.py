"""A judged run, the decision between them, and both in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sam3slim.export.choice import Baseline
from sam3slim.report.collect import Run
from sam3slim.report.table import megabytes
from sam3slim.results.metrics import Metric
from sam3slim.results.record import Drop


@dataclass
class Candidate:
    """A run, judged.

    Attributes:
        value: the metric's number.
        bytes: of its weights in the wished format, estimated where they are converted.
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
        return self.run.record.title


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
    metric: Metric
    why: str
    against: Baseline | None
    warnings: list[str]


def summary(candidate: Candidate, metric: Metric) -> str:
    """``mask mAP 83.3 %, drop 0.01 (0.00 to 0.04), 5.37 MB``."""
    words = [] if candidate.value is None else [metric.sentence(candidate.value)]
    words += [] if candidate.drop is None else [f"drop {candidate.drop.text()}"]
    words += [] if candidate.bytes is None else [megabytes(candidate.bytes)]
    return ", ".join(words)


def candidate_rows(pick: Pick) -> list[tuple[str, ...]]:
    """Every run that was looked at: folder, model, mAP, drop, bytes as the format, verdict."""

    top = common_folder([candidate.run.folder for candidate in pick.candidates])

    def row(candidate: Candidate) -> tuple[str, ...]:
        value = "–" if candidate.value is None else pick.metric.text(candidate.value)
        size = "–" if candidate.bytes is None else megabytes(candidate.bytes)
        return (
            os.path.relpath(candidate.run.folder, top),
            candidate.name,
            value,
            "–" if candidate.drop is None else candidate.drop.text(),
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
    return (
        f"run below {top}",
        "model",
        f"{pick.metric.title} {pick.metric.unit}",
        "drop (95 %)",
        f"as {format}",
        "verdict",
    )
