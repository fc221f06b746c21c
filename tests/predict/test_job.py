"""Whole runs: many pictures into a folder, stopped and gone on with."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.artifacts import write_artifact
from sam3slim.errors import UserError
from sam3slim.predict import PredictSpec
from sam3slim.predict.predictor import Predictor, PredictRequest
from sam3slim.predict.writer import OutputFolder
from tests.predict.conftest import Predict, detections, draw, names
from tests.small import small_model
from tests.tiny import SPEC

ALL = ["a.png", "b.png", "c.png", "more/a.png", "more/d.png"]

FORKS = multiprocessing.get_context("fork")  # a process that imports PyTorch anew takes seconds


def killed(predict: Predict, waiting: Any) -> None:
    """Predicts; at the third picture it has written half a line and two half files, and waits."""

    def add(self: OutputFolder, picture: Any, *given: Any) -> Any:
        if len(self) < 2:
            return original(self, picture, *given)
        self._parts.write(b'{"path": "' + str(picture.path).encode())
        (self.folder / ".detections.0123abcd.tmp.json").write_text("{")
        (self.folder / "overlays/.c.png.0123abcd.tmp.jpg").write_text("x")
        waiting.set()
        signal.pause()

    original = OutputFolder.add
    OutputFolder.add = add  # type: ignore[method-assign]
    predict()


@contextmanager
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the pictures that pass the model."""
    seen: list[str] = []

    def answer(self: Predictor, pictures: list[PredictRequest], *given: Any) -> Any:
        seen.extend(one.info.file_name for one in pictures)
        return original(self, pictures, *given)

    original = Predictor.answer
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer", answer)
        yield seen


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def undisturbed(predict: Predict, tmp_path: Path) -> dict[str, bytes]:
    """The files that a run in one go writes into a folder that is gone again."""
    predict()
    found = files(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "undisturbed")
    return found


