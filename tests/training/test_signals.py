"""A termination signal to the process that only waits stops the ones it forked, saved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sam3slim.errors import EXIT_INTERRUPTED
from sam3slim.results.record import read_record

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_forwarded_sigterm__two_processes_save_and_stop(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, "train.py", "model=nano_quarter", "trainer=cpu_ddp", "trainer.max_steps=100000",
        "trainer.val_check_interval=100000", "trainer.log_every_n_steps=1", "logger=csv",
        f"data.root={tmp_path / 'shapes'}",
        "data.shapes.train_images=16", "data.shapes.val_images=2", "data.shapes.test_images=2", "data.batch_size=2",
        "schedule.warmup_steps=1", f"hydra.run.dir={run}",
    ]  # fmt: skip
    metrics = run / "csv" / "metrics.csv"
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            until = time.monotonic() + 300
            while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
                assert process.poll() is None, "it ended by itself"
                assert time.monotonic() < until, "no step was trained"
                time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == EXIT_INTERRUPTED
        finally:
            process.kill()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > 0
    assert read_record(run).status == "interrupted"
