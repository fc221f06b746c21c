"""What dividing a prediction on large pictures between two processes saves.

    python benchmarks/predict_shards.py [--images 32] [--side 2000] [--prompts 10] [--rounds 3]

nano predicts on drawn JPEGs of ``--side`` × ``--side`` pixels: by one process on one thread, by one on two threads,
and by two processes on one thread each (``--shard 1/2`` and ``2/2``), in turns. A process is started, imports
everything and predicts on one picture first; then all of a turn begin together. Opening the model is in the numbers,
starting Python is not. ``wall_s`` is from the beginning until the last has ended, and means something only with two
free cores; ``processor_s`` is the time of all processes, ``longest_s`` that of the busiest: one process's over the
longest is what two processes gain where each has a core of its own. ``load`` is the machine's load average before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    "red circle", "blue square", "green triangle", "yellow star", "circle", "square", "triangle", "star", "red", "blue"
)  # fmt: skip
TURNS: dict[str, tuple[list[str | None], int]] = {
    "one process, one thread": ([None], 1),
    "one process, two threads": ([None], 2),
    "two processes, one thread each": (["1/2", "2/2"], 1),
}  # fmt: skip


def draw(folder: Path, images: int, side: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(images):
        blocks = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
        blocks.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg", quality=92)


def work(photos: Path, warm: Path, out: Path, prompts: int, shard: str | None, threads: int) -> None:
    """One process: ready on a line of its own, it begins at a line of the other's and tells its seconds."""
    import torch

    from sam3slim.predict import PredictSpec, predict_files

    torch.set_num_threads(threads)

    def predict(folder: Path, to: Path, shard: str | None) -> int:
        spec = PredictSpec(
            str(ROOT / "assets/nano"), [str(folder)], str(to), prompts=WORDS[:prompts], device="cpu", shard=shard,
            overlays=False, threshold=0.3,
        )  # fmt: skip
        return predict_files(spec, progress=False).images

    with tempfile.TemporaryDirectory() as first:
        predict(warm, Path(first, "out"), None)
    print("ready", flush=True)
    sys.stdin.readline()
    started, before = time.perf_counter(), time.process_time()
    images = predict(photos, out, shard)
    found = {"images": images, "wall_s": time.perf_counter() - started, "processor_s": time.process_time() - before}
    print(json.dumps(found), flush=True)


def turn(shards: list[str | None], threads: int, given: list[str], out: Path) -> list[dict[str, Any]]:
    # A thread that waits for the other would count as processor time, and beside other work it waits long.
    calm = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    environment = {**os.environ, **calm, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *given, "--threads", str(threads), "--out", str(out), "--shard", shard or ""],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for shard in shards
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "ready":
            assert process.poll() is None, "a process ended too early"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = []
    for process in processes:
        assert process.stdout is not None
        found.append(json.loads(process.stdout.read().splitlines()[-1]))
        process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    for name in ("--photos", "--warm", "--out", "--shard", "--threads"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # of a process of its own
    arguments = parser.parse_args()
    if arguments.photos:
        work(
            Path(arguments.photos), Path(arguments.warm), Path(arguments.out), arguments.prompts,
            arguments.shard or None, int(arguments.threads),
        )  # fmt: skip
        return
    from sam3slim.environment import describe_device
    from sam3slim.files import write_csv

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        photos, warm = Path(folder, "photos"), Path(folder, "warm")
        draw(photos, arguments.images, arguments.side)
        draw(warm, 1, arguments.side)
        given = ["--photos", str(photos), "--warm", str(warm), "--prompts", str(arguments.prompts)]
        for number in range(arguments.rounds):
            for name in TURNS if number % 2 else reversed(TURNS):
                shards, threads = TURNS[name]
                load = os.getloadavg()[0]
                found = turn(shards, threads, given, Path(folder, f"{number}-{len(rows)}"))
                assert sum(one["images"] for one in found) == arguments.images
                rows.append({
                    "round": number, "subject": name, "images": arguments.images, "side": arguments.side,
                    "prompts": arguments.prompts, "wall_s": round(max(one["wall_s"] for one in found), 2),
                    "processor_s": round(sum(one["processor_s"] for one in found), 2),
                    "longest_s": round(max(one["processor_s"] for one in found), 2), "load": round(load, 1),
                    "device": describe_device("cpu", 1).rpartition(",")[0],
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    for key in ("wall_s", "longest_s"):
        of = {
            name: {row["round"]: row[key] for row in rows if row["subject"] == name} for name in TURNS
        }  # fmt: skip
        one, _, two = of.values()
        ratios = [one[i] / two[i] for i in one]
        print(f"two processes, by {key}: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})")
    write_csv(Path(__file__).parent / "results/predict_shards.csv", rows)


if __name__ == "__main__":
    main()
