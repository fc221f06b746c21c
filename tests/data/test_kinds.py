"""Files as people have them: every spelling of one small set is read as the set itself, or told in one true line."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from sam3slim.data.rle import to_rle
from sam3slim.data.sampling import PromptSpec
from sam3slim.data.sides import says_side
from sam3slim.data.spec import DataSpec
from sam3slim.errors import UserError
from tests.tiny import SPEC

from .plain_set import SHAPES, Content, H, W, essence, opened, plain, written
from .samples import crowd
from .spellings import CASES, SPELLINGS, centred, corners, put, saco, unit


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return essence(opened(written(tmp_path_factory.mktemp("plain") / "set", plain())))


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}: {name}" for kind, name in CASES])
def test_spellings__are_read_as_the_plain_set(tmp_path: Path, expected: list[Any], kind: str, name: str) -> None:
    content = copy.deepcopy(plain())
    SPELLINGS[kind][name](content)
    data = opened(written(tmp_path / "set", content))
    # YOLO's centres and the like are rounded on the way.
    assert sorted(essence(data)) == expected
    assert data.has_masks
    assert "dropped" not in data.report.to_dict() or kind.startswith("2")
    training = opened(tmp_path / "set", PromptSpec(negatives=1))
    assert sum(len(training[place].boxes) for place in range(3)) == 6


def test_spellings__own_siblings_are_enough() -> None:
    assert sum("(own)" in name for _, name in CASES) >= 25


def test_report__says_what_was_changed(tmp_path: Path) -> None:
    content = plain()
    SPELLINGS["7 boxes"]["in 0..1"](content)
    report = opened(written(tmp_path / "set", content)).report
    assert report.problems == {"boxes_converted": 6}
    assert report.lines()[1] == (
        "changed: 6 boxes were converted to pixels (x, y, width, height) "
        "(first: annotation 1, x, y, width, height in 0..1)"
    )
    assert report.to_dict()["changed"]["boxes_converted"]["count"] == 6


@pytest.mark.parametrize(
    "convert",
    [unit, corners, lambda box: unit(corners(box)), lambda box: unit(centred(box))],
    ids=["unit", "corners", "unit corners", "unit centred"],
)
def test_boxes_only__their_notation_is_found(tmp_path: Path, convert: Callable[[list[float]], list[float]]) -> None:
    content = plain()
    for item in content["annotations"]:
        del item["segmentation"]
        item["bbox"] = [60, 40, 19, 19] if item["id"] % 2 else item["bbox"]  # centres beside the edge
    before = written(tmp_path / "plain", content)
    content = copy.deepcopy(content)
    put("bbox", convert)(content)
    after = opened(written(tmp_path / "set", content))
    boxes = [[a.box for a in record.annotations] for record in opened(before).records]
    assert np.allclose(np.concatenate([[a.box for a in r.annotations] for r in after.records]), np.concatenate(boxes))
    assert after.report.problems["boxes_converted"] == 6


def test_boxes__amodal_ones_stay(tmp_path: Path) -> None:
    content = plain()
    content["annotations"][0]["bbox"] = [5, 8, 40, 30]
    data = opened(written(tmp_path / "set", content))
    assert data.records[0].annotations[0].box == (5, 8, 45, 38)
    assert data.report.problems == {}


def test_saco__asks_the_pairs_it_has(tmp_path: Path) -> None:
    content = plain()
    saco(content)
    content["images"] = [
        entry for entry in content["images"] if (entry["file_name"], entry["text_input"]) != ("1.png", "dog")
    ]
    partly = next(e for e in content["images"] if (e["file_name"], e["text_input"]) == ("2.png", "cup"))
    partly["is_instance_exhaustive"] = 0
    data = opened(written(tmp_path / "set", content))
    asked = {record.file_name: {data.phrase_of(c) for c in record.asked or ()} for record in data.records}
    assert asked == {
        "1.png": {"cup", "traffic light"}, "2.png": {"traffic light", "dog"}, "3.png": {"cup", "traffic light", "dog"},
    }  # fmt: skip
    assert [data[place].phrases for place in range(3)] == [
        [*map(data.phrase_of, sorted(r.asked or ()))] for r in data.records
    ]
    assert data.report.problems == {"entries_not_exhaustive": 1, "boxes_converted": 6, "areas_from_masks": 6}
    entries = {e["id"]: (e["file_name"], e["text_input"]) for e in content["images"]}
    for record in data.records:
        for category, entry in (record.entries or {}).items():
            assert entries[entry] == (record.file_name, data.phrase_of(category))
    training = opened(tmp_path / "set", PromptSpec(negatives=5))
    assert set(training[0].phrases) == {"cup", "traffic light"}


def test_saco__an_entry_without_phrase_is_named(tmp_path: Path) -> None:
    content = plain()
    saco(content)
    content["images"][4]["text_input"] = ""
    with pytest.raises(
        UserError, match=r"instances_train.json: image 10004 has text_input  and others have|image 10004"
    ):
        opened(written(tmp_path / "set", content))


def federated() -> Content:
    """Image 1: dogs are absent; image 2: not all dogs are annotated; image 3: nothing is known but its cup."""
    content = plain()
    for image, absent, partly in zip(content["images"], ([3], [], []), ([], [3], []), strict=True):
        image |= {"neg_category_ids": absent, "not_exhaustive_category_ids": partly}
    return content


def test_lvis__asks_what_is_known(tmp_path: Path) -> None:
    data = opened(written(tmp_path / "set", federated()))
    assert [data[place].phrases for place in range(3)] == [
        ["cup", "traffic light", "dog"],
        ["traffic light", "dog"],
        ["cup"],
    ]
    truth = data[1].info.ground_truth
    assert truth is not None
    # Whatever is found of a category that is not annotated exhaustively is ignored, as in a crowd region.
    assert truth.iscrowd.tolist() == [0, 0, 1]
    assert truth.labels.tolist() == [2, 3, 3]
    assert truth.rles is not None
    assert mask_utils.area(truth.rles[2]) == H * W
    training = opened(tmp_path / "set", PromptSpec(negatives=5))
    assert [training[place].phrases for place in range(3)] == [
        ["cup", "traffic light", "dog"],
        ["traffic light"],
        ["cup"],
    ]
    assert training.report.federated == 3
    pooled = opened(tmp_path / "set", PromptSpec(negatives=5, pool=2))
    assert [len(pooled.pool_of(record)) for record in pooled.records] == [2, 2, 1]


def test_lvis__unknown_category_is_named(tmp_path: Path) -> None:
    content = federated()
    content["images"][0]["neg_category_ids"] = [3, 77]
    with pytest.raises(UserError, match=r"image 1 has neg_category_ids \[3, 77\], expected a list of ids"):
        opened(written(tmp_path / "set", content))


def test_categories_without_annotations__are_mentioned(tmp_path: Path) -> None:
    content = plain()
    content["categories"].append({"id": 7, "name": "bicycle"})
    data = opened(written(tmp_path / "set", content))
    assert "1 categories without annotations (bicycle)" in data.report.summary()
    assert data.report.problems == {}
    assert len(data[0].phrases) == 4


def test_same_phrase__after_the_cut_to_the_context(tmp_path: Path) -> None:
    content = plain()
    content["categories"][0]["name"] = "a b c d e f g h i j k l m"
    content["categories"][2]["name"] = "a b c d e f g h i j k l m n"
    root = written(tmp_path / "set", content)
    spec = DataSpec("coco", str(root), split="train")
    data = spec.build(SPEC).dataset("train")
    assert [category.phrase for category in data.categories] == ["a b c d e f g h i j k l m", "traffic light"]
    assert data.report.problems == {"categories_merged": 1}
    assert sum(len(data[place].boxes) for place in range(3)) == 6


def test_min_area__areas_that_are_none_do_not_hide_targets(tmp_path: Path) -> None:
    content = plain()
    SPELLINGS["4 areas"]["negative"](content)
    data = opened(written(tmp_path / "set", content), PromptSpec(min_area=100))
    assert sum(len(data[place].boxes) for place in range(3)) == 6


@pytest.mark.parametrize(
    "phrase",
    ["left shoe", "left-hand", "turn-right", "hand (left)", "left/right", "leftmost", "rightmost", "bottom_left",
     "turnright", "left's", "right.", "lefthanded glove", "topright corner", "no left turn", "arrowright",
     "clockwise arrow", "counterclockwise arrow", "anti-clockwise"],
)  # fmt: skip
def test_sides__are_seen(phrase: str) -> None:
    assert says_side(phrase)


@pytest.mark.parametrize(
    "phrase",
    ["leftover", "leftovers box", "bright car", "upright piano", "cleft", "copyright sign", "playwright", "clockwork",
     "righteous", "fright mask", "deft hand"],
)  # fmt: skip
def test_sides__are_not_imagined(phrase: str) -> None:
    assert not says_side(phrase)


@pytest.mark.parametrize("value", [2, "maybe", [], {"a": 1}, -1])
def test_iscrowd__anything_else_is_named(tmp_path: Path, value: Any) -> None:
    content = plain()
    content["annotations"][3]["iscrowd"] = value
    with pytest.raises(UserError, match=r"annotation 4 has iscrowd .*, expected 0 or 1"):
        opened(written(tmp_path / "set", content))


@pytest.mark.parametrize("corner", [2e8, 1e7, -3e6, 500, 10**30, 1e300])
def test_polygon__far_corner_is_cut_in_no_time(tmp_path: Path, corner: float) -> None:
    """A corner at 2·10⁸ took all memory: pycocotools walks along the edges."""
    content = plain()
    content["annotations"][0]["segmentation"] = [[10, 10, corner, 10, 10, 25]]
    data = opened(written(tmp_path / "set", content))
    problems = data.report.problems
    if abs(corner) < 1e9:
        assert problems["polygons_clipped"] == 1
        mask = mask_utils.decode(to_rle(data.records[0].annotations[0].segmentation or [], H, W))
        assert mask[12, 10 if corner > 0 else 8]
        assert not mask[30].any()
    else:
        assert problems["masks_missing"] == 1  # no corner at all: its box is left


def test_polygon__cut_equals_pycocotools_where_it_can_do_both(tmp_path: Path) -> None:
    from sam3slim.data.segmentation import clip_polygon

    rng = np.random.default_rng(0)
    for _ in range(50):
        polygon = (rng.random(10) * 300 - 100).tolist()
        whole = mask_utils.decode(to_rle([polygon], H, W))
        cut = clip_polygon(polygon, H, W)
        part = mask_utils.decode(to_rle([cut], H, W)) if len(cut) >= 6 else np.zeros((H, W))
        assert np.abs(whole.astype(int) - part).sum() <= 2 * (H + W)  # pixels along the edges may differ


NAMES: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    # In the file, on the disk.
    "backslashes": (lambda n: f"sub\\{n}", lambda n: f"sub/{n}"),
    "Windows path": (lambda n: f"C:\\data\\images\\{n}", lambda n: n),
    "flattened": (lambda n: f"a/b/{n}", lambda n: n),
    "flattened with underscores": (lambda n: f"a/b/{n}", lambda n: f"a_b_{n}"),
    "URL escapes": (lambda n: f"my%20photo%20{n}", lambda n: f"my photo {n}"),
    "NFD in the file": (lambda n: unicodedata.normalize("NFD", f"caf\u00e9 {n}"), lambda n: f"caf\u00e9 {n}"),
    "NFC in the file": (lambda n: f"caf\u00e9 {n}", lambda n: unicodedata.normalize("NFD", f"caf\u00e9 {n}")),
    "another case": (lambda n: f"IMG_{n.upper()}", lambda n: f"img_{n}"),
    "another ending's case (own)": (lambda n: n.replace("png", "PNG"), lambda n: n),
    "folders joined in the file (own)": (lambda n: f"a_b_{n}", lambda n: f"a/b/{n}"),
    "URL (own)": (lambda n: f"https://host/bucket/{n}", lambda n: n),
    "absolute (own)": (lambda n: f"/home/someone/set/images/{n}", lambda n: n),
    "leading dot (own)": (lambda n: f"./{n}", lambda n: n),
    "deeper on the disk (own)": (lambda n: n, lambda n: f"train/batch1/{n}"),
    "doubled slashes (own)": (lambda n: f"a//{n}", lambda n: f"a/{n}"),
    "Label Studio's upload (own)": (lambda n: f"/data/upload/1/0a1b-{n}", lambda n: f"0a1b-{n}"),
}


@pytest.mark.parametrize("case", NAMES)
def test_file_names__unique_ones_are_found(tmp_path: Path, expected: list[Any], case: str) -> None:
    in_file, on_disk = NAMES[case]
    content = plain()
    for image in content["images"]:
        image["file_name"] = in_file(image["file_name"])
    data = opened(written(tmp_path / "set", content, {n: on_disk(f"{n}.png") for n in SHAPES}))
    assert [objects for _, objects in essence(data)] == [objects for _, objects in expected]
    assert [int(data[place].image.mean() * 127.5 + 127.5 + 0.5) for place in range(3)] == [50, 100, 150]
    # "./1.png" and "a//1.png" are names of the file itself.
    assert data.report.problems.get("file_names_matched", 0) in (0, 3)
    assert data.report.problems.get("file_names_matched", 0) == 3 or case in (
        "leading dot (own)",
        "doubled slashes (own)",
    )


def test_file_names__two_candidates_are_none(tmp_path: Path) -> None:
    content = plain()
    content["images"][1]["file_name"] = "pictures/2.png"
    root = written(tmp_path / "set", content, {2: "a/2.png"})
    (root / "images/b").mkdir()
    (root / "images/b/2.png").write_bytes((root / "images/a/2.png").read_bytes())
    with pytest.raises(
        UserError, match=r"1 of 3 images .* the first is pictures/2\.png \(a file like it: [ab]/2\.png\)"
    ):
        opened(root)
    content["images"][1]["file_name"] = "b/2.png"  # as the message says
    (root / "instances_train.json").write_text(json.dumps(content))
    assert len(opened(root)) == 3


def test_file_names__another_folder_is_another_picture(tmp_path: Path) -> None:
    content = plain()
    content["images"][1]["file_name"] = "camera2/1.png"
    content["images"][0]["file_name"] = "camera1/1.png"
    root = written(tmp_path / "set", content, {1: "camera1/1.png", 2: "camera3/1.png"})
    with pytest.raises(UserError, match=r"the first is camera2/1\.png"):
        opened(root)


def test_no_usable_target__names_the_first_odd_annotation(tmp_path: Path) -> None:
    content = plain()
    put("segmentation", lambda s: {"points": s})(content)
    with pytest.raises(UserError, match=r"annotation 1: segmentation is \{\"points\": .* expected polygons \[\[x1, y1"):
        opened(written(tmp_path / "a", content))
    content = plain()
    for item in content["annotations"]:
        item |= {k: v for k, v in crowd(5, 5, height=H, width=W).items()}
    with pytest.raises(UserError, match=r"all annotations are crowd regions; .* set their iscrowd to 0"):
        opened(written(tmp_path / "b", content))
    put("iscrowd", lambda value: 0)(content)  # as the message says
    assert len(opened(written(tmp_path / "c", content))) == 3


@pytest.mark.parametrize("key", ["height", "width"])
@pytest.mark.parametrize("value", [0, -5, 1.5, "many", [1], 10**9, 10**30, None, float("inf")])
def test_sizes__impossible_ones_are_one_line(tmp_path: Path, key: str, value: Any) -> None:
    content = plain()
    content["images"][1][key] = value
    with pytest.raises(UserError, match=r"image 2 \(2\.png\) has .*fix its entry") as caught:
        opened(written(tmp_path / "set", content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("training", "key"), [(True, "data.limit"), (False, "data.eval_limit")])
def test_limit__without_an_object_says_how_many_it_takes(tmp_path: Path, training: bool, key: str) -> None:
    content = plain()
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] == 3]
    root = written(tmp_path / "set", content)
    prompts = PromptSpec("train" if training else "all")
    with pytest.raises(UserError, match=rf"{key}=2: no object is in the first 2 images .* set {key}=3 or more"):
        opened(root, prompts, limit=2)
    assert len(opened(root, prompts, limit=3)) == 3
    with pytest.raises(UserError, match=r"limit=1: no object is in the first 1 images .* set limit=3 or more"):
        opened(root, prompts).check_limit(1, "limit")


PROMPTS = """
cup: [mug, "Coffee  Cup"]
traffic_light: stop light
"""


def test_prompts_file__phrases_instead_of_names(tmp_path: Path) -> None:
    root = written(tmp_path / "set", plain())
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    spec = DataSpec("coco", str(root), split="train", prompts=str(tmp_path / "prompts.yaml"), negatives=0)
    data = spec.build(SPEC)
    evaluated, training = data.dataset("train"), data.dataset("train", training=True)
    assert evaluated[0].phrases == ["mug", "stop light", "dog"]
    assert evaluated.report.problems == {"phrases_replaced": 2}
    seen = set()
    for epoch in range(12):
        training.set_epoch(epoch)
        seen |= set(training[0].phrases)
        again = training[0].phrases
        assert training[0].phrases == again
    assert seen == {"mug", "coffee cup", "stop light"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected {category: phrase}"),
        ("cup: 7", "cup has 7, expected"),
        ("cup: []", "cup has .., expected"),
        ("cup: a\nCup: b", "names the category 'cup' twice"),
        ("a: [", "cannot be read"),
    ],
)
def test_prompts_file__bad_ones_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        DataSpec("coco", "x", prompts=str(tmp_path / "p.yaml")).build(SPEC)
    assert "\n" not in str(caught.value)


def test_prompts_file__one_phrase_of_two_categories_is_told(tmp_path: Path) -> None:
    root = written(tmp_path / "set", plain())
    (tmp_path / "p.json").write_text(json.dumps({"cup": ["dog", "mug"], "dog": ["hound", "mug"]}))
    spec = DataSpec("coco", str(root), split="train", prompts=str(tmp_path / "p.json"))
    data = spec.build(SPEC).dataset("train")
    assert [category.phrases for category in data.categories] == [("dog", "mug"), ("traffic light",), ("hound",)]
    assert data.report.problems["synonyms_dropped"] == 1
