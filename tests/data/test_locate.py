"""Finding annotation files and image folders in the layouts people use."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam3slim.data.locate import find_annotations, find_images, missing_files
from sam3slim.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), 1),
        (("instances_train.json", "instances_val.json", "captions_val.json", "dataset.json"), 1),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"), 1),
        (("annotations/person_keypoints_val2017.json", "annotations/instances_val2017.json"), 1),
        (("anything.json",), 0),
        (("instances_train2017.json",), 0),
    ],
)
def test_find_annotations__layouts(tmp_path: Path, names: tuple[str, ...], expected: int) -> None:
    touch(tmp_path, *names)
    assert find_annotations(tmp_path, "val") == tmp_path / names[expected]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("instances_val2014.json", "instances_val2017.json"),
            r"several files fit.*2014\.json, instances_val2017",
        ),
        (("instances_train.json", "instances_test.json"), r"no file fits the val split.*data\.annotations"),
        (("a.json", "b.json"), r"no file fits.*a\.json, b\.json"),
        (("readme.txt",), "holds no annotations of the val split"),
    ],
)
def test_find_annotations__no_single_answer(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        find_annotations(tmp_path, "val")


def test_find_annotations__given_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.json", "b.json")
    assert find_annotations(tmp_path, "val", "b.json") == tmp_path / "b.json"
    with pytest.raises(UserError, match=r"data\.annotations=c\.json: no such file"):
        find_annotations(tmp_path, "val", "c.json")


def test_find_annotations__missing_folder_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*nowhere is not a folder"):
        find_annotations(tmp_path / "nowhere", "val")
    with pytest.raises(UserError, match=r"data\.split=dev"):
        find_annotations(tmp_path, "dev")


@pytest.mark.parametrize(
    ("json_name", "image", "folder"),
    [
        ("annotations/instances_val2017.json", "val2017/1.jpg", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017/1.jpg", "images/val2017"),
        ("annotations/instances_val.json", "val/1.jpg", "val"),
        ("valid/_annotations.coco.json", "valid/1.jpg", "valid"),
        ("instances_train.json", "images/1.jpg", "images"),
        ("instances_train.json", "1.jpg", "."),
    ],
)
def test_find_images__layouts(tmp_path: Path, json_name: str, image: str, folder: str) -> None:
    touch(tmp_path, json_name, image)
    assert find_images(tmp_path, "val", tmp_path / json_name, ["1.jpg"]) == tmp_path / folder


def test_find_images__split_folder_wins_over_equal_names_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "val/1.jpg", "images/1.jpg")
    assert find_images(tmp_path, "val", tmp_path / "instances_val.json", ["1.jpg"]) == tmp_path / "val"


def test_find_images__nothing_there(tmp_path: Path) -> None:
    touch(tmp_path, "images/other.jpg")
    with pytest.raises(UserError, match=r"holds 1\.jpg.*data\.images=FOLDER"):
        find_images(tmp_path, "val", tmp_path / "instances_val.json", ["1.jpg"])
    with pytest.raises(UserError, match=r"data\.images=pics: no such folder"):
        find_images(tmp_path, "val", tmp_path / "instances_val.json", ["1.jpg"], "pics")


def test_missing_files__in_subfolders(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    assert missing_files(tmp_path, ["a/1.jpg", "b/1.jpg", "c/3.jpg", "b/2.jpg"]) == ["b/1.jpg", "c/3.jpg"]
