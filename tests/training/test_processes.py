"""Two CPU processes (gloo) train as one does: the same losses, checkpoints and records."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import read_record
from tests import running as runs
from tests.rehearsal.running import rehearse
from tests.tiny import OVERRIDES
from tests.tiny_runs import data

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
# Three val images: one process has one more than the other.
QUICK = [
    "trainer.enable_progress_bar=false", f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS // 2}",
    "trainer.log_every_n_steps=1", "schedule.warmup_steps=1", "logger=csv",
]  # fmt: skip
KINDS = {
    "one": ["trainer=cpu", "data.batch_size=4"],
    "fork": ["trainer=cpu_ddp", "data.batch_size=2"],
    "ddp": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2",
            "data.batch_size=2"],
    "fsdp": ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2",
             "data.batch_size=2"],
}  # fmt: skip


FRUGAL = ["data.max_prompts_per_batch=2", "activation_checkpointing=true"]


def overrides_of(root: Path, kind: str) -> list[str]:
    return [*OVERRIDES, *QUICK, *data(root), *KINDS[kind]]


def train(root: Path, kind: str, *more: str, folder: str | None = None) -> Path:
    """``train.py`` into a folder of its name, as a user starts it."""
    out = root / (folder or kind)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides_of(root, kind), *more, f"hydra.run.dir={out}"],
        cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def losses(run: Path) -> dict[int, float]:
    with (run / "csv/metrics.csv").open() as file:
        return {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def one(root: Path) -> Path:
    out = root / "one"
    runs.train(compose_plain("train", overrides_of(root, "one"), out), out, {}, "python train.py")
    return out


@pytest.fixture(scope="module")
def forking(root: Path, one: Path) -> Path:
    """Trainings that fork, from a new process that has computed no gradient; ``one`` has drawn the data."""
    found = {name: [*overrides_of(root, "fork"), *more] for name, more in (("fork", []), ("parts", FRUGAL))}
    rehearse(root, "forking", {k: compose_plain("train", given, root / k) for k, given in found.items()}, processes=1)
    return root


def assert_same_training(run: Path, one: Path) -> None:
    expected = losses(one)
    assert sorted(expected) == list(range(STEPS))
    assert losses(run) == pytest.approx(expected, rel=1e-5)
    assert max(expected.values()) > 1.5 * min(expected.values())  # a curve, not a line
    states = [torch.load(r / "checkpoints/last.ckpt", weights_only=True) for r in (run, one)]
    for key, value in states[1]["state_dict"].items():
        torch.testing.assert_close(states[0]["state_dict"][key], value, rtol=1e-3, atol=1e-4, msg=key)
    found, wanted = read_record(run), read_record(one)
    assert found.status == "finished"
    assert found.data.images == wanted.data.images == 4  # not a process's share of them
    assert (found.model, sorted(found.metrics.values)) == (wanted.model, sorted(wanted.metrics.values))


def test_cpu_ddp__loss_curve_of_one_process(forking: Path, one: Path) -> None:
    assert_same_training(forking / "fork", one)


def test_cpu_ddp__prompts_in_parts_and_recomputed(forking: Path, one: Path) -> None:
    """Each process takes its prompts two at a time, and keeps next to nothing for the backward pass."""
    assert_same_training(forking / "parts", one)


@pytest.mark.slow
def test_ddp__loss_curve_of_one_process(root: Path, one: Path) -> None:
    assert_same_training(train(root, "ddp"), one)


@pytest.mark.slow
def test_fsdp__loss_curve_of_one_process_and_resumes(root: Path, one: Path) -> None:
    run = train(root, "fsdp", "activation_checkpointing=true")
    assert_same_training(run, one)
    halfway = run / "checkpoints/best.ckpt"  # the first of two equal scores
    content = torch.load(halfway, weights_only=True)
    assert content["global_step"] == STEPS // 2
    assert set(content["optimizer_states"][0]["state"]) <= set(range(len(content["state_dict"])))
    again = train(root, "fsdp", "activation_checkpointing=true", f"resume={halfway}", folder="fsdp_again")
    expected = {step: loss for step, loss in losses(one).items() if step >= STEPS // 2}
    assert losses(again) == pytest.approx(expected, rel=1e-5)
