"""Images per second of ``sam3slim predict`` and of a loop over transformers' own classes, in turns.

    python benchmarks/predict.py [--images DIR] [--limit 200] [--prompts 10] [--rounds 3] [--threads 1]

The loop is what transformers' documentation shows, once per (image, phrase): ``Sam3Processor``, ``Sam3Model``,
``post_process_instance_segmentation``; each file is decoded once for all phrases, and nothing is written. The
time of ``predict`` also holds opening the model, masks as RLE and both JSON files; neither draws overlays.
Same weights, FP32 on the CPU (FP16 on a GPU), same threads. Rounds alternate and every other one starts with the
other subject; a ratio compares the two of one round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from transformers import Sam3Model, Sam3Processor
from transformers.utils import logging

from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv
from sam3slim.predict import PredictSpec, predict_files
from sam3slim.predict.images import find_pictures

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
COLORS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle")
PHRASES = [*SHAPES, *(f"{color} {shape}" for color in COLORS for shape in SHAPES)]
THRESHOLD = 0.5
Subject = Callable[[], int]


def bare_loop(artifact: str, paths: list[Path], phrases: list[str]) -> Subject:
    """One forward for every pair; returns the number of detections."""
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = Sam3Model.from_pretrained(artifact, dtype=dtype).to(torch.device(device)).eval()  # type: ignore[arg-type]
    processor = Sam3Processor.from_pretrained(artifact)
    context = model.config.text_config.max_position_embeddings

    def run() -> int:
        count = 0
        for path in paths:
            with Image.open(path) as file:
                image = file.convert("RGB")
            for phrase in phrases:
                inputs = processor(images=image, text=phrase, return_tensors="pt").to(device, dtype)
                # The processor pads to 32 tokens whatever the model's context is; nano's is shorter.
                for name in ("input_ids", "attention_mask"):
                    inputs[name] = inputs[name][:, :context]
                with torch.inference_mode():
                    outputs = model(**inputs)
                found = processor.post_process_instance_segmentation(
                    outputs, threshold=THRESHOLD, target_sizes=[(image.height, image.width)]
                )
                count += len(found[0]["scores"])
        return count

    return run


def batch_predict(artifact: str, paths: list[Path], phrases: list[str]) -> Subject:
    """The command's own function, into a fresh folder each time; returns the number of detections."""

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            spec = PredictSpec(
                artifact, [str(path) for path in paths], folder, prompts=phrases, threshold=THRESHOLD, overlays=False
            )
            return predict_files(spec, progress=False).detections

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", default=str(ROOT / "assets" / "nano"))
    parser.add_argument("--images", default=str(ROOT / "data" / "shapes" / "test"))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    paths = [picture.path for picture in find_pictures([arguments.images])][: arguments.limit]
    phrases = PHRASES[: arguments.prompts]
    subjects = {
        "transformers loop": bare_loop(arguments.artifact, paths, phrases),
        "sam3slim predict": batch_predict(arguments.artifact, paths, phrases),
    }
    bare_loop(arguments.artifact, paths[:2], phrases[:2])(), batch_predict(arguments.artifact, paths[:2], phrases)()

    rows, ratios = [], []
    for number in range(arguments.rounds):
        taken = {}
        for name in subjects if number % 2 else reversed(subjects):
            started, cpu = time.perf_counter(), time.process_time()
            count = subjects[name]()
            taken[name] = time.perf_counter() - started
            rows.append({
                "round": number, "subject": name, "images": len(paths), "prompts": len(phrases), "detections": count,
                "seconds": round(taken[name], 2), "cpu_seconds": round(time.process_time() - cpu, 2),
                "images_per_second": round(len(paths) / taken[name], 2),
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
        ratios.append(taken["transformers loop"] / taken["sam3slim predict"])
    print(
        f"sam3slim predict is {statistics.median(ratios):.2f} times as fast as the loop (median of {len(ratios)} "
        f"rounds, from {min(ratios):.2f} to {max(ratios):.2f})"
    )
    metadata = {
        "device": describe_device(), "threads": arguments.threads, "artifact": Path(arguments.artifact).name,
        **{k: v for k, v in library_versions().items() if k in ("torch", "transformers")},
    }  # fmt: skip
    result = RESULTS / f"predict_{Path(arguments.artifact).name}_{arguments.threads}_threads.csv"
    write_csv(result, [{**row, **metadata} for row in rows])


if __name__ == "__main__":
    main()
