from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from sam3slim.environment import Process, describe_device, git_state, library_versions, local_rank, this_process


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    return tmp_path


def test_git_state__clean_then_dirty(checkout: Path) -> None:
    git(checkout, "commit", "-qm", "one")
    state = git_state(checkout / "code")
    assert len(state["sha"]) == 40
    assert state["dirty"] is False
    (checkout / "code" / "a.py").write_text("2")
    assert git_state(checkout / "code") == {"sha": state["sha"], "dirty": True}


def test_git_state__no_commit_yet(checkout: Path) -> None:
    assert git_state(checkout / "code") is None


def test_git_state__installed_below_another_repository(checkout: Path) -> None:
    git(checkout, "commit", "-qm", "one")
    package = checkout / "venv" / "site-packages"
    package.mkdir(parents=True)
    (package / "b.py").write_text("1")
    assert git_state(package) is None


def test_git_state__no_git_program(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(checkout, "commit", "-qm", "one")
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout / "code") is None


def test_library_versions__installed_and_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam3slim.environment.LIBRARIES", ("numpy", "no-such-library-at-all"))
    versions = library_versions()
    assert versions["numpy"][0].isdigit()
    assert versions["no-such-library-at-all"] is None


def test_describe_device__cpu_names_threads() -> None:
    assert describe_device("cpu").endswith(f", {torch.get_num_threads()} threads")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Process()),
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, Process(5, 1, 8)),
        ({"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "16"}, Process(9, 1, 16)),
        # The script of sbatch runs once, whatever number of tasks it asks for.
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}, Process()),
    ],
)
def test_this_process(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Process) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert this_process() == expected


def test_local_rank__also_of_processes_that_lightning_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert local_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (local_rank(), this_process().rank) == (3, 0)
    monkeypatch.setenv("RANK", "11")
    assert (local_rank(), this_process().rank) == (3, 11)
