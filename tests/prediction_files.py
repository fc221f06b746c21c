"""Random sets as files: COCO's annotations and results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

HEIGHT, WIDTH = 60, 80
CATEGORIES = 5


def rectangle(rng: np.random.Generator) -> list[float]:
    """x, y, width, height with two decimals, as annotation tools write them."""
    w, h = rng.uniform(4, 40), rng.uniform(4, 30)
    box = (rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h), w, h)
    return [round(float(value), 2) for value in box]


def moved(box: Sequence[float], rng: np.random.Generator) -> list[float]:
    shift = rng.normal(0, 1.5, 4)
    x, y, w, h = (float(value + by) for value, by in zip(box, shift, strict=True))
    return [round(value, 2) for value in (max(x, 0), max(y, 0), max(w, 2), max(h, 2))]


def rle(box: Sequence[float]) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    x, y, w, h = (round(value) for value in box)
    mask[y : y + h, x : x + w] = 1
    found = mask_utils.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode("ascii")}


def random_files(
    folder: Path, seed: int = 0, images: int = 30, *, masks: bool = True, scores: int = 20
) -> tuple[Path, Path]:
    """Annotations, whose images are in no order, and results with equal scores; a tenth of the objects are crowds.

    Args:
        scores: different scores there are.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(images) * 7 + 3
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def shape(box: list[float]) -> dict[str, Any]:
        return {"bbox": box, **({"segmentation": rle(box)} if masks else {})}

    for image in ids.tolist():
        for _ in range(rng.integers(0, 5)):
            box, category = rectangle(rng), int(rng.integers(1, CATEGORIES + 1))
            crowd = int(rng.random() < 0.1)
            area = round(box[2] * box[3], 3)
            annotations.append(
                {"image_id": image, "category_id": category, "area": area, "iscrowd": crowd} | shape(box)
            )
            if rng.random() < 0.8:
                results.append({"image_id": image, "category_id": category} | shape(moved(box, rng)))
        for _ in range(rng.integers(0, 3)):
            results.append(
                {"image_id": image, "category_id": int(rng.integers(1, CATEGORIES + 1))} | shape(rectangle(rng))
            )
    for number, one in enumerate(annotations, start=1):
        one["id"] = number
    for one in results:
        one["score"] = round(float(rng.integers(1, scores + 1)) / scores, 3)
    rng.shuffle(results)  # type: ignore[arg-type]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in ids.tolist()],
        "annotations": annotations,
        "categories": [{"id": n, "name": f"thing {n}"} for n in range(1, CATEGORIES + 1)],
    }
    paths = folder / "annotations.json", folder / "predictions.json"
    for path, value in zip(paths, (content, results), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return paths
