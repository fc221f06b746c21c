"""Every kind of picture becomes 8-bit RGB in the frame of its annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam3slim.data.images import EXIF_ORIENTATION, UnreadableImage, read_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_read_image__modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image = Image.fromarray(RGB).convert(mode)
    image.save(path)
    pixels = read_image(path, 6, 8)
    assert pixels.shape == (6, 8, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_read_image__16_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    values = np.linspace(0, 65_535, 48).reshape(6, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", 6, 8)
    assert np.array_equal(pixels[..., 0], values >> 8)
    assert pixels[0, 0, 0] == 0
    assert pixels[-1, -1, 2] == 255


def test_read_image__palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("P")
    image.info["transparency"] = 0
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert np.array_equal(read_image(tmp_path / "a.png", 6, 8), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("turned", [True, False])
def test_read_image__exif_rotation_follows_the_annotated_size(tmp_path: Path, turned: bool) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png", *((8, 6) if turned else (6, 8)))
    assert np.array_equal(pixels, np.rot90(RGB, -1) if turned else RGB)


def test_read_image__exif_half_turn_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 3
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png", 6, 8), RGB[::-1, ::-1])


def test_read_image__other_size_than_annotated(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="is 8x6 pixels, the annotations say 80x60"):
        read_image(tmp_path / "a.png", 60, 80)


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "missing", "float"])
def test_read_image__unreadable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.tif" if kind == "float" else "a.png")
    Image.fromarray(RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "missing":
        path.unlink()
    else:
        Image.fromarray(np.zeros((60, 80), dtype=np.float32)).save(path)
    with pytest.raises(UnreadableImage):
        read_image(path, 60, 80)
