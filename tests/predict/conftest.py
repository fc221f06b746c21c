"""A tiny model and a few small pictures to predict on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.artifacts import write_artifact
from sam3slim.data.detections import Detections
from sam3slim.predict import Done, PredictSpec, predict_files
from sam3slim.predict.images import Picture
from sam3slim.predict.writer import OutputFolder, stamp
from tests.small import small_model
from tests.tiny import SPEC

Predict = Callable[..., Done]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on disk. Not to be changed."""
    path = tmp_path_factory.mktemp("predict") / "model"
    write_artifact(small_model(SPEC), path)
    return path


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    """A picture of coloured blocks, (width, height) ``size``; other seeds give other pictures."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    blocks.resize(size, Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures, two of them in a folder below."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "b.png", "c.png", "more/a.png", "more/d.png")):
        draw(folder / name, seed)
    return folder


@pytest.fixture
def predict(artifact: Path, photos: Path, tmp_path: Path) -> Predict:
    """``predict_files`` of the tiny model on ``photos`` into ``tmp_path/out``, without a threshold; keywords change it.

    One picture at a time, so that detections do not depend on which pictures share a batch.
    """

    def run(**changed: Any) -> Done:
        given: dict[str, Any] = {
            "source": str(artifact), "images": [str(photos)], "out": str(tmp_path / "out"), "prompts": ["red", "a cup"],
            "threshold": 0.0, "max_per_image": 5, "batch_size": 1, "device": "cpu",
        }  # fmt: skip
        return predict_files(PredictSpec(**{**given, **changed}), progress=False)

    return run


def detections(folder: Path) -> Any:
    """``detections.json`` of an output folder."""
    return json.loads((folder / "detections.json").read_text())


def names(folder: Path) -> list[str]:
    """The pictures of ``detections.json``, in their order."""
    return [image["file_name"] for image in detections(folder)["images"]]


def some(score: float = 0.75) -> Detections:
    """One detection: a box with fractions and a mask of 3 x 4 pixels in a picture of 40 x 32."""
    mask = np.zeros((32, 40), dtype=np.uint8)
    mask[2:5, 10:14] = 1
    return Detections(
        image_id=1,
        boxes=torch.tensor([[10.1234, 2.0, 14.0, 5.5]]), scores=torch.tensor([score]), labels=torch.tensor([2]),
        rles=[mask_utils.encode(np.asfortranarray(mask))],
    )  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return [Picture(draw(tmp_path / f"in/{i}.png", i), f"{i}.png", i + 1) for i in range(3)]


def settings(pictures: list[Picture], **changed: Any) -> dict[str, Any]:
    return {"model": "sha256:0", "prompts": ["red"], "images": str(pictures[0].path.parent), **changed}


def keep(folder: OutputFolder, *pictures: Picture, score: float = 0.75) -> None:
    for picture in pictures:
        folder.add(picture, stamp(picture.path), some(score), 32, 40)
