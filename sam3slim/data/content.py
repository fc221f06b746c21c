"""Annotation files and folders as COCO's dict of images, annotations and categories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam3slim.data.dialects import picture_name
from sam3slim.data.layouts.masks import read_masks
from sam3slim.data.layouts.source import Source
from sam3slim.data.layouts.voc import is_voc, read_voc
from sam3slim.data.layouts.yolo import SUFFIXES, read_yolo
from sam3slim.errors import UserError
from sam3slim.files import read_json

# File suffix → reader of annotations in another format: path and split → COCO's dict.
FORMATS: dict[str, Callable[[Path, str], dict[str, Any]]] = {}


def read_content(path: Path, split: str, *, images: Path | None = None, skip: bool = False) -> dict[str, Any]:
    """COCO's dict of what an annotation file or folder says of ``split``; only its three lists are checked.

    Args:
        images: the folder of images, where it is given.
        skip: leave out pictures that cannot be read, where they must be looked at.

    Raises:
        UserError: it cannot be read, or lacks one of the lists, or any image.
    """
    if path.suffix.lower() in FORMATS:
        content = FORMATS[path.suffix.lower()](path, split)
    elif path.suffix.lower() in SUFFIXES or path.is_dir():
        source = Source(path, split, images, skip)
        content = read_yolo(source) if path.is_file() else read_voc(source) if is_voc(path) else read_masks(source)
    else:
        content = read_json(path, "give a COCO annotation file")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(f"{path} is not a COCO annotation file: no list {', '.join(missing)} in it")
    if not content["images"]:
        raise UserError(f"{path} lists no images")
    return content


def file_names(content: dict[str, Any]) -> list[str]:
    """The file names of its images, each once."""
    named = (picture_name(image) for image in content["images"] if isinstance(image, dict))
    return list(dict.fromkeys(name for name in named if name is not None))
