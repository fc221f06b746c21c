"""What extraction costs beside the script everybody writes, on a full-size training checkpoint.

    python benchmarks/extract.py [--rounds 3] [--folder FOLDER]

The checkpoint has SAM 3's 840 M FP32 parameters under the reference trainer's names and two AdamW moments each (about
10 GB, random values; FOLDER needs 25 GB). The naive script is: ``torch.load``, take ``["model"]``, ``.half()`` each
tensor, ``torch.save``. Every run is a process of its own, in turns, with the files evicted from the page cache before
it; peak memory is the largest ``RssAnon`` seen (anonymous memory: mapped files can be dropped at any time).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from full_size import random_weights

from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv
from sam3slim.models.build import state_shapes
from sam3slim.specs import ModelSpec

RESULTS = Path(__file__).parent / "results" / "extract.csv"
NAIVE = """
import sys, torch
state = torch.load(sys.argv[1], map_location="cpu")["model"]
torch.save({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, sys.argv[2])
"""
CLI = [sys.executable, "-m", "sam3slim"]
POLL = 0.01  # seconds between looks at a process's memory


def make_checkpoint(path: Path) -> None:
    """A trainer's checkpoint of SAM 3 with random weights."""
    model = reference_tensors(ModelSpec(), random_weights())
    trained = [value for value in model.values() if value.is_floating_point()]
    moments = {i: {"step": 1.0, "exp_avg": v * 0.1, "exp_avg_sq": v * v} for i, v in enumerate(trained)}
    torch.save({"model": model, "optimizer": {"state": moments, "param_groups": []}, "epoch": 1}, path)


def evict(folder: Path) -> None:
    """Out of the page cache, so that a run reads from the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def run(command: list[str]) -> tuple[float, int]:
    """Seconds and peak anonymous bytes of a process; raises when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max([peak, *(1024 * int(x.split()[1]) for x in status.splitlines() if x.startswith("RssAnon"))])
            except OSError:
                return
            time.sleep(POLL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command} failed: {errors[-2000:]}")
    return seconds, peak


def disk_rates(source: Path) -> tuple[float, float]:
    """Bytes a second read (cold, sequentially) and written (with fsync)."""
    evict(source.parent)
    start, size = time.perf_counter(), 0
    with source.open("rb", buffering=0) as file:
        while size < 4e9 and (block := file.read(16 << 20)):
            size += len(block)
    read = size / (time.perf_counter() - start)
    block = os.urandom(16 << 20)
    with tempfile.NamedTemporaryFile(dir=source.parent) as file:
        start = time.perf_counter()
        for _ in range(128):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = 128 * len(block) / (time.perf_counter() - start)
    return read, written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        measure(Path(name), arguments.rounds)


def measure(folder: Path, rounds: int) -> None:
    source = folder / "checkpoint.pt"
    make_checkpoint(source)
    read, written = disk_rates(source)
    print(
        f"checkpoint {source.stat().st_size / 1e9:.2f} GB; disk reads {read / 1e9:.2f}, writes {written / 1e9:.2f} GB/s"
    )
    targets = {"naive": folder / "naive.pt", "extract fp32": folder / "fp32", "extract fp16": folder / "fp16"}
    commands = {
        "naive": [sys.executable, "-c", NAIVE, str(source), str(targets["naive"])],
        "extract fp32": [*CLI, "extract", str(source), str(targets["extract fp32"]), "--overwrite"],
        "extract fp16": [*CLI, "extract", str(source), str(targets["extract fp16"]), "--dtype", "fp16", "--overwrite"],
        "inspect": [*CLI, "inspect", str(source)],
    }
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        order = list(commands) if number % 2 == 0 else list(reversed(commands))
        for label in order:
            evict(folder)
            seconds, peak = run(commands[label])
            rows.append({"round": number, "run": label, "seconds": round(seconds, 2), "peak_anon_mb": peak // 10**6})
            print(rows[-1], flush=True)
    weights = sum(4 * shape.numel() for shape in state_shapes(ModelSpec()).values())
    base = {k: statistics.median(r[k] for r in rows if r["run"] == "naive") for k in ("seconds", "peak_anon_mb")}
    for label in commands:
        mine = {k: statistics.median(r[k] for r in rows if r["run"] == label) for k in base}
        out = (
            sum(p.stat().st_size for p in [targets[label], *targets[label].rglob("*")] if p.is_file())
            if label in targets
            else 0
        )
        limit = (weights if out else 0) / read + out / written
        print(
            f"{label:>12}: {mine['seconds']:.1f} s ({mine['seconds'] / base['seconds']:.2f} of naive), "
            f"{mine['peak_anon_mb']:.0f} MB ({mine['peak_anon_mb'] / base['peak_anon_mb']:.2f}); "
            f"writes {out / 1e9:.2f} GB; weights in and out at the disk's rate: {limit:.1f} s"
        )
    metadata = {
        "device": describe_device(), "checkpoint_bytes": source.stat().st_size, "disk_read_mb_s": round(read / 1e6),
        "disk_write_mb_s": round(written / 1e6), "torch": library_versions()["torch"],
    }  # fmt: skip
    write_csv(RESULTS, [{**row, **metadata} for row in rows])


if __name__ == "__main__":
    main()
