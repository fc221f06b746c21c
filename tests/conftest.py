"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported, also for the processes that tests start: sums over several threads may differ in their last
# bits, and many tests ask for equal ones.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The optional folder with reference numbers and photographs; tests that need it skip without it."""
    folder = Path(os.environ.get("SAM3SLIM_SHARED", ROOT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference data at {folder} (set SAM3SLIM_SHARED to the folder that has it)")
    return folder
