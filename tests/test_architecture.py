"""The house rules that a machine can check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sam3slim"
# Bottom to top; a module imports from its own floor or from below.
FLOORS = [
    {"errors", "files", "parts", "precisions", "progress", "strict"},
    {"environment", "specs"},
    {"text"},
    {"data", "models"},
    {"checkpoints", "evaluation", "launch", "losses", "results"},
    {"artifacts", "distill", "slimming"},
    {"compression", "graphs", "report", "training"},
    {"runtimes"},
    {"predict"},
    {"export"},
    {"runs", "planning", "cli", "benchmarking"},
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


def test_imports__no_circles_between_rooms() -> None:
    arrows = set()
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        arrows |= {(own, name.split(".")[1]) for name in imports(path) if name.startswith("sam3slim.")}
    assert not [(a, b) for a, b in arrows if a < b and (b, a) in arrows]


def test_rooms__no_module_hides_behind_a_name_of_its_room() -> None:
    """``from sam3slim.checkpoints import load`` must not be a function in one place and a module in another."""
    for path in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
        hidden = [name for name in found if (path.parent / f"{name}.py").is_file()]
        assert not hidden, path


def test_imports__hydra_only_at_the_border() -> None:
    users = {p.name for p in FILES if any(n.split(".")[0] in ("hydra", "omegaconf") for n in imports(p))}
    assert users == {"command.py", "compose.py", "quoting.py", "sweep.py"}


def test_imports__pure_rooms_know_no_framework() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).as_posix().startswith(PURE):
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & {"hydra", "omegaconf", "lightning", "pytorch_lightning"}, path


def test_files__fit_their_room() -> None:
    long = [path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long


def test_names__no_function_hides_a_module() -> None:
    """``package.name`` is one thing, whichever of its modules have been imported."""
    for path in PACKAGE.rglob("__init__.py"):
        modules = {other.stem for other in path.parent.iterdir() if other.suffix in ("", ".py")}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and not str(node.module).endswith(f"{path.parent.name}"):
                assert not modules & {alias.asname or alias.name for alias in node.names}, path
