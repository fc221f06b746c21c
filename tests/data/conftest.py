"""Small COCO-format sets written to disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam3slim.data.shapes import ShapesSpec, make_shapes

CocoWriter = Callable[..., Path]
TINY = ShapesSpec(image_size=48, train_images=12, val_images=4, test_images=3)


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shapes set of a dozen pictures."""
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", TINY, progress=False)


def square(left: float, top: float, side: float = 10) -> dict[str, Any]:
    """Box and polygon of an axis-aligned square."""
    right, low = left + side, top + side
    return {"bbox": [left, top, side, side], "segmentation": [[left, top, right, top, right, low, left, low]]}


@pytest.fixture
def write_coco(tmp_path: Path) -> CocoWriter:
    """Writes a set of 40 by 30 pixel images and returns its folder.

    Each positional argument lists the annotations of one image; missing fields are filled in.
    """

    def write(
        *per_image: list[dict[str, Any]], names: tuple[str, ...] = ("red circle", "blue circle", "cup"), **changes: Any
    ) -> Path:
        root = tmp_path / "set"
        (root / "images").mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number, items in enumerate(per_image, start=1):
            file_name = f"{number}.png"
            images.append({"id": number, "file_name": file_name, "height": 30, "width": 40})
            pixels = np.full((30, 40, 3), number * 10, dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / file_name)
            for item in items:
                head = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                annotations.append(head | item)
        categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories} | changes
        (root / "instances_train.json").write_text(json.dumps(content))
        return root

    return write
