"""Files broken at random: read, or told in one line; never a traceback, a crash, 10 seconds or 2 GB.

A few of them every time; ``make test-slow`` reads all 5,000 pictures, 2,000 annotation files and 1,000 checkpoints.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.running import BYTES, SECONDS, run

ROOT = Path(__file__).resolve().parents[2]
STEP = 500  # files of one process


def in_a_process(name: str, first: int, last: int, folder: Path) -> dict[str, Any]:
    progress = folder / f"{name}-{first}"
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.running", name, str(first), str(last), str(progress)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS * (last - first))
    where = progress.read_text() if progress.is_file() else "none"
    assert done.returncode == 0, f"{name} {where}: status {done.returncode}\n{done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("name", "count"), [("pictures", 300), ("annotations", 150), ("checkpoints", 60)])
def test_fuzz__a_few(name: str, count: int) -> None:
    found = run(name, 0, count)
    assert found["failures"] == {}
    assert len(found["outcomes"]) == 2  # some are read, some are not


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("pictures", 5000), ("annotations", 2000), ("checkpoints", 1000)])
def test_fuzz__all(name: str, count: int, tmp_path: Path) -> None:
    for first in range(0, count, STEP):
        found = in_a_process(name, first, first + STEP, tmp_path)
        print(name, first, found["outcomes"], found["slowest"], found["bytes"])
        assert found["failures"] == {}
        assert found["slowest"] < SECONDS
        assert found["bytes"] < BYTES
