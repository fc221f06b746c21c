"""What the subcommands print about a user's names is what the user wrote: no markup, no emoji codes."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
from rich.progress import TextColumn
from rich.table import Table
from safetensors.torch import load_file, save_file

from sam3slim.artifacts import write_artifact
from sam3slim.cli import COMMANDS, main
from sam3slim.cli.command import plain_console, plain_progress
from tests.small import small_model
from tests.tiny import SPEC

ODD = "a[b]c[/b] :x: [red]"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / ODD
    write_artifact(small_model(SPEC), path)
    return path


def test_inspect__odd_path_and_broken_checkpoint(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(model)]) == 0
    assert f"{model}: artifact, fp32" in capsys.readouterr().out
    tensors = load_file(model / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "geometry" not in name}
    save_file(kept, tmp_path / "model.safetensors")
    shutil.copy(model / "config.json", tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken ")]
    assert "allow_fresh=[geometry]" in line


@pytest.mark.parametrize("command", ["extract", "text"])
def test_extract_and_text__odd_target(
    model: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("red\n")
    target = tmp_path / ODD
    assert main([command, str(model), str(target), *(["--phrases", str(phrases)] if command == "text" else [])]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f": {target}")
    assert json.loads((target / "config.json").read_text())


def test_plain_progress__description_as_it_is() -> None:
    bar = plain_progress()
    bar.add_task(f"writing {ODD}", total=None)
    described = bar.columns[0]
    assert isinstance(described, TextColumn)
    assert described.render(bar.tasks[0]).plain == f"writing {ODD}"


def test_plain_console__cells_and_titles_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(ODD, title=ODD)
    table.add_row(ODD)
    plain_console(120).print(table)
    assert capsys.readouterr().out.count(ODD) == 3


def test_commands__print_through_the_plain_console() -> None:
    for command in COMMANDS:
        module = command.run.__module__
        (path,) = Path(__file__).parent.parent.glob(f"{module.replace('.', '/')}.py")
        imported = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"rich.console", "rich.progress", "rich"}, path
