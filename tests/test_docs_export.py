"""The commands that docs/compare.md and docs/export.md print, run on records of a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from sam3slim.cli import main
from tests.export.conftest import same_process
from tests.measured import copied, measured

__all__ = ["copied", "measured", "same_process"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ("compare", "export")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sam3slim ")]


@pytest.fixture
def here(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_process: list[str]) -> Path:
    """A working folder whose ``outputs`` are the measured runs."""
    monkeypatch.chdir(tmp_path)
    copied.rename(tmp_path / "outputs")
    for path in tmp_path.glob("outputs/*/record.json"):
        record = json.loads(path.read_text().replace(str(copied), str(tmp_path / "outputs")))
        record["latency_ms"] = {"p50": 9.0, "p90": 10.0, "batch": 1, "prompts": 23, "threads": 1}
        path.write_text(json.dumps(record))
    return tmp_path


def test_commands__are_found() -> None:
    assert [command[0] for command in commands()].count("export") == 4
    assert [command[0] for command in commands()].count("compare") == 5


def weighed(command: list[str]) -> Any:
    """Graphs take a minute to export, and tests/export looks at them closely."""
    return pytest.param(command, marks=pytest.mark.slow if "onnx" in command else (), id=" ".join(command))


@pytest.mark.parametrize("command", [weighed(command) for command in commands()])
def test_commands__end_well(here: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 0, capsys.readouterr().err
    if "--out" in command:
        out = here / command[command.index("--out") + 1]
        assert (out / ("compare.html" if command[0] == "compare" else "README.md")).is_file()


@pytest.mark.parametrize("page", ["compare", pytest.param("export", marks=pytest.mark.slow)])
def test_python__runs(here: Path, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(page, "python")
    exec(code, {})
    assert (here / ("outputs/compare/compare.html" if page == "compare" else "exported/vision.onnx")).is_file()
    if page == "export":
        assert "picked tiny" in capsys.readouterr().out
