"""What compensated rounding costs at SAM 3's width: seconds and memory for one block of the vision tower on the CPU.

    python benchmarks/compensate_full_size.py [--images 1] [--threads 1]

A block of width 1024 with global attention, its four steps of Linears in INT4, on random pictures of 1008 pixels (5,184
tokens). Weights are random: the work is the same, the errors mean nothing and are not reported. Seconds are processor
time, apart from ``clock``. SAM 3 has 32 such blocks, most of them with the cheaper attention in windows; time grows
with blocks and images, memory only with the outputs of one block (21 MB an image). Memory is what the process holds at
its peak beyond the model and the pictures, in bytes.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from full_size import random_model
from torch import nn

from sam3slim.compression.calibrate import calibrate
from sam3slim.compression.gptq import int4_rounder
from sam3slim.environment import describe_device, library_versions
from sam3slim.evaluation.latency import peak_memory_bytes
from sam3slim.files import write_csv
from sam3slim.launch.compose import compose_model

RESULT = Path(__file__).parent / "results" / "compensate_full_size.csv"
SMALL = [
    "model=full", "model.vit.depth=1", "model.vit.num_global_blocks=1", "model.text.layers=1",
    "model.encoder.num_layers=1", "model.decoder.num_layers=1", "model.geometry.num_layers=1",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    model = random_model(compose_model(SMALL), generator).eval()
    backbone = model.vision_encoder.backbone
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    passes = [partial(backbone, torch.randn(1, 3, 1008, 1008, generator=generator)) for _ in range(arguments.images)]
    before = peak_memory_bytes("cpu")
    started, clock = time.process_time(), time.perf_counter()
    found = calibrate(backbone, dict.fromkeys(names, int4_rounder(64, True)), lambda name: passes)
    row = {
        "layers": len(found.layers), "width": model.spec.vit.embed_dim, "images": arguments.images,
        "processor_seconds": round(time.process_time() - started, 1), "clock": round(time.perf_counter() - clock, 1),
        "peak_bytes_beyond": peak_memory_bytes("cpu") - before,
        "device": describe_device(), "threads": arguments.threads, "torch": library_versions()["torch"],
    }  # fmt: skip
    print(row)
    write_csv(RESULT, [row])


if __name__ == "__main__":
    main()
