"""What Lightning costs: a training step of nano in a bare loop and in ``Trainer.fit``, in turns.

    python benchmarks/lightning_overhead.py [--rounds 20] [--steps 25] [--threads 1]

Both do the same work on the same batches from the same weights: forward, loss, backward, gradient clipping,
AdamW, schedule, data loading. Lightning also logs to CSV as in a real run. A step's time runs from the end of the
previous step to its own end, the first ``WARM_UP`` steps of each round not counted. Machines drift, so rounds are
short, a ratio compares the two loops of one round, and every other round starts with the other loop.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger

from sam3slim.data.module import ConceptData
from sam3slim.data.spec import DataSpec
from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv
from sam3slim.launch.compose import compose_plain
from sam3slim.losses import Criterion
from sam3slim.models import build_model, init_for_training
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import ConceptSegmentation, build_optimizer

WARM_UP = 5
RESULTS = Path(__file__).parent / "results"


class StepTimes(lightning.Callback):
    """The moment every training step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


def module(spec: TrainSpec) -> ConceptSegmentation:
    model = init_for_training(build_model(spec.model), spec.seed).train()
    return ConceptSegmentation(
        model, Criterion(spec.loss), spec.optim, spec.schedule, one_to_many=spec.loss.one_to_many
    )


def data_module(spec: TrainSpec) -> ConceptData:
    data_spec: DataSpec = spec.data
    data = data_spec.build(spec.model, spec.seed)
    data.prepare_data()
    data.setup("fit")
    return data


def bare(spec: TrainSpec, data: ConceptData, steps: int) -> list[float]:
    """Moments at which the steps of a plain PyTorch loop end."""
    net = module(spec)
    optimizer, scheduler = build_optimizer(net.model, spec.optim, spec.schedule, 1000)
    ends: list[float] = []
    assert net.criterion is not None
    while len(ends) < steps:
        for batch in data.loader("train", training=True):
            outputs = net.model(**batch.inputs(), one_to_many=net.one_to_many)
            loss = net.criterion(outputs, batch.targets)["loss"]
            if not torch.isfinite(loss):
                raise RuntimeError("loss is not finite")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.model.parameters(), spec.optim.clip)
            optimizer.step()
            scheduler.step()
            ends.append(time.perf_counter())
            if len(ends) == steps:
                break
    return ends


def in_lightning(spec: TrainSpec, data: ConceptData, steps: int) -> list[float]:
    """Moments at which the steps of ``Trainer.fit`` end."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, gradient_clip_val=spec.optim.clip, callbacks=[times],
            logger=CSVLogger(folder), log_every_n_steps=20, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module(spec), data.loader("train", training=True))
    return times.ends


def step_seconds(ends: list[float]) -> list[float]:
    return [after - before for before, after in zip(ends[WARM_UP:-1], ends[WARM_UP + 1 :], strict=True)]


LOOPS = {"bare": bare, "lightning": in_lightning}


def median_interval(values: list[float], repeats: int = 10_000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(values, (repeats, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    config = compose_plain("train", ["experiment=nano_reference", "trainer=cpu"])
    spec = spec_from_dict(TrainSpec, config, "")
    data = data_module(spec)

    rows, ratios = [], []
    for number in range(arguments.rounds):
        medians = {}
        for name in LOOPS if number % 2 else reversed(LOOPS):
            seconds = step_seconds(LOOPS[name](spec, data, arguments.steps))
            medians[name] = statistics.median(seconds)
            rows.append({
                "round": number, "loop": name, "steps": len(seconds), "median_ms": round(1000 * medians[name], 2),
                "min_ms": round(1000 * min(seconds), 2), "max_ms": round(1000 * max(seconds), 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
        ratios.append(medians["lightning"] / medians["bare"])
    low, high = median_interval(ratios)
    print(
        f"lightning / bare over {len(ratios)} rounds: median {statistics.median(ratios):.3f} "
        f"(95 % {low:.3f} to {high:.3f}), from {min(ratios):.3f} to {max(ratios):.3f}"
    )
    metadata = {
        "device": describe_device(), "threads": arguments.threads,
        **{k: v for k, v in library_versions().items() if k in ("torch", "lightning")},
    }  # fmt: skip
    result = RESULTS / f"lightning_overhead_{arguments.threads}_threads.csv"
    write_csv(result, [{**row, **metadata} for row in rows])


if __name__ == "__main__":
    main()
