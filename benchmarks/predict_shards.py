"""What dividing a prediction on large pictures between two processes saves, in processor time.

    python benchmarks/predict_shards.py [--images 32] [--side 3000] [--prompts 10]

nano predicts on drawn pictures of ``--side`` × ``--side`` pixels: all of them, then as shard 1/2 and 2/2, each in this
process on one thread, after a run that does not count. The time of all over the time of the longer shard is what two
processes on two free cores gain at most; opening the model is in it, starting Python is not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sam3slim.environment import describe_device
from sam3slim.files import write_csv
from sam3slim.predict import PredictSpec, predict_files

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    "red circle",
    "blue square",
    "green triangle",
    "yellow star",
    "circle",
    "square",
    "triangle",
    "star",
    "red",
    "blue",
)


def draw(folder: Path, images: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(images):
        blocks = Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
        blocks.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg", quality=92)


def seconds(folder: Path, out: Path, prompts: int, shard: str | None) -> float:
    started = time.process_time()
    predict_files(
        PredictSpec(
            str(ROOT / "assets/nano"), [str(folder)], str(out), prompts=WORDS[:prompts], device="cpu", shard=shard,
            overlays=False, threshold=0.3,
        ),
        progress=False,
    )  # fmt: skip
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=3000)
    parser.add_argument("--prompts", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        photos = Path(work, "photos")
        photos.mkdir()
        draw(photos, 1, arguments.side)
        seconds(photos, Path(work, "warm"), arguments.prompts, None)
        draw(photos, arguments.images, arguments.side)
        took = {
            name: seconds(photos, Path(work, out), arguments.prompts, shard)
            for name, out, shard in (("all", "one", None), ("shard 1/2", "two", "1/2"), ("shard 2/2", "two", "2/2"))
        }
    gain = took["all"] / max(took["shard 1/2"], took["shard 2/2"])
    row = {
        "images": arguments.images, "side": arguments.side, "prompts": arguments.prompts,
        **{f"{name.replace(' ', '_')}_processor_s": round(value, 2) for name, value in took.items()},
        "at_most_times_as_fast": round(gain, 2), "device": describe_device("cpu"),
    }  # fmt: skip
    print(row)
    write_csv(Path(__file__).parent / "results/predict_shards.csv", [row])


if __name__ == "__main__":
    main()
