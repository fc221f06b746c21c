"""Which pictures are found, under which names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam3slim.errors import UserError
from sam3slim.predict.images import Picture, find_pictures, shared_folder
from tests.predict.conftest import draw


def found(*sources: str | Path, leave_out: Path | None = None) -> list[str]:
    return [picture.name for picture in find_pictures(sources, leave_out)]


def test_find_pictures__a_folder_and_everything_below(photos: Path) -> None:
    draw(photos / ".hidden/e.png")
    draw(photos / ".e.png")
    (photos / "notes.txt").write_text("x")
    pictures = find_pictures([photos])
    assert [p.name for p in pictures] == ["a.png", "b.png", "c.png", "more/a.png", "more/d.png"]
    assert [p.image_id for p in pictures] == [1, 2, 3, 4, 5]
    assert pictures[3] == Picture(photos / "more/a.png", "more/a.png", 4)


@pytest.mark.parametrize("name", ["A.JPG", "b.JPEG", "c.Png", "d.jfif", "e.jpe", "f.avif", "g.jp2", "h.ppm", "i.tga"])
def test_find_pictures__endings_of_any_case(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "in" / name)
    assert found(tmp_path / "in") == [name]
    assert found(f"{tmp_path}/in/*") == [name]


@pytest.mark.parametrize("name", ["two words.png", "grün 图片 é.png", "a[1].png", "100%.png", "#&'(),.png", "-x.png"])
def test_find_pictures__odd_names(tmp_path: Path, name: str) -> None:
    path = draw(tmp_path / "in it" / name)
    (tmp_path / "list.txt").write_text(f"in it/{name}\n", encoding="utf-8")
    for source in (tmp_path / "in it", path, tmp_path / "list.txt"):
        assert [(p.name, p.path) for p in find_pictures([source])] == [(name, path)]


def test_find_pictures__each_once_in_the_order_given(photos: Path) -> None:
    assert found(photos / "more/d.png", photos, photos / "./b.png") == [
        "more/d.png", "a.png", "b.png", "c.png", "more/a.png",
    ]  # fmt: skip


def test_find_pictures__globs(photos: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("x")
    assert found(f"{photos}/*.png") == ["a.png", "b.png", "c.png"]
    # A folder that matches counts with everything below.
    assert found(f"{photos}/m*") == ["a.png", "d.png"]
    assert found(f"{photos}/**") == ["a.png", "b.png", "c.png", "more/a.png", "more/d.png"]
    assert found(f"{photos}/**/a.png") == ["a.png", "more/a.png"]
    with pytest.raises(UserError, match=r"^no images in .*\*\.jpg; expected files that Pillow opens"):
        found(f"{photos}/*.jpg")


def test_find_pictures__lists(photos: Path) -> None:
    listed = photos / "LIST.TXT"
    listed.write_text(f"\ufeffmore/d.png\n\n  {photos}/a.png  \nb.data\n", encoding="utf-8")
    (photos / "b.png").rename(photos / "b.data")  # another ending, named itself
    assert found(listed) == ["more/d.png", "a.png", "b.data"]
    listed.write_text("a.png\n\ngone.png\n")
    with pytest.raises(UserError, match=r"LIST\.TXT line 3: no file .*gone\.png; paths are relative to the list's"):
        found(listed)
    listed.write_text("\n")
    with pytest.raises(UserError, match=r"no images in .*LIST\.TXT"):
        found(listed)
    listed.write_bytes(b"caf\xe9.png\n")
    with pytest.raises(UserError, match=r"LIST\.TXT is not UTF-8 text"):
        found(listed)


def test_find_pictures__not_those_of_the_output_folder(photos: Path) -> None:
    draw(photos / "out/overlays/a.png.jpg")
    for source in (photos, f"{photos}/**"):
        assert not any(name.startswith("out") for name in found(source, leave_out=photos / "out"))
        assert "out/overlays/a.png.jpg" in found(source)


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "~nobody/a.png"])
def test_find_pictures__no_such_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^images .*: no such file or folder; give folders, globs, files or \.txt"):
        found(name)
    (tmp_path / "list.txt").write_text(name)
    with pytest.raises(UserError, match=r"list\.txt line 1: no file"):
        found(tmp_path / "list.txt")


def test_find_pictures__nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images given"):
        found()
    with pytest.raises(UserError, match=r"no images in .* \(another ending: name the file itself\)"):
        found(tmp_path)


def test_shared_folder__the_deepest() -> None:
    paths = [Path("/x/y/a.png"), Path("/x/y/z/b.png"), Path("/x/yy/c.png")]
    assert [shared_folder(paths[:1]), shared_folder(paths[:2]), shared_folder(paths)] == [
        Path("/x/y"), Path("/x/y"), Path("/x"),
    ]  # fmt: skip
