"""Trials side by side, as submitit's local jobs, on a local Ray: where the extra is installed."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.sweep.command import finish, metadata, processes_of, start, wait_until

pytestmark = pytest.mark.slow
TRIALS = "model.vit.embed_dim=32,500,64"  # the one in the middle is impossible
LAST = "3 trials: 2 finished, 1 failed; compare them: sam3slim compare "


def need(plugin: str) -> None:
    if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"{plugin.replace('_', '-')} is an extra and not installed here")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launchers")


@pytest.fixture(scope="module")
def expected(root: Path) -> dict[str, object]:
    """What trials one after the other leave."""
    folder = root / "basic"
    assert finish(start(root, folder, TRIALS), folder)[0] == 2
    return dict(metadata(folder))


@pytest.mark.parametrize(
    ("name", "plugin", "overrides"),
    [
        ("parallel", "hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", "hydra_submitit_launcher", []),
        ("ray_cluster", "hydra_ray_launcher", [
            "hydra.launcher.ray.init.address=local", "+hydra.launcher.ray.init.num_cpus=1",
            "+hydra.launcher.ray.init.include_dashboard=false", "hydra.launcher.ray.remote.num_gpus=0",
            "hydra.launcher.ray.remote.num_cpus=1"]),
    ],
)  # fmt: skip
def test_launcher__same_records_and_the_same_end(
    root: Path, expected: dict[str, object], name: str, plugin: str, overrides: list[str]
) -> None:
    need(plugin)
    folder = root / name
    status, said = finish(start(root, folder, TRIALS, f"hydra/launcher={name}", *overrides), folder)
    assert metadata(folder) == expected, said[-3000:]
    assert status == 2
    assert said.splitlines()[-1] == LAST + name
    assert f"failed: {name}/embed_dim-500_" in said
    again = start(root, folder, "model.vit.embed_dim=32,64", f"hydra/launcher={name}", *overrides)
    status, said = finish(again, folder)
    assert status == 0
    assert said.splitlines()[-1] == f"2 trials: 0 finished, 2 already finished; compare them: sam3slim compare {name}"


def test_submitit__a_signalled_job_saves_goes_back_into_the_queue_and_resumes(
    root: Path, expected: dict[str, object]
) -> None:
    need("hydra_submitit_launcher")
    folder = root / "requeued"
    sweep = start(root, folder, "model.vit.embed_dim=32,64", "hydra/launcher=submitit_local", "trainer.max_steps=8")
    wait_until(lambda: list(folder.glob("embed_dim-32_*/checkpoints/last.ckpt")), sweep)
    # A job's process is the parent of its trial's.
    jobs = [pid for pid in processes_of(folder / ".submitit") if b"submitit.core" in command_of(pid)]
    parents = {parent_of(pid) for pid in jobs}
    for pid in set(jobs) & parents:
        os.kill(pid, signal.SIGUSR2)
    status, said = finish(sweep, folder)
    logs = "".join(file.read_text() for file in (folder / ".submitit").rglob("*_log.*"))
    assert "this job is preempted" in logs
    assert status == 0, said[-3000:]
    assert metadata(folder) == {name: fact for name, fact in expected.items() if "-500_" not in name}
    assert list(folder.glob("embed_dim-32_*/csv/metrics.0.csv"))


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
