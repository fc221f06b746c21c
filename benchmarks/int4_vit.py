"""What rounding the Linears of a pre-trained ViT costs its features, plainly and with compensation.

    python benchmarks/int4_vit.py facebook/dinov2-small PHOTOS [--calibration 16] [--images 16]

``PHOTOS`` is a folder of photographs, which are squashed to the ViT's own size. The first ``--calibration`` (by name)
are what compensated rounding looks at, the next ``--images`` are measured on. The error is |features - those of FP32|
over |those of FP32|, Frobenius norms of the patch features behind the final norm; ``won back`` is the share of plain
rounding's error that compensation removes. Only rounding is measured: arithmetic is FP32. One draw of photographs.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sam3slim.checkpoints.plain_vit import read_plain_vit
from sam3slim.compression.calibrate import calibrate
from sam3slim.compression.gptq import Rounder, int4_rounder, int8_rounder
from sam3slim.environment import describe_device, library_versions
from sam3slim.errors import UserError
from sam3slim.files import write_csv
from sam3slim.models.plain_vit import PlainVit

RESULT = Path(__file__).parent / "results" / "int4_vit.csv"
PICTURES = {".jpg", ".jpeg", ".png"}
BATCH = 8
WAYS: dict[str, Rounder] = {
    "int4, group 64": int4_rounder(64, True),
    "int4, group 32": int4_rounder(32, True),
    "int8": int8_rounder,
    "int4, group 128": int4_rounder(128, True),
    "int4, group 64, zeros": int4_rounder(64, False),
}


def photographs(folder: Path, count: int, size: int) -> list[Tensor]:
    """The first ``count`` by name, in batches [B, 3, size, size] of mean 0.5 and deviation 0.5."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)[:count]
    if len(files) < count:
        raise UserError(f"{folder} holds {len(files)} photographs, {count} are needed; ask for fewer with --images")
    pictures = [
        np.asarray(Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for file in files
    ]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return list(pixels.split(BATCH))


@torch.no_grad()
def features(vit: PlainVit, batches: list[Tensor]) -> Tensor:
    return torch.cat([vit(pixels) for pixels in batches])


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@torch.no_grad()
def with_weights(vit: PlainVit, weights: dict[str, Tensor], biases: dict[str, Tensor]) -> PlainVit:
    made = copy.deepcopy(vit)
    for values, kind in ((weights, "weight"), (biases, "bias")):
        for name, value in values.items():
            made.get_parameter(f"{name}.{kind}").copy_(value)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vit")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    vit = read_plain_vit(arguments.vit)
    size = vit.sizes.patch_size * 16
    batches = photographs(arguments.photos, arguments.calibration + arguments.images, size)
    pixels = torch.cat(batches)
    seen = list(pixels[: arguments.calibration].split(BATCH))
    unseen = list(pixels[arguments.calibration :].split(BATCH))
    wanted = features(vit, unseen)
    names = [name for name, module in vit.named_modules() if isinstance(module, nn.Linear)]
    passes = [partial(vit, batch) for batch in seen]
    rows: list[dict[str, Any]] = []
    for way, rounder in WAYS.items():
        started = time.process_time()
        found = calibrate(vit, dict.fromkeys(names, rounder), lambda name: passes)
        seconds = time.process_time() - started
        weights = {name: layer.weight for name, layer in found.layers.items()}
        biases = {name: layer.bias for name, layer in found.layers.items() if layer.bias is not None}
        # What the rounder makes of inputs that it knows nothing of: plain rounding comes with it.
        plain = {n: rounder(w, torch.eye(w.shape[1], dtype=torch.float64))[2] for n in names
                 for w in [vit.get_parameter(f"{n}.weight").detach()]}  # fmt: skip
        before = relative(features(with_weights(vit, plain, {}), unseen), wanted)
        after = relative(features(with_weights(vit, weights, biases), unseen), wanted)
        rows.append({
            "vit": Path(arguments.vit).name, "weights": way, "layers": len(names),
            "calibration_images": arguments.calibration, "images": arguments.images, "pixels": size,
            "error_plain_%": round(100 * before, 2), "error_compensated_%": round(100 * after, 2),
            "won_back_%": round(100 * (1 - after / before), 1), "processor_seconds": round(seconds, 1),
            "device": describe_device(), "threads": arguments.threads, "torch": library_versions()["torch"],
        })  # fmt: skip
        print(rows[-1], flush=True)
        write_csv(RESULT, rows)


if __name__ == "__main__":
    main()
