"""Pascal VOC: an XML file for each picture, masks as index maps in ``SegmentationObject``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sam3slim.data.layouts.masks import encoded, read_map
from sam3slim.data.layouts.source import Pictures, Source, content_of, shown
from sam3slim.data.pictures import picture_files
from sam3slim.data.values import number, short, whole
from sam3slim.errors import UserError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FOLDERS = ("JPEGImages", "images", "Images")


def is_voc(folder: Path) -> bool:
    """Whether a folder holds XML files."""
    return any(name.lower().endswith(".xml") for name in os.listdir(folder))


def read_voc(source: Source) -> dict[str, Any]:
    """COCO's dict of one split: of the pictures that ``ImageSets`` lists, of all where nothing is listed.

    Corners count pixels from 1, both included. What is marked as difficult is a region to ignore, as VOC's evaluation
    does.

    Raises:
        UserError: no XML, or a file that is none or has no object's name or box.
    """
    files = sorted(path for path in source.path.iterdir() if path.suffix.lower() == ".xml")
    wanted = _listed(source)
    folder = source.images or next(
        (source.path.parent / name for name in FOLDERS if (source.path.parent / name).is_dir()), source.path
    )
    pictures = Pictures(folder, source.skip)
    by_stem = {path.relative_to(folder).with_suffix("").as_posix(): path for path in picture_files(folder)}
    numbers: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    for file in shown(files, f"reading {source.path.name}"):
        root = _parsed(file)
        objects = [(_name(file, item), item) for item in root.findall("object")]
        for name, _ in objects:  # also of other splits: a category has one number in all of them
            numbers.setdefault(name, len(numbers) + 1)
        if wanted is not None and file.stem not in wanted:
            continue
        entry = {"id": len(pictures.entries) + 1, "file_name": _picture(folder, file.stem, root, by_stem)}
        entry |= _size(root)
        pictures.entries.append(entry)
        masks = _masks(source.path, file.stem)
        for place, (name, item) in enumerate(objects, start=1):
            found = {"image_id": entry["id"], "category_id": numbers[name], "bbox": _box(file, item)}
            found["iscrowd"] = item.findtext("difficult", "0").strip() or "0"
            if masks is not None and (masks == place).any():
                found["segmentation"] = encoded(masks == place)
            annotations.append(found)
    if not pictures.entries:
        raise UserError(f"{source.path} has no annotations of the {source.split} split; correct its ImageSets")
    return content_of("Pascal VOC", pictures, annotations, ((number, name) for name, number in numbers.items()))


def _listed(source: Source) -> set[str] | None:
    """The pictures of the split, without their endings; None where no list is there."""
    sets = source.path.parent / "ImageSets"
    for name in ("Segmentation", "Main", "Default"):
        lists = sorted((sets / name).glob("*.txt"))
        file = sets / name / f"{source.split}.txt"
        if file.is_file():
            return {line.split()[0] for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
        if {path.stem for path in lists} & {"train", "val", "test", "trainval"}:
            there = ", ".join(path.stem for path in lists if path.stem in ("train", "val", "test"))
            raise UserError(
                f"{sets / name} has no {source.split}.txt (it has {there}); add it, or choose another data.split"
            )
    return None


def _parsed(file: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"cannot read {file} as XML: {error}; expected Pascal VOC's <annotation>") from error
    if root.tag != "annotation":
        raise UserError(f"{file} holds <{root.tag}>; expected Pascal VOC's <annotation>")
    return root


def _name(file: Path, item: ElementTree.Element) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{file}: an object has no <name>; its phrase is the prompt, so give one")
    return name


def _picture(folder: Path, stem: str, root: ElementTree.Element, by_stem: Mapping[str, Path]) -> str:
    """The picture's name: what the file says where that is there, else the picture of the file's name."""
    given = (root.findtext("filename") or "").strip()
    if stem in by_stem and not (given and os.path.isfile(folder / given)):
        return by_stem[stem].relative_to(folder).as_posix()
    return given or stem


def _size(root: ElementTree.Element) -> dict[str, Any]:
    """{"height", "width"}, or nothing where the file says 0 or nothing: it is then read from the picture."""
    size = {key: whole(root.findtext(f"size/{key}")) for key in ("height", "width")}
    return dict(size) if all(size.values()) else {}


def _box(file: Path, item: ElementTree.Element) -> list[float]:
    found = [number(item.findtext(f"bndbox/{key}")) for key in CORNERS]
    left, top, right, low = (value if value is not None else float("nan") for value in found)
    if None in found:
        given = short({key: item.findtext(f"bndbox/{key}") for key in CORNERS})
        raise UserError(f"{file}: an object has the box {given}, expected numbers of pixels; correct it there")
    return [left - 1, top - 1, right - left + 1, low - top + 1]


def _masks(folder: Path, stem: str) -> NDArray[np.int64] | None:
    """[height, width] number of the object of each pixel, from 1; None where there is no such file."""
    file = folder.parent / "SegmentationObject" / f"{stem}.png"
    return read_map(file) if os.path.isfile(file) else None
