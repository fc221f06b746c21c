"""What activation checkpointing leaves of a training step's memory, and what it costs in time, at a middle size.

    python benchmarks/training_memory.py [--rounds 3] [--prompts 8] [--threads 1]

One model of SAM 3's shape (ViT 384 × 12 at 336 px, d_model 256, encoder and decoder of 6 layers, 200 queries and the
one-to-many branch, FP32, all parts trained) takes the same step in two ways, in turns:

- ``before``: towers and encoder recomputed, decoder and mask head kept, masks of all queries, as up to commit 0059e29;
- ``after``: ``activation_checkpointing=true``.

Bytes are those of the storages that are kept for the backward pass (parameters left out), by the part that kept them
first; a step is forward, losses and backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sam3slim.data.batch import Batch, Targets
from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv
from sam3slim.launch.compose import compose_plain
from sam3slim.losses import Criterion, masks
from sam3slim.models import Sam3, build_model, init_for_training, sam3
from sam3slim.models.masks import MaskHead
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import recompute_activations
from sam3slim.training.step_loss import StepLoss

RESULT = Path(__file__).parent / "results" / "training_memory.csv"
MIDDLE = [
    "model=full", "model.vit.embed_dim=384", "model.vit.depth=12", "model.vit.num_heads=6", "model.vit.image_size=336",
    "model.text.width=128", "model.text.layers=2", "model.text.vocab_size=600", "data=coco", "data.root=.",
]  # fmt: skip
TARGETS = 2  # of a prompt


def batch_of(spec: TrainSpec, prompts: int) -> Batch:
    """One image and its prompts, with random targets."""
    generator = torch.Generator().manual_seed(0)
    side, count = spec.model.vit.image_size, TARGETS * prompts
    boxes = torch.rand(count, 4, generator=generator) * 0.3 + 0.3
    return Batch(
        pixel_values=torch.rand(1, 3, side, side, generator=generator) * 2 - 1,
        input_ids=torch.randint(0, 500, (prompts, spec.model.text.context_length), generator=generator),
        attention_mask=torch.ones(prompts, spec.model.text.context_length, dtype=torch.long),
        image_index=torch.zeros(prompts, dtype=torch.long),
        category_ids=torch.arange(prompts),
        targets=Targets(
            boxes,
            torch.rand(count, side, side, generator=generator) > 0.5,
            torch.arange(prompts).repeat_interleave(TARGETS),
        ),
        phrases=[str(number) for number in range(prompts)],
    )


@contextmanager
def kept_by_part(model: Sam3) -> Iterator[Counter[str]]:
    """Bytes kept for the backward pass: of decoder, mask head, and the rest."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found, seen, part = Counter[str](), set[int](), ["rest"]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights | seen:
            seen.add(storage.data_ptr())
            found[part[-1]] += storage.nbytes()
        return tensor

    def within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **named: Any) -> Any:
            part.append(name)
            try:
                return function(*values, **named)
            finally:
                part.pop()

        return run

    with (
        mock.patch.object(sam3, "decode", within("decoder", sam3.decode)),
        mock.patch.object(MaskHead, "compute", within("mask head", MaskHead.compute)),
        mock.patch.object(model.mask_decoder, "forward", within("mask head", model.mask_decoder.forward)),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        yield found


def step(model: Sam3, batch: Batch, way: str) -> Tensor:
    """The loss."""
    if way == "after":
        return StepLoss(model, criterion=Criterion(), one_to_many=True).losses(batch)["loss"]
    with mock.patch.object(masks, "checkpoint", lambda function, *values, **_: function(*values)):
        return Criterion()(model(**batch.inputs(), one_to_many=True), batch.targets)["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = spec_from_dict(TrainSpec, compose_plain("train", MIDDLE), "")
    spec = replace(spec, model=replace(spec.model, dropout=0.0))
    model, batch = init_for_training(build_model(spec.model), 0).train(), batch_of(spec, arguments.prompts)
    recompute_activations(model)
    metadata = {"prompts": arguments.prompts, "device": describe_device(), "threads": arguments.threads,
             "torch": library_versions()["torch"]}  # fmt: skip
    rows: list[dict[str, object]] = []
    times: dict[str, list[float]] = {"before": [], "after": []}
    losses: dict[str, float] = {}
    for number in range(arguments.rounds):
        for way in times if number % 2 else reversed(times):
            model.recompute = way == "after"
            model.zero_grad()
            start = time.perf_counter(), time.process_time()
            with kept_by_part(model) as kept:
                loss = step(model, batch, way)
            loss.backward()
            wall, processor = time.perf_counter() - start[0], time.process_time() - start[1]
            times[way].append(processor)
            losses[way] = float(loss.detach())
            mib = {f"{name} MiB a prompt": round(kept[name] / 2**20 / arguments.prompts, 2)
                   for name in ("decoder", "mask head", "rest")}  # fmt: skip
            rows.append({"round": number, "way": way, "wall_s": round(wall, 2), "processor_s": round(processor, 2),
                         "loss": round(losses[way], 5), **mib, **metadata})  # fmt: skip
            print({key: rows[-1][key] for key in ("round", "way", "wall_s", "processor_s", "loss", *mib)}, flush=True)
    ratio = [after / before for after, before in zip(times["after"], times["before"], strict=True)]
    print(
        f"after / before, processor time: median {statistics.median(ratio):.3f}, {min(ratio):.3f} to {max(ratio):.3f}"
    )
    write_csv(RESULT, rows)


if __name__ == "__main__":
    main()
