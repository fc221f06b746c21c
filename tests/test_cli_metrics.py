"""``sam3slim metrics``: the numbers of the official evaluators, of files that any model may have written."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam3slim.cli import main
from sam3slim.results.coco import NUMBERS
from tests.prediction_files import random_files

# The official evaluator's words → ours.
WORDS = {
    "cgF1": "cgf1", "precision": "precision", "recall": "recall", "F1": "f1", "positive_macro_F1": "macro_f1",
    "positive_micro_F1": "pmf1", "positive_micro_precision": "pm_precision", "IL_precision": "il_precision",
    "IL_recall": "il_recall", "IL_F1": "il_f1", "IL_FPR": "il_fpr", "IL_MCC": "il_mcc",
}  # fmt: skip
ENDINGS = {"": "", "0.5": "_50", "0.75": "_75"}


def metrics(*arguments: str | Path, out: Path) -> dict[str, Any]:
    assert main(["metrics", *map(str, arguments), "--out", str(out)]) == 0
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def one(*arguments: str | Path, out: Path) -> dict[str, dict[str, float]]:
    (only,) = metrics(*arguments, out=out)["sets"]
    numbers: dict[str, dict[str, float]] = only["metrics"]
    return numbers


@pytest.mark.parametrize("name", ["small", "one_annotator", "three_annotators"])
def test_metrics__cgf1_is_the_official_evaluators(name: str, shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "reference/cgf1" / name
    found = one(folder / "predictions.json", *sorted(folder.glob("gt_*.json")), out=tmp_path / "out.json")
    expected = json.loads((folder / "expected.json").read_text())
    for kind, metric in (("segm", "cgf1"), ("bbox", "cgf1_bbox")):
        assert len(found[metric]) == len(expected[kind]) == 26
        for key, value in expected[kind].items():
            word, _, threshold = key.removeprefix(f"cgF1_eval_{kind}_").partition("@")
            assert found[metric][WORDS[word] + ENDINGS[threshold]] == pytest.approx(value, abs=1e-9), key


def pycocotools(annotations: Path, predictions: Path, kind: str) -> list[float | None]:
    results = json.loads(predictions.read_text())
    key = "bbox" if kind == "bbox" else "segmentation"
    kept = [{name: row[name] for name in ("image_id", "category_id", "score", key)} for row in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(kept), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else float(value) for value in evaluation.stats[[0, 1, 2, 3, 4, 5, 8]]]


@pytest.mark.parametrize("seed", range(4))
def test_metrics__map_is_pycocotools_in_any_order_and_with_equal_scores(seed: int, tmp_path: Path) -> None:
    annotations, predictions = random_files(tmp_path, seed)
    found = one(predictions, annotations, out=tmp_path / "out.json")
    for kind in ("bbox", "segm"):
        expected = pycocotools(annotations, predictions, kind)
        assert 0.05 < expected[0] < 0.95  # type: ignore[operator]
        for name, value in zip(NUMBERS, expected, strict=True):
            assert found[kind][name] == (None if value is None else pytest.approx(value, abs=1e-9)), (kind, name)


def test_metrics__what_predict_writes_is_found_by_name(tmp_path: Path) -> None:
    annotations, predictions = random_files(tmp_path, 1)
    plain = one(predictions, annotations, out=tmp_path / "out.json")
    truth, results = json.loads(annotations.read_text()), json.loads(predictions.read_text())
    images = {image["id"]: n for n, image in enumerate(truth["images"], start=1)}
    written = {
        "images": [{"id": images[i["id"]], "file_name": f"photos/{i['file_name']}"} for i in truth["images"][:-1]],
        "categories": [{"id": 10 + c["id"], "name": c["name"].upper()} for c in truth["categories"]],
        "annotations": [
            row | {"image_id": images[row["image_id"]], "category_id": 10 + row["category_id"]}
            for row in results
            if row["image_id"] != truth["images"][-1]["id"]
        ],
    }
    (tmp_path / "detections.json").write_text(json.dumps(written))
    again = metrics(tmp_path / "detections.json", annotations, out=tmp_path / "out.json")["sets"][0]
    assert again["notes"] == ["1 of 30 images are not among the predictions': nothing found there"]
    assert again["metrics"]["segm"]["map"] == pytest.approx(plain["segm"]["map"], abs=0.1)


def test_metrics__a_worse_models_drop_has_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, predictions = random_files(tmp_path, 2)
    worse = [row for n, row in enumerate(json.loads(predictions.read_text())) if n % 3]
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    found = metrics(tmp_path / "worse.json", annotations, "--reference", predictions, out=tmp_path / "out.json")
    drop = found["sets"][0]["drop"]
    assert set(drop) == {"bbox", "segm", "cgf1", "cgf1_bbox"}
    for name in drop:
        low, high = drop[name]["ci95"]
        assert low < drop[name]["points"] < high
    assert "segm drop, points (95 %): " in capsys.readouterr().out


def test_metrics__folders_are_many_sets_with_their_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = []
    for seed, name in enumerate(("aerial", "sub/tools", "cells")):
        annotations, predictions = random_files(tmp_path / "files" / name, seed, masks=name != "cells")
        values.append(one(predictions, annotations, out=tmp_path / "out.json"))
        for kind, path in (("a", annotations), ("p", predictions)):
            target = tmp_path / kind / f"{name}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    capsys.readouterr()
    found = metrics(tmp_path / "p", tmp_path / "a", out=tmp_path / "out.json")
    assert [one["name"] for one in found["sets"]] == ["aerial", "cells", "sub/tools"]
    for number in ("map", "map_50"):
        assert found["mean"]["bbox"][number] == pytest.approx(sum(one["bbox"][number] for one in values) / 3)
    assert "segm" not in found["mean"]  # the cells have no masks
    assert "mean of 3 sets" in capsys.readouterr().out
    (tmp_path / "a/cells.json").unlink()
    assert main(["metrics", str(tmp_path / "p"), str(tmp_path / "a")]) == 2
    assert "has no cells.json, which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 999}, "prediction 1 is of image 999, which .*annotations.json does not list; give"),
        ({"category_id": "x"}, "prediction 1 has category x, which is not among the categories"),
        ({"score": None}, "prediction 1 has score null, expected a number"),
        ({"score": float("nan")}, "prediction 1 has score NaN, expected a number"),
        ({"bbox": [1, 2, 3]}, r"prediction 1 has bbox \[1, 2, 3\], expected \[x, y, width, height\]"),
        ({"segmentation": {"size": [1, 2], "counts": "00"}}, "has an RLE of size .* that is not a mask of its 80x60"),
        ({"segmentation": {"size": [60, 80], "counts": "zz"}}, "has an RLE of size .* that is not a mask of its 80x60"),
        ({"segmentation": 7}, "prediction 1: segmentation is 7, expected polygons"),
        ({"segmentation": None}, "prediction 1 has no segmentation, and others have one; add it, or use --iou bbox"),
    ],
)
def test_metrics__a_broken_prediction_is_named(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, predictions = random_files(tmp_path)
    rows = json.loads(predictions.read_text())
    rows[1] |= change
    predictions.write_text(json.dumps(rows))
    assert main(["metrics", str(predictions), str(annotations)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_metrics__advice_for_missing_masks_works(tmp_path: Path) -> None:
    annotations, predictions = random_files(tmp_path)
    rows = json.loads(predictions.read_text())
    del rows[1]["segmentation"]
    predictions.write_text(json.dumps(rows))
    assert set(one(predictions, annotations, "--iou", "bbox", out=tmp_path / "out.json")) == {"bbox", "cgf1_bbox"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds no predictions; expected COCO's results"),
        ("{}", "holds no predictions; expected COCO's results"),
        ("3", "holds no predictions; expected COCO's results"),
        ("{", "as JSON"),
        ('{"annotations": []}', "holds no list of images"),
        (
            '{"annotations": [], "categories": [], "images": [{"id": 1, "file_name": "z.png"}]}',
            "give the annotations of",
        ),
    ],
)
def test_metrics__other_files_are_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, predictions = random_files(tmp_path)
    predictions.write_text(content)
    assert main(["metrics", str(predictions), str(annotations)]) == 2
    assert message in capsys.readouterr().err
    assert main(["metrics", str(annotations), str(tmp_path / "none.json")]) == 2
    assert "none.json does not exist" in capsys.readouterr().err
    assert main(["metrics", str(tmp_path), str(annotations)]) == 2
    assert "folders beside files" in capsys.readouterr().err


def test_metrics__annotators_must_annotate_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, predictions = random_files(tmp_path / "a", 0)
    other, _ = random_files(tmp_path / "b", 1, images=29)
    assert main(["metrics", str(predictions), str(annotations), str(other)]) == 2
    assert "do not annotate the same images (29 and 30)" in capsys.readouterr().err
    assert set(one(predictions, annotations, annotations, out=tmp_path / "out.json")) == {"cgf1", "cgf1_bbox"}


def test_metrics__nothing_found_and_polygons(tmp_path: Path) -> None:
    annotations, predictions = random_files(tmp_path)
    predictions.write_text("[]")
    assert one(predictions, annotations, out=tmp_path / "out.json")["segm"]["map"] == 0
    content = json.loads(annotations.read_text())
    for item in content["annotations"]:
        x, y, w, h = (round(side) for side in item["bbox"])
        item["segmentation"] = (
            [[x, y, x + w, y, x + w, y + h, x, y + h]] if not item["iscrowd"] else item["segmentation"]
        )
    annotations.write_text(json.dumps(content))
    rows = [
        {
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "segmentation": item["segmentation"],
            "score": 1,
        }
        for item in content["annotations"]
        if not item["iscrowd"]
    ]
    predictions.write_text(json.dumps(rows))
    found = one(predictions, annotations, out=tmp_path / "out.json")
    assert found["segm"]["map"] == found["bbox"]["map_50"] == pytest.approx(1.0)
