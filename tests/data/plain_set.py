"""A small set of three pictures, its files, and what a training or an evaluation sees of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.data.coco import CocoConcepts
from sam3slim.data.records import Annotation
from sam3slim.data.rle import to_rle
from sam3slim.data.sampling import PromptSpec

H, W = 60, 80
Content = dict[str, Any]
Change = Callable[[Content], None]
# category, corners of a polygon, per image
SHAPES = {
    1: [(1, (10, 10, 30, 10, 30, 25, 10, 25)), (2, (40, 20, 70, 20, 55, 50)), (1, (5, 40, 25, 40, 25, 55, 5, 55))],
    2: [(2, (2, 2, 20, 2, 20, 20, 2, 20)), (3, (30, 30, 60, 32, 58, 55, 33, 50))],
    3: [(1, (50, 5, 78, 5, 78, 40, 50, 40))],
}


def plain() -> Content:
    images = [{"id": n, "file_name": f"{n}.png", "height": H, "width": W} for n in SHAPES]
    annotations = []
    for image, shapes in SHAPES.items():
        for category, polygon in shapes:
            xs, ys = polygon[0::2], polygon[1::2]
            area = float(mask_utils.area(to_rle([list(polygon)], H, W)))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": 0, "area": area,
                "bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], "segmentation": [list(polygon)],
            })  # fmt: skip
    categories = [{"id": n, "name": name} for n, name in enumerate(("cup", "traffic light", "dog"), start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def written(root: Path, content: Content, names: dict[int, str] | None = None) -> Path:
    """A folder with the set: pictures 1.png, 2.png, 3.png unless ``names`` says otherwise."""
    (root / "images").mkdir(parents=True)
    for number in SHAPES:
        path = root / "images" / (names or {}).get(number, f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((H, W, 3), 50 * number, dtype=np.uint8)).save(path)
    (root / "instances_train.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def opened(root: Path, prompts: PromptSpec | str = "all", **kwargs: Any) -> CocoConcepts:
    return CocoConcepts(root, "train", image_size=40, prompts=prompts, **kwargs)


def essence(data: CocoConcepts) -> list[Any]:
    """What a training or evaluation sees of a set: by picture its objects with phrase, box, mask and area."""
    names = {category.id: category.phrase for category in data.categories}

    def seen(item: Annotation) -> Any:
        mask = None
        if item.segmentation is not None:
            rle = to_rle(item.segmentation, H, W)
            mask = (round(float(mask_utils.area(rle))), tuple(mask_utils.toBbox(rle).round().tolist()))
        box = tuple(round(float(value), 1) for value in item.box)
        return names[item.category_id], box, round(item.area), item.iscrowd, mask

    return [(Path(record.file_name).stem, sorted(map(seen, record.annotations))) for record in data.records]


def rle_of(segmentation: Any) -> dict[str, Any]:
    rle = to_rle(segmentation, H, W)
    return {"size": [H, W], "counts": rle["counts"].decode()}
