"""``train.py`` sweeps of the tiny model, as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sam3slim.results.record import read_record
from tests.tiny import OVERRIDES
from tests.tiny_runs import data

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "trainer.max_steps=8", "trainer.val_check_interval=2", "schedule.warmup_steps=1", "logger=csv",
    "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "name=tiny",
]  # fmt: skip


def start(root: Path, folder: Path, *overrides: str, flags: Sequence[str] = ("-m",)) -> subprocess.Popen[str]:
    """A sweep into ``folder``, on the data in ``root``; what it prints goes to ``folder``.log."""
    given = [*OVERRIDES, *QUICK, *data(root), f"hydra.sweep.dir={folder}", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *flags, *given],
            cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def finish(process: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    """Exit status and all that has been printed."""
    status = process.wait(600)
    return status, folder.with_suffix(".log").read_text()


def wait_until(ready: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 300.0) -> Any:
    """What ``ready`` returns once it is true; fails when ``process`` ends or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        assert process is None or process.poll() is None, "the sweep ended too early"
        time.sleep(0.01)
    raise AssertionError("waited too long")


def metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """Trial → what must not depend on how often the sweep was killed, down to the weights' bytes."""
    found = {}
    for file in sorted(folder.glob("*/record.json")):
        record = read_record(file)
        artifact = file.parent / "artifact/sam3slim.json"
        weights = json.loads(artifact.read_text())["sha256"] if artifact.is_file() else None
        found[file.parent.name] = {
            "status": record.status, "error": record.error, "config_hash": record.config_hash,
            "model": record.model.to_dict(), "metrics": record.metrics.to_dict(), "weights": weights,
        }  # fmt: skip
    return found


def processes_of(folder: Path) -> list[int]:
    """Of all that were started with ``folder`` on their command line, forked ones too."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, state = (
                (entry / "cmdline").read_bytes(),
                (entry / "stat").read_text().rpartition(")")[2].split()[0],
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(folder).encode() in command and state != "Z":
            found.append(int(entry.name))
    return found
