"""Pictures and phrases without annotations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sam3slim.data.coco import CocoConcepts
from sam3slim.data.pictures import is_picture, picture_files, picture_index
from sam3slim.data.sampling import PromptSpec
from sam3slim.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep/.hidden").mkdir(parents=True)
    for name in ("b.png", "deep/a.JPG", "deep/.hidden/c.png", ".d.png"):
        Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / name)
    (tmp_path / "phrases.txt").write_text("\ufeffRed  Thing\n\nblue thing\nred thing\n", encoding="utf-8")
    return tmp_path


def test_picture_index__pictures_and_phrases(folder: Path) -> None:
    index = picture_index(folder, folder / "phrases.txt")
    assert [(r.id, r.file_name, r.height, r.width) for r in index.records] == [
        (1, "b.png", 10, 20),
        (2, "deep/a.JPG", 10, 20),
    ]
    assert [(c.id, c.phrase) for c in index.categories] == [(1, "red thing"), (2, "blue thing")]
    assert "2 images without annotations" in index.report.summary()


def test_coco_concepts__samples_of_pictures(folder: Path) -> None:
    prompts = PromptSpec(max_prompts=2, labels=False)
    data = CocoConcepts(folder, "train", image_size=16, prompts=prompts, phrases=folder / "phrases.txt")
    sample = data[0]
    assert sorted(sample.phrases) == ["blue thing", "red thing"]
    assert (tuple(sample.image.shape), len(sample.boxes), sample.masks) == ((3, 16, 16), 0, None)


def test_picture_index__bad_input_is_one_line(folder: Path) -> None:
    phrases = folder / "phrases.txt"
    (folder / "deep/broken.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"broken\.png cannot be decoded .*data\.on_unreadable=skip"):
        picture_index(folder, phrases)
    assert len(picture_index(folder, phrases, skip=True).records) == 2
    (folder / "empty").mkdir()
    for place, file, message in (
        (folder / "empty", phrases, "holds no picture"),
        (folder / "nowhere", phrases, "is not a folder"),
        (folder / "deep", folder / "nothing.txt", "cannot read"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            picture_index(place, file, skip=True)
        assert "\n" not in str(caught.value)
    phrases.write_text(" \n")
    with pytest.raises(UserError, match="holds no phrase"):
        picture_index(folder, phrases, skip=True)
    phrases.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        picture_index(folder, phrases, skip=True)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".jp2", ".ppm", ".tga", ".JPG", ".Tiff", ".mpo", ".webp"])
def test_picture_files__whatever_pillow_opens(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (20, 10), (255, 0, 0)).save(path)
    assert list(picture_files(tmp_path)) == [path]
    (tmp_path / "phrases.txt").write_text("red\n")
    (record,) = picture_index(tmp_path, tmp_path / "phrases.txt").records
    assert (record.file_name, record.height, record.width) == (path.name, 10, 20)


@pytest.mark.parametrize(
    "name", ["a.txt", "a.json", "a.mpg", "a.hdf", "a.h5", "a.pdf", "a.eps", "a", "jpg", ".jpg", ".a.jpg", "a.jpg.part"]
)
def test_is_picture__other_files(name: str) -> None:
    assert not is_picture(name)


def test_picture_files__links_to_folders_are_followed_once(folder: Path) -> None:
    (folder / "deep/up").symlink_to(folder)  # a circle
    (folder / "side").mkdir()
    (folder / "side/link").symlink_to(folder / "deep")
    assert [path.relative_to(folder).as_posix() for path in picture_files(folder)] == ["b.png", "deep/a.JPG"]


def test_picture_files__without_the_folder_to_leave_out(folder: Path) -> None:
    assert list(picture_files(folder, leave_out=folder / "deep")) == [folder / "b.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_picture_files__a_folder_that_cannot_be_listed(folder: Path) -> None:
    (folder / "deep").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot list .*deep: Permission denied; fix its permissions"):
            list(picture_files(folder))
    finally:
        (folder / "deep").chmod(0o700)