def test_predict_files__what_is_written(predict: Predict, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = predict()
    assert (done.images, done.kept, done.detections, done.skipped, done.unasked) == (5, 0, 25, {}, 0)
    assert done.path == out / "detections.json"
    found = detections(out)
    assert names(out) == ALL
    assert [(row["id"], row["name"]) for row in found["categories"]] == [(1, "red"), (2, "a cup")]
    for number, image in enumerate(found["images"], start=1):
        own = [row for row in found["annotations"] if row["image_id"] == number]
        assert (image["id"], image["width"], image["height"], len(own)) == (number, 40, 32, 5)
        assert [row["score"] for row in own] == sorted((row["score"] for row in own), reverse=True)
        for row in own:
            x, y, w, h = row["bbox"]
            assert x >= 0 <= y
            assert x + w <= 40.001
            assert y + h <= 32.001
            assert row["segmentation"]["size"] == [32, 40]
            assert row["area"] == mask_utils.decode(row["segmentation"]).sum()
        with Image.open(out / f"overlays/{image['file_name']}.jpg") as overlay:
            assert overlay.size == (40, 32)
    assert {row["category_id"] for row in found["annotations"]} <= {1, 2}
    assert {row["id"] for row in found["annotations"]} == set(range(1, 26))


def test_predict_files__threshold_and_count(predict: Predict, tmp_path: Path) -> None:
    predict(overlays=False, max_per_image=100)
    rows = detections(tmp_path / "out")["annotations"]
    assert len(rows) == 5 * 2 * SPEC.decoder.num_queries
    scores = sorted(row["score"] for row in rows)
    middle = (scores[29] + scores[30]) / 2
    predict(overlays=False, max_per_image=100, threshold=middle, overwrite=True)
    kept = detections(tmp_path / "out")["annotations"]
    assert sorted(row["score"] for row in kept) == [score for score in scores if score > middle]


def test_predict_files__killed_and_gone_on_with(
    predict: Predict, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, waiting = tmp_path / "out", FORKS.Event()
    child = FORKS.Process(target=killed, args=(predict, waiting))
    child.start()
    try:
        assert waiting.wait(120)
        before = (out / "parts.jsonl").read_bytes()
        for overwrite in (False, True):
            with pytest.raises(UserError, match=r"^output folder .*/out is in use by another run; wait for it, or ch"):
                predict(overwrite=overwrite)
        assert (out / "parts.jsonl").read_bytes() == before
    finally:
        child.kill()
        child.join()
    with asked(monkeypatch) as seen:
        done = predict()
    assert (done.kept, done.images) == (2, 3)
    assert seen == ALL[2:]
    assert files(out) == undisturbed
    assert (out / "parts.jsonl").read_bytes().startswith(before[: before.rindex(b"\n") + 1])


@pytest.mark.parametrize("where", ["add", "finish"])
def test_predict_files__interrupted(
    predict: Predict,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    def stop(self: OutputFolder, *given: Any) -> Any:
        if where == "add" and len(self) < 3:
            return original(self, *given)
        raise KeyboardInterrupt

    original = getattr(OutputFolder, where)
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, where, stop)
        with pytest.raises(KeyboardInterrupt):
            predict()
    assert not (tmp_path / "out/detections.json").exists()
    if where == "add":
        assert capsys.readouterr().err == f"3 images are kept in {tmp_path / 'out'}; the same command goes on\n"
    with asked(monkeypatch) as seen:
        done = predict()
    assert seen == (ALL[3:] if where == "add" else [])
    assert (done.kept, done.detections) == (5 - len(seen), 25)
    assert files(tmp_path / "out") == undisturbed


def test_predict_files__finished_is_not_done_again(
    predict: Predict, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict()
    before = files(tmp_path / "out")
    with asked(monkeypatch) as seen:
        done = predict()
        assert (done.images, done.kept, done.detections, seen) == (0, 5, 25, [])
        assert files(tmp_path / "out") == before
        # A new picture, one with other content, one that is gone, and an overlay that was deleted.
        draw(photos / "e.png", 7)
        draw(photos / "b.png", 8)
        (photos / "a.png").unlink()
        (tmp_path / "out/overlays/c.png.jpg").unlink()
        predict()
        assert seen == ["b.png", "c.png", "e.png"]
    assert names(tmp_path / "out") == ["b.png", "c.png", "e.png", "more/a.png", "more/d.png"]


def test_predict_files__overlays_later(predict: Predict, tmp_path: Path) -> None:
    predict(overlays=False)
    before = (tmp_path / "out/detections.json").read_bytes()
    assert not (tmp_path / "out/overlays").exists()
    assert predict(overlays=True).images == 5
    assert (tmp_path / "out/overlays/more/d.png.jpg").is_file()
    assert (tmp_path / "out/detections.json").read_bytes() == before
    assert predict(overlays=False).kept == 5


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"prompts": ["red"]}, "prompts"),
        ({"threshold": 0.25}, "threshold"),
        ({"max_per_image": 4}, "max_per_image"),
        ({"presence_threshold": 0.1}, "presence_threshold"),
        ({"image_size": 24}, "image_size"),
        ({"boxes_file": '{"a.png": [{"bbox": [1, 1, 9, 9]}]}'}, "boxes"),
        ({"source": 2}, "model"),
        ({"images": "more"}, "images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_predict_files__other_settings_in_the_same_folder(
    predict: Predict, photos: Path, tmp_path: Path, changed: dict[str, Any], key: str
) -> None:
    out = tmp_path / "out"
    predict()
    before = files(out)
    if key == "boxes":
        (tmp_path / "boxes.json").write_text(changed["boxes_file"])
        changed = {"boxes_file": str(tmp_path / "boxes.json")}
    elif key == "model":
        write_artifact(small_model(SPEC).half(), tmp_path / "other")
        changed = {"source": str(tmp_path / "other")}
    elif key == "images":
        changed = {"images": [str(photos / "more")]}
    with pytest.raises(
        UserError, match=rf"^output folder {out} was begun with other settings \({key} .*, now "
    ) as told:
        predict(**changed)
    assert "\n" not in str(told.value)
    assert files(out) == before
    (out / "mine.txt").write_text("mine")
    done = predict(**changed, overwrite=True)
    assert (done.images, done.kept) == (2 if key == "images" else 5, 0)
    assert (out / "mine.txt").read_text() == "mine"
    assert len(detections(out)["images"]) == done.images == len(list((out / "overlays").rglob("*.jpg")))


def test_predict_files__unreadable_pictures(
    predict: Predict, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "b.png").write_bytes(b"no picture")
    whole = (photos / "more/a.png").read_bytes()
    (photos / "more/a.png").write_bytes(whole[: len(whole) // 2])
    (photos / "gone.png").symlink_to(photos / "nowhere")
    with asked(monkeypatch) as seen:
        done = predict(batch_size=2)
        assert seen == ["a.png", "c.png", "more/d.png"]
        assert (done.images, done.kept) == (3, 0)
        assert list(done.skipped) == ["b.png", "gone.png", "more/a.png"]
        assert all(reason.startswith("cannot be decoded (") for reason in done.skipped.values())
        assert detections(tmp_path / "out")["info"]["skipped"] == done.skipped
        assert names(tmp_path / "out") == ["a.png", "c.png", "more/d.png"]
        again = predict(batch_size=2)
        assert (again.images, again.kept, again.skipped) == (0, 3, done.skipped)
        assert len(seen) == 3
        (photos / "more/a.png").write_bytes(whole)  # repaired, it is done by the same command
        assert predict(batch_size=2).images == 1
    assert names(tmp_path / "out") == ["a.png", "c.png", "more/a.png", "more/d.png"]


def test_predict_files__no_picture_can_be_read(predict: Predict, photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"^none of the 5 images can be read; the first, a\.png, cannot be decoded \("):
        predict()
    assert not (tmp_path / "out/detections.json").exists()


def test_predict_files__a_picture_changes_while_it_is_predicted_on(
    predict: Predict, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(self: Predictor, pictures: list[PredictRequest], *given: Any) -> Any:
        if pictures[0].info.file_name == "b.png":
            draw(photos / "b.png", 9, (50, 50))
        return original(self, pictures, *given)

    original = Predictor.answer
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer", answer)
        assert predict().skipped == {"b.png": "was changed meanwhile; the same command does it again"}
    assert names(tmp_path / "out") == ["a.png", "c.png", "more/a.png", "more/d.png"]
    done = predict()
    assert (done.images, done.skipped, names(tmp_path / "out")) == (1, {}, ALL)


def test_predict_files__boxes_of_some_pictures(predict: Predict, photos: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({
        "b.png": [{"bbox": [2, 2, 20, 20]}, {"bbox": [30, 0, 5, 5], "label": 0}],
        "more/d.png": [{"bbox": [0, 0, 8, 8], "prompt": "red"}],
        "c.png": [{"bbox": [0, 0, 8, 8]}],
    }))  # fmt: skip
    (photos / "c.png").write_bytes(b"no picture")
    done = predict(prompts=[], boxes_file=str(boxes), max_per_image=100)
    found = detections(tmp_path / "out")
    assert [row["name"] for row in found["categories"]] == ["visual", "red"]
    rows = [(row["image_id"], row["category_id"]) for row in found["annotations"]]
    queries = SPEC.decoder.num_queries
    assert rows == [(2, 1)] * queries + [(5, 2)] * queries
    # Nothing was asked of a.png and more/a.png; c.png has a box and cannot be read.
    assert (done.unasked, list(done.skipped), done.images) == (2, ["c.png"], 4)
    # The box makes a difference to its own picture, and to no other.
    predict(prompts=["red"], overwrite=True, max_per_image=100)
    plain = detections(tmp_path / "out")["annotations"]
    predict(prompts=["red"], boxes_file=str(boxes), overwrite=True, max_per_image=100)
    helped = [row for row in detections(tmp_path / "out")["annotations"] if row["category_id"] == 1]
    for number, equal in ((1, True), (2, True), (5, False)):
        ours, theirs = ([r["score"] for r in rows if r["image_id"] == number] for rows in (plain, helped))
        assert (ours == theirs) is equal


def test_predict_files__output_inside_the_pictures(predict: Predict, photos: Path) -> None:
    out = photos / "out"
    predict(out=str(out))
    before = files(out)
    assert predict(out=str(out)).kept == 5
    assert files(out) == before
    assert names(out) == ALL


def test_predict_files__batches_and_chunks_change_nothing(predict: Predict, tmp_path: Path) -> None:
    predict(max_per_image=100)
    single = detections(tmp_path / "out")
    predict(max_per_image=100, overwrite=True, batch_size=3, prompt_chunk=1)
    several = detections(tmp_path / "out")
    assert several["images"] == single["images"]
    for ours, theirs in zip(single["annotations"], several["annotations"], strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)


def test_predict_files__a_name_of_250_letters(predict: Predict, photos: Path, tmp_path: Path) -> None:
    draw(photos / ("x" * 250 + ".png"))
    assert predict().images == 6
    assert predict().kept == 6
    assert len(list((tmp_path / "out/overlays").glob("*.jpg"))) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 1.5}, r"^--threshold 1\.5: expected a score in 0\.\.1$"),
        ({"threshold": float("nan")}, r"^--threshold nan: expected a score in 0\.\.1$"),
        (
            {"presence_threshold": -0.1},
            r"^--presence-threshold -0\.1: expected a probability in 0\.\.1$",
        ),
        ({"max_per_image": 0}, r"^--max-per-image 0: expected at least 1$"),
        ({"batch_size": -1}, r"^--batch-size -1: expected at least 1$"),
        ({"prompt_chunk": 0}, r"^--prompt-chunk 0: expected at least 1$"),
        ({"prompts": []}, r"^nothing to look for; give --prompt PHRASE, --prompts FILE or --boxes FILE$"),
    ],
)
def test_predict_spec__values_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictSpec(**{"source": "x", "images": ["y"], "out": "z", "prompts": ["red"], **given})


def test_predict_files__nothing_is_written_for_bad_input(predict: Predict, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("[]")
    for given in (
        {"images": [str(tmp_path / "nowhere")]}, {"prompts": [" "]}, {"prompts_file": str(tmp_path / "no.txt")},
        {"boxes_file": str(tmp_path / "boxes.json")}, {"source": str(tmp_path / "no_model")}, {"device": "tpu"},
        {"dtype": "fp8"}, {"dtype": "fp16"},
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            predict(**given)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
