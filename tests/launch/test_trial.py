"""Trials: names, records of failures, one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sam3slim.errors import UserError
from sam3slim.launch import child
from sam3slim.launch.journal import Journal, Outcome, summary
from sam3slim.launch.run import Run
from sam3slim.launch.trial import Done, run_trial, trial_name
from sam3slim.results.record import Artifact, Latency, Metrics, ModelSummary, RunRecord, read_record
from sam3slim.results.recording import config_hash, recording

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"seed": 1, "output_dir": "anywhere"}


@pytest.fixture
def trial(tmp_path: Path) -> Run:
    return Run("train", tmp_path / "trial", CONFIG, {"model": "nano"}, "python train.py seed=1")


def measured(config: dict[str, Any] = CONFIG) -> RunRecord:
    return RunRecord(
        "train", "c", config_hash=config_hash(config), metrics=Metrics({"bbox": {"map": 0.25}, "segm": {"map": 0.5}}),
        artifact=Artifact(bytes=1000), seconds=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("varied", "words"),
    [
        ({"model/vit": "nano_slim", "model.decoder.num_layers": "2"}, "vit-nano_slim_num_layers-2_"),
        ({"decoder.num_layers": "1", "encoder.num_layers": "2"}, "decoder.num_layers-1_encoder.num_layers-2_"),
        ({"a.b": "[1, 'x,y']", "c": ""}, "b-1-x-y_c_"),
        ({}, ""),
        ({"a": "x" * 200}, f"a-{'x' * 78}_"),
    ],
)
def test_trial_name__readable_and_needs_no_quotes(tmp_path: Path, varied: dict[str, str], words: str) -> None:
    assert trial_name(CONFIG, varied, tmp_path) == words + config_hash(CONFIG)[:10]


def test_trial_name__an_earlier_folder_of_the_same_configuration(tmp_path: Path) -> None:
    first = trial_name(CONFIG, {"seed": "1"}, tmp_path)
    (tmp_path / first).mkdir()
    moved = {**CONFIG, "output_dir": "elsewhere"}
    assert trial_name(moved, {"trainer": "cpu"}, tmp_path) == first
    assert trial_name({"seed": 2}, {"seed": "1"}, tmp_path) != first


@pytest.mark.parametrize("isolated", [True, False])
def test_run_trial__what_a_search_compares(trial: Run, isolated: bool) -> None:
    done = run_trial(trial, lambda: Done((measured(), measured()), fresh=True), isolated=isolated)
    assert done == Outcome("finished", str(trial.folder), values=(0.5, 1000.0))
    assert run_trial(trial, lambda: Done((measured(),), fresh=False), isolated=isolated).status == "skipped"
    assert run_trial(trial, lambda: [measured()], isolated=isolated).values == (0.5, 1000.0)
    assert run_trial(trial, lambda: RunRecord("train", "c"), isolated=isolated).values is None


def test_run_trial__a_search_for_low_latency_compares_that_and_where_it_was_measured(trial: Run) -> None:
    record = measured()
    assert run_trial(trial, lambda: Done((record,), cost="latency"), isolated=False).values is None
    record.device, record.latency_ms = "a, 1 threads", Latency(12.0, threads=1, batch=1, prompts=5)
    done = run_trial(trial, lambda: Done((record,), cost="latency"), isolated=True)
    assert (done.values, done.machine) == ((0.5, 12.0), "a, 1 threads, batch 1, prompts 5")


def test_run_trial__a_failure_before_the_run_began_is_recorded(trial: Run) -> None:
    def work() -> None:
        raise UserError("model.vit.embed_dim=500:\n impossible")

    outcome = run_trial(trial, work, isolated=True)
    assert (outcome.status, outcome.error) == ("failed", "model.vit.embed_dim=500:")
    record = read_record(trial.folder)
    assert (record.status, record.error, record.command) == ("failed", outcome.error, trial.command)
    assert record.config_hash == config_hash(CONFIG)
    assert record.choices == {"model": "nano"}


def test_run_trial__a_recorded_failure_is_left_as_it_is(trial: Run) -> None:
    def work() -> None:
        with recording(trial.folder, kind="train", command="c", config=CONFIG) as record:
            record.model = ModelSummary(params=7)
            raise UserError("disk full")

    RunRecord("train", "old", status="failed", error="old", config_hash=config_hash(CONFIG)).write(trial.folder)
    assert run_trial(trial, work, isolated=True).error == "disk full"
    assert read_record(trial.folder).model == ModelSummary(params=7)


def test_run_trial__a_finished_training_stays_finished_when_what_follows_fails(trial: Run) -> None:
    measured().write(trial.folder)

    def work() -> None:
        raise UserError("1 of 2 methods failed")

    assert run_trial(trial, work, isolated=False).status == "failed"
    assert read_record(trial.folder).status == "finished"


@pytest.mark.skipif(not child.FORKS, reason="trials share a process where it cannot be forked")
def test_run_trial__a_killed_trial_is_a_row(trial: Run) -> None:
    def work() -> None:
        with recording(trial.folder, kind="train", command="c", config=CONFIG):
            os.kill(os.getpid(), signal.SIGKILL)

    outcome = run_trial(trial, work, isolated=True)
    assert outcome.status == "failed"
    assert outcome.error == "its process was killed by SIGKILL; often the memory was not enough"
    assert (read_record(trial.folder).status, read_record(trial.folder).error) == ("failed", outcome.error)


@pytest.mark.skipif(not child.FORKS, reason="trials share a process where it cannot be forked")
def test_run_trial__a_killed_trial_replaces_a_record_that_cannot_be_read(trial: Run) -> None:
    trial.folder.mkdir()
    (trial.folder / "record.json").write_text("{")
    outcome = run_trial(trial, lambda: os.kill(os.getpid(), signal.SIGKILL), isolated=True)
    assert (read_record(trial.folder).status, read_record(trial.folder).error) == ("failed", outcome.error)


def test_run_trial__waits_for_another_process_in_its_folder(trial: Run) -> None:
    holder = (
        "import pathlib, sys, time\n"
        "from sam3slim.launch.trial import _alone\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "folder.mkdir()\n"
        "with _alone(folder):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    (folder / 'first').write_text('')\n"
    )
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", holder, str(trial.folder)], cwd=ROOT, stdin=pipe, stdout=pipe)
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    waiting = (
        "import pathlib, sys\n"
        "from sam3slim.launch.run import Run\n"
        "from sam3slim.launch.trial import run_trial\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "trial = Run('train', folder, {})\n"
        "run_trial(trial, lambda: print((folder / 'first').exists(), flush=True), isolated=False)\n"
    )
    second = subprocess.Popen(
        [sys.executable, "-c", waiting, str(trial.folder)], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    )
    assert second.stderr is not None
    assert "another process works on this trial; waiting for it" in second.stderr.readline()
    other.stdin.write(b"\n")
    other.stdin.close()
    assert second.communicate(timeout=60)[0] == "True\n"
    assert (other.wait(60), second.returncode) == (0, 0)


def test_journal__outcomes_in_the_order_of_the_trials(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path, "a"), Journal(tmp_path, "b")
    for number in (10, 2):
        journal.write(number, Outcome("running", f"f{number}"))
    journal.write(10, Outcome("failed", "f10", "why"))
    other.write(0, Outcome("finished", "x", values=(0.5, 3.0)))
    assert journal.read() == [Outcome("running", "f2"), Outcome("failed", "f10", "why")]
    assert [tuple(outcome.values or ()) for outcome in other.read()] == [(0.5, 3.0)]
    journal.remove()
    assert journal.read() == []
    other.remove()
    assert not any(tmp_path.iterdir())


def test_summary__counts() -> None:
    outcomes = [Outcome("finished", ""), Outcome("skipped", ""), Outcome("failed", ""), Outcome("running", "")]
    assert summary(outcomes, "out") == (
        "4 trials: 1 finished, 1 already finished, 2 failed; compare them: sam3slim compare out"
    )
    assert summary(outcomes, "out", " --cost latency").endswith("sam3slim compare out --cost latency")
    assert summary(outcomes[1:2], "out").startswith("1 trial: 0 finished, 1 already finished; compare")
