"""Reading any picture a COCO-format set may hold as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Transpose

EXIF_ORIENTATION = 0x0112
# EXIF orientation → what makes the picture upright (Exif 2.32, table of tag 274).
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
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
        turn = _turn(image)
        turned = upright(image)
        if turned.size == (width, height):
            return to_rgb(turned)
        stored = turned if turn is None else turned.transpose(_inverse(turn))
        if stored.size != (width, height):
            found = f"{stored.size[0]}x{stored.size[1]}"
            raise UnreadableImage(f"is {found} pixels, the annotations say {width}x{height}")
        return to_rgb(stored)


def read_upright(path: Path) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB of a picture as a viewer shows it: turned as its EXIF entry says.

    Raises:
        UnreadableImage: not there, not a picture, or cut off.
    """
    with _opened(path) as image:
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
    turn = _turn(image)
    image.load()
    # Pillow turns a TIFF itself while it loads it.
    return image if turn is None or image.format == "TIFF" else image.transpose(turn)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
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
        # Pillow clips 16-bit grey levels at 255 when converting; keep the upper byte instead.
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise UnreadableImage("holds floating-point pixels, expected 8 or 16 bit")
    if image.mode == "P":
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
