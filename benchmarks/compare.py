"""What ``sam3slim compare`` needs for many runs: seconds, from a fresh process, and bytes of the page.

    python benchmarks/compare.py [--records 500] [--rounds 3]

The records have two data sets, three families and five precisions; every fourth is a training run with a
``metrics.csv`` of 2,000 rows. Import of the libraries is part of the time: that is what a user waits for. Seconds of
the processor stand beside those of the clock, since on a shared machine only they tell what the work costs.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sam3slim.environment import describe_device, library_versions
from sam3slim.files import atomic_path
from sam3slim.results.record import RunRecord

RESULTS = Path(__file__).parent / "results"
FAMILIES = {"nano": 2_700_000, "nano_slim": 1_100_000, "nano_tiny": 500_000}
BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8_weight": 1.3, "int8_dynamic": 1.3}
PARTS = ("vision", "text", "geometry", "encoder", "decoder", "mask", "scoring")


def write_runs(folder: Path, count: int) -> None:
    """``count`` run folders with records that differ."""
    chance = random.Random(0)
    for number in range(count):
        name, params = chance.choice(list(FAMILIES.items()))
        precision, size = chance.choice(list(BYTES.items()))
        value = chance.uniform(0.4, 0.8)
        low = chance.uniform(0, 5)
        values: dict[str, Any] = dict(
            kind="train" if number % 4 == 0 else "compress",
            command=f"python compress.py checkpoint=outputs/{name} compress={precision} seed={number}",
            config_hash=f"{number:064x}",
            choices={"data": "shapes", "model": name, "compress": precision, "trainer": "cpu", "logger": "csv"},
            device="a processor, 1 threads",
            model={"name": name, "params": params, "params_by_part": dict.fromkeys(PARTS, params // len(PARTS))},
            artifact={
                "path": "artifact",
                "bytes": int(params * size) + number,
                "format": "hf",
                "precision": precision,
                "bytes_by_part": dict.fromkeys(PARTS, int(params * size) // len(PARTS)),
            },
            data={"name": "shapes", "split": ("val", "test")[number % 2], "images": 300, "prompts": 6900},
            metrics={kind: {"map": value, "map_50": value} for kind in ("bbox", "segm")},
            drop={kind: {"points": low + 1, "ci95": [low, low + 2]} for kind in ("bbox", "segm")},
            latency_ms={"p50": chance.uniform(50, 300), "p90": 400.0, "batch": 1, "prompts": 23, "threads": 1},
            started=f"2026-01-01T00:00:{number % 60:02d}+00:00",
        )
        RunRecord.from_dict(values).write(folder / f"run_{number}")
        if number % 4 == 0:
            rows = [f"{step},{chance.random()},{chance.random()},{chance.random()}" for step in range(2000)]
            text = "\n".join(["step,train/loss,val/bbox_map,val/segm_map", *rows])
            (folder / f"run_{number}" / "metrics.csv").write_text(text)


def children_seconds() -> float:
    """Processor time of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds, cpu_seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        runs, out = Path(folder) / "runs", Path(folder) / "out"
        write_runs(runs, arguments.records)
        for _ in range(arguments.rounds):
            start, cpu_start = time.perf_counter(), children_seconds()
            command = [sys.executable, "-m", "sam3slim", "compare", str(runs), "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(children_seconds() - cpu_start)
        page_bytes = (out / "compare.html").stat().st_size
    row = {
        "records": arguments.records, "rounds": arguments.rounds,
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_min": round(min(seconds), 2), "seconds_max": round(max(seconds), 2), "page_bytes": page_bytes,
        "cpu_seconds_median": round(statistics.median(cpu_seconds), 2),
        "device": describe_device(), "versions": json.dumps(library_versions()),
    }  # fmt: skip
    with atomic_path(RESULTS / "compare.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    print(row)


if __name__ == "__main__":
    main()
