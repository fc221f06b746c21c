"""A folder of pictures and a list of phrases as a data set without annotations, for a teacher to label."""

from __future__ import annotations

import os
from pathlib import Path

from sam3slim.data.annotations import Category, CocoIndex, DataReport, ImageRecord
from sam3slim.data.images import UnreadableImage, upright_size
from sam3slim.data.phrases import read_phrase_list
from sam3slim.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def picture_index(folder: Path, phrases: Path, *, skip: bool = False) -> CocoIndex:
    """Every picture below ``folder`` (hidden ones left out, by name), asked for the lines of a text file.

    Ids count from 1, in the order of names and lines. Only the pictures' headers are read.

    Args:
        phrases: UTF-8, a phrase on every line; blank lines and repeated phrases are left out.
        skip: leave out pictures that cannot be read, instead of stopping.

    Raises:
        UserError: no folder, no picture, no phrase, or an unreadable picture.
    """
    if not folder.is_dir():
        raise UserError(f"data.images: {folder} is not a folder; expected one with pictures")
    report = DataReport()
    records: list[ImageRecord] = []
    for path in _pictures(folder):
        try:
            height, width = upright_size(path)
        except UnreadableImage as error:
            if not skip:
                raise UserError(f"image {path} {error}; fix or remove it, or set data.on_unreadable=skip") from error
            report.images_unreadable += 1
            continue
        records.append(ImageRecord(len(records) + 1, path.relative_to(folder).as_posix(), height, width))
    if not records:
        raise UserError(f"data.images: {folder} holds no picture ({', '.join(SUFFIXES)}); choose another folder")
    # Lower case, as phrases made of categories' names are.
    listed = dict.fromkeys(phrase.lower() for phrase in read_phrase_list(phrases))
    categories = [Category(number, phrase) for number, phrase in enumerate(listed, start=1)]
    report.images = report.images_without_annotations = len(records)
    report.categories = len(categories)
    return CocoIndex(phrases, records, categories, has_masks=False, report=report)


def _pictures(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(files) if _is_picture(name)]
    return found


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
