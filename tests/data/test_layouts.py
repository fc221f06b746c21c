"""Layouts other than COCO's JSON: the same small set in each of them is read as the set itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.data.annotations import category_phrases
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.locate import find_annotations
from sam3slim.data.rle import to_rle
from sam3slim.errors import UserError

from .plain_set import SHAPES, H, W, essence, opened, plain, written

NAMES = {1: "cup", 2: "traffic light", 3: "dog"}
Writer = Callable[[Path], Path]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return essence(opened(written(tmp_path_factory.mktemp("plain") / "set", plain())))


def pictures(folder: Path, ending: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in SHAPES:
        Image.fromarray(np.full((H, W, 3), 50 * number, dtype=np.uint8)).save(folder / f"{number}{ending}")


def labels(folder: Path) -> None:
    """YOLO's label files, classes counted from 0."""
    folder.mkdir(parents=True)
    for number, shapes in SHAPES.items():
        lines = [
            " ".join([str(category - 1), *(f"{value / (H if i % 2 else W):.8f}" for i, value in enumerate(polygon))])
            for category, polygon in shapes
        ]
        (folder / f"{number}.txt").write_text("\n".join(lines) + "\n")


def yolo(root: Path) -> Path:
    pictures(root / "images/train")
    labels(root / "labels/train")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cup, traffic light, dog]\n")
    return root


def yolo_of_roboflow(root: Path) -> Path:
    """Paths that lead out of the folder, names by number."""
    pictures(root / "train/images")
    labels(root / "train/labels")
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 3\nnames: {0: cup, 1: traffic light, 2: dog}\n"
    )
    return root


def yolo_with_a_list(root: Path) -> Path:
    pictures(root / "images")
    labels(root / "labels")
    (root / "train.txt").write_text("".join(f"./images/{n}.png\n" for n in SHAPES))
    (root / "set.yml").write_text("train: train.txt\nnames:\n  - cup\n  - traffic light\n  - dog\n")
    return root


def xml(number: int, size: bool = True) -> str:
    objects = []
    for category, polygon in SHAPES[number]:
        xs, ys = polygon[0::2], polygon[1::2]
        box = f"<xmin>{min(xs) + 1}</xmin><ymin>{min(ys) + 1}</ymin><xmax>{max(xs)}</xmax><ymax>{max(ys)}</ymax>"
        objects.append(f"<object><name>{NAMES[category]}</name><bndbox>{box}</bndbox><difficult>0</difficult></object>")
    sides = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>" if size else "<size/>"
    return f"<annotation><filename>{number}.png</filename>{sides}{''.join(objects)}</annotation>"


def mask_of(polygon: tuple[int, ...]) -> np.ndarray:
    mask: np.ndarray = mask_utils.decode(to_rle([list(polygon)], H, W))
    return mask


def index_map(number: int) -> np.ndarray:
    values = np.zeros((H, W), dtype=np.uint8)
    for place, (_, polygon) in enumerate(SHAPES[number], start=1):
        values[mask_of(polygon) > 0] = place
    return values


