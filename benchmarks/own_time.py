"""What evaluating costs without the model: enlarging masks, matching, mAP and cgF1 of many images × 80 categories.

    MALLOC_MMAP_THRESHOLD_=1048576 python benchmarks/own_time.py [--images 5000] [--mask-size 72]

Then cgF1 of 10,000 entries alone, masks and boxes, one annotator and three. Drawn detections, 100 an image of 640×480,
and seven objects, of three categories. ``before`` enlarges every mask to the whole picture and takes pycocotools, for
mAP of boxes and masks; ``ours`` also computes cgF1 of both. Seconds are of the processor, so that other work beside
them counts little. Without the variable glibc's heap grows by 75 MB an image, because ``before`` needs buffers of
30 MB between small results that stay.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional as F

from sam3slim.data.batch import GroundTruth
from sam3slim.data.detections import Detections, PromptScores, xywh
from sam3slim.environment import describe_device, library_versions
from sam3slim.evaluation.masks import encode_masks
from sam3slim.files import write_csv
from sam3slim.progress import progress_bar
from sam3slim.results.cgf1 import concept_counts
from sam3slim.results.coco import NUMBERS, IouType
from sam3slim.results.metrics import measure_all

RESULTS = Path(__file__).parent / "results"
HEIGHT, WIDTH, CATEGORIES, DETECTIONS, ENTRIES = 480, 640, 80, 100, 10_000
KINDS: tuple[IouType, IouType] = ("segm", "bbox")


class Clock:
    """Processor seconds by what they were spent on; ``other_pixels`` of masks between the two ways to enlarge them."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self.other_pixels = 0

    @contextmanager
    def __call__(self, subject: str, step: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[subject, step] = self.seconds.get((subject, step), 0.0) + time.process_time() - start

    def of(self, subject: str) -> float:
        return sum(seconds for (whose, _), seconds in self.seconds.items() if whose == subject)


def discs(centres: np.ndarray, radii: np.ndarray, size: int, rng: np.random.Generator) -> Tensor:
    """Logits [N, size, size] of discs with a rough edge; everything in 0..1."""
    grid = (np.arange(size) + 0.5) / size
    across = (grid[None, None, :] - centres[:, 0, None, None]) * WIDTH / HEIGHT
    distance = np.sqrt(across**2 + (grid[None, :, None] - centres[:, 1, None, None]) ** 2)
    rough = rng.normal(0, 0.1, (len(centres), size, size))
    return torch.from_numpy(
        (40 * radii[:, None, None] * (1 - distance / radii[:, None, None]) + rough).astype(np.float32)
    )


def boxes_of(rles: Sequence[dict[str, Any]]) -> Tensor:
    sides = torch.from_numpy(np.asarray(mask_utils.toBbox(list(rles)), dtype=np.float32).reshape(-1, 4))
    sides[:, 2:] += sides[:, :2]
    return sides


def pixels_between(one: dict[str, Any], other: dict[str, Any]) -> int:
    """How many pixels are in one of two masks alone."""
    union, both = (mask_utils.merge([one, other], intersect=intersect) for intersect in (False, True))
    return int(mask_utils.area(union)) - int(mask_utils.area(both))


def draw(image: int, size: int, clock: Clock) -> tuple[Detections, GroundTruth]:
    """One image's detections, whose masks both subjects enlarge, and its objects."""
    rng = np.random.default_rng(image)
    count = int(rng.poisson(7)) + 1
    centres, radii = rng.random((count, 2)), np.exp(rng.uniform(np.log(0.01), np.log(0.3), count))
    labels = rng.choice(rng.integers(1, CATEGORIES + 1, 3), count)
    rles = encode_masks(discs(centres, radii, 4 * size, rng), HEIGHT, WIDTH)
    truth = GroundTruth(
        boxes_of(rles).double(), torch.from_numpy(labels),
        torch.from_numpy((rng.random(count) < 0.02).astype(np.int64)),
        torch.tensor([float(mask_utils.area(rle)) for rle in rles], dtype=torch.float64), rles,
    )  # fmt: skip
    like, known = rng.integers(0, count, DETECTIONS), rng.random(DETECTIONS) < 0.5
    found = np.where(known[:, None], centres[like] + rng.normal(0, 0.01, (DETECTIONS, 2)), rng.random((DETECTIONS, 2)))
    sizes = np.where(known, radii[like] * np.exp(rng.normal(0, 0.1, DETECTIONS)), rng.uniform(0.01, 0.3, DETECTIONS))
    named = np.where(known, labels[like], rng.integers(1, CATEGORIES + 1, DETECTIONS))
    logits = discs(found, sizes, size, rng)
    with clock("ours", "masks"):
        ours = encode_masks(logits, HEIGHT, WIDTH)
    with clock("before", "masks"):
        full = F.interpolate(logits[:, None], (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
        columns = (full[:, 0] > 0).transpose(1, 2).contiguous().to(torch.uint8).numpy()
        before = mask_utils.encode(np.transpose(columns, (2, 1, 0)))
    clock.other_pixels += sum(pixels_between(a, b) for a, b in zip(ours, before, strict=True) if a != b)
    scores = torch.from_numpy(np.sort(rng.beta(0.4, 2, DETECTIONS))[::-1].astype(np.float32))
    prompts = PromptScores(torch.arange(1, CATEGORIES + 1), torch.zeros(CATEGORIES), torch.zeros(CATEGORIES))
    return Detections(image, boxes_of(ours), scores, torch.from_numpy(named), ours, prompts), truth


def one_concept(found: Detections, truth: GroundTruth, entry: int) -> tuple[Detections, GroundTruth]:
    """The same as one entry of SA-Co: all is of the phrase that was asked; half of the entries have no object."""
    asked = PromptScores(torch.ones(1, dtype=torch.int64), torch.zeros(1), torch.zeros(1))
    there = len(truth.labels) if entry % 2 else 0
    kept = len(found.labels) if entry % 2 or entry % 8 == 0 else 0  # a quarter of those without is invented in
    return (
        Detections(
            entry, found.boxes[:kept], found.scores[:kept], torch.ones(kept, dtype=torch.int64),
            (found.rles or [])[:kept], asked,
        ),
        GroundTruth(
            truth.boxes[:there], torch.ones(there, dtype=torch.int64), truth.iscrowd[:there], truth.area[:there],
            (truth.rles or [])[:there],
        ),
    )  # fmt: skip


def pycocotools(detections: Sequence[Detections], truths: Sequence[GroundTruth], kind: str) -> list[float]:
    """mAP and the like."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for item, truth in zip(detections, truths, strict=True):
        columns = (
            xywh(truth.boxes),
            truth.labels.tolist(),
            truth.area.tolist(),
            truth.iscrowd.tolist(),
            truth.rles or [],
        )
        for box, label, area, crowd, rle in zip(*columns, strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": item.image_id, "category_id": label, "bbox": box, "area": area,
                "iscrowd": crowd, "segmentation": rle,
            })  # fmt: skip
        for n, (box, label, score) in enumerate(
            zip(xywh(item.boxes), item.labels.tolist(), item.scores.tolist(), strict=True)
        ):
            shape = {"bbox": box} if kind == "bbox" else {"segmentation": (item.rles or [])[n]}
            results.append({"image_id": item.image_id, "category_id": label, "score": score, **shape})
    coco = COCO()
    coco.dataset = {
        "info": {}, "annotations": annotations, "categories": [{"id": n} for n in range(1, CATEGORIES + 1)],
        "images": [{"id": item.image_id, "height": HEIGHT, "width": WIDTH} for item in detections],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(evaluation.stats[place]) for place in (0, 1, 2, 3, 4, 5, 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--mask-size", type=int, default=72)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clock, pairs = Clock(), []
    with progress_bar() as bar:
        task = bar.add_task("drawing, enlarging masks", total=arguments.images)
        for image in range(arguments.images):
            pairs.append(draw(image, arguments.mask_size, clock))
            bar.advance(task)
    detections, truths = [found for found, _ in pairs], [truth for _, truth in pairs]
    with clock("ours", "metrics"):
        measured = measure_all(detections, truths)
    for kind in ("bbox", "segm"):
        with clock("before", "metrics"):
            golden = pycocotools(detections, truths, kind)
        apart = max(
            abs((measured[kind].numbers[name] or -1.0) - value) for name, value in zip(NUMBERS, golden, strict=True)
        )
        print(f"{kind} mAP {100 * golden[0]:.2f}; largest difference of a number from pycocotools: {apart:.1e}")
    rows = [
        {
            "images": arguments.images, "categories": CATEGORIES, "step": step,
            "ours_s": round(clock.seconds["ours", step], 1), "before_s": round(clock.seconds["before", step], 1),
            "ratio": round(clock.seconds["ours", step] / clock.seconds["before", step], 3),
            "other_pixels": clock.other_pixels if step == "masks" else 0,
            "device": describe_device(), "threads": 1, "torch": library_versions()["torch"],
        }
        for step in ("masks", "metrics")
    ]  # fmt: skip
    for row in rows:
        print(f"{row['step']}: ours {row['ours_s']} s, before {row['before_s']} s, ratio {row['ratio']}")
    ours, before = clock.of("ours"), clock.of("before")
    print(f"together: ours {ours:.1f} s, before {before:.1f} s, ratio {ours / before:.3f}")
    print(f"{clock.other_pixels} pixels of {arguments.images * DETECTIONS:,} masks differ")
    entries = [one_concept(*pairs[n % len(pairs)], n + 1) for n in range(ENTRIES)]
    objects = sum(len(truth.labels) for _, truth in entries)
    confident = sum(int((found.scores >= 0.5).sum()) for found, _ in entries)
    for annotators in (1, 3):
        for kind in KINDS:
            step = f"cgf1 {kind}, {annotators} annotators"
            with clock("ours", step):
                counts = concept_counts([f for f, _ in entries], [[t for _, t in entries]] * annotators, kind)
            seconds = clock.seconds["ours", step]
            print(
                f"{step}: {100 * counts.numbers()['cgf1']:.1f} of {ENTRIES:,} entries with {objects:,} objects and "
                f"{confident:,} confident detections: {seconds:.1f} s"
            )
            rows.append({
                "images": ENTRIES, "categories": 1, "step": step, "ours_s": round(seconds, 1), "before_s": "",
                "ratio": "", "other_pixels": "", "device": describe_device(), "threads": 1,
                "torch": library_versions()["torch"],
            })  # fmt: skip
    write_csv(RESULTS / "own_time.csv", rows)


if __name__ == "__main__":
    main()
