"""Annotation files that are broken at random, always the same for the same number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam3slim.data.detections import Detections
from sam3slim.data.spec import DataSpec
from sam3slim.errors import UserError
from sam3slim.results.metrics import measure_all
from tests.data.plain_set import plain, rle_of, written
from tests.data.spellings import noun_phrases, saco
from tests.data.test_kinds import federated
from tests.fuzz.odd import broken_bytes, spoiled
from tests.tiny import SPEC


def broken_annotations(number: int) -> bytes:
    """An annotation file with some odd values, or with broken text."""
    rng = np.random.default_rng((2, number))
    kinds: list[Callable[[], dict[str, Any]]] = [plain, federated, saco_set, noun_set, rle_set, crowd_set]
    text = json.dumps(spoiled(rng, kinds[int(rng.integers(len(kinds)))]())).encode()
    return broken_bytes(rng, text, 0.3) if rng.random() < 0.12 else text


def saco_set() -> dict[str, Any]:
    content = plain()
    saco(content)
    return content


def noun_set() -> dict[str, Any]:
    content = plain()
    noun_phrases(content)
    return content


def rle_set() -> dict[str, Any]:
    content = plain()
    for item in content["annotations"]:
        item["segmentation"] = rle_of(item["segmentation"])
    return content


def crowd_set() -> dict[str, Any]:
    content = rle_set()
    for item in content["annotations"][::2]:
        item["iscrowd"] = 1
    return content


def read_annotations(number: int, folder: Path) -> str:
    """``read`` or ``refused``, whatever the file; anything else escapes."""
    root = folder / "set"
    if not root.is_dir():
        written(root, plain())
    (root / "instances_train.json").write_bytes(broken_annotations(number))
    try:
        sets = DataSpec("coco", str(root), split="train", negatives=2).build(SPEC)
        training, data = sets.dataset("train", training=True), sets.dataset("train")
        sets.collate([training[place] for place in range(len(training))])
        truths, found = [], []
        for place in range(len(data)):
            sample = data[place]
            truth = sample.info.ground_truth
            assert truth is not None
            truths.append(truth)
            scores = torch.linspace(0.9, 0.1, len(truth.labels))
            found.append(Detections(sample.info.image_id, truth.boxes.float(), scores, truth.labels, truth.rles))
        measured = measure_all(found, truths)
        assert measured["bbox"].numbers["map"] is not None
        json.dumps(data.report.to_dict(), allow_nan=False)
        "\n".join(data.report.lines()).encode()
    except UserError as error:
        told = str(error)
        assert "\n" not in told, told
        assert len(told) < 3000, len(told)
        assert "instances_train.json" in told or "image" in told, told
        told.encode()
        return "refused"
    return "read"
