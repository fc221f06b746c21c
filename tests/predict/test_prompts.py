"""What is asked: phrases of the command line and of files, boxes of a JSON file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam3slim.errors import UserError
from sam3slim.predict import BoxPrompt
from sam3slim.predict.images import Picture, find_pictures
from sam3slim.predict.prompts import Prompts, check_positive, clip_box, questions, read_boxes, read_phrases
from tests.predict.conftest import Predict, detections, draw

BOX = {"bbox": [1, 2, 3, 4]}


@pytest.fixture
def pictures(photos: Path) -> list[Picture]:
    return find_pictures([photos])


def boxes(pictures: list[Picture], tmp_path: Path, content: Any) -> dict[str, tuple[BoxPrompt, ...]]:
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_boxes(path, pictures)[0]


def test_read_phrases__command_line_then_file_each_once(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("\ufeffdog\r\n\n  a  red\tcup \nbus\ndog\n", encoding="utf-8")
    assert read_phrases([" bus", "school  bus ", "bus"], file) == ("bus", "school bus", "dog", "a red cup")
    assert read_phrases([]) == ()


@pytest.mark.parametrize(
    ("given", "content", "message"),
    [
        (["dog", "  "], None, r"^--prompt '' is empty; give a phrase$"),
        ([], b" \n\n", r"^phrase list .*phrases\.txt holds no phrase; write one on every line$"),
        ([], b"caf\xe9\n", r"^.*phrases\.txt is not UTF-8 text \(byte 3\); save it as UTF-8$"),
        ([], None, r"^cannot read .*nowhere\.txt: No such file or directory; give a text file$"),
    ],
)
def test_read_phrases__bad_input(tmp_path: Path, given: list[str], content: bytes | None, message: str) -> None:
    file = tmp_path / ("phrases.txt" if content is not None else "nowhere.txt")
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_phrases(given, None if given else file)


def test_questions__every_phrase_then_what_boxes_name() -> None:
    own = (BoxPrompt((0, 0, 1, 1), "cat"), BoxPrompt((0, 0, 2, 2), "red"), BoxPrompt((0, 0, 3, 3), "cat", 0))
    prompts = Prompts(("red", "blue"), {"a.png": own})
    assert prompts.categories == {"red": 1, "blue": 2, "cat": 3}
    asked = questions(prompts.phrases, own, prompts.categories)
    assert [(q.category_id, q.phrase, q.boxes) for q in asked] == [
        (1, "red", (own[1],)), (2, "blue", ()), (3, "cat", (own[0], own[2])),
    ]  # fmt: skip
    assert questions((), (), prompts.categories) == []


def test_read_boxes__by_name_or_file_name(pictures: list[Picture], tmp_path: Path) -> None:
    found = boxes(pictures, tmp_path, {
        "more/a.png": [BOX, {"bbox": [0.5, 0, 2, 2], "prompt": " a  dog ", "label": 0}], "a.png": [BOX], "d.png": [BOX],
        "b.png": [],
    })  # fmt: skip
    assert found == {
        "more/a.png": (BoxPrompt((1, 2, 3, 4)), BoxPrompt((0.5, 0, 2, 2), "a dog", 0)),
        "a.png": (BoxPrompt((1, 2, 3, 4), "visual", 1),),  # the whole name counts before a file name further down
        "more/d.png": (BoxPrompt((1, 2, 3, 4)),),
    }


def test_read_boxes__digest_is_of_what_is_said(pictures: list[Picture], tmp_path: Path) -> None:
    def digest(content: str) -> str:
        (tmp_path / "boxes.json").write_text(content, encoding="utf-8-sig")
        return read_boxes(tmp_path / "boxes.json", pictures)[1]

    first = digest('{"a.png": [{"bbox": [1, 2, 3, 4]}], "b.png": []}')
    assert digest('{"b.png": [],\n "a.png": [{"bbox": [1, 2, 3, 4]}]}') == first
    assert digest('{"a.png": [{"bbox": [1, 2, 3, 5]}], "b.png": []}') != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"boxes\.json as JSON: Expecting property name .* line 1 column 2 .*; expected an object \{"),
        ("[" * 100_000, r"boxes\.json as JSON: "),
        ('{"a.png": [], "a.png": []}', r"boxes\.json as JSON: 'a\.png' is there twice, join the two entries"),
        ([], r"boxes\.json holds \[\], expected an object \{picture: \["),
        ({}, r"boxes\.json holds \{\}, expected an object"),
        ([{"a.png": [BOX]}], r"boxes\.json holds \[\{.*, expected an object"),
        ({"e.png": [BOX]}, r": e\.png is not among the images; expected a name such as a\.png$"),
        ({"images": [], "annotations": []}, r": images is not among the images"),
        ({"a.png": BOX}, r", a\.png: expected a list of \{\"bbox\": \[x, y, width, height\]"),
        ({"d.png": [], "more/d.png": []}, r" names more/d\.png twice; join the two entries$"),
        ({"a.png": [[1, 2, 3, 4]]}, r", a\.png\[0\] is \[1, 2, 3, 4\], expected \{\"bbox\""),
        ({"a.png": [BOX, {"box": [1, 2, 3, 4]}]}, r", a\.png\[1\] is \{\"box\": \[1, 2, 3, 4\]\}, expected \{\"bbox\""),
        ({"a.png": [{**BOX, "phrase": "dog"}]}, r", a\.png\[0\] is .*, expected \{\"bbox\""),
        ({"a.png": [{**BOX, "label": 2}]}, r"\[0\]: label is 2, expected 1 \(this\) or 0 \(not this\)$"),
        ({"a.png": [{**BOX, "label": True}]}, r"\[0\]: label is true, expected 1"),
        ({"a.png": [{**BOX, "label": "1"}]}, r"\[0\]: label is \"1\", expected 1"),
        ({"a.png": [{**BOX, "prompt": " "}]}, r"\[0\]: prompt is \" \", expected a phrase; leave it out for none$"),
        ({"a.png": [{**BOX, "prompt": None}]}, r"\[0\]: prompt is null, expected a phrase"),
        ({"a.png": [{**BOX, "label": 0}]}, r", a\.png: boxes without a prompt are all negative \(label 0\); add a"),
    ],
)  # fmt: skip
def test_read_boxes__not_such_a_file(pictures: list[Picture], tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        boxes(pictures, tmp_path, content)
    path = tmp_path / "boxes.json"
    assert str(caught.value).startswith((f"boxes file {path}", f"cannot read {path} as JSON"))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", ["[1, 2, 3]", "[1, 2, 3, 4, 5]", "[]", "null", '"1234"', '["1", 2, 3, 4]', "[NaN, 2, 3, 4]",
             "[1, 2, 3, Infinity]", "[1, 2, 1e999, 4]", "[[1], 2, 3, 4]", "[null, 2, 3, 4]",
             f"[1{'0' * 400}, 2, 3, 4]", '{"x": 1}'],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_read_boxes__not_four_numbers(pictures: list[Picture], tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"a\.png\[0\]: bbox is .*, expected \[x, y, width, height\] in pixels$"):
        boxes(pictures, tmp_path, f'{{"a.png": [{{"bbox": {text}}}]}}')


@pytest.mark.parametrize(
    "box", [[40, 0, 5, 5], [0, 32, 5, 5], [-5, 0, 5, 5], [0, -9, 5, 5], [1, 1, 0, 5], [1, 1, 5, -5], [9, 9, -3, 3]]
)
def test_read_boxes__outside_or_without_area(pictures: list[Picture], tmp_path: Path, box: list[float]) -> None:
    with pytest.raises(UserError, match=r"a\.png\[0\]: bbox \[.*\] covers nothing of the 40x32 picture; expected \[x"):
        boxes(pictures, tmp_path, {"a.png": [{"bbox": box}]})


def test_read_boxes__a_file_name_that_several_have(tmp_path: Path) -> None:
    for place in ("x", "y"):
        draw(tmp_path / f"in/{place}/a.png")
    with pytest.raises(UserError, match=r": a\.png is the name of 2 images; write x/a\.png, y/a\.png$"):
        boxes(find_pictures([tmp_path / "in"]), tmp_path, {"a.png": [BOX]})


def test_read_boxes__no_file(pictures: list[Picture], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^cannot read .*nowhere\.json as JSON: No such file or directory; expected an object"
    ):
        read_boxes(tmp_path / "nowhere.json", pictures)
    (tmp_path / "boxes.json").write_bytes(b'{"caf\xe9": []}')
    with pytest.raises(UserError, match=r"boxes\.json as JSON: 'utf-8' codec can't decode byte 0xe9"):
        read_boxes(tmp_path / "boxes.json", pictures)


def test_read_boxes__unreadable_pictures_are_left_to_their_turn(pictures: list[Picture], tmp_path: Path) -> None:
    pictures[1].path.write_bytes(b"no picture")
    assert list(boxes(pictures, tmp_path, {"a.png": [BOX], "b.png": [{"bbox": [900, 900, 5, 5]}]})) == ["a.png"]


def test_read_boxes__pixels_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    for suffix in ("jpg", "tif"):
        Image.new("RGB", (40, 32)).save(tmp_path / f"in/a.{suffix}", exif=exif)  # upright 32 wide and 40 high
    pictures = find_pictures([tmp_path / "in"])
    for picture in pictures:
        assert boxes(pictures, tmp_path, {picture.name: [{"bbox": [0, 36, 4, 4]}]})[picture.name][0].box == (
            0,
            36,
            4,
            4,
        )
        with pytest.raises(UserError, match="covers nothing of the 32x40 picture"):
            boxes(pictures, tmp_path, {picture.name: [{"bbox": [36, 0, 4, 4]}]})


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((-2, -3, 10, 10), (0, 0, 8, 7)),
        ((35, 30, 10, 10), (35, 30, 5, 2)),
        ((-1, -1, 99, 99), (0, 0, 40, 32)),
    ],
)
def test_clip_box__cut_at_the_edge_with_a_warning(
    box: tuple[float, ...], kept: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert clip_box(box, (32, 40), "here") == kept
    assert f"here: bbox {[float(v) for v in box]} is cut at the edge of the 40x32 picture" in caplog.text


def test_clip_box__inside_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert clip_box((0, 0, 40, 32), (32, 40), "here") == (0, 0, 40, 32)
    assert caplog.text == ""


@pytest.mark.parametrize("box", [np.array([1.0, 2.0, 3.0, 4.0]), [np.float32(1), np.int64(2), 3, 4.0]])
def test_box_prompt__numbers_of_numpy(box: Any) -> None:
    assert clip_box(BoxPrompt(box).box, (32, 40), "here") == (1, 2, 3, 4)


@pytest.mark.parametrize("given", [{"box": (1, 2, 3)}, {"box": None}, {"label": -1}, {"label": 1.0}, {"phrase": ""}])
def test_box_prompt__bad_values_from_python(given: dict[str, Any]) -> None:
    (name,) = given
    said = {"box": "bbox", "phrase": "prompt"}.get(name, name)
    with pytest.raises(UserError, match=rf"^{said} is .*, expected "):
        BoxPrompt(**{"box": (1.0, 2.0, 3.0, 4.0), **given})


def test_check_positive__negative_boxes_with_a_phrase_are_fine() -> None:
    check_positive([BoxPrompt((0, 0, 1, 1), "dog", 0)], "here")
    check_positive([BoxPrompt((0, 0, 1, 1), label=0), BoxPrompt((0, 0, 1, 1))], "here")
    with pytest.raises(UserError, match=r"^here: boxes without a prompt are all negative"):
        check_positive([BoxPrompt((0, 0, 1, 1), "dog"), BoxPrompt((0, 0, 1, 1), label=0)], "here")


def test_predict_files__duplicate_and_long_phrases(
    predict: Predict, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "one two three four five six seven eight nine ten and a half"
    (tmp_path / "phrases.txt").write_text(f"red\n{long}\n")
    with caplog.at_level(logging.WARNING):
        predict(prompts=["red", " red "], prompts_file=str(tmp_path / "phrases.txt"), images=[str(photos / "a.png")])
    assert [row["name"] for row in detections(tmp_path / "out")["categories"]] == ["red", long]
    (line,) = [
        record.getMessage() for record in caplog.records if "cut to the text context of 8" in record.getMessage()
    ]
    assert repr(long) in line
