"""Pictures with odd EXIF and TIFF entries, always the same for the same number."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam3slim.data.images import UnreadableImage, read_image, read_upright, upright_size

HEIGHT, WIDTH = 24, 32
Rng = np.random.Generator


def exif_of(rng: Rng) -> Image.Exif:
    """Entries of every type that Exif knows, the orientation among them."""
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(0, 10))
    exif[0x010F], exif[0x0110], exif[0x0131] = "maker", "model", "software"
    exif[0x011A], exif[0x0128], exif[0x0213] = 72.0, 2, 1
    exif[0x9286] = b"comment"
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00", 0x829A: 0.01, 0x9000: b"0232"}
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 2.5)}
    return exif


def encoded(rng: Rng) -> tuple[str, bytes]:
    """A sound picture of some format with Exif or TIFF entries: its ending and its bytes."""
    kinds = ["jpg"] * 5 + ["tif"] * 5 + ["png", "webp"]
    kind = kinds[int(rng.integers(len(kinds)))]
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    options: dict[str, Any] = {}
    if kind == "tif":
        modes = ["RGB", "L", "1", "P", "I;16", "CMYK", "LAB", "F", "I"]
        mode = modes[int(rng.integers(len(modes)))]
        grey = pixels[..., 0]
        if mode in ("I;16", "I", "F"):
            types = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
            image = Image.fromarray(grey.astype(types[mode]) * 16)
        elif mode != "LAB":
            image = image.convert(mode)
        packings = [None, "tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate"]
        packing = packings[int(rng.integers(len(packings)))]
        if packing is not None:  # libtiff refuses to write what is odd already
            options = {"compression": packing, "tiffinfo": {0x0112: int(rng.integers(1, 9))}}
    options = options or {"exif": exif_of(rng).tobytes()}
    buffer = io.BytesIO()
    image.save(
        buffer,
        {"jpg": "JPEG", "tif": "TIFF", "png": "PNG", "webp": "WEBP"}[kind],
        **options,
    )
    return kind, buffer.getvalue()


def entries_of(data: bytes) -> list[tuple[int, str]]:
    """Where the 12-byte entries of the TIFF directories in ``data`` are, and their byte order."""
    found = []
    for mark, order in ((b"II*\0", "<"), (b"MM\0*", ">")):
        start = data.find(mark)
        if start < 0:
            continue
        (offset,) = struct.unpack_from(f"{order}I", data, start + 4)
        for _ in range(4):
            place = start + offset
            if not 0 < offset < len(data) - start - 2:
                break
            (count,) = struct.unpack_from(f"{order}H", data, place)
            end = place + 2 + 12 * count
            found += [(place + 2 + 12 * i, order) for i in range(count) if place + 14 + 12 * i <= len(data)]
            if end + 4 > len(data):
                break
            (offset,) = struct.unpack_from(f"{order}I", data, end)
    return found


def broken_picture(number: int) -> tuple[str, bytes, bool]:
    """A picture with some odd entries: ending, bytes, and whether all else is sound."""
    rng = np.random.default_rng((1, number))
    kind, data = encoded(rng)
    raw = bytearray(data)
    entries = entries_of(data)
    odd = [0, 1, 2, 255, 256, 32_767, 65_535, 2**31 - 1, 2**31, 2**32 - 1]
    sound = True
    for _ in range(int(rng.integers(1, 4))):
        how = rng.random()
        there = [entry for entry in entries if entry[0] + 12 <= len(raw)]
        sound &= bool(there) and how < 0.75
        if there and how < 0.75:
            place, order = there[int(rng.integers(len(there)))]
            field = int(rng.integers(4))
            value = odd[int(rng.integers(len(odd)))] if rng.random() < 0.7 else int(rng.integers(2**32))
            if field == 0:
                struct.pack_into(f"{order}H", raw, place, value & 0xFFFF)
            elif field == 1:  # the type
                struct.pack_into(f"{order}H", raw, place + 2, int(rng.integers(0, 20)))
            else:  # how many values, and the value or where it is
                struct.pack_into(f"{order}I", raw, place + 4 * (field - 1), value)
        elif how < 0.9:
            first = min(len(raw) - 1, 400)
            raw[int(rng.integers(first))] = int(rng.integers(256))
        elif how < 0.95:
            del raw[int(rng.integers(10, len(raw))) :]
        else:
            place = int(rng.integers(len(raw)))
            raw[place:place] = bytes(rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8))
    at = raw.find(b"eXIf")
    if kind == "png" and sound and at > 0:  # a PNG's chunk of entries ends with its check sum
        end = at + 4 + int.from_bytes(raw[at - 4 : at])
        raw[end : end + 4] = zlib.crc32(raw[at:end]).to_bytes(4)
    return kind, bytes(raw), sound


def read_picture(number: int, folder: Path) -> str:
    """``read`` or ``unreadable``, whatever the picture; anything else escapes."""
    kind, data, sound = broken_picture(number)
    path = folder / f"{number}.{kind}"
    path.write_bytes(data)
    outcomes = []
    for read in (
        upright_size,
        lambda p: read_image(p, HEIGHT, WIDTH),
        lambda p: read_image(p, WIDTH, HEIGHT),
        read_upright,
    ):
        try:
            found = read(path)
            assert not isinstance(found, np.ndarray) or (found.dtype == np.uint8 and found.shape[2:] == (3,))
            outcomes.append("read")
        except UnreadableImage as error:
            told = str(error)
            assert told
            assert "\n" not in told
            assert "memory" not in told.lower(), told
            outcomes.append("unreadable")
    path.unlink()
    # The entries of a TIFF say where its pixels are; those of other pictures are no reason to lose one.
    assert outcomes[-1] == "read" or kind == "tif" or not sound, told
    return outcomes[-1]