def voc(root: Path) -> Path:
    pictures(root / "JPEGImages")
    for folder in ("Annotations", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in SHAPES:
        (root / f"Annotations/{number}.xml").write_text(xml(number))
        values = index_map(number)
        values[0, 0] = 255  # VOC's border
        Image.fromarray(values).save(root / f"SegmentationObject/{number}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("1\n2\n3\n")
    return root


def masks_by_picture(root: Path) -> Path:
    pictures(root / "images")
    for number, shapes in SHAPES.items():
        (root / f"masks/{number}").mkdir(parents=True)
        for place, (category, polygon) in enumerate(shapes):
            Image.fromarray(mask_of(polygon) * 255).save(root / f"masks/{number}/{NAMES[category]}_{place}.png")
    return root


def masks_by_category(root: Path) -> Path:
    pictures(root / "train/images", ".jpg")
    for number, shapes in SHAPES.items():
        for place, (category, polygon) in enumerate(shapes):
            folder = root / "train/masks" / NAMES[category]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask_of(polygon)).convert("RGB").save(folder / f"{number}-{place}.png")
    return root


def flat_masks(root: Path) -> Path:
    pictures(root / "images/train")
    (root / "masks/train").mkdir(parents=True)
    for number, shapes in SHAPES.items():
        for place, (category, polygon) in enumerate(shapes):
            Image.fromarray(mask_of(polygon) * 255).save(root / f"masks/train/{number}_{NAMES[category]}_{place}.png")
    return root


def index_maps(root: Path) -> Path:
    """Values are numbers of objects: what they are, each picture's own file says."""
    pictures(root / "images")
    (root / "masks").mkdir()
    for number, shapes in SHAPES.items():
        Image.fromarray(index_map(number)).save(root / f"masks/{number}.png")
        known = {str(place): NAMES[category] for place, (category, _) in enumerate(shapes, start=1)}
        (root / f"masks/{number}.json").write_text(json.dumps(known))
    return root


def cityscapes(root: Path) -> Path:
    """Values are 1000 · category + object, in 16 bits."""
    pictures(root / "images")
    (root / "masks").mkdir()
    for number, shapes in SHAPES.items():
        values = np.zeros((H, W), dtype=np.uint16)
        for place, (category, polygon) in enumerate(shapes):
            values[mask_of(polygon) > 0] = 1000 * category + place
        Image.fromarray(values).save(root / f"masks/{number}.png")
    (root / "masks/categories.json").write_text(json.dumps({str(key): name for key, name in NAMES.items()}))
    return root


LAYOUTS: dict[str, Writer] = {
    "YOLO": yolo, "YOLO of Roboflow": yolo_of_roboflow, "YOLO with a list": yolo_with_a_list, "Pascal VOC": voc,
    "a mask per object, by picture": masks_by_picture, "a mask per object, by category": masks_by_category,
    "a mask per object, in one folder": flat_masks, "index maps": index_maps, "Cityscapes' index maps": cityscapes,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts__are_read_as_the_plain_set(tmp_path: Path, expected: list[Any], layout: str) -> None:
    root = LAYOUTS[layout](tmp_path / "set")
    data = opened(root)
    found = essence(data)
    for (name, objects), (other, wanted) in zip(found, expected, strict=True):
        assert name == other
        assert len(objects) == len(wanted)
        for mine, theirs in zip(objects, wanted, strict=True):
            assert mine[0] == theirs[0]
            # A mask ends where its last pixel does, a polygon at its corner.
            assert np.allclose(mine[1], theirs[1], atol=1.01)
            assert mine[2:] == theirs[2:]
    assert data.report.problems == {}
    assert data.report.layout == {"Y": "YOLO", "P": "Pascal VOC"}.get(layout[0], "masks")
    assert data.report.summary().startswith(f"{data.report.layout}: 3 images, 6 annotations, 3 categories")
    assert sorted(category_phrases(find_annotations(root, "train"))) == ["cup", "dog", "traffic light"]
    assert len(data.annotations_digest()) == 64


def test_yolo__boxes_and_pictures_without_objects(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    for number in SHAPES:
        (root / f"labels/train/{number}.txt").write_text("0 0.5 0.5 0.25 0.5\n" if number < 3 else "")
    (root / "labels/train/2.txt").unlink()
    data = opened(root)
    assert [[item.box for item in record.annotations] for record in data.records] == [[(30, 15, 50, 45)], [], []]
    assert not data.has_masks


def test_yolo__exif_rotation_is_that_of_the_shown_picture(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((W, H, 3), dtype=np.uint8)).save(root / "images/train/1.png", exif=exif)
    record = opened(root).records[0]
    assert (record.height, record.width) == (H, W)
    assert record.annotations[0].box == pytest.approx((10, 10, 30, 25), abs=1e-3)


def test_yolo__keypoints_are_not_polygons(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text + "kpt_shape: [2, 3]\n")
    for number in SHAPES:
        (root / f"labels/train/{number}.txt").write_text("2 0.5 0.5 0.25 0.5 0.1 0.1 2 0.9 0.9 2\n")
    data = opened(root)
    assert not data.has_masks
    assert data.records[0].annotations[0].box == (30, 15, 50, 45)


YOLO_ERRORS = {
    "no split": ("data.yaml", "val: images/val\nnames: [a]\n", r"names no train images \(it has val\)"),
    "no folder": ("data.yaml", "train: nowhere\nnames: [a]\n", r"no folder nowhere .*correct it there"),
    "names": ("data.yaml", "train: images/train\nnames: 3\n", r"names is 3, expected a list of names"),
    "a number for a name": ("data.yaml", "train: images/train\nnames: [1, 2]\n", r"names is \[1, 2\], expected a list"),
    "class": (
        "labels/train/2.txt",
        "7 0.5 0.5 0.1 0.1",
        r"2\.txt line 1 has class 7, and data\.yaml names \[0, 1, 2\]",
    ),
    "six numbers": ("labels/train/2.txt", "\n0 0.5 0.5 0.1 0.1 0.9", r"2\.txt line 2 is 0 0\.5 .*expected CLASS X1"),
    "words": ("labels/train/2.txt", "cup 0.5 0.5 0.1 0.1", r"2\.txt line 1 is cup"),
    "binary": ("labels/train/2.txt", "\x00\x01", r"2\.txt line 1 is"),
}


@pytest.mark.parametrize("case", YOLO_ERRORS)
def test_yolo__what_is_wrong_is_one_line(tmp_path: Path, case: str) -> None:
    name, text, message = YOLO_ERRORS[case]
    root = yolo(tmp_path / "set")
    (root / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)


def test_yolo__unreadable_picture_fails_or_is_left_out(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    (root / "images/train/2.png").write_text("broken")
    with pytest.raises(UserError, match=r"2\.png cannot be decoded.*data\.on_unreadable=skip"):
        opened(root)
    data = opened(root, on_unreadable="skip")
    assert [record.file_name for record in data.records] == ["images/train/1.png", "images/train/3.png"]
    assert data.report.problems == {"images_unreadable": 1}


def test_voc__boxes_only_beside_the_pictures(tmp_path: Path) -> None:
    """As Roboflow exports it: XML and pictures together, by split."""
    root = tmp_path / "set"
    pictures(root / "train")
    for number in SHAPES:
        (root / f"train/{number}.xml").write_text(xml(number, size=False).replace("<difficult>0", "<difficult>1", 1))
    data = opened(root)
    assert not data.has_masks
    assert data.records[0].annotations[0].box == (10, 10, 30, 25)
    assert [item.iscrowd for item in data.records[0].annotations] == [True, False, False]
    assert data.report.problems == {"sizes_read": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "cannot read .*1.xml as XML"),
        ("<html/>", r"holds <html>; expected Pascal VOC's <annotation>"),
        ("<annotation><object/></annotation>", "an object has no <name>"),
        ("<annotation><object><name>a</name></object></annotation>", "has the box .*expected numbers of pixels"),
    ],
)
def test_voc__what_is_wrong_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    root = voc(tmp_path / "set")
    (root / "Annotations/1.xml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)


def test_voc__missing_split_says_which_there_are(tmp_path: Path) -> None:
    root = voc(tmp_path / "set")
    with pytest.raises(UserError, match=r"has no val\.txt \(it has train\); add it, or choose another data\.split"):
        CocoConcepts(root, "val", image_size=40)


def test_masks__colours_and_one_category_for_all(tmp_path: Path) -> None:
    root = tmp_path / "set"
    pictures(root / "images")
    (root / "masks").mkdir()
    for number, shapes in SHAPES.items():
        pixels = np.zeros((H, W, 3), dtype=np.uint8)
        for place, (_, polygon) in enumerate(shapes):
            pixels[mask_of(polygon) > 0] = (200, 10 * place, 30)
        Image.fromarray(pixels).save(root / f"masks/{number}.png")
    with pytest.raises(
        UserError, match=r"has the value 13107230, which has no category; write them to .*categories\.json"
    ):
        opened(root)
    (root / "masks/categories.json").write_text('{"*": "nucleus", "#c8001e": "cell"}')  # as the message says
    data = opened(root)
    assert [category.phrase for category in data.categories] == ["nucleus", "cell"]
    assert [len(record.annotations) for record in data.records] == [3, 2, 1]
    assert sum(item.category_id == 2 for record in data.records for item in record.annotations) == 3


def test_masks__files_without_a_category_in_their_names(tmp_path: Path) -> None:
    """Hashes, as in the Data Science Bowl of 2018, are not hundreds of categories."""
    root = tmp_path / "set"
    pictures(root / "images")
    for number in SHAPES:
        (root / f"masks/{number}").mkdir(parents=True)
        for place in range(10):
            mask = np.zeros((H, W), dtype=np.uint8)
            mask[place : place + 2, place : place + 3] = 255
            Image.fromarray(mask).save(root / f"masks/{number}/{chr(97 + number)}{chr(97 + place)}f.png")
    with pytest.raises(UserError, match=r"give 30 categories for 30 objects; .*\{\"\*\": \"category\"\}"):
        opened(root)
    (root / "masks/categories.json").write_text('{"*": "nucleus"}')  # as the message says
    data = opened(root)
    assert [category.phrase for category in data.categories] == ["nucleus"]
    assert data.report.annotations == 30


@pytest.mark.parametrize("case", ["size", "lost", "broken", "categories", "no pictures"])
def test_masks__what_is_wrong_is_one_line(tmp_path: Path, case: str) -> None:
    root = index_maps(tmp_path / "set")
    if case == "size":
        Image.fromarray(np.ones((5, 5), dtype=np.uint8)).save(root / "masks/2.png")
        message = r"2\.png is 5x5 pixels, and its picture 2\.png 80x60"
    elif case == "lost":
        (root / "masks/2.png").rename(root / "masks/two.png")
        message = r"1 masks in .* belong to no picture, the first is two\.png; expected"
    elif case == "broken":
        (root / "masks/2.png").write_text("broken")
        message = r"2\.png cannot be decoded"
    elif case == "categories":
        (root / "masks/2.json").write_text('{"1": 5}')
        message = r"2\.json: .*expected \{"
    else:
        for path in (root / "images").iterdir():
            path.unlink()
        message = r"holds no picture for the masks"
    with pytest.raises(UserError, match=message) as caught:
        opened(root)
    assert "\n" not in str(caught.value)


def test_find_annotations__other_splits_do_not_serve(tmp_path: Path) -> None:
    root = flat_masks(tmp_path / "set")
    assert find_annotations(root, "train") == root / "masks/train"
    with pytest.raises(UserError, match=r"holds no annotations of the val split"):
        find_annotations(root, "val")
    assert find_annotations(root, "val", "masks/train") == root / "masks/train"


def test_find_annotations__coco_comes_first(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    (root / "instances_train.json").write_text(json.dumps(plain()))
    assert find_annotations(root, "train").name == "instances_train.json"
