"""Reading annotation files: what stops, what is repaired, what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam3slim.data.annotations import load_index
from sam3slim.errors import UserError

from .samples import CocoWriter, square


def annotations_of(root: Path) -> Path:
    return root / "instances_train.json"


def test_load_index__phrases_are_clean_names(write_coco: CocoWriter) -> None:
    root = write_coco([square(5, 5)], names=("Traffic_Light", "  big   CUP "))
    assert [category.phrase for category in load_index(annotations_of(root)).categories] == [
        "traffic light",
        "big cup",
    ]


def test_load_index__box_partly_outside_is_clipped_and_counted(write_coco: CocoWriter) -> None:
    index = load_index(annotations_of(write_coco([square(35, 25)])))
    assert index.records[0].annotations[0].box == (35, 25, 40, 30)
    assert index.report.problems == {"boxes_clipped": 1}
    assert "boxes clipped: 1" in index.report.summary()


def test_load_index__rounding_outside_is_not_a_problem(write_coco: CocoWriter) -> None:
    index = load_index(annotations_of(write_coco([square(30.4, 20.4)])))
    assert index.records[0].annotations[0].box == (30.4, 20.4, 40, 30)
    assert index.report.problems == {}


@pytest.mark.parametrize("bbox", [[50, 5, 10, 10], [5, 5, 0, 10], [5, 5, 10], [5, 5, float("nan"), 10], [0] * 4, []])
def test_load_index__useless_box_is_taken_from_its_mask(write_coco: CocoWriter, bbox: list[float]) -> None:
    index = load_index(annotations_of(write_coco([square(5, 5), square(5, 5) | {"bbox": bbox}])))
    assert [annotation.box for annotation in index.records[0].annotations] == [(5, 5, 15, 15)] * 2
    assert index.report.problems == {"boxes_from_masks": 1}
    only = load_index(annotations_of(write_coco([{"bbox": [5, 5, 9, 9]}, {"bbox": bbox}])))
    assert len(only.records[0].annotations) == 1
    assert only.report.problems == {"boxes_dropped": 1}


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 1, 5, 5]], "degenerate_polygons"),
        ([[1, 1, 5, 5, 9, 9]], "degenerate_polygons"),
        ([[50, 50, 60, 50, 60, 60]], "degenerate_polygons"),
        ([[1, 1, 5, 5, 9, "x"]], "masks_missing"),
        ([], "masks_missing"),
        ({"size": [30, 40], "counts": [5, 5]}, "masks_missing"),
        ({"size": [40, 30], "counts": [0, 1200]}, "masks_missing"),
    ],
)
def test_load_index__without_a_usable_mask_a_box_is_a_region_to_ignore(
    write_coco: CocoWriter, segmentation: Any, problem: str
) -> None:
    item = {"bbox": [5, 5, 10, 10], "segmentation": segmentation}
    index = load_index(annotations_of(write_coco([square(5, 5), item])))
    kept = index.records[0].annotations
    assert [annotation.iscrowd for annotation in kept] == [False, True]
    assert kept[1].box == (5, 5, 15, 15)
    assert index.report.problems[problem] == 1
    assert index.report.problems["masks_missing"] == 1
    gone = load_index(annotations_of(write_coco([square(5, 5), item | {"bbox": [5, 5, 0, 10]}])))
    assert len(gone.records[0].annotations) == 1
    assert gone.report.problems["masks_dropped"] == 1


def test_load_index__degenerate_polygon_beside_a_good_one(write_coco: CocoWriter) -> None:
    item = square(5, 5)
    item["segmentation"].append([1, 1, 2, 2])
    index = load_index(annotations_of(write_coco([item])))
    assert index.records[0].annotations[0].segmentation == square(5, 5)["segmentation"]
    assert index.report.problems == {"degenerate_polygons": 1}


def test_load_index__missing_box_and_area_come_from_the_mask(write_coco: CocoWriter) -> None:
    annotation = load_index(annotations_of(write_coco([{"segmentation": square(5, 6)["segmentation"]}])))
    assert annotation.records[0].annotations[0].box == (5, 6, 15, 16)
    assert annotation.records[0].annotations[0].area == 100


def test_load_index__boxes_only_set(write_coco: CocoWriter) -> None:
    index = load_index(annotations_of(write_coco([{"bbox": [1, 2, 3, 4], "segmentation": []}])))
    assert not index.has_masks
    assert index.records[0].annotations[0].area == 12
    assert index.report.problems == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [square(1, 1) | {"id": 7, "image_id": 99, "category_id": 1}]},
            "annotation 7 .*image 99",
        ),
        (
            {"annotations": [square(1, 1) | {"id": 7, "image_id": [1], "category_id": 1}]},
            "annotation 7 .*image",
        ),
        (
            {"annotations": [square(1, 1) | {"id": 7, "image_id": 1, "category_id": 9}]},
            "annotation 7 .*category 9",
        ),
        ({"annotations": ["x"]}, "not a JSON object"),
        ({"annotations": None}, "not a COCO annotation file: no list annotations"),
        ({"categories": [{"id": 1}]}, "has no name"),
        ({"categories": [{"id": 1, "name": " _ "}]}, "has no name"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "'b' needs an id of its own"),
        ({"categories": []}, "lists no categories"),
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1, "file_name": "1.png"}]}, "image 1 .*height.* expected whole numbers of pixels"),
        ({"images": [{"file_name": "1.png", "height": 30, "width": 40}]}, "needs an id and a file_name"),
        ({"images": [{"id": 1, "file_name": "1.png", "height": 30, "width": 40}] * 2}, "listed twice"),
    ],
)
def test_load_index__meaningless_file_stops_in_one_line(
    write_coco: CocoWriter, changes: dict[str, Any], message: str
) -> None:
    root = write_coco([square(5, 5)], **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_index(annotations_of(root))
    assert "\n" not in str(caught.value)
    assert "instances_train.json" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\x00\x01", json.dumps({"images": {}})])
def test_load_index__not_coco(tmp_path: Path, content: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"instances\.json (as JSON|must hold|is not)"):
        load_index(path)
