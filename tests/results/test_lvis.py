"""Federated rules beside the lvis package's own numbers.

``python -m tests.results.test_lvis`` writes these anew, where lvis 0.5.3 is installed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam3slim.results.measuring import measure_files
from tests.prediction_files import CATEGORIES, random_files

GOLDEN = Path(__file__).parent.parent / "golden" / "lvis.json"
SEED, IMAGES = 5, 40
WORDS = {
    "AP": "map", "AP50": "map_50", "AP75": "map_75", "APs": "map_small", "APm": "map_medium", "APl": "map_large",
    "AR@300": "mar_300", "APr": "map_rare", "APc": "map_common", "APf": "map_frequent",
}  # fmt: skip


def lvis_files(folder: Path) -> tuple[Path, Path]:
    """As ``random_files``, with categories that are known to be absent, not exhaustive or unknown in each image."""
    annotations, predictions = random_files(folder, SEED, IMAGES, scores=1000)
    content, rng = json.loads(annotations.read_text()), np.random.default_rng(SEED)
    content["annotations"] = [item for item in content["annotations"] if not item.pop("iscrowd")]  # LVIS has none
    for number, item in enumerate(content["annotations"], start=1):
        item["id"] = number
    for category in content["categories"]:
        category["frequency"] = "rcf"[category["id"] % 3]
    for image in content["images"]:
        there = {item["category_id"] for item in content["annotations"] if item["image_id"] == image["id"]}
        absent = sorted(set(range(1, CATEGORIES + 1)) - there)
        image["neg_category_ids"] = [category for category in absent if rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [category for category in sorted(there) if rng.random() < 0.4]
    annotations.write_text(json.dumps(content))
    return annotations, predictions


def lvis_numbers(annotations: Path, predictions: Path, kind: str) -> dict[str, float]:
    """What the lvis package says."""
    np.float = float  # type: ignore[attr-defined]  # which it needs, and NumPy no longer has
    from lvis import LVIS, LVISEval, LVISResults

    other = {"bbox": "segmentation", "segm": "bbox"}[kind]

    def numbers(most: int) -> dict[str, float]:
        rows = [
            {k: v for k, v in row.items() if k != other or kind == "segm"}
            for row in json.loads(predictions.read_text())
        ]
        truth = LVIS(str(annotations))
        evaluation = LVISEval(truth, LVISResults(truth, rows, max_dets=most), kind)
        evaluation.params.max_dets = most
        evaluation.run()
        return {name: float(value) for name, value in evaluation.get_results().items()}

    found = numbers(300)
    return {ours: found[theirs] for theirs, ours in WORDS.items()} | {"map_fixed": numbers(10_000)["AP"]}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_federated__numbers_are_the_lvis_packages(kind: str, tmp_path: Path) -> None:
    annotations, predictions = lvis_files(tmp_path)
    found = measure_files(predictions, [annotations]).numbers[kind]
    expected: dict[str, Any] = json.loads(GOLDEN.read_text())[kind]
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == (None if value == -1 else pytest.approx(value, abs=1e-9)), name


def test_federated__the_rules_matter(tmp_path: Path) -> None:
    """Without them what nobody has looked for is wrong."""
    annotations, predictions = lvis_files(tmp_path)
    federated = measure_files(predictions, [annotations]).numbers["segm"]["map"]
    content = json.loads(annotations.read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    annotations.write_text(json.dumps(content))
    assert measure_files(predictions, [annotations]).numbers["segm"]["map"] < federated - 0.01


def test_federated__a_categorys_best_count_however_many_are_of_one_image(tmp_path: Path) -> None:
    """A hit behind 300 better misses of an image is lost but for the fixed AP."""
    annotations, predictions = lvis_files(tmp_path)
    content, rows = json.loads(annotations.read_text()), json.loads(predictions.read_text())
    # One with hits, and a category of which nothing is known there.
    image = next(one for one in content["images"] if sum(row["image_id"] == one["id"] for row in rows) > 4)
    there = {item["category_id"] for item in content["annotations"] if item["image_id"] == image["id"]}
    unknown = next(c for c in range(1, CATEGORIES + 1) if c not in there)
    image["neg_category_ids"] = [c for c in image["neg_category_ids"] if c != unknown]
    annotations.write_text(json.dumps(content))
    before = measure_files(predictions, [annotations]).numbers["segm"]
    crowd = {**rows[0], "image_id": image["id"], "category_id": unknown, "score": 1.0}
    predictions.write_text(json.dumps([*rows, *[crowd] * 300]))
    after = measure_files(predictions, [annotations]).numbers["segm"]
    assert after["map"] < before["map"]
    assert after["map_fixed"] == pytest.approx(before["map_fixed"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        files = lvis_files(Path(place))
        GOLDEN.write_text(json.dumps({kind: lvis_numbers(*files, kind) for kind in ("bbox", "segm")}, indent=1) + "\n")
