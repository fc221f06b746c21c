"""Reading any picture a COCO-format set may hold as 8-bit RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

EXIF_ORIENTATION = 0x0112


class UnreadableImage(Exception):
    """The picture cannot be used; the message says why in a few words."""


def read_image(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB of a grey-scale, RGB(A), palette, CMYK or 16-bit picture.

    ``height`` and ``width`` are the annotations': a picture with an EXIF rotation is turned when they
    fit the turned picture, and left alone when they fit the stored one.

    Raises:
        UnreadableImage: not a picture, cut off, or of another size than annotated.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                turned = ImageOps.exif_transpose(image)
                if turned.size == (width, height):
                    return to_rgb(turned)
            if image.size != (width, height):
                found = f"{image.size[0]}x{image.size[1]}"
                raise UnreadableImage(f"is {found} pixels, the annotations say {width}x{height}")
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"cannot be decoded ({' '.join(str(error).split())})") from error


def read_upright(path: Path) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB of a picture as a viewer shows it: turned as its EXIF entry says.

    Raises:
        UnreadableImage: not there, not a picture, or cut off.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"cannot be decoded ({' '.join(str(error).split())})") from error


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of what ``read_upright`` returns, from the file's header alone.

    Raises:
        UnreadableImage: not there, or not a picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"cannot be decoded ({' '.join(str(error).split())})") from error
    return (width, height) if turned else (height, width)


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
