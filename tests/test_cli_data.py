"""``sam3slim data``: what is read, changed and left out, by split, and pictures of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3slim.cli import main
from tests.data.plain_set import H, W, plain, written
from tests.data.test_layouts import voc, yolo


def test_data__lists_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = plain()
    content["annotations"][0]["area"] = -1
    content["annotations"][1] |= {"bbox": [500, 5, 5, 5], "segmentation": []}
    content["categories"][2]["name"] = "left hand"
    root = written(tmp_path / "set", content)
    assert main(["data", str(root), "--out", str(tmp_path / "out"), "--pictures", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"train, val, test: {root}/instances_train.json, images in {root}/images"
    assert [line.strip() for line in lines[1:]] == [
        "read: 3 images, 5 annotations, 3 categories, 0 crowd regions, 0 images without annotations",
        "changed: 1 areas are not positive or do not fit the object, and were measured (first: annotation 1, -1)",
        "dropped: 1 annotations have neither a usable mask nor a usable box (first: annotation 2: bbox [500, 5, 5, 5])",
        "phrases: cup 3, traffic light 1, left hand 1",
        "never mirrored when asked for: left hand",
        f"drawn: {tmp_path}/out/train.png",
    ]
    with Image.open(tmp_path / "out/train.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape[0] > 2 * H
    assert pixels.shape[1] > W
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5  # not only two grey pictures


def test_data__splits_of_one_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = yolo(tmp_path / "set")
    assert main(["data", str(root), "--pictures", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train"]["layout"] == "YOLO"
    assert found["train"]["annotations"] == 6
    assert "no folder images/val" in found["errors"]["val"]
    assert "names no test images" in found["errors"]["test"]
    assert not (tmp_path / "outputs").exists()


def test_data__one_split_with_other_phrases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = voc(tmp_path / "set")
    (tmp_path / "p.json").write_text('{"cup": "mug"}')
    given = ["data", str(root), "--split", "train", "--pictures", "0", "--prompts", str(tmp_path / "p.json")]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "read: Pascal VOC: 3 images" in out
    assert "phrases: mug 3," in out
    assert "(first: 'cup' is 'mug')" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: data.root=nowhere is not a folder"),
        (["."], "holds no annotations of the train split"),
        ([".", "--pictures", "-1"], "error: --pictures -1: expected 0 or more"),
        ([".", "--prompts", "none.yaml"], "error: data.prompts=none.yaml cannot be read"),
    ],
)
def test_data__bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
