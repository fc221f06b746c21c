"""Commands that run side by side, each a process of its own; what is finished is not run again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_run
from sam3slim.launch.run import Run
from sam3slim.progress import progress_bar
from sam3slim.results.record import Kind, read_record
from sam3slim.results.recording import forget_other
from sam3slim.runs.compress import only

LOG_FILE = "output.log"  # what a step printed


@dataclass(frozen=True)
class Step:
    """``python <program>.py <overrides>`` with the folder ``name`` of all results.

    Attributes:
        part: the folder of the record below that, of the one method of a ``compress.py``.
    """

    name: str
    program: Kind
    overrides: tuple[str, ...]
    part: str = ""

    def composed(self, out: Path) -> Run:
        """Its configuration. Raises UserError for settings that cannot be."""
        run = compose_run(self.program, self._given(), out / self.name)
        return only(run, self.part, run.config["compress"][self.part]) if self.part else run

    def _given(self) -> list[str]:
        return [*self.overrides, *(["resume=auto"] if self.program == "train" else [])]

    def run(self, out: Path) -> str | None:
        """Run it on one thread; the first line of what went wrong, if anything did."""
        folder = out / self.name
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, f"{self.program}.py", *self._given(), f"hydra.run.dir={folder}"]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
            code = subprocess.run(command, env=os.environ | threads, stdout=log, stderr=subprocess.STDOUT).returncode
        if code == 0:
            return None
        try:
            error = read_record(folder / self.part).error
        except UserError:
            error = None  # it never came to a record
        return error or f"exit code {code}, see {folder / LOG_FILE}"


def run_steps(
    steps: Sequence[Step],
    out: Path,
    *,
    jobs: int,
    title: str,
    known: Callable[[Step, Run], bool] = lambda step, run: False,
    say: Callable[[str], object] = print,
) -> dict[str, str]:
    """Run what is not finished; a step that fails does not stop the others.

    Args:
        out: gets a folder per step.
        jobs: steps at a time, one thread each.
        title: of the progress bar.
        known: whether a step's result is kept elsewhere than in its folder.

    Returns:
        Step's name → the first line of what went wrong, for those that failed.

    Raises:
        UserError: settings that cannot be, before anything is run.
    """
    # All of them first: a mistake is told before hours of work, and Hydra composes on one thread only.
    runs = {step: step.composed(out) for step in steps}
    waiting = [step for step, run in runs.items() if run.finished() is None and not known(step, run)]
    for step in waiting:
        forget_other(runs[step].folder, runs[step].config)
    say(f"{len(steps) - len(waiting)} of {len(steps)} are finished; {len(waiting)} to go, {jobs} at a time")
    failed: dict[str, str] = {}
    with progress_bar() as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task(title, total=len(waiting))
        running = {pool.submit(step.run, out): step for step in waiting}
        try:
            for future in as_completed(running):
                error = future.result()
                if error:
                    failed[running[future].name] = error
                    say(f"{running[future].name} failed: {error}")
                bar.advance(task)
        except KeyboardInterrupt:
            for future in running:
                future.cancel()
            raise
    return failed
