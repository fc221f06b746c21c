"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The optional folder with reference numbers and photographs; tests that need it skip without it."""
    folder = Path(os.environ.get("SAM3SLIM_SHARED", ROOT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference data at {folder} (set SAM3SLIM_SHARED to the folder that has it)")
    return folder
