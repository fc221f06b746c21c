"""What slimming costs at full size: seconds and peak memory of cutting SAM 3 (840 M) to slim (556 M) on the CPU.

    python benchmarks/slim_full_size.py [--rounds 3] [--threads 1] [--importance magnitude uniform]

Weights are random (what they are does not change the work). Each round cuts once per importance, in a process of
its own, so that a peak is that cut's alone. ``build`` makes the full model, ``inherit`` ranks, slices and checks
every tensor against the plan; the peak is the process' resident memory, in bytes, the full model included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def one_cut(importance: str, threads: int) -> dict[str, Any]:
    """Cut once, in this process."""
    import torch

    from sam3slim.evaluation.latency import peak_memory_bytes
    from sam3slim.launch.compose import compose_model
    from sam3slim.models.build import empty_model
    from sam3slim.slimming import inherit

    torch.set_num_threads(threads)
    full, slim = compose_model(["model=full"]), compose_model(["model=slim"])
    started = time.perf_counter()
    source = empty_model(full)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.uniform_(-0.02, 0.02, generator=generator)
    built, before = time.perf_counter(), peak_memory_bytes("cpu")
    _, plan = inherit(source, slim, importance=importance)  # type: ignore[arg-type]
    return {
        "importance": importance, "params_before": plan.params_before, "params_after": plan.params_after,
        "build_s": round(built - started, 2), "inherit_s": round(time.perf_counter() - built, 2),
        "peak_before_bytes": before, "peak_bytes": peak_memory_bytes("cpu"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--importance", nargs="+", default=["magnitude", "uniform"])
    parser.add_argument("--cut", help=argparse.SUPPRESS)  # the child process
    arguments = parser.parse_args()
    if arguments.cut:
        print(json.dumps(one_cut(arguments.cut, arguments.threads)))
        return
    rows = []
    for number in range(arguments.rounds):
        for importance in arguments.importance:
            command = [sys.executable, __file__, "--cut", importance, "--threads", str(arguments.threads)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append({"round": number, **json.loads(output.splitlines()[-1])})
            print(rows[-1], flush=True)
    _write(rows, arguments.threads)


def _write(rows: list[dict[str, Any]], threads: int) -> None:
    from sam3slim.environment import describe_device, library_versions
    from sam3slim.files import write_csv

    metadata = {"device": describe_device(), "threads": threads, "torch": library_versions()["torch"]}
    result = RESULTS / f"slim_full_size_{threads}_threads.csv"
    write_csv(result, [{**row, **metadata} for row in rows])


if __name__ == "__main__":
    main()
