"""Several processes, one prediction; large pictures in tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from sam3slim.cli import main
from sam3slim.data.detections import Detections
from sam3slim.errors import UserError
from sam3slim.predict import PredictSpec
from sam3slim.predict.shards import Shard, shard_of
from sam3slim.predict.tiles import Place, Tiling, merge_tiles

from .conftest import Predict, draw


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return {key: found[key] for key in ("categories", "images", "annotations")}


def test_shards__together_find_what_one_finds(predict: Predict, photos: Path, tmp_path: Path) -> None:
    whole = predict()
    out = tmp_path / "shared"
    first = predict(out=str(out), shard="1/2")
    assert (first.images, first.waiting) == (3, ["2/2"])
    assert not (out / "detections.json").exists()
    second = predict(out=str(out), shard="2/2")
    assert (second.images, second.waiting, second.path) == (2, [], out / "detections.json")
    assert second.detections == whole.detections > 0
    assert content(out / "detections.json") == content(whole.path)
    assert sorted(p.name for p in out.rglob("overlays/**/*.jpg")) == sorted(
        p.name for p in (tmp_path / "out").rglob("overlays/**/*.jpg")
    )
    # A picture that is new, or cannot be read: both shards are asked again, and only for what is missing.
    draw(photos / "zz.png", 9)
    (photos / "zzz.png").write_bytes(b"no picture")
    again = predict(out=str(out), shard="1/2")
    assert (again.images, again.kept, again.waiting) == (0, 3, ["2/2"])
    assert again.skipped.keys() == {"zzz.png"}
    last = predict(out=str(out), shard="2/2")
    assert (last.images, last.kept, last.waiting) == (1, 2, [])
    assert len(content(out / "detections.json")["images"]) == 6
    assert json.loads((out / "detections.json").read_text())["info"]["skipped"].keys() == {"zzz.png"}


def test_shards__more_than_pictures(predict: Predict, tmp_path: Path) -> None:
    counts = [predict(out=str(tmp_path / "o"), shard=f"{i}/7", prompts=["red"]).images for i in range(1, 8)]
    assert counts == [1, 1, 1, 1, 1, 0, 0]
    assert len(content(tmp_path / "o/detections.json")["images"]) == 5


def test_shards__a_folder_that_was_divided_otherwise(predict: Predict, tmp_path: Path) -> None:
    predict(shard="1/2")
    with pytest.raises(UserError, match=r"was begun with 2 shards, not 3; use --shard i/2, or another --out"):
        predict(shard="1/3")
    with pytest.raises(UserError, match=r"holds a prediction in 2 shards; go on with --shard"):
        predict()
    with pytest.raises(UserError, match=r"begun with other settings \(threshold"):
        predict(shard="1/2", threshold=0.5)
    predict(out=str(tmp_path / "one"))
    with pytest.raises(UserError, match=r"holds a prediction without shards; leave --shard out"):
        predict(out=str(tmp_path / "one"), shard="1/2")


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "1/0", "-1/2", "a/b", ""])
def test_shard_of__no_shard(text: str) -> None:
    with pytest.raises(UserError, match=r"expected the process's number from 1 on and how many there are, e\.g\. 1/2"):
        shard_of(text)


def test_shard_of__torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shard_of(None) is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert shard_of(None) == Shard(2, 4)
    assert shard_of("1/2") == Shard(1, 2)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--shard", "3/2"], "--shard 3/2: expected the process's number"),
        (["--tile", "8"], "--tile 8: expected at least 32 pixels"),
        (
            ["--tile", "100", "--overlap", "120"],
            "--overlap 120 with --tile 100: expected a share in 0..1, or fewer pixels",
        ),
        (["--tile", "100", "--overlap", "-1"], "--overlap -1 with --tile 100"),
        (["--tile", "100", "--boxes", "b.json"], "--tile with --boxes: a box may lie across tiles"),
    ],
)
def test_command__refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], line: str) -> None:
    assert main(["predict", "model", "photos", "--prompt", "cup", "--out", str(tmp_path / "out"), *given]) == 2
    assert line in capsys.readouterr().err


def test_places__cover_the_picture_and_overlap() -> None:
    assert Tiling(100).places(100, 80) == []
    whole, *tiles = Tiling(100, 0.2).places(150, 260)
    assert whole == Place(0, 0, 260, 150)
    seen = np.zeros((150, 260), dtype=int)
    for place in tiles:
        assert (place.width, place.height) == (100, 100)
        seen[place.y : place.y + 100, place.x : place.x + 100] += 1
    assert seen.min() == 1
    assert sorted({place.x for place in tiles}) == [0, 80, 160]
    assert sorted({place.y for place in tiles}) == [0, 50]
    assert [place.x for place in Tiling(100, 30).places(50, 240)[1:]] == [0, 70, 140]


def found(*rows: tuple[tuple[int, int, int, int], float, int], size: tuple[int, int]) -> Detections:
    """Detections with filled boxes (x1, y1, x2, y2) as masks in a picture of (height, width)."""
    masks = []
    for (x1, y1, x2, y2), _, _ in rows:
        mask = np.zeros(size, dtype=np.uint8, order="F")
        mask[y1:y2, x1:x2] = 1
        masks.append(mask_utils.encode(mask))
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return Detections(7, boxes, torch.tensor([row[1] for row in rows]), labels, masks)


def test_merge_tiles__one_detection_per_object() -> None:
    """A picture of 100 x 160 in two tiles of 100: an object in both, one that the edge cuts, one of another phrase."""
    left, right = Place(0, 0, 100, 100), Place(60, 0, 100, 100)
    whole = found(((70, 10, 90, 30), 0.6, 1), ((20, 50, 150, 90), 0.7, 1), size=(100, 160))
    first = found(((70, 10, 90, 30), 0.8, 1), ((20, 50, 100, 90), 0.95, 1), size=(100, 100))
    second = found(((10, 10, 30, 30), 0.9, 1), ((0, 50, 90, 90), 0.9, 1), ((10, 10, 30, 30), 0.5, 2), size=(100, 100))
    merged = merge_tiles([(whole, Place(0, 0, 160, 100)), (first, left), (second, right)], 100, 160, 100)
    assert merged.image_id == 7
    rows = [(label, round(score, 2), box) for label, score, box in zip(
        merged.labels.tolist(), merged.scores.tolist(), merged.boxes.tolist(), strict=True
    )]  # fmt: skip
    assert rows == [(1, 0.9, [70, 10, 90, 30]), (1, 0.7, [20, 50, 150, 90]), (2, 0.5, [70, 10, 90, 30])]
    assert merged.rles is not None
    assert [mask_utils.area(rle) for rle in merged.rles] == [400, 130 * 40, 400]
    assert len(merge_tiles([(whole, Place(0, 0, 160, 100))], 100, 160, 1)) == 1


def test_predict_files__tiles_of_a_large_picture(predict: Predict, photos: Path, tmp_path: Path) -> None:
    draw(photos / "large.png", 5, size=(150, 90))
    done = predict(images=[str(photos / "large.png")], tile=64, overlap=0.25, out=str(tmp_path / "tiled"))
    made = content(done.path)
    assert [(image["width"], image["height"]) for image in made["images"]] == [(150, 90)]
    assert 0 < len(made["annotations"]) <= 5
    for entry in made["annotations"]:
        x, y, w, h = entry["bbox"]
        assert 0 <= x < x + w <= 150 + 1e-3
        assert 0 <= y < y + h <= 90 + 1e-3
        assert entry["segmentation"]["size"] == [90, 150]
    small = predict(images=[str(photos / "a.png")], tile=64, out=str(tmp_path / "small"))
    plain = predict(images=[str(photos / "a.png")], out=str(tmp_path / "plain"))
    assert content(small.path) == content(plain.path)


def test_spec__a_tile_is_checked_first() -> None:
    with pytest.raises(UserError, match="--overlap 64 with --tile 64"):
        PredictSpec("model", ["photos"], "out", prompts=["cup"], tile=64, overlap=64)
