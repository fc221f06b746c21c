"""A whole sweep from the command line: rows for failures, death, going on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sam3slim.cli import main
from sam3slim.launch import child
from tests.sweep.command import finish, metadata, processes_of, start, wait_until

TRIALS = "model.vit.embed_dim=32,500,64"  # the one in the middle is impossible


@pytest.mark.skipif(not child.FORKS, reason="a killed sweep takes its trial along only on Linux")
def test_sweep__killed_and_started_again_leaves_the_records_of_an_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, said = finish(start(tmp_path, whole, TRIALS), whole)
    expected = metadata(whole)
    assert [fact["status"] for fact in expected.values()] == ["finished", "failed", "finished"]
    assert "heads of size 250, and RoPE needs a multiple of 4" in str(list(expected.values())[1]["error"])
    assert status == 2
    assert said.splitlines()[-1] == "3 trials: 2 finished, 1 failed; compare them: sam3slim compare whole"
    assert "Traceback" not in said

    process = start(tmp_path, killed, TRIALS)
    wait_until(lambda: list(killed.glob("*/checkpoints/last.ckpt")), process)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(killed))  # the trial saves and goes too
    assert "finished" not in {fact["status"] for fact in metadata(killed).values()}
    status, said = finish(start(tmp_path, killed, TRIALS), killed)
    assert metadata(killed) == expected
    assert said.splitlines()[-1].startswith("3 trials: 2 finished, 1 failed;")
    resumed = next(killed.glob("embed_dim-32_*")) / "csv"
    assert (resumed / "metrics.0.csv").is_file()
    with (resumed / "metrics.csv").open() as file:
        assert min(int(row["step"]) for row in csv.DictReader(file)) >= 2

    assert main(["compare", str(whole), str(killed), "--out", str(tmp_path / "compare")]) == 0
    table = (tmp_path / "compare/compare.csv").read_text()
    assert table.count("RoPE needs a multiple of 4") >= 1
    assert "3 runs in 2 groups" in capsys.readouterr().out  # equal runs are one row, the failed one has no numbers
