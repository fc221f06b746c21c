"""The same pictures as several recorded models see them."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sam3slim.cli import main
from sam3slim.report.gallery import Gallery, gallery_runs, make_gallery
from sam3slim.results.collect import Group, collect
from tests.report.compare_runs import add_failed, add_run


def group_of(folder: Path) -> Group:
    (group,) = collect([folder]).groups
    return group


def names(group: Group, *wanted: Path) -> list[str]:
    return [run.folder.name for run in gallery_runs(group, wanted)]


def test_gallery_runs__the_full_model_and_the_front(tmp_path: Path) -> None:
    model = {"name": "full", "params": 9_000_000, "params_by_part": {}}
    add_run(tmp_path, "full", bytes=90, segm=0.8, model=model)
    add_run(tmp_path, "full_again", bytes=91, segm=0.8, model=model, precision="weights_only")
    add_run(tmp_path, "fp16", bytes=40, segm=0.79)
    add_run(tmp_path, "small", bytes=10, segm=0.5)
    add_run(tmp_path, "dominated", bytes=50, segm=0.4)
    assert names(group_of(tmp_path)) == ["full", "fp16", "small"]


def test_gallery_runs__a_long_front_is_thinned_evenly_with_its_ends(tmp_path: Path) -> None:
    for i in range(12):
        add_run(tmp_path, f"{i:02d}", bytes=10 + i, segm=0.3 + 0.01 * i)
    found = names(group_of(tmp_path))
    assert len(found) == 6
    assert (found[0], found[1], found[-1]) == ("11", "10", "00")


def test_gallery_runs__those_asked_for(tmp_path: Path) -> None:
    add_run(tmp_path, "a")
    other = add_run(tmp_path, "b", segm=0.1, bytes=99_000_000)
    assert names(group_of(tmp_path), other, tmp_path / "elsewhere") == ["b"]
    add_failed(tmp_path / "failed", "x")
    assert names(group_of(tmp_path / "failed")) == []


@pytest.fixture(scope="module")
def gallery(measured: Path) -> Gallery:
    group = group_of(measured / "runs")
    return make_gallery(group, gallery_runs(group, [r.folder for r in group.runs]), 2)


def test_make_gallery__every_model_on_the_same_images(gallery: Gallery, measured: Path) -> None:
    annotated = json.loads((measured / "shapes/annotations/instances_test.json").read_text())
    with_objects = {row["image_id"] for row in annotated["annotations"]}
    first = [row["file_name"] for row in annotated["images"] if row["id"] in with_objects][:2]
    assert gallery.names == first
    assert {Path(folder).name for folder in gallery.runs} == {"full", "fp16", "int8_weight", "int8_dynamic"}
    assert {len(pictures) for pictures in gallery.runs.values()} == {len(gallery.truth)} == {2}
    assert gallery.missing == {}
    # Every drawn object has one phrase of two words, and the others would be drawn over it.
    assert all(len(phrase.split()) == 2 for phrase in gallery.phrases)


def test_make_gallery__pictures_and_their_words(gallery: Gallery) -> None:
    for picture in [*gallery.truth, *next(iter(gallery.runs.values()))]:
        kind, _, content = picture["src"].partition(",")
        assert kind == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert max(image.size) == 288
    for picture in gallery.truth:
        found = re.fullmatch(r"ground truth: (\d+) instances?, (.*)", picture["alt"])
        assert found is not None
        assert int(found[1]) >= len(found[2].split(", ")) - 1
    assert all(row[0]["alt"].startswith("tiny ") for row in gallery.runs.values())


def test_make_gallery__an_artifact_that_is_gone_is_named(copied: Path) -> None:
    shutil.rmtree(copied / "fp16/artifact")
    group = group_of(copied)
    found = make_gallery(group, gallery_runs(group, [copied / "fp16", copied / "full"]), 1)
    assert list(found.runs) == [str(copied / "full")]
    assert "is gone" in found.missing[str(copied / "fp16")]


def test_make_gallery__pictures_are_turned_as_their_annotations(copied: Path, measured: Path, tmp_path: Path) -> None:
    data = tmp_path / "shapes"
    shutil.copytree(measured / "shapes", data)
    group = group_of(copied)
    runs = gallery_runs(group, [copied / "full"])
    upright = make_gallery(group, runs, 1, root=data)
    (path,) = (data / "test").rglob(upright.names[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    turned = make_gallery(group, runs, 1, root=data)
    assert turned.truth[0] == upright.truth[0]


def test_cli__gallery_in_the_page(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", str(copied), "--gallery", "1", "--gallery-of", str(copied / "fp16")]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/compare.html").read_text()
    assert page.count("data:image/webp;base64,") == 2
    for path in copied.glob("*/record.json"):
        values = json.loads(path.read_text())
        values["data"]["root"] = "/gone"
        path.write_text(json.dumps(values))
    capsys.readouterr()
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    assert "no gallery of shapes, test, protocol all: 4 images, 92 prompts: data set /gone is not there" in (
        capsys.readouterr().err
    )
    assert "data:image/webp" not in (tmp_path / "out/compare.html").read_text()
