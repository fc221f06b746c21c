"""What became of a sweep's trials, wherever they ran: one small file per trial in the sweep's folder."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sam3slim.files import read_json, write_json

FOLDER = ".trials"
Status = Literal["running", "finished", "skipped", "failed", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """One trial.

    Attributes:
        status: ``skipped`` was finished before; ``running`` at the end of a sweep is a trial whose process died.
        folder: of the trial.
        error: one line, for ``failed`` and ``interrupted``.
        values: the metric that decides (mask mAP, box mAP without masks; 0..1) and the cost (bytes, or milliseconds)
            of what the trial wrote last, if it measured both.
        machine: what a latency among the values is true for.
    """

    status: Status
    folder: str
    error: str | None = None
    values: tuple[float, float] | None = None
    machine: str | None = None


class Journal:
    """The outcomes of one start of a sweep; launchers may run its trials on other machines with the same disk."""

    def __init__(self, sweep_dir: str | Path, start: str) -> None:
        self.folder = Path(sweep_dir) / FOLDER / start

    def write(self, number: int, outcome: Outcome) -> None:
        """Note what trial ``number`` has come to, over what was noted before."""
        write_json(self.folder / f"{number}.json", asdict(outcome))

    def read(self) -> list[Outcome]:
        """In the order of the trials."""
        files = sorted(self.folder.glob("[0-9]*.json"), key=lambda file: int(file.stem))
        return [Outcome(**read_json(file, "start the sweep again")) for file in files]

    def remove(self) -> None:
        """Leave nothing; records say the same for good."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def summary(outcomes: Sequence[Outcome], sweep_dir: str | Path, options: str = "") -> str:
    """``9 trials: 6 finished, 2 already finished, 1 failed; compare them: sam3slim compare outputs/sweep/nano``."""
    count: Counter[str] = Counter("failed" if outcome.status == "running" else outcome.status for outcome in outcomes)
    words = {"finished": "finished", "skipped": "already finished", "failed": "failed", "interrupted": "interrupted"}
    parts = [f"{count[status]} {word}" for status, word in words.items() if count[status] or status == "finished"]
    trials = "trial" if len(outcomes) == 1 else "trials"
    return f"{len(outcomes)} {trials}: {', '.join(parts)}; compare them: sam3slim compare {sweep_dir}{options}"
