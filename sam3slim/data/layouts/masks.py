"""Masks as pictures: one for each object, or one for each image whose values tell the objects apart.

images/street.jpg
masks/street/yellow bus_1.png    an object: what is not black; named after its category, with or without a number
masks/yellow bus/street_1.png    the same, by category
masks/street.png                 an index map: every value above 0 is an object
masks/categories.json            {"1": "yellow bus"}: value (or colour "#ff0000") → category; "*" for all others
masks/street.json                the same for one image
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.data.layouts.source import Pictures, Source, content_of, shown
from sam3slim.data.pictures import picture_files
from sam3slim.data.values import short, whole
from sam3slim.errors import UserError
from sam3slim.files import read_json

SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
CATEGORIES, ANY = "categories.json", "*"
VOID = 255  # the value for "no object" beside 0, unless it has a category
INSTANCES = 1000  # Cityscapes: category 26's third object has the value 26002
EXPECTED = 'expected {"1": "category", …}, value → category, or {"*": "category"} for all'


def is_masks(folder: Path) -> bool:
    """Whether a folder holds pictures of masks."""
    return any(path.suffix.lower() in SUFFIXES for path in picture_files(folder))


def read_masks(source: Source) -> dict[str, Any]:
    """COCO's dict: one annotation for each object.

    Raises:
        UserError: no pictures, a mask of another size than its picture, values or files without a category.
    """
    folder = source.images or _images(source.path)
    pictures = Pictures(folder, source.skip)
    found = (path for path in picture_files(folder, leave_out=source.path))
    by_stem = {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    if not by_stem:
        raise UserError(f"{folder} holds no picture for the masks in {source.path}; set data.images=FOLDER")
    files = _by_picture(source.path, by_stem)
    common = _categories(source.path.parent / CATEGORIES) | _categories(source.path / CATEGORIES)
    listed = dict.fromkeys(common.values())
    numbers = {name: number for number, name in enumerate(listed, start=1)}
    annotations: list[dict[str, Any]] = []
    for path in shown(by_stem.values(), f"reading {source.path.name}"):
        entry = pictures.add(path)
        if entry is None:
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        known = common | _categories(source.path / f"{stem}.json")
        for file, category in files.get(stem, ()):
            for name, mask in _objects(file, category, known, entry):
                number = numbers.setdefault(name, len(numbers) + 1)
                annotations.append({"image_id": entry["id"], "category_id": number, "segmentation": encoded(mask)})
    if len(numbers) - len(listed) > max(20, 0.8 * len(annotations)):
        raise UserError(
            f"the files in {source.path} give {len(numbers)} categories for {len(annotations)} objects; name them "
            f'CATEGORY_NUMBER.png, or write {{"{ANY}": "category"}} to {source.path / CATEGORIES}'
        )
    return content_of("masks", pictures, annotations, ((number, name) for name, number in numbers.items()))


def read_map(file: Path) -> NDArray[np.int64]:
    """[height, width] values of an index map: grey levels or palette entries as they are, colours as R·2¹⁶ + G·2⁸ + B.

    Raises:
        UserError: not a picture.
    """
    try:
        with Image.open(file) as image:
            if image.mode in ("P", "L", "1", "I") or image.mode.startswith("I;16"):
                return np.asarray(image).astype(np.int64)
            values = np.asarray(image.convert("RGB")).astype(np.int64)
    except Exception as error:  # what Pillow's readers raise depends on where the bytes are broken
        raise UserError(f"mask {file} cannot be decoded ({' '.join(str(error).split())}); fix or remove it") from error
    if (values[..., 0] == values[..., 1]).all() and (values[..., 1] == values[..., 2]).all():
        return values[..., 0]
    found: NDArray[np.int64] = values @ np.array([2**16, 2**8, 1])
    return found


def encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's RLE of a mask [height, width], with counts as text."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _images(folder: Path) -> Path:
    """``…/images/…`` of ``…/masks/…``; the folder above where there is none."""
    parts = list(folder.parts)
    places = [i for i, part in enumerate(parts) if part == "masks"]
    if places:
        there = Path(*[*parts[: places[-1]], "images", *parts[places[-1] + 1 :]])
        if there.is_dir():
            return there
        beside = Path(*[*parts[: places[-1]], *parts[places[-1] + 1 :]])
        return beside if beside.is_dir() else folder.parent
    return folder.parent


def _by_picture(folder: Path, by_stem: dict[str, Path]) -> dict[str, list[tuple[Path, str | None]]]:
    """Picture → its mask files, each with its category; None: its values tell.

    Raises:
        UserError: a file that belongs to no picture.
    """
    found: dict[str, list[tuple[Path, str | None]]] = {}
    lost = []
    for path in picture_files(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        place, _, last = stem.rpartition("/")
        if stem in by_stem:
            found.setdefault(stem, []).append((path, None))
        elif place in by_stem:
            found.setdefault(place, []).append((path, _without_number(last)))
        elif (own := _of_category(stem, by_stem)) is not None:
            found.setdefault(own[0], []).append((path, own[1]))
        else:
            lost.append(path)
    if lost:
        raise UserError(
            f"{len(lost)} masks in {folder} belong to no picture, the first is {lost[0].relative_to(folder)}; expected "
            "PICTURE/CATEGORY_1.png, CATEGORY/PICTURE_1.png or PICTURE.png"
        )
    return found


def _of_category(stem: str, by_stem: dict[str, Path]) -> tuple[str, str] | None:
    """Picture and category of ``CATEGORY/PICTURE``, ``CATEGORY/PICTURE_1`` or ``PICTURE_CATEGORY_1``."""
    category, _, rest = stem.partition("/")
    for name in (rest, re.sub(r"[_-]\d+$", "", rest)):
        if name and name in by_stem:
            return name, category
    cut = [i for i, letter in enumerate(stem) if letter in "_-" and stem[:i] in by_stem]
    return (stem[: cut[-1]], _without_number(stem[cut[-1] + 1 :])) if cut else None


def _without_number(name: str) -> str:
    return re.sub(r"[_ -]*\d+$", "", name) or name


def _categories(file: Path) -> dict[int | str, str]:
    """Value, or "*" → category; {} where there is no such file."""
    if not os.path.isfile(file):
        return {}
    found: dict[int | str, str] = {}
    for key, name in read_json(file, EXPECTED).items():
        value = int(key[1:], 16) if re.fullmatch(r"#[0-9a-fA-F]{6}", key) else whole(key)
        if not isinstance(name, str) or not name.strip() or (value is None and key != ANY):
            raise UserError(f"{file}: {short({key: name})}, {EXPECTED}")
        found[ANY if value is None else value] = name
    return found


def _objects(
    file: Path, category: str | None, known: dict[int | str, str], entry: dict[str, Any]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    values = read_map(file)
    if values.shape != (entry["height"], entry["width"]):
        raise UserError(
            f"mask {file} is {values.shape[1]}x{values.shape[0]} pixels, and its picture {entry['file_name']} "
            f"{entry['width']}x{entry['height']}; a mask has its picture's size"
        )
    if category is not None:
        if (values > 0).any():
            yield known.get(ANY, category), values > 0
        return
    for value in np.unique(values[values > 0]).tolist():
        name = known.get(value) or known.get(value // INSTANCES if value >= INSTANCES else value)
        if name is None and value != VOID:
            name = known.get(ANY)
            if name is None:
                raise UserError(
                    f"mask {file} has the value {value}, which has no category; write them to "
                    f"{file.parent / CATEGORIES}: {EXPECTED}"
                )
        if name is not None:
            yield name, values == value
