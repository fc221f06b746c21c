"""The generated set: deterministic, compositional, exact."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.data.shapes import ShapesSpec, make_shapes, phrases_of, scene
from sam3slim.data.shapes_draw import ShapeObject, draw_scene
from sam3slim.errors import UserError

from .samples import TINY

SMALLER = replace(TINY, train_images=3, val_images=2, test_images=2)


def digest(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(root: Path, split: str) -> dict[str, Any]:
    return dict(json.loads((root / "annotations" / f"instances_{split}.json").read_text()))


def test_make_shapes__same_spec_same_bytes(tmp_path: Path) -> None:
    first = digest(make_shapes(tmp_path / "a", SMALLER, progress=False))
    assert len(first) == 7 + 3 + 1
    assert digest(make_shapes(tmp_path / "b", SMALLER, progress=False)) == first


def test_make_shapes__longer_set_starts_with_the_shorter(tmp_path: Path, shapes_root: Path) -> None:
    short = digest(make_shapes(tmp_path / "a", SMALLER, progress=False))
    long = digest(shapes_root)
    assert short["train/000002.png"] == long["train/000002.png"]


def test_make_shapes__splits_and_seeds_differ(tmp_path: Path, shapes_root: Path) -> None:
    files = digest(shapes_root)
    assert files["train/000000.png"] != files["val/000000.png"] != files["test/000000.png"]
    other = digest(make_shapes(tmp_path / "a", replace(SMALLER, seed=1), progress=False))
    assert other["train/000000.png"] != files["train/000000.png"]


def test_make_shapes__image_ids_are_unique_over_splits(shapes_root: Path) -> None:
    ids = [image["id"] for split in ("train", "val", "test") for image in load(shapes_root, split)["images"]]
    assert len(ids) == len(set(ids)) == 19


def test_make_shapes__every_object_answers_all_its_phrases(shapes_root: Path) -> None:
    content = load(shapes_root, "train")
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[tuple[int, str], set[str]] = defaultdict(set)
    for annotation in content["annotations"]:
        key = (annotation["image_id"], annotation["segmentation"]["counts"])
        objects[key].add(names[annotation["category_id"]])
    assert len(objects) > 12
    for phrases in objects.values():
        longest = max(phrases, key=len).split()
        expected = {" ".join(longest[-count:]) for count in range(1, len(longest) + 1)}
        assert phrases == expected
        assert len(longest) >= 2
    assert any(len(phrases) == 3 for phrases in objects.values())


def test_make_shapes__geometry_agrees_with_the_mask(shapes_root: Path) -> None:
    for annotation in load(shapes_root, "val")["annotations"]:
        rle = annotation["segmentation"]
        mask = mask_utils.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)
        rows, columns = np.nonzero(mask)
        left, top = columns.min(), rows.min()
        assert annotation["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert annotation["area"] == mask.sum() > 0


def test_draw_scene__later_object_hides_earlier_and_colours_match_masks() -> None:
    back = ShapeObject("square", "blue", "large", (30.0, 30.0), 30.0, 0.3, (40, 80, 210))
    front = ShapeObject("circle", "red", "small", (36.0, 30.0), 14.0, 0.0, (210, 40, 40))
    picture, (hidden, whole) = draw_scene(np.random.default_rng(0), [back, front], 64)
    assert not (hidden & whole).any()
    assert whole.sum() == pytest.approx(np.pi * 7**2, rel=0.05)
    assert np.median(picture[whole], axis=0) == pytest.approx([210, 40, 40], abs=25)
    assert np.median(picture[hidden], axis=0) == pytest.approx([40, 80, 210], abs=25)
    assert not hidden[30, 36]


def test_scene__objects_stay_visible_and_sizes_are_apart() -> None:
    spec = ShapesSpec(min_objects=5, max_objects=5)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        objects = scene(spec, rng)
        _, masks = draw_scene(rng, objects, spec.image_size)
        for item, mask in zip(objects, masks, strict=True):
            assert mask.sum() >= 0.35 * item.mask(spec.image_size).sum()
            assert (item.diameter < 25) == (item.size == "small")


def test_categories__words_of_sized_phrases_come_in_both_sizes() -> None:
    names = [category["name"] for category in ShapesSpec().categories()]
    assert len(names) == len(set(names)) == 23
    sized = {name.split(" ", 1)[1] for name in names if name.startswith("small")}
    assert sized == {name.split(" ", 1)[1] for name in names if name.startswith("large")}
    assert {pair.split()[0] for pair in sized} == {"red", "green", "blue", "yellow"}
    item = ShapeObject("circle", "red", "small", (0, 0), 1, 0, (0, 0, 0))
    assert set(phrases_of(item)) <= set(names)


def test_make_shapes__identical_set_is_left_alone(shapes_root: Path) -> None:
    before = (shapes_root / "train/000000.png").stat().st_mtime_ns
    make_shapes(shapes_root, TINY, progress=False)
    assert (shapes_root / "train/000000.png").stat().st_mtime_ns == before


def test_make_shapes__other_set_needs_overwrite(tmp_path: Path) -> None:
    root = make_shapes(tmp_path / "a", SMALLER, progress=False)
    changed = replace(SMALLER, seed=7)
    with pytest.raises(UserError, match=r"seed 0 -> 7.*data\.overwrite=true"):
        make_shapes(root, changed, progress=False)
    make_shapes(root, changed, overwrite=True, progress=False)
    assert json.loads((root / "dataset.json").read_text())["spec"]["seed"] == 7


def test_make_shapes__never_replaces_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a shapes set"):
        make_shapes(tmp_path, SMALLER, overwrite=True, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_make_shapes__interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "a", SMALLER, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"shapes": ("circle", "blob")}, r"data\.shapes\.shapes="),
        ({"colors": ()}, r"data\.shapes\.colors"),
        ({"image_size": 8}, r"data\.shapes\.image_size=8"),
        ({"min_objects": 4, "max_objects": 2}, r"data\.shapes\.min_objects=4"),
        ({"image_size": 10**6}, r"data\.shapes\.image_size=1000000: expected 32 to 4096 pixels"),
        ({"test_images": 10**12}, r"data\.shapes\.test_images=1000000000000: expected 1 to 10,000,000"),
        ({"max_objects": 10**9}, r"data\.shapes\.max_objects=1000000000: expected"),
        ({"seed": -1}, r"data\.shapes\.seed=-1: expected 0 or more"),
        ({"val_images": 0}, r"data\.shapes\.val_images=0"),
        ({"small": (0.5, 0.2)}, r"data\.shapes\.small"),
    ],
)
def test_spec__bad_value_names_its_key(change: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        replace(ShapesSpec(), **change)


def test_digest__changes_with_the_spec() -> None:
    assert ShapesSpec().digest() == ShapesSpec().digest() != ShapesSpec(seed=1).digest()
