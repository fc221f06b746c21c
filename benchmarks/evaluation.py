"""What evaluating costs beside a loop that calls the model once per (image, prompt).

    python benchmarks/evaluation.py [--images 8] [--rounds 5] [--threads 2]
    python benchmarks/evaluation.py --full-towers [--images 1] [--rounds 1] [--prompts 4]

Both find the same detections with the same weights: ours runs the vision tower once per image, the text tower once
per phrase and prompts in batches; the loop is the same code on one image with one prompt at a time, and knows no text
cache. ``--full-towers`` takes a whole model of SAM 3's size with random weights, at 1008 pixels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sam3slim.checkpoints import load
from sam3slim.data.batch import Batch
from sam3slim.data.spec import DataSpec
from sam3slim.environment import describe_device, library_versions
from sam3slim.evaluation import predict_batch
from sam3slim.evaluation.inference import TextCache
from sam3slim.files import write_csv
from sam3slim.launch.compose import compose_model, compose_plain
from sam3slim.models import Sam3, build_model
from sam3slim.strict import spec_from_dict

RESULTS = Path(__file__).parent / "results"


def ours(model: Sam3, batches: Sequence[Batch]) -> None:
    cache = TextCache()
    for batch in batches:
        predict_batch(model, batch, text_cache=cache)


def loop(model: Sam3, batches: Sequence[Batch]) -> None:
    for batch in batches:
        for prompt in range(len(batch.input_ids)):
            predict_batch(model, one_prompt(batch, prompt))


def one_prompt(batch: Batch, prompt: int) -> Batch:
    """The batch of one prompt and its image; targets are not looked at."""
    image = int(batch.image_index[prompt])
    return replace(
        batch,
        pixel_values=batch.pixel_values[image : image + 1],
        input_ids=batch.input_ids[prompt : prompt + 1],
        attention_mask=batch.attention_mask[prompt : prompt + 1],
        image_index=torch.zeros(1, dtype=torch.long),
        category_ids=batch.category_ids[prompt : prompt + 1],
        phrases=batch.phrases[prompt : prompt + 1],
        images=batch.images[image : image + 1],
    )


def first_prompts(batch: Batch, count: int) -> Batch:
    """Only the first ``count`` prompts of the first image."""
    parts = [one_prompt(batch, prompt) for prompt in range(count)]
    return replace(
        parts[0],
        input_ids=torch.cat([part.input_ids for part in parts]),
        attention_mask=torch.cat([part.attention_mask for part in parts]),
        image_index=torch.zeros(count, dtype=torch.long),
        category_ids=torch.cat([part.category_ids for part in parts]),
        phrases=[phrase for part in parts for phrase in part.phrases],
    )


def seconds(run: Callable[[Sam3, Sequence[Batch]], None], model: Sam3, batches: Sequence[Batch]) -> float:
    start = time.perf_counter()
    run(model, batches)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-towers", action="store_true")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--prompts", type=int, help="default: all categories")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = "full_towers" if arguments.full_towers else "nano"
    if arguments.full_towers:
        model = build_model(compose_model(["model=full"])).eval()
    else:
        model, _ = load("assets/nano")
    config = compose_plain("evaluate", ["checkpoint=assets/nano", "data.batch_size=1"])
    data = spec_from_dict(DataSpec, config["data"], "data").build(model.spec)
    data.prepare_data()
    dataset = data.dataset("test")
    batches = [data.collate([dataset[index]]) for index in range(arguments.images)]
    if arguments.prompts:
        batches = [first_prompts(batch, arguments.prompts) for batch in batches]
    asked = sum(len(batch.input_ids) for batch in batches)
    rows, ratios = [], []
    if not arguments.full_towers:
        seconds(ours, model, batches[:1])  # warm-up
    for number in range(arguments.rounds):
        runs = [("ours", ours), ("loop", loop)]
        taken = {label: seconds(run, model, batches) for label, run in (runs if number % 2 else reversed(runs))}
        ratios.append(taken["ours"] / taken["loop"])
        print(
            f"round {number}: ours {taken['ours']:.2f} s, loop {taken['loop']:.2f} s, ratio {ratios[-1]:.3f}",
            flush=True,
        )
        rows.append({
            "round": number, "model": name, "images": len(batches), "prompts": asked,
            "ours_s": round(taken["ours"], 3), "loop_s": round(taken["loop"], 3), "ratio": round(ratios[-1], 4),
            "device": describe_device(), "threads": arguments.threads, "torch": library_versions()["torch"],
        })  # fmt: skip
    print(f"ours / loop: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    result = RESULTS / f"evaluation_{name}_{asked // len(batches)}_prompts.csv"
    write_csv(result, rows)


if __name__ == "__main__":
    main()
