"""A sweep killed at random moments and started again, against the same sweep left alone.

    python benchmarks/sweep_resume.py [--kills 3] [--seed 0] [--out outputs/sweep_resume] [OVERRIDES…]

Both run conf/sweep/nano_sizes.yaml (9 trials) with few steps and images; OVERRIDES change that, for example
hydra/launcher=parallel or trainer.max_steps=400. The killed one gets SIGKILL, each time at a random moment within the
time the undisturbed one took, divided by the kills, and is started again with the same command until it ends by itself.
Then the records of both are compared: configuration hashes, status, metrics, bytes and parameters must be equal, trial
by trial. Last, ``sam3slim compare`` reads both folders; equal runs are one row there. Status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv
from sam3slim.results.record import read_record

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
QUICK = [
    "sweep=nano_sizes", "trainer.max_steps=12", "trainer.val_check_interval=4", "schedule.warmup_steps=2", "logger=csv",
    "data.batch_size=4", "data.shapes.train_images=64", "data.shapes.val_images=8", "data.shapes.test_images=16",
]  # fmt: skip


def command(folder: Path, data: Path, overrides: list[str]) -> list[str]:
    given = [*QUICK, f"data.root={data}", *overrides, f"hydra.sweep.dir={folder}"]
    return [sys.executable, str(ROOT / "train.py"), *given]


def run(folder: Path, data: Path, overrides: list[str], log: Path, kill_after: float | None = None) -> bool:
    """Start the sweep; True when it ended by itself. Whatever it left running is killed with it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(
            command(folder, data, overrides), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        try:
            status = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False
    if status != 0:
        raise SystemExit(f"the sweep in {folder} ended with status {status}; see {log}")
    return True


def metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """Trial → what must be equal."""
    found = {}
    for file in sorted(folder.glob("*/record.json")):
        record = read_record(file)
        found[file.parent.name] = {
            "status": record.status, "error": record.error, "config_hash": record.config_hash,
            "params": record.model.params, "bytes": record.artifact.bytes,
            "metrics": record.metrics.to_dict(),
        }  # fmt: skip
    return found


def write(rows: list[dict[str, Any]], path: Path) -> None:
    about = {
        "device": describe_device(),
        **{k: v for k, v in library_versions().items() if k in ("torch", "lightning")},
    }
    write_csv(path, [{**row, **about} for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("outputs/sweep_resume"))
    parser.add_argument("overrides", nargs="*", help="of train.py")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    whole, killed, data = out / "undisturbed", out / "killed", out / "shapes"
    if whole.exists() or killed.exists():
        raise SystemExit(f"{out} holds an earlier comparison; choose another folder with --out, or delete it")

    clock = time.perf_counter()
    run(whole, data, arguments.overrides, out / "undisturbed.log")
    undisturbed = time.perf_counter() - clock
    print(f"undisturbed: {len(metadata(whole))} trials in {undisturbed:.0f} s", flush=True)

    moments: list[float] = []
    draw = random.Random(arguments.seed)
    clock = time.perf_counter()
    while len(moments) < arguments.kills:
        moment = draw.uniform(0, undisturbed / arguments.kills)
        if run(killed, data, arguments.overrides, out / "killed.log", moment):
            break  # what was left took less time than that
        moments.append(round(moment, 1))
        done = sum(fact["status"] == "finished" for fact in metadata(killed).values())
        print(f"killed after {moment:.1f} s with {done} trials finished", flush=True)
    run(killed, data, arguments.overrides, out / "killed.log")
    print(f"killed {len(moments)} times: {time.perf_counter() - clock:.0f} s in all", flush=True)

    first, second = metadata(whole), metadata(killed)
    rows = [
        {
            "trial": trial, "config_hash": (first.get(trial) or second[trial])["config_hash"],
            "status": (second.get(trial) or {}).get("status"),
            "mask_map": ((second.get(trial) or {}).get("metrics") or {}).get("segm", {}).get("map"),
            "equal": first.get(trial) == second.get(trial), "killed_after_s": json.dumps(moments),
            "undisturbed_s": round(undisturbed, 1),
        }
        for trial in sorted({*first, *second})
    ]  # fmt: skip
    write(rows, RESULTS / "sweep_resume.csv")
    for row in rows:
        print(f"{row['trial']:45} {row['status']} mask mAP {row['mask_map']} equal {row['equal']}")
    compare = [sys.executable, "-m", "sam3slim", "compare", str(whole), str(killed), "--out", str(out / "compare")]
    subprocess.run(compare, cwd=ROOT, check=True)
    different = [row["trial"] for row in rows if not row["equal"] or row["status"] != "finished"]
    if different:
        raise SystemExit(f"{len(different)} of {len(rows)} trials differ: {', '.join(different)}")
    print(f"all {len(rows)} trials are equal")


if __name__ == "__main__":
    main()
