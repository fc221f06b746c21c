"""What fitting a cut vision tower costs at SAM 3's width: seconds and memory on the CPU.

    python benchmarks/fit_full_size.py [--blocks 8] [--images 1] [--threads 2]

A ViT of width 1024 with ``--blocks`` blocks at 1008 pixels (5,184 tokens) is cut to width 768 and three quarters of
its blocks, as ``slim`` is, and fitted on random pictures. Weights are random: the work is the same, the errors mean
nothing and are not reported. SAM 3 has 32 blocks; time grows with them, memory does not. Memory is what the process
holds at its peak beyond both models, in bytes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from full_size import random_model

from sam3slim.environment import describe_device, library_versions
from sam3slim.evaluation.latency import peak_memory_bytes
from sam3slim.files import write_csv
from sam3slim.launch.compose import compose_model
from sam3slim.slimming import inherit
from sam3slim.slimming.fitting.vision import VisionTower

RESULT = Path(__file__).parent / "results" / "fit_full_size.csv"
REST = [
    "model.text.layers=1",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=1",
    "model.geometry.num_layers=1",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8, help="a multiple of 4")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    blocks = [arguments.blocks, arguments.blocks * 3 // 4]
    full, slim = (
        compose_model([f"model={name}", *REST, f"model.vit.depth={depth}", "model.vit.num_global_blocks=1"])
        for name, depth in zip(("full", "slim"), blocks, strict=True)
    )
    generator = torch.Generator().manual_seed(0)
    source = random_model(full, generator)
    target, plan = inherit(source, slim)
    images = [torch.randn(1, 3, 1008, 1008, generator=generator) for _ in range(arguments.images)]
    before = peak_memory_bytes("cpu")
    started = time.perf_counter()
    with torch.no_grad():
        VisionTower(source, target, plan).fit_all(images)
    seconds, beyond = time.perf_counter() - started, peak_memory_bytes("cpu") - before
    row = {
        "blocks": blocks[0], "to": blocks[1], "images": arguments.images,
        "seconds": round(seconds, 1), "peak_bytes_beyond_models": beyond,
        "device": describe_device(), "threads": arguments.threads, "torch": library_versions()["torch"],
    }  # fmt: skip
    print(row)
    write_csv(RESULT, [row])


if __name__ == "__main__":
    main()
