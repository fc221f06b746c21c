"""The house rules that a machine can check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sam3slim"
# Bottom to top; a module imports from its own floor or from below.
FLOORS = [
    {"errors", "files", "parts", "precisions", "strict"},
    {"specs"},
    {"data", "losses"},
    {"models", "environment"},
    {"results", "launch", "evaluation", "slimming", "checkpoints", "report"},
    {"distill", "compression", "onnx", "predict"},
    {"training", "export", "entry", "entry_sweep", "sweep"},
    {"runs", "planning", "cli"},
    {"__main__"},
]
PURE = ("models", "losses", "slimming", "distill/losses.py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def floor(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module in names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports__nothing_imports_upward(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("sam3slim.")}
    above = sorted(room for room in rooms if floor(room) > floor(own))
    assert not above


def test_imports__hydra_only_at_the_border() -> None:
    users = {p.name for p in FILES if any(n.split(".")[0] in ("hydra", "omegaconf") for n in imports(p))}
    assert users == {"command.py", "compose.py", "sweep.py"}


def test_imports__pure_rooms_know_no_framework() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).as_posix().startswith(PURE):
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & {"hydra", "omegaconf", "lightning", "pytorch_lightning"}, path


def test_files__fit_their_room() -> None:
    long = [path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long
