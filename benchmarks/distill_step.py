"""What a teacher costs: a training step of nano_slim without one, with a live one, and with a cached one, in turns.

    python benchmarks/distill_step.py [--rounds 12] [--steps 10] [--threads 1] [--images 120]

The recipe is experiment=nano_study (12 images, 4 prompts each). ``features`` teaches neck and encoder
maps, ``full`` the answers too; ``cached`` is full from distill.cache, which is filled first and not timed. A step's
time covers data loading, forward, losses, backward, clipping and AdamW. Machines drift, so all four take turns in
short rounds of rotating order, and a ratio compares loops of one round. Beside the time on the clock stands the
processor time of this process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sam3slim.checkpoints import load
from sam3slim.data.batch import Batch
from sam3slim.data.module import ConceptData
from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv
from sam3slim.launch.compose import compose_plain
from sam3slim.losses import Criterion
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.teacher import teacher_of, training_data
from sam3slim.slimming import inherit
from sam3slim.strict import spec_from_dict
from sam3slim.training import build_optimizer

CLOCKS = ("wall", "cpu")
WARM_UP = 2  # steps at the beginning of every turn that are not counted
RESULTS = Path(__file__).parent / "results"
FULL = ["distill=full", "distill.teacher=assets/nano"]
LOOPS = {
    "none": ["distill=none"],
    "features": ["distill=features", "distill.teacher=assets/nano", "distill.fpn=10", "distill.memory=10"],
    "full": FULL,
    "cached": FULL,
}


class Loop:
    """One way to train; keeps its model, optimiser and place in the data between turns."""

    def __init__(self, name: str, folder: Path, images: int) -> None:
        overrides = ["experiment=nano_study", "model=nano_slim", f"data.limit={images}", *LOOPS[name]]
        if name == "cached":
            overrides.append(f"distill.cache={folder}")
        self.spec = spec_from_dict(TrainSpec, compose_plain("train", overrides), "")
        data = training_data(self.spec)
        data.prepare_data()
        self.teacher = teacher_of(self.spec, data)
        source, _ = load("assets/nano")
        self.model, _ = inherit(source, self.spec.model, importance="magnitude", depth="even", seed=0)
        self.model.train()
        self.criterion = Criterion(self.spec.loss)
        self.optimizer, self.scheduler = build_optimizer(self.model, self.spec.optim, self.spec.schedule, 10_000)
        self.batches = _endless(data)

    def step(self) -> tuple[float, float]:
        """Seconds of one training step: on the clock, and of the processor."""
        start = time.perf_counter(), time.process_time()
        batch = next(self.batches)
        outputs = self.model(**batch.inputs())
        loss = self.criterion(outputs, batch.targets)["loss"]
        if self.teacher is not None:
            loss = loss + torch.stack(list(self.teacher.losses(batch, outputs).values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.optim.clip)
        self.optimizer.step()
        self.scheduler.step()
        return time.perf_counter() - start[0], time.process_time() - start[1]


def _endless(data: ConceptData) -> Iterator[Batch]:
    loader = data.loader("train", training=True)
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=120, help="training images, so that the cache is soon filled")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    rows: list[dict[str, object]] = []
    # (loop, clock) → one ratio per round
    ratios: dict[tuple[str, str], list[float]] = {(n, c): [] for n in LOOPS if n != "none" for c in CLOCKS}
    with tempfile.TemporaryDirectory() as folder:
        loops = {name: Loop(name, Path(folder), arguments.images) for name in LOOPS}
        names = list(loops)
        for number in range(arguments.rounds):
            turn = number % len(names)
            medians = {}
            for name in names[turn:] + names[:turn]:
                taken = [loops[name].step() for _ in range(arguments.steps + WARM_UP)][WARM_UP:]
                for clock, seconds in zip(CLOCKS, zip(*taken, strict=True), strict=True):
                    medians[name, clock] = statistics.median(seconds)
                    rows.append({
                        "round": number, "loop": name, "clock": clock, "steps": len(seconds),
                        "median_ms": round(1000 * medians[name, clock], 2), "min_ms": round(1000 * min(seconds), 2),
                        "max_ms": round(1000 * max(seconds), 2),
                    })  # fmt: skip
            for (name, clock), values in ratios.items():
                values.append(medians[name, clock] / medians["none", clock])
            shown = ", ".join(f"{n} {1000 * medians[n, 'wall']:.0f} ({1000 * medians[n, 'cpu']:.0f})" for n in names)
            print(f"round {number}: {shown} ms on the clock (of the processor)", flush=True)
    for (name, clock), values in ratios.items():
        found = f"median {statistics.median(values):.3f}, from {min(values):.3f} to {max(values):.3f}"
        print(f"{name} / none, {clock}: {found}")
    metadata = {
        "device": describe_device(), "threads": arguments.threads,
        **{k: v for k, v in library_versions().items() if k == "torch"},
    }  # fmt: skip
    result = RESULTS / f"distill_step_{arguments.threads}_threads.csv"
    write_csv(result, [{**row, **metadata} for row in rows])


if __name__ == "__main__":
    main()
