"""A folder of pictures and a list of phrases as a data set without annotations, for a teacher to label."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from PIL import Image

from sam3slim.data.images import UnreadableImage, upright_size
from sam3slim.data.records import Category, CocoIndex, ImageRecord
from sam3slim.data.report import DataReport
from sam3slim.errors import UserError
from sam3slim.text.phrases import read_phrase_list

# Pillow knows their endings and cannot draw them: data grids, films, and what needs another program.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
Item = TypeVar("Item")
EXPECTED = "files that Pillow opens, such as .jpg, .png, .tif or .webp"


def picture_index(folder: Path, phrases: Path, *, skip: bool = False, split: str | None = None) -> CocoIndex:
    """Every picture below ``folder`` (hidden ones left out, by name), asked for the lines of a text file.

    Ids count from 1, in the order of names and lines. Only the pictures' headers are read.

    Args:
        phrases: UTF-8, a phrase on every line; blank lines and repeated phrases are left out.
        skip: leave out pictures that cannot be read, instead of stopping.
        split: only those of this split, dealt by name: of four pictures two are train, one val, one test; None: all.

    Raises:
        UserError: no folder, no picture, no phrase, or an unreadable picture.
    """
    if not folder.is_dir():
        raise UserError(f"data.images: {folder} is not a folder; expected one with pictures")
    report = DataReport("pictures without annotations")
    records: list[ImageRecord] = []
    for path in picture_files(folder):
        try:
            height, width = upright_size(path)
        except UnreadableImage as error:
            if not skip:
                raise UserError(f"image {path} {error}; fix or remove it, or set data.on_unreadable=skip") from error
            report.note("images_unreadable", f"{path} {error}")
            continue
        records.append(ImageRecord(len(records) + 1, path.relative_to(folder).as_posix(), height, width))
    if not records:
        raise UserError(f"data.images: {folder} holds no picture ({EXPECTED}); choose another folder")
    if split is not None:
        records = dealt(records, split)
        if not records:
            raise UserError(
                f"data.root: {folder} has too few pictures to divide among train, val and test; at least 4 are needed"
            )
    # Lower case, as phrases made of categories' names are.
    listed = dict.fromkeys(phrase.lower() for phrase in read_phrase_list(phrases))
    categories = [Category(number, phrase) for number, phrase in enumerate(listed, start=1)]
    report.images = report.images_without_annotations = len(records)
    report.categories = len(categories)
    return CocoIndex(phrases, records, categories, has_masks=False, report=report)


def dealt(items: Sequence[Item], split: str) -> list[Item]:
    """Those that fall to ``split``: of four in a row two are train, one val, one test."""
    return list(items[1::4] if split == "val" else items[3::4] if split == "test" else items[::2])


def picture_files(folder: Path, leave_out: Path | None = None) -> Iterator[Path]:
    """Every picture below ``folder`` by its ending, hidden files and folders left out: files by name, then folders.

    Links to folders are followed, but each folder is visited once.

    Args:
        leave_out: a folder that is not entered.

    Raises:
        UserError: a folder that cannot be listed.
    """
    seen = {os.path.realpath(leave_out)} if leave_out is not None else set()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(place, name)) not in seen
        )
        yield from (Path(place, name) for name in sorted(files) if is_picture(name))


def is_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture: not hidden, and with an ending of one that Pillow opens."""
    return os.path.splitext(name)[1].lower() in _suffixes() and not name.startswith(".")


@lru_cache
def _suffixes() -> frozenset[str]:
    kinds = Image.registered_extensions()  # first: loads all of Pillow's readers
    readable = (Image.OPEN.keys() | {"MPO"}) - NOT_PICTURES  # MPO goes through the reader of JPEG
    return frozenset(suffix for suffix, kind in kinds.items() if kind in readable)


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot list {error.filename}: {error.strerror}; fix its permissions or leave it out")
