"""Lists of phrases."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam3slim.data.annotations import category_phrases
from sam3slim.errors import UserError
from sam3slim.text.phrases import read_phrase_list
from tests.data.samples import CocoWriter


def test_read_phrase_list__blank_lines_and_repeats_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("\ufeffred  bus \n\n\t\ndog\nred bus\n")
    assert read_phrase_list(file) == ["red bus", "dog"]


def test_read_phrase_list__nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.txt"):
        read_phrase_list(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").write_text("\n  \n")
    with pytest.raises(UserError, match=r"empty\.txt holds no phrase; write one on every line"):
        read_phrase_list(tmp_path / "empty.txt")


def test_category_phrases__without_reading_annotations(write_coco: CocoWriter) -> None:
    root = write_coco([{"category_id": "broken"}], names=("Red_Circle", "cup", "red circle"))
    assert category_phrases(root / "instances_train.json") == ["red circle", "cup"]
