"""Reading any picture a COCO-format set may hold as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Transpose
from torchvision.io import ImageReadMode, decode_image, read_file

EXIF_ORIENTATION = 0x0112
# EXIF orientation → what makes the picture upright (Exif 2.32, table of tag 274).
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
# Markers of a JPEG: the segments that hold metadata, but for JFIF's and Adobe's, and the start of the pixels.
APPLICATION, SCAN = (*range(0xE1, 0xEE), 0xEF), 0xDA
SIDEWAYS = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)


class UnreadableImage(Exception):
    """The picture cannot be used; the message says why in a few words."""


def read_image(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB of a grey-scale, RGB(A), palette, CMYK or 16-bit picture.

    ``height`` and ``width`` are the annotations': a picture with an EXIF rotation is turned when they
    fit the turned picture, and left alone when they fit the stored one.

    Raises:
        UnreadableImage: not a picture, cut off, or of another size than annotated.
    """
    with _opened(path) as image:
        found = f"{image.size[0]}x{image.size[1]}"
        if image.size in ((width, height), (height, width)):  # before pixels that nobody wants fill the memory
            turned, turn = _upright(image)
            stored = turned if turn is None else turned.transpose(_inverse(turn))
            for picture in (turned, stored):
                if picture.size == (width, height):
                    return to_rgb(picture)
        raise UnreadableImage(f"is {found} pixels, the annotations say {width}x{height}")


def read_upright(path: Path) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB of a picture as a viewer shows it: turned as its EXIF entry says.

    Raises:
        UnreadableImage: not there, not a picture, or cut off.
    """
    with _opened(path) as image:
        return to_rgb(upright(image))


def rgb_of(image: Image.Image) -> NDArray[np.uint8]:
    """What ``read_upright`` returns, of a picture that Pillow has opened. Raises UnreadableImage as it does."""
    with _told():
        return to_rgb(upright(image))


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of what ``read_upright`` returns, from the file's header alone.

    Raises:
        UnreadableImage: not there, or not a picture.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow states a TIFF's upright size already.
        sideways = image.format != "TIFF" and _turn(image) in SIDEWAYS
    return (width, height) if sideways else (height, width)


def upright(image: Image.Image) -> Image.Image:
    """``image``, loaded and turned as its EXIF orientation says; not turned where that entry is unusable.

    Of the EXIF data only this one entry is read: ``ImageOps.exif_transpose`` also writes all the others back, and
    fails on an odd one, such as a text where a number belongs.
    """
    return _upright(image)[0]


def _upright(image: Image.Image) -> tuple[Image.Image, Transpose | None]:
    """``upright``, and the turn."""
    kind, deep = image.format, _is_deep(image)  # first: looking for the turn may load the picture
    turn = _turn(image)
    loaded = _loaded(image, deep)
    # Pillow turns a TIFF itself while it loads it.
    return loaded if turn is None or kind == "TIFF" else loaded.transpose(turn), turn


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with _told():
        try:
            image = Image.open(path)
        except OSError as error:  # not a picture, or Pillow stumbled over what it does not need
            if not path.is_file() or (data := _without_metadata(path.read_bytes())) is None:
                raise
            try:
                image = Image.open(BytesIO(data))
            except OSError:  # whose message would name the bytes' place in memory
                raise error from None
        with image:
            yield image


def _without_metadata(data: bytes) -> bytes | None:
    """A JPEG whose only metadata are the orientation; None if ``data`` is none.

    Pillow looks for the resolution among the EXIF entries while it opens a JPEG, and refuses the file where, say, a
    text stands there.
    """
    if data[:2] != b"\xff\xd8":
        return None
    kept, turn, place = [data[:2]], b"", 2
    while data[place : place + 1] == b"\xff" and data[place + 1] != SCAN:
        marker, end = data[place + 1], place + 2 + int.from_bytes(data[place + 2 : place + 4])
        segment = data[place:end]
        if segment[4:10] == b"Exif\0\0":
            turn = turn or _orientation_alone(segment[4:])
        elif marker not in APPLICATION:
            kept.append(segment)
        place = end
    return b"".join([kept[0], turn, *kept[1:], data[place:]])


def _orientation_alone(exif: bytes) -> bytes:
    """A JPEG's EXIF segment that has the orientation of ``exif`` and nothing else; empty if there is none."""
    found, alone = Image.Exif(), Image.Exif()
    try:
        found.load(exif)
        alone[EXIF_ORIENTATION] = int(found[EXIF_ORIENTATION])
        body = alone.tobytes()
    except Exception:  # as in _turn
        return b""
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2) + body


@contextmanager
def _told() -> Iterator[None]:
    """Whatever Pillow raises as UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:  # what Pillow's readers raise depends on where the bytes are broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"cannot be decoded ({reason})") from error


def _turn(image: Image.Image) -> Transpose | None:
    try:
        return TURNS.get(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # Pillow decodes entries when asked, and raises whatever their bytes lead to
        return None


def _inverse(turn: Transpose) -> Transpose:
    quarters = {Transpose.ROTATE_90: Transpose.ROTATE_270, Transpose.ROTATE_270: Transpose.ROTATE_90}
    return quarters.get(turn, turn)


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB of a picture of any mode but floating point (UnreadableImage)."""
    if image.mode.startswith("I"):
        # Pillow clips grey levels at 255 when converting.
        return np.repeat(to_8_bit(np.asarray(image))[..., None], 3, axis=2)
    if image.mode == "F":
        raise UnreadableImage("holds floating-point pixels, expected 8 or 16 bit")
    if image.mode == "P":
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def to_8_bit(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """The upper 8 of the bits that the levels of one picture use: 8, 10, 12, 14, 16 or more.

    Cameras store 12 bits in 16, and tools 8 bits in 32; without a look at the largest level these would be black.

    Raises:
        UnreadableImage: a level below 0.
    """
    levels = levels.astype(np.int64)
    low, high = int(levels.min()), int(levels.max())
    if low < 0:
        raise UnreadableImage(f"holds grey levels from {low} to {high}, expected 0 or more: convert it to 8 bit")
    used = next((bits for bits in (8, 10, 12, 14, 16) if high < 2**bits), high.bit_length())
    return (levels >> (used - 8)).astype(np.uint8)


def _is_deep(image: Image.Image) -> bool:
    """Whether a picture that is not loaded yet has 16-bit colours, of which Pillow keeps the upper 8 bits."""
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _loaded(image: Image.Image, deep: bool) -> Image.Image:
    """``image`` with its pixels, those of 16-bit colours (``deep``) from the bits that are used.

    Raises:
        UnreadableImage: such a picture in a format that Pillow alone reads.
    """
    name, kind = getattr(image, "filename", ""), image.format
    image.load()
    if not deep or np.asarray(image.convert("RGB")).max(initial=0) >= 2**6:
        return image
    if kind != "PNG" or not name:
        raise UnreadableImage("holds 16-bit colours that leave the upper bits empty: convert it to 8 bit")
    levels = decode_image(read_file(str(name)), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    colours = to_8_bit(levels[..., : levels.shape[2] - 1 + levels.shape[2] % 2])  # without alpha
    return Image.fromarray(np.repeat(colours, 3 // colours.shape[2], axis=2))
