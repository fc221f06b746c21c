"""What prompts of one image cost when they share what depends on the image alone, beside computing each by itself.

    python benchmarks/prompts.py [--prompts 10] [--rounds 3] [--threads 2]

SAM 3's geometry encoder, encoder, decoder and mask head (random weights, 1,008 px, FP32, one image, prompts of 16
tokens) run on the CPU in turns: every prompt by itself, as transformers' modules do; sharing; sharing with masks of the
100 best queries over all prompts, as evaluation keeps. Processor time counts beside the clock, since a machine may have
other work. The difference is the largest one between two answers, boxes and mask logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from sam3slim.environment import describe_device, library_versions
from sam3slim.evaluation.postprocess import candidates, pick, prompt_scores
from sam3slim.files import write_csv
from sam3slim.models import Sam3, build_model
from sam3slim.models.outputs import Sam3Output
from sam3slim.specs import ModelSpec, TextSpec

RESULTS = Path(__file__).parent / "results"
TOKENS, KEPT = 16, 100


def detector() -> Sam3:
    """SAM 3 without its towers, which do not run here."""
    vit = replace(ModelSpec().vit, depth=1, num_global_blocks=1)
    spec = replace(ModelSpec(), vit=vit, text=TextSpec(width=64, layers=1, num_heads=1, vocab_size=600))
    torch.manual_seed(0)
    return build_model(spec).eval()


def features(model: Sam3, prompts: int) -> dict[str, Any]:
    """Random maps of one image, and features of prompts."""
    grid, width = model.spec.vit.grid_size, model.spec.d_model
    maps = tuple(torch.randn(1, width, grid * side, grid * side) for side in (4, 2, 1, 1))
    encode = model.vision_encoder.neck.position_encoding
    positions = tuple(encode(level.shape, level.device, level.dtype) for level in maps)
    vision = Sam3VisionEncoderOutput(fpn_hidden_states=maps, fpn_position_encoding=positions)
    return {
        "vision_embeds": vision,
        "text_embeds": torch.randn(prompts, TOKENS, width),
        "image_index": torch.zeros(prompts, dtype=torch.int64),
    }


def answer(model: Sam3, inputs: dict[str, Any], shares: bool, masks: Literal["asked"] | bool) -> Sam3Output:
    """One forward pass; with "asked", the masks of the best queries."""
    model.shares_images = shares
    output: Sam3Output = model(**inputs, with_masks=masks)
    if masks == "asked":
        scores, _ = prompt_scores(output)
        rows = torch.arange(len(scores))
        candidates(output, pick(scores, rows, rows, KEPT))
    return output


def largest_difference(first: Sam3Output, second: Sam3Output) -> float:
    """Of boxes and mask logits, in units of the largest logit."""
    assert isinstance(first.pred_masks, Tensor)
    assert isinstance(second.pred_masks, Tensor)
    masks = (first.pred_masks - second.pred_masks).abs().max() / first.pred_masks.abs().max()
    return max(float(masks), float((first.pred_boxes - second.pred_boxes).abs().max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = detector()
    inputs = features(model, arguments.prompts)
    runs: dict[str, Callable[[], Sam3Output]] = {
        "every prompt by itself": lambda: answer(model, inputs, False, True),
        "sharing": lambda: answer(model, inputs, True, True),
        f"sharing, masks of the {KEPT} best": lambda: answer(model, inputs, True, "asked"),
    }
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        one, other = list(runs)[:2]
        difference = largest_difference(runs[one](), runs[other]())
        for number in range(arguments.rounds):
            for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
                start = time.perf_counter(), time.process_time()
                runs[name]()
                wall[name].append(time.perf_counter() - start[0])
                cpu[name].append(time.process_time() - start[1])
                print(f"{number + 1}/{arguments.rounds} {name}: {wall[name][-1]:.1f} s", flush=True)
    base = statistics.median(cpu[one])
    rows = [
        {
            "run": name, "prompts": arguments.prompts, "seconds": round(statistics.median(wall[name]), 2),
            "seconds_min": round(min(wall[name]), 2), "seconds_max": round(max(wall[name]), 2),
            "processor_seconds": round(statistics.median(cpu[name]), 2),
            "of_the_first": round(statistics.median(cpu[name]) / base, 3),
            "difference": f"{difference:.1e}" if name == other else "", "threads": arguments.threads,
            "rounds": arguments.rounds, "device": describe_device(torch.device("cpu")), **library_versions(),
        }
        for name in runs
    ]  # fmt: skip
    write_csv(RESULTS / f"prompts_{arguments.prompts}.csv", rows)
    for row in rows:
        print(f"{row['run']:34} {row['seconds']:7} s {row['processor_seconds']:7} s CPU {row['of_the_first']}")
    print(f"largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
