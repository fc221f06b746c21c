"""Annotation files as COCO's dict of images, annotations and categories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam3slim.data.dialects import picture_name
from sam3slim.errors import UserError
from sam3slim.files import read_json

# File suffix → reader of annotations in another format: path and split → COCO's dict.
FORMATS: dict[str, Callable[[Path, str], dict[str, Any]]] = {}


def read_content(path: Path, split: str) -> dict[str, Any]:
    """COCO's dict of what an annotation file says of ``split``; only its three lists are checked.

    Raises:
        UserError: it cannot be read, or lacks one of the lists, or any image.
    """
    reader = FORMATS.get(path.suffix.lower())
    content = reader(path, split) if reader else read_json(path, "give a COCO annotation file")
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
