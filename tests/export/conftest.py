"""The measured runs, and exports that are checked without new processes."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from sam3slim.export import verify, verify_worker
from tests.measured import copied, measured

__all__ = ["copied", "measured"]


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an export opens in processes of their own is opened in this one, which is seconds faster."""
    opened: list[str] = []
    start = subprocess.run

    def run(command: list[str], **settings: Any) -> Any:
        if command[0] == "git":  # the state of the checkout, which records hold
            return start(command, **settings)
        opened.append(command[-1])
        return SimpleNamespace(returncode=verify_worker.main(command[-1:]))

    monkeypatch.setattr(verify.subprocess, "run", run)
    return opened
