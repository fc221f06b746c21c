"""Pictures and phrases from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sam3slim.errors import UserError
from sam3slim.predict import BoxPrompt, Predictor
from tests.predict.conftest import draw
from tests.tiny import SPEC

QUERIES = SPEC.decoder.num_queries


@pytest.fixture(scope="module")
def predictor(artifact: Path) -> Predictor:
    return Predictor(artifact, "cpu", batch_size=2)


def found(predictor: Predictor, picture: Any, **given: Any) -> list[float]:
    (one,) = predictor(picture, given.pop("prompts", "red"), threshold=0.0, **given)
    return [round(score, 5) for score in one.scores.tolist()]


def test_predictor__labels_and_order(predictor: Predictor, photos: Path) -> None:
    pictures = [photos / name for name in ("a.png", "b.png", "more/d.png")]
    rows = predictor(pictures, ["red", "a cup"], threshold=0.0, max_per_image=7)
    assert [len(row) for row in rows] == [7, 7, 7]
    for row in rows:
        assert set(row.labels.tolist()) <= {1, 2}
        assert torch.equal(row.scores, row.scores.sort(descending=True).values)
        assert row.rles is not None
        assert {tuple(rle["size"]) for rle in row.rles} == {(32, 40)}
    assert predictor([], ["red"]) == []


def test_predictor__kinds_of_pictures_agree(predictor: Predictor, photos: Path) -> None:
    path = photos / "a.png"
    with Image.open(path) as image:
        pixels = np.asarray(image)
        expected = found(predictor, path)
        assert len(expected) == QUERIES
        assert found(predictor, image) == found(predictor, str(path)) == found(predictor, pixels) == expected
        assert found(predictor, np.asfortranarray(pixels)) == expected


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_predictor__modes_are_read_as_rgb(predictor: Predictor, photos: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("odd.tif" if mode == "CMYK" else "odd.png")
    with Image.open(photos / "a.png") as image:
        converted = image.convert(mode)
    converted.save(path)
    assert found(predictor, path) == found(predictor, converted) == found(predictor, converted.convert("RGB"))


def test_predictor__a_turned_picture_is_asked_upright(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos / "a.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.size == (32, 40)
        assert (
            found(predictor, turned) == found(predictor, tmp_path / "turned.png") == found(predictor, photos / "a.png")
        )


def test_predictor__boxes_change_their_picture_alone(predictor: Predictor, photos: Path) -> None:
    pictures = [photos / "a.png", photos / "b.png"]
    plain = predictor(pictures, ["red"], threshold=0.0)
    boxed = predictor(pictures, ["red"], threshold=0.0, boxes=[[], [BoxPrompt((2, 2, 9, 9), "red")]])
    torch.testing.assert_close(boxed[0].scores, plain[0].scores, rtol=0, atol=1e-5)
    assert not torch.allclose(boxed[1].scores, plain[1].scores, atol=1e-5)
    (alone, none) = predictor(pictures, threshold=0.0, boxes=[[BoxPrompt((2, 2, 9, 9))], []])
    assert (alone.labels.tolist(), len(none)) == ([1] * QUERIES, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, r"^nothing to look for; give prompts or boxes$"),
        ({"prompts": ["red", "red "]}, r"^prompts holds a phrase more than once, so labels would not count"),
        ({"prompts": [""]}, r"^--prompt '' is empty; give a phrase$"),
        ({"boxes": []}, r"^boxes has 0 entries for 1 images; give one list per image$"),
        ({"boxes": [[BoxPrompt((90, 0, 5, 5))]]}, r"^boxes of .*a\.png: bbox \[.*\] covers nothing of the 40x32"),
        ({"boxes": [[BoxPrompt((1, 1, 5, 5), label=0)]]}, r"^boxes of .*a\.png: boxes without a prompt are all nega"),
    ],
)
def test_predictor__bad_questions(predictor: Predictor, photos: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor([photos / "a.png"], **{"prompts": ["red"], **given})


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"^image number 1 is uint8 \[4, 5\]; expected uint8 \[height, width, 3\]$"),
        (np.zeros((4, 5, 4), np.uint8), r"^image number 1 is uint8 \[4, 5, 4\]; expected uint8"),
        (np.zeros((4, 5, 3), np.float32), r"^image number 1 is float32 \[4, 5, 3\]; expected uint8"),
        (np.zeros((0, 5, 3), np.uint8), r"^image number 1 is uint8 \[0, 5, 3\]; expected uint8"),
        (Image.new("F", (4, 5)), r"^image number 1 holds floating-point pixels, expected 8 or 16 bit$"),
        ("nowhere.png", r"^image nowhere\.png cannot be decoded \(.*No such file"),
    ],
    ids=["grey", "four channels", "float", "empty", "PIL float", "no file"],
)
def test_predictor__bad_pictures(predictor: Predictor, photos: Path, picture: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor([photos / "a.png", picture], ["red"])


def test_predictor__a_pil_picture_that_is_cut_off(predictor: Predictor, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.bmp")
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image, pytest.raises(UserError, match=r"^image number 0 .*truncated"):
        predictor(image, ["red"])


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"prompt_chunk": -1}])
def test_predictor__sizes_out_of_range(artifact: Path, given: dict[str, int]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(UserError, match=rf"^{name}={value}: expected at least 1$"):
        Predictor(artifact, "cpu", **given)  # type: ignore[arg-type]


def test_predictor__out_of_gpu_memory_is_one_line(
    predictor: Predictor, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sam3slim.predict.predictor.predict_batch", fail)
    with pytest.raises(
        UserError, match=r"^out of GPU memory with 1 images and 32 prompts at once; use a smaller --pro"
    ):
        predictor(photos / "a.png", ["red"])


def test_predictor__features_of_phrases_are_kept_up_to_a_limit(
    artifact: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(artifact, "cpu")
    expected = found(predictor, photos / "a.png", prompts=["red", "blue"])
    cache = predictor._cache
    assert len(cache) == 2
    monkeypatch.setattr("sam3slim.predict.predictor.KEPT_PHRASES", 1)
    assert found(predictor, photos / "a.png", prompts=["red", "blue"]) == expected
    assert predictor._cache is not cache


def test_predictor__another_image_size(artifact: Path, photos: Path) -> None:
    smaller = Predictor(artifact, "cpu", image_size=24)
    assert smaller.image_size == 24
    assert len(found(smaller, photos / "a.png")) == QUERIES
    with pytest.raises(UserError, match=r"image_size=30 is not a multiple of .*use 24 or 32"):
        Predictor(artifact, "cpu", image_size=30)
