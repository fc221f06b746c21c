"""Small COCO-format sets written to disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam3slim.data.shapes import make_shapes

from .samples import TINY, CocoWriter


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shapes set of a dozen pictures."""
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", TINY, progress=False)


@pytest.fixture
def write_coco(tmp_path: Path) -> CocoWriter:
    """Writes a set of 40 by 30 pixel images and returns its folder.

    Each positional argument lists the annotations of one image; missing fields are filled in.
    """

    def write(
        *per_image: list[dict[str, Any]],
        names: tuple[str, ...] = ("red circle", "blue circle", "cup"),
        **changes: Any,
    ) -> Path:
        root = tmp_path / "set"
        (root / "images").mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
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
