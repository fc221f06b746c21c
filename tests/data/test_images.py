"""Every kind of picture becomes 8-bit RGB in the frame of its annotations."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from sam3slim.data.images import EXIF_ORIENTATION, UnreadableImage, read_image, read_upright, rgb_of, upright_size

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


def png_16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, [height, width, channels], which Pillow can read and not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    "kind", ["grey PNG", "grey and alpha PNG", "colour PNG", "colour and alpha PNG", "int32 TIFF", "16-bit TIFF"]
)
def test_read__fewer_bits_than_the_file_has(tmp_path: Path, bits: int, kind: str) -> None:
    """12-bit values in a 16-bit PNG, or 8-bit ones in an int32 TIFF, were black pictures."""
    channels = {"grey and alpha PNG": 2, "colour PNG": 3, "colour and alpha PNG": 4}.get(kind, 1)
    values = np.linspace(0, 2**bits - 1, 48 * channels).reshape(6, 8, channels).astype(np.uint16)
    path = tmp_path / ("a.tif" if "TIFF" in kind else "a.png")
    if "PNG" in kind:
        values[..., channels - 1 + channels % 2 :] = 65_535  # opaque
        path.write_bytes(png_16(values))
    else:
        Image.fromarray(values[..., 0].astype(np.int32 if kind.startswith("int32") else np.uint16)).save(path)
    expected = values[..., : channels - 1 + channels % 2] >> (bits - 8)
    for pixels in (read_upright(path), read_image(path, 6, 8)):
        assert np.array_equal(pixels, np.broadcast_to(expected, (6, 8, 3)))
        assert pixels.max() > 250
    with Image.open(path) as image:
        assert np.array_equal(rgb_of(image), read_upright(path))


@pytest.mark.parametrize(("levels", "top"), [([0, 2**20], 128), ([0, 2**31 - 1], 255), ([0, 0], 0), ([7, 7], 7)])
def test_read__32_bit_levels(tmp_path: Path, levels: list[int], top: int) -> None:
    Image.fromarray(np.array([levels] * 2, dtype=np.int32)).save(tmp_path / "a.tif")
    assert read_upright(tmp_path / "a.tif").max() == top


def test_read__negative_levels_are_told(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1024, 3071]] * 2, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match="holds grey levels from -1024 to 3071, expected 0 or more: convert it"):
        read_upright(tmp_path / "a.tif")


def tiff_16(values: np.ndarray) -> bytes:
    """A TIFF of 16-bit colours, [height, width, 3]."""
    pixels = values.astype("<u2").tobytes()
    height, width, _ = values.shape
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14),
        (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    bits = struct.pack("<HHH", 16, 16, 16)
    return b"II*\0" + struct.pack("<I", 14 + len(pixels)) + bits + pixels + struct.pack("<H", 9) + table + bytes(4)


def test_read__12_bit_colours_in_a_tiff_are_told(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (6, 8, 3))
    (tmp_path / "a.tif").write_bytes(tiff_16(values * 16))
    assert np.array_equal(read_upright(tmp_path / "a.tif"), values * 16 >> 8)
    (tmp_path / "a.tif").write_bytes(tiff_16(values))
    with pytest.raises(UnreadableImage, match="holds 16-bit colours that leave the upper bits empty: convert it"):
        read_upright(tmp_path / "a.tif")


def test_read_image__a_wrong_size_is_told_before_pixels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("read"))
    with pytest.raises(UnreadableImage, match="is 8x6 pixels, the annotations say 9x6"):
        read_image(tmp_path / "a.png", 6, 9)


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


def test_read_image__a_jpeg_cut_in_its_metadata_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0" + bytes(50))
    with pytest.raises(UnreadableImage, match=r"cannot identify image file '.*a\.jpg'"):
        read_image(tmp_path / "a.jpg", 6, 8)


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


def odd_exif(orientation: int) -> bytes:
    """EXIF data whose resolution is a text where a number belongs, which Pillow reads and cannot write again."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    exif[0x0131] = "ab"
    written = exif.tobytes()
    entry = struct.pack(">HHI", 0x0131, 2, 3)
    assert entry in written
    return written.replace(entry, struct.pack(">HHI", 0x011A, 2, 3))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_upright__turned_as_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    """All eight orientations, each against the definition: what the first row and column of the stored picture show."""
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), dtype=np.uint8))).save(path, exif=exif, quality=100)
    turns = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1), 6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(RGB),
    }  # fmt: skip
    expected = turns[orientation].astype(float)
    pixels = read_upright(path)
    assert pixels.shape[:2] == upright_size(path) == (8 * expected.shape[0], 8 * expected.shape[1])
    grey = pixels[4::8, 4::8].mean(axis=2)  # of lossy formats the grey level is the sharpest
    assert np.abs(grey - expected.mean(axis=2)).max() < (70 if suffix == "webp" else 20)
    assert read_image(path, 48, 64).shape == (48, 64, 3)
    assert read_image(path, *upright_size(path)).shape == pixels.shape


def test_read_image__tiff_annotated_as_stored_is_turned_back(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.fromarray(RGB).save(tmp_path / "a.tif", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.tif", 6, 8), RGB)
    assert np.array_equal(read_image(tmp_path / "a.tif", 8, 6), np.rot90(RGB, -1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_read_upright__a_text_where_exif_has_a_number(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, exif=odd_exif(6))
    with Image.open(path) as image, pytest.raises((TypeError, struct.error)):
        ImageOps.exif_transpose(image)  # the entry is one that stops Pillow's own function
    assert read_upright(path).shape == (8, 6, 3)
    assert upright_size(path) == (8, 6)
    assert read_image(path, 8, 6).shape == (8, 6, 3)
    assert read_image(path, 6, 8).shape == (6, 8, 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_read_upright__a_jpeg_that_pillow_does_not_open(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION], exif[0x0128], exif[0x011A] = orientation, 2, 72.0
    Image.fromarray(RGB).save(tmp_path / "sound.jpg", exif=exif)
    data = (tmp_path / "sound.jpg").read_bytes()
    entry = data.index(struct.pack(">HHI", 0x011A, 5, 1))
    (tmp_path / "a.jpg").write_bytes(data[: entry + 2] + b"\0\2" + data[entry + 4 :])  # the resolution is a text
    with pytest.raises(UnidentifiedImageError):
        Image.open(tmp_path / "a.jpg")
    assert np.array_equal(read_upright(tmp_path / "a.jpg"), read_upright(tmp_path / "sound.jpg"))
    assert upright_size(tmp_path / "a.jpg") == upright_size(tmp_path / "sound.jpg")


@pytest.mark.parametrize(
    "data", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0nothing", b"Exif\0\0MM\0*"]
)
def test_read_upright__unusable_exif_leaves_the_picture_as_stored(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path, exif=data)
    with Image.open(path) as image:
        stored = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_upright(path), stored)
    assert upright_size(path) == (6, 8)
    assert np.array_equal(read_image(path, 6, 8), stored)


@pytest.mark.parametrize("value", [0, 9, 65_535])
def test_read_upright__orientations_that_do_not_exist(tmp_path: Path, value: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = value
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_upright(tmp_path / "a.png"), RGB)


def test_read_upright__whatever_pillow_raises_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")

    def fail(self: Image.Image) -> None:
        raise KeyError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    for read in (read_upright, lambda path: read_image(path, 6, 8)):
        with pytest.raises(UnreadableImage, match=r"^cannot be decoded \(KeyError\)$"):
            read(tmp_path / "a.png")
