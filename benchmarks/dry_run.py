"""One training step at real size: does a full-scale experiment run, in how much memory?

    python benchmarks/dry_run.py --data COCO128 [--experiments slim slim_depth …] [--checkpoint SAM3] [--folder FOLDER]

Every experiment goes through ``train.py`` itself on the CPU in FP32: weights inherited from a full-size checkpoint
(random ones by default: FOLDER needs 12 GB), teacher, losses, one optimiser step, the trained model written as an
artifact. One image with two prompts; nothing is validated. Memory is the largest resident size of the process, in
bytes; the frozen teacher is in it.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from full_size import write_full_size

from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv
from sam3slim.results.record import read_record

RESULTS = Path(__file__).parent / "results" / "dry_run.csv"
EXPERIMENTS = ("slim", "slim_depth", "slim_width", "slim_text", "slim_layers")
OVERRIDES = [
    "trainer=cpu", "trainer.limit_train_batches=1", "trainer.limit_val_batches=0", "trainer.max_steps=1",
    "schedule.warmup_steps=0", "schedule.cooldown_steps=0", "trainer.val_check_interval=1",
    "trainer.log_every_n_steps=1", "eval_at_end=false", "logger=csv", "data.split=train", "data.batch_size=1",
    "data.max_prompts=2", "data.negatives=1", "data.num_workers=0", "data.limit=4",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of COCO's form")
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS)
    parser.add_argument("--checkpoint", type=Path, help="default: random weights")
    parser.add_argument("--folder", type=Path, help="default: a temporary folder")
    arguments = parser.parse_args()
    rows = list(csv.DictReader(RESULTS.open())) if RESULTS.is_file() else []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source = arguments.checkpoint or write_full_size(Path(name) / "full")
        for experiment in arguments.experiments:
            row = one_step(experiment, source, arguments.data, Path(name) / experiment)
            print(row, flush=True)
            rows = [*(other for other in rows if other["experiment"] != experiment), row]
            write_csv(RESULTS, rows)


def one_step(experiment: str, source: Path, data: Path, run: Path) -> dict[str, Any]:
    """Through ``train.py``, in a process of its own; raises when it fails."""
    command = [
        sys.executable, "train.py", f"experiment={experiment}", f"init.checkpoint={source}", f"data.root={data}",
        *OVERRIDES, f"hydra.run.dir={run}",
    ]  # fmt: skip
    start = time.perf_counter()
    # glibc keeps freed blocks of up to 32 MB on its heap, in pieces that the next ones do not fit: GBs, at this size.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "1048576"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | allocator)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    record = read_record(run)
    logged = list(csv.DictReader((run / "csv" / "metrics.csv").open()))
    return {
        "experiment": experiment, "params": record.model.params,
        "loss": next(row["train/loss"] for row in logged if row.get("train/loss")),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_resident_bytes": 1024 * usage.ru_maxrss,
        "artifact_bytes": record.artifact.bytes,
        "device": describe_device(), "torch": library_versions()["torch"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
