"""YOLO's segmentation and detection sets: ``data.yaml``, pictures in ``images``, a text file of each in ``labels``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sam3slim.data.layouts.source import Pictures, Source, content_of, shown
from sam3slim.data.pictures import picture_files
from sam3slim.data.values import number, short, whole
from sam3slim.errors import UserError

SUFFIXES = (".yaml", ".yml")
SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LINE = "expected CLASS X1 Y1 X2 Y2 X3 Y3 … or CLASS X Y WIDTH HEIGHT, in 0..1"
BOX = 5  # numbers of a line with a box


def is_yolo(path: Path) -> bool:
    """Whether a file is the description of such a set."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    try:
        content = _described(path)
    except UserError:
        return False
    return "names" in content and any(key in content for keys in SPLIT_KEYS.values() for key in keys)


def read_yolo(source: Source) -> dict[str, Any]:
    """COCO's dict of one split; boxes and polygons in pixels.

    A picture without label file has no objects. Of lines with keypoints (``kpt_shape``) the box is read.

    Raises:
        UserError: no such split, a line that is none, a class without a name.
    """
    described = _described(source.path)
    names = _names(source.path, described.get("names"))
    keypoints = described.get("kpt_shape") is not None
    pictures = Pictures(source.path.parent, source.skip)
    annotations: list[dict[str, Any]] = []
    for path in shown(_pictures(source, described), f"reading {source.path.name}"):
        entry = pictures.add(path)
        if entry is not None:
            annotations += _objects(path, entry, names, keypoints=keypoints)
    return content_of("YOLO", pictures, annotations, names.items())


def _described(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read {path}: {reason}; give YOLO's data.yaml with names, train and val") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {short(content)}; expected YOLO's names, train and val")
    return content


def _names(path: Path, given: Any) -> dict[int, str]:
    listed = dict(enumerate(given)) if isinstance(given, list) else given
    pairs = list(listed.items()) if isinstance(listed, dict) else []
    found = {number: name for key, name in pairs if isinstance(name, str) and (number := whole(key)) is not None}
    if not pairs or len(found) < len(pairs):
        raise UserError(f"{path}: names is {short(given)}, expected a list of names, or {{0: name, 1: name, …}}")
    return found


def _pictures(source: Source, described: dict[str, Any]) -> Iterator[Path]:
    if source.images is not None:
        yield from picture_files(source.images)
        return
    given = next((described[key] for key in SPLIT_KEYS[source.split] if described.get(key)), None)
    if given is None:
        there = [split for split, keys in SPLIT_KEYS.items() if any(described.get(key) for key in keys)]
        raise UserError(
            f"{source.path} names no {source.split} images (it has {', '.join(there) or 'none'}); add them there, or "
            f"choose a split that it has{f', such as data.split={there[-1]}' if there else ''}"
        )
    for place in given if isinstance(given, list) else [given]:
        path = _place(source.path, described.get("path"), place)
        yield from _listed(path) if path.is_file() else picture_files(path)


def _place(file: Path, root: Any, place: Any) -> Path:
    """Where ``place`` is: below ``path`` of the file, or beside it (also where exports write "../train/images")."""
    if not isinstance(place, str):
        raise UserError(f"{file}: {short(place)} is no folder; expected a path in quotes")
    plain = place.replace("\\", "/")
    bases = [file.parent / str(root), Path(str(root))] if root else []
    inside = plain
    while inside.startswith(("../", "./")):
        inside = inside.split("/", 1)[1]
    for path in [*(base / plain for base in bases), file.parent / plain, file.parent / inside]:
        if os.path.exists(path):
            return Path(os.path.normpath(path))
    raise UserError(f"{file}: no folder {short(place)} (looked below {file.parent}); correct it there")


def _listed(file: Path) -> Iterator[Path]:
    """The pictures that a text file lists, relative to its folder."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; expected a path of a picture on every line") from error
    for line in lines:
        if name := line.strip():
            path = file.parent / name.replace("\\", "/")
            if not os.path.isfile(path):
                raise UserError(f"{file} lists {short(name)}, which is not there; correct it there")
            yield Path(os.path.normpath(path))


def _labels(picture: Path) -> Path:
    """``…/labels/NAME.txt`` of ``…/images/NAME.jpg``; beside the picture where no folder is called images."""
    parts = list(picture.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _objects(
    picture: Path, entry: dict[str, Any], names: dict[int, str], *, keypoints: bool
) -> Iterator[dict[str, Any]]:
    file = _labels(picture)
    if not os.path.isfile(file):
        return
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}; {LINE} on every line") from error
    for place, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        values, kind = [number(word) for word in words[1:]], whole(words[0])
        given = [value for value in values if value is not None]
        is_box = len(words) == BOX or (keypoints and len(words) > BOX)
        is_polygon = len(words) >= 7 and len(words) % 2 == 1
        if kind is None or len(given) < len(values) or not (is_box or is_polygon):
            raise UserError(f"{file} line {place} is {short(line)}, {LINE}")
        if kind not in names:
            raise UserError(f"{file} line {place} has class {words[0]}, and data.yaml names {short(list(names))}")
        height, width = entry["height"], entry["width"]
        found: dict[str, Any] = {"image_id": entry["id"], "category_id": kind}
        if is_box:
            x, y, w, h = given[:4]
            found["bbox"] = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        else:
            found["segmentation"] = [[value * (height if i % 2 else width) for i, value in enumerate(given)]]
        yield found
