"""The memory plan beside the memory that a training step takes.

    python benchmarks/memory_plan.py [--cases nano mid] [--full]

Every case is planned (``sam3slim inspect --memory --device cpu``), then trained for a step on the CPU with real tensors
in a process of its own, through the same module, losses, optimiser and Lightning trainer. What is measured is the
process's largest resident size during the step less its size before the model was made: it counts what the plan cannot
see, the kernels' workspaces. Every object has four one-to-many matches in both.
``--full`` plans SAM 3's own experiments instead, as on CUDA, and says what that takes.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv

RESULTS = Path(__file__).parent / "results"
MID = [
    "model=full", "model.vit.embed_dim=384", "model.vit.depth=12", "model.vit.num_heads=6", "model.vit.image_size=336",
    "model.text.width=256", "model.text.layers=4", "model.text.num_heads=4", "model.text.vocab_size=4096",
    "model.vit.window_size=12", "data.batch_size=1", "data.max_prompts=4",
]  # fmt: skip
SIZES = {"nano": ["model=nano", "data.batch_size=8", "data.max_prompts=8", "loss=reference"], "mid": MID}
VARIANTS = {
    "32-true": [], "32-true, checkpointing": ["activation_checkpointing=true"],
    "bf16-mixed": ["trainer.precision=bf16-mixed"],
    "bf16-mixed, checkpointing": ["trainer.precision=bf16-mixed", "activation_checkpointing=true"],
}  # fmt: skip
EIGHT = ["data.batch_size=8", "data.max_prompts=16", "trainer.devices=1"]
FULL = {
    "slim, live teacher, 8 x 16": ["experiment=slim", *EIGHT],
    "slim, frozen towers, 1 x 16": [
        "experiment=slim", "optim.freeze=[vision,text]", "data.batch_size=1", "data.max_prompts=16",
        "trainer.devices=1", "distill=none",
    ],
    **{name: [f"experiment={name}", *EIGHT] for name in ("slim_depth", "slim_width", "slim_text", "slim_layers")},
    "full from scratch": ["model=full", "trainer=gpu", "activation_checkpointing=true", *EIGHT],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--full", nargs="*", help="plans of full-size experiments, all or some")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(measured(arguments.step)))
    elif arguments.full is not None:
        for name in arguments.full or FULL:
            keep(RESULTS / "memory_plan_full.csv", planned_row(name, FULL[name]))
    else:
        for case in arguments.cases:
            for variant in arguments.variants:
                row = compared(f"{case}, {variant}", [*SIZES[case], *VARIANTS[variant]])
                keep(RESULTS / "memory_plan.csv", row)


def keep(file: Path, row: dict[str, Any]) -> None:
    """Replace the row of that name."""
    print(row, flush=True)
    rows = list(csv.DictReader(file.open())) if file.is_file() else []
    write_csv(file, [*(other for other in rows if other["case"] != row["case"]), row])


def compared(case: str, overrides: list[str]) -> dict[str, Any]:
    """The plan's peak and the measured one, in bytes."""
    plan, seconds, _ = ask(overrides, "cpu")
    # Blocks from 64 kB on are given back to the system when they are freed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--step", *overrides]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    peak = json.loads(found.stdout.splitlines()[-1])["peak"]
    return {
        "case": case, "planned_bytes": plan["peak"], "measured_bytes": peak,
        "planned_over_measured": round(plan["peak"] / peak, 3), "plan_seconds": seconds,
        "device": describe_device(), "torch": library_versions()["torch"],
    }  # fmt: skip


def planned_row(case: str, overrides: list[str]) -> dict[str, Any]:
    """A plan in GiB by item, its fit, and what planning took."""
    plan, seconds, resident = ask(overrides, "cuda")
    sizes = {**plan["standing"], **{f"saved {name}": size for name, size in plan["saved"].items()}}
    sizes |= {"temporary": plan["temporary"], "peak": plan["peak"], "needed": plan["needed"]}
    return {
        "case": case, **{name: round(size / 2**30, 2) for name, size in sizes.items()},
        **{f"fits {card} GB": fits for card, fits in plan["fits"].items()}, "plan_cpu_seconds": seconds,
        "plan_resident_bytes": resident, "device": describe_device(), "torch": library_versions()["torch"],
    }  # fmt: skip


def ask(overrides: list[str], device: str) -> tuple[dict[str, Any], float, int]:
    """The command's answer, seconds of CPU it took, and the largest resident size of all commands so far."""
    command = [sys.executable, "-m", "sam3slim", "inspect", "--json", "--device", device, "--memory", *overrides]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(answer), round(seconds, 1), 1024 * after.ru_maxrss


def measured(overrides: list[str]) -> dict[str, Any]:
    """Bytes that a step takes in this process, above what it had when all code was loaded."""
    from sam3slim.losses import OneToManyMatcher
    from sam3slim.models import build_model, init_for_training
    from sam3slim.planning.request import INSTANCES, planned_spec
    from sam3slim.planning.step import fit, make_batch
    from sam3slim.planning.tracing import Earlier
    from sam3slim.runs.train import training_module

    def step(settings: list[str]) -> None:
        spec = planned_spec(settings)
        module = training_module(spec, init_for_training(build_model(spec.model), 0))
        # The plan assumes four matches of every object, which a model that has learnt nothing does not have.
        assert module.criterion is not None
        module.criterion.o2m_matcher = OneToManyMatcher(threshold=-1.0)
        fit(spec, module, make_batch(spec, INSTANCES), Earlier())

    step([*overrides, "model.vit.depth=2", "model.decoder.num_queries=4", "data.batch_size=1", "data.max_prompts=1"])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = memory("VmRSS")
    start = time.perf_counter()
    step(overrides)
    return {"peak": memory("VmHWM") - before, "seconds": time.perf_counter() - start}


def memory(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
